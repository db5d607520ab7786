"""Price a plan before it runs: tokens, floating point operations, bytes.

Operations are those of the matrix products in the blocks, two per multiply-add. Norms, softmax,
embeddings and head are left out (about 1 % of a 720p Wan forward), and so are text encoder and VAE.
Bytes are the weights and activations of `surf_core.refiner`.

Dims: N video tokens, L text tokens, D width, T latent frames.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, fields
from math import ceil, prod
from typing import Any

from .window import segments, token_bounds


@dataclass(frozen=True, kw_only=True, slots=True)
class ModelShape:
    """The sizes of a video DiT that its cost depends on."""

    name: str
    """As people call it."""
    dim: int
    """Width D of the residual stream."""
    layers: int
    """Transformer blocks."""
    heads: int
    """Attention heads; the cost does not depend on it."""
    ffn_dim: int
    """Hidden width of the feed-forward network."""
    text_tokens: int
    """Text tokens L of one forward."""
    cell_pixels: int = 8
    """Pixels along a side of a latent cell."""
    cell_frames: int = 4
    """Pixel frames of a latent frame; the first latent frame holds one."""
    patch: tuple[int, int, int] = (1, 2, 2)
    """Latent cells in one token: frames, rows, columns."""
    joint_text: bool = False
    """True: text tokens pass through the same blocks; False: cross-attention looks at them."""
    latent_channels: int = 16
    """Channels of the latent, in and out."""
    text_dim: int = 4096
    """Width of a text token before the model."""
    freq_dim: int = 256
    """Width of the timestep's features."""
    block: str = "wan"
    """The block, see `surf_core.refiner.RefinerConfig`; the operations do not depend on it."""

    @classmethod
    def of(
        cls, config: object, name: str = "refiner", text_tokens: int = 512, **more: Any
    ) -> "ModelShape":
        """Read the shape of a `RefinerConfig`; `more` has fields that a config lacks (cells)."""
        shared = [field.name for field in fields(cls) if hasattr(config, field.name)]
        known = {field: getattr(config, field) for field in shared}
        return cls(name=name, text_tokens=text_tokens, **known | more)


WAN_14B = ModelShape(
    name="Wan 2.1 14B", dim=5120, layers=40, heads=40, ffn_dim=13824, text_tokens=512
)
"""Also either expert of Wan 2.2 A14B."""
WAN_1_3B = ModelShape(
    name="Wan 2.1 1.3B", dim=1536, layers=30, heads=12, ffn_dim=8960, text_tokens=512
)
WAN_5B = ModelShape(
    name="Wan 2.2 5B", dim=3072, layers=30, heads=24, ffn_dim=14336, text_tokens=512,
    cell_pixels=16, latent_channels=48,
)  # fmt: skip
HUNYUAN_VIDEO = ModelShape(
    name="HunyuanVideo", dim=3072, layers=60, heads=24, ffn_dim=12288, text_tokens=256,
    joint_text=True,
)  # fmt: skip
"""20 two-stream and 40 one-stream blocks; both cost the same per token."""
SURF_1B = ModelShape(
    name="SURF refiner 1B", dim=1152, layers=40, heads=16, ffn_dim=4608, text_tokens=512,
    block="scale",
)  # fmt: skip
"""Width and heads of SURF Tab. R6; depth and feed-forward are ours, to reach 1 B."""
TINY = ModelShape(
    name="tiny", dim=128, layers=6, heads=1, ffn_dim=512, text_tokens=3, cell_pixels=4,
    cell_frames=1,
)  # fmt: skip
"""The embedded model of `surf_core.tiny`."""
SHAPES = (WAN_14B, WAN_1_3B, WAN_5B, HUNYUAN_VIDEO, SURF_1B, TINY)


def latent_frames(shape: ModelShape, frames: int) -> int:
    """Count the latent frames of `frames` pixel frames: 81 are 21 for Wan."""
    if frames < 1:
        raise ValueError(f"expected at least one frame, got {frames=}; use 81 for five seconds.")
    return 1 + ceil((frames - 1) / shape.cell_frames)


def _grid(shape: ModelShape, frames: int, height: int, width: int) -> tuple[int, int]:
    """Count tokens along time, and tokens of one token frame; partial ones count, models pad."""
    if height < 1 or width < 1:
        raise ValueError(f"expected a size in pixels, got {height=}, {width=}; use 720 and 1280.")
    depth = ceil(latent_frames(shape, frames) / shape.patch[0])
    rows, columns = (
        ceil(side / (shape.cell_pixels * patch))
        for side, patch in zip((height, width), shape.patch[1:], strict=True)
    )
    return depth, rows * columns


def tokens(shape: ModelShape, frames: int, height: int, width: int) -> int:
    """Count the video tokens of a clip.

    Args:
        frames: pixel frames.
        height, width: pixels.
    """
    depth, per_frame = _grid(shape, frames, height, width)
    return depth * per_frame


def forward_flops(
    shape: ModelShape,
    frames: int,
    height: int,
    width: int,
    window: int = 0,
    kept: Sequence[int] | None = None,
) -> int:
    """Price one forward of one sample; guidance runs two.

    Per layer: 4 D^2 + 2 D ffn multiply-adds a token for the linear maps of self-attention and
    feed-forward, 2 N^2 D for self-attention (windows: the sum over them, every second layer
    shifted); with cross-attention 2 D^2 more a token, 2 L D^2 and 2 N L D.

    Args:
        frames: pixel frames.
        height, width: pixels.
        window: latent frames of a self-attention window; 0 is full attention.
        kept: tokens that are computed in each token frame (`skip.Packing.counts`); None for all.
            A window then attends to the kept tokens of its frames.

    Returns:
        Floating point operations.

    Raises:
        ValueError: a size below 1, a window of 1, a window on a model with joint text, or kept
            tokens of another clip.

    Source: ours; agrees with SURF Tab. 1 (658.46 PFLOPs) within 1 %.
    """
    if window and shape.joint_text:
        raise ValueError(
            f"windows are for models with cross-attention, got {window=} for {shape.name}; "
            "use window 0."
        )
    depth, per_frame = _grid(shape, frames, height, width)
    counts = _counts(kept, depth, per_frame)
    video, text, dim = sum(counts), shape.text_tokens, shape.dim
    stream = video + text if shape.joint_text else video
    linear = stream * (4 * dim**2 + 2 * dim * shape.ffn_dim)
    if not shape.joint_text:
        linear += 2 * video * dim**2 + 2 * text * dim**2 + 2 * video * text * dim
    total = shape.layers * linear
    for shifted in (False, True):
        bounds = token_bounds(counts, segments(depth, window, shifted))
        pairs = sum((stop - start) ** 2 for start, stop in bounds) if window else stream**2
        total += (shape.layers + (not shifted)) // 2 * 2 * pairs * dim
    return 2 * total


def _counts(kept: Sequence[int] | None, depth: int, per_frame: int) -> list[int]:
    """Return the computed tokens of every token frame; raise for counts of another clip."""
    if kept is None:
        return [per_frame] * depth
    if len(kept) != depth or not all(0 <= count <= per_frame for count in kept):
        raise ValueError(
            f"expected {depth} counts of kept tokens, 0 to {per_frame} each, got {list(kept)}; "
            "make the mask at the size of this clip."
        )
    return list(kept)


FFN_ROWS = 16384
"""`SurfRefinerDiT.rows`: tokens that the feed-forward network takes at once."""
NORM_ROWS = 8192
"""`refiner.fused.ROWS`: tokens that plain torch norms and turns at once, in float32."""


def activation_bytes(
    shape: ModelShape,
    frames: int,
    height: int,
    width: int,
    window: int = 0,
    *,
    itemsize: int = 2,
    segmentwise: bool = True,
    batch: int = 1,
    kept: Sequence[int] | None = None,
) -> int:
    """Estimate the peak memory of one forward of `surf_core.refiner` without gradients.

    It is the token stream, the rotary table of one segment, and the largest set of temporaries in a
    layer: queries, keys, values and their input or output, of one segment; or some thousand rows in
    the feed-forward network, in float32 between norm and rotation, or before the head.

    Args:
        frames: pixel frames.
        height, width: pixels.
        window: latent frames of a self-attention window; 0 is full attention.
        itemsize: bytes of a value: 2 for half precision, 4 for fp32.
        segmentwise: as `SurfRefinerDiT.segmentwise`.
        batch: samples of the forward, 2 for guidance at once.
        kept: as in `forward_flops`; includes their positions, and the rows of the rotary table
            that a segment gathers.

    Returns:
        Bytes beyond weights, input latent and text; without workspaces inside kernels and the
        allocator's fragmentation.

    Raises:
        ValueError: as `forward_flops`, or a model with joint text.

    Source: ours; benchmarks/cost/block_memory.py measures it.
    """
    _check_ours(shape)
    depth, per_frame = _grid(shape, frames, height, width)
    counts = _counts(kept, depth, per_frame)
    cuts = [segments(depth, window, shifted) for shifted in (False, True)]
    frames_in = max(stop - start for cut in cuts for start, stop in cut)
    longest = max(stop - start for cut in cuts for start, stop in token_bounds(counts, cut))
    stream = sum(counts)
    at_once = longest if segmentwise else stream
    tensors = 4 if at_once == longest else 5
    value = shape.dim * itemsize
    row = 2 * (shape.dim // shape.heads) * (8 if itemsize == 8 else 4)
    rotations = 0 if kept is None else at_once * row // batch
    peaks = (
        tensors * at_once * value + rotations,
        3 * at_once * value
        + min(at_once, NORM_ROWS) * shape.dim * max(14, 3 * itemsize)
        + rotations,
        min(at_once, FFN_ROWS) * (shape.dim + 2 * shape.ffn_dim) * itemsize,
        min(stream, FFN_ROWS) * value + min(stream, NORM_ROWS) * shape.dim * 2 * max(4, itemsize),
    )
    table = frames_in * per_frame * row
    indices = 0 if kept is None else 3 * 8 * stream
    text = 3 * shape.text_tokens * value
    return batch * (stream * value + max(peaks) + text) + table + indices


def weight_bytes(shape: ModelShape, itemsize: int = 2) -> int:
    """Count the bytes of a model's weights, all of them in one dtype.

    Raises:
        ValueError: a model with joint text.
    """
    _check_ours(shape)
    dim, patch = shape.dim, shape.latent_channels * prod(shape.patch)

    def linear(wide: int, out: int) -> int:
        return wide * out + out

    def through(wide: int, hidden: int, out: int) -> int:
        return linear(wide, hidden) + linear(hidden, out)

    wan = shape.block == "wan"
    norm = dim if wan else dim // shape.heads
    block = 8 * linear(dim, dim) + 4 * norm + through(dim, shape.ffn_dim, dim)
    block += 8 * dim if wan else linear(dim, 3 * dim)
    ends = linear(patch, dim) + linear(dim, patch)
    ends += through(shape.text_dim, dim, dim) + through(shape.freq_dim, dim, dim)
    ends += linear(dim, 6 * dim) + 2 * dim if wan else linear(dim, dim)
    return itemsize * (shape.layers * block + ends)


def _check_ours(shape: ModelShape) -> None:
    if shape.joint_text:
        raise ValueError(
            f"expected a model with cross-attention, got {shape.name}; ask its host for its memory."
        )


@dataclass(frozen=True, kw_only=True, slots=True)
class Evaluations:
    """A number of evaluations of one model at one size."""

    shape: ModelShape
    """The model."""
    steps: int
    """Evaluations, >= 0; a guided one counts once."""
    frames: int
    """Pixel frames."""
    height: int
    """Pixels."""
    width: int
    """Pixels."""
    window: int = 0
    """Latent frames of a self-attention window; 0 is full attention."""
    guided: bool = True
    """True: every evaluation runs the model twice, with and without the prompt (cfg above 1)."""
    kept: tuple[int, ...] | None = None
    """Tokens that a mask keeps in each token frame; None for all."""

    @property
    def forwards(self) -> int:
        """Runs of the network."""
        return 2 * self.steps if self.guided else self.steps

    @property
    def tokens(self) -> int:
        """Tokens that go through the model, over all forwards."""
        if self.kept is not None:
            return self.forwards * sum(self.kept)
        return self.forwards * tokens(self.shape, self.frames, self.height, self.width)

    @property
    def flops(self) -> int:
        """Operations of all forwards."""
        clip = (self.frames, self.height, self.width)
        return self.forwards * forward_flops(self.shape, *clip, self.window, self.kept)


def plan_flops(legs: Iterable[Evaluations]) -> int:
    """Add up the operations of a plan, for one video."""
    return sum(leg.flops for leg in legs)
