"""Count tokens and operations: of one forward, and of a whole plan.

Operations are those of the matrix products in the blocks, two per multiply-add. Norms, softmax,
embeddings and head are left out (about 1 % of a 720p Wan forward), and so are text encoder and VAE.

Dims: N video tokens, A audio tokens, L text tokens, D width.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from math import ceil

from ..window import segments, token_bounds
from .boxes import box_pairs
from .shapes import ModelShape


def latent_frames(shape: ModelShape, frames: int) -> int:
    """Count the latent frames of `frames` pixel frames: 81 are 21 for Wan, 124 are 37 for H3."""
    if frames < 1:
        raise ValueError(f"expected at least one frame, got {frames=}; use 81 for five seconds.")
    cycle = shape.frame_cycle
    whole, rest = divmod(frames, 1 + (cycle - 1) * shape.cell_frames) if cycle else (0, frames)
    return whole * cycle + (1 + ceil((rest - 1) / shape.cell_frames) if rest else 0)


def token_grid(shape: ModelShape, frames: int, height: int, width: int) -> tuple[int, int]:
    """Count tokens along time, and tokens of one token frame; partial ones count, models pad."""
    rows, columns = token_sides(shape, height, width)
    return ceil(latent_frames(shape, frames) / shape.patch[0]), rows * columns


def token_sides(shape: ModelShape, height: int, width: int) -> tuple[int, int]:
    """Count the tokens along the rows and columns of a frame, partial ones included."""
    if height < 1 or width < 1:
        raise ValueError(f"expected a size in pixels, got {height=}, {width=}; use 720 and 1280.")
    rows, columns = (
        ceil(side / (shape.cell_pixels * patch))
        for side, patch in zip((height, width), shape.patch[1:], strict=True)
    )
    return rows, columns


def tokens(shape: ModelShape, frames: int, height: int, width: int) -> int:
    """Count the video tokens of a clip.

    Args:
        frames: pixel frames.
        height, width: pixels.
    """
    depth, per_frame = token_grid(shape, frames, height, width)
    return depth * per_frame


def audio_tokens(shape: ModelShape, frames: int) -> int:
    """Count the audio tokens of a clip of `frames` pixel frames; 0 for a model without sound."""
    if shape.audio is None:
        return 0
    seconds = frames / shape.audio.frames_per_second
    return shape.audio.latent_tokens * round(seconds * shape.audio.latents_per_second)


@dataclass(frozen=True, kw_only=True, slots=True)
class Work:
    """Floating point operations, by what runs them: their rates differ."""

    linear: int
    """Of the linear maps, whose number grows with the tokens, and of cross-attention."""
    pairs: int
    """Of self-attention, whose number grows with the square of the tokens of a window."""

    @property
    def flops(self) -> int:
        return self.linear + self.pairs

    def __mul__(self, count: int) -> "Work":
        return Work(linear=count * self.linear, pairs=count * self.pairs)


def forward_flops(
    shape: ModelShape,
    frames: int,
    height: int,
    width: int,
    window: int = 0,
    kept: Sequence[int] | None = None,
) -> int:
    """Price one forward of one sample; guidance runs two. See `forward_work`."""
    return forward_work(shape, frames, height, width, window, kept).flops


def forward_work(
    shape: ModelShape,
    frames: int,
    height: int,
    width: int,
    window: int = 0,
    kept: Sequence[int] | None = None,
) -> Work:
    """Count the operations of one forward of one sample.

    Per layer, with D_a for the width of all heads: 4 D D_a + 2 D ffn multiply-adds a token for the
    linear maps of self-attention and feed-forward (3 D ffn with a gate), 2 N^2 D_a for
    self-attention (windows: the sum over them, every second layer shifted); with cross-attention
    2 D^2 more a token, 2 L D^2 and 2 N L D. Tokens of text or sound that join the sequence attend
    to all tokens, and every window attends to them. Models with windows of their own, in space too,
    are priced with these: `cost.boxes`.

    Args:
        frames: pixel frames.
        height, width: pixels.
        window: latent frames of a self-attention window; 0 is full attention.
        kept: tokens that are computed in each token frame (`skip.Packing.counts`); None for all.
            A window then attends to the kept tokens of its frames.

    Raises:
        ValueError: a size below 1, a window of 1 or of a model that has its own, or kept tokens
            of another clip.

    Source: ours; agrees within 1 % with the plain run of SURF Tab. 1 (658.46 PFLOPs), not with
    its flow (34.3, where the guided steps of Tab. R6 are 55.1 here), and within 1 % with torch's
    FlopCounterMode on the host's networks (tests/host/cost_cases.py).
    """
    depth, per_frame = token_grid(shape, frames, height, width)
    counts = count_kept(kept, depth, per_frame)
    if window and shape.boxes is not None:
        raise ValueError(
            f"{shape.name} has windows of its own, got {window=}; price it without, window=0."
        )
    video, text, sound = sum(counts), shape.text_tokens, audio_tokens(shape, frames)
    streams = shape.audio is not None and shape.audio.dim > 0
    joined = text * shape.joint_text + sound * (not streams)
    layer = _stream_products(shape, video + joined, text * (not shape.joint_text))
    if streams:
        layer += _audio_products(shape, video, sound)
    attended = 0
    for shifted in (False, True):
        if shape.boxes is None:
            bounds = token_bounds(counts, segments(depth, window, shifted))
            pairs = sum((stop - start) * (stop - start + joined) for start, stop in bounds)
            pairs += joined * (video + joined)
        else:
            grid = depth, *token_sides(shape, height, width)
            pairs = round(box_pairs(shape.boxes, grid, counts, joined, shifted))
        attended += (shape.layers + (not shifted)) // 2 * 2 * pairs * _heads_dim(shape)
    return Work(linear=2 * shape.layers * layer, pairs=2 * attended)


def _heads_dim(shape: ModelShape) -> int:
    return shape.attention_dim or shape.dim


def _stream_products(shape: ModelShape, count: int, text: int) -> int:
    """Count a layer's multiply-adds, all but self-attention's pairs, of the video's sequence.

    Args:
        count: tokens of the sequence.
        text: tokens that it looks at by cross-attention; 0 where they are in it.
    """
    dim, heads = shape.dim, _heads_dim(shape)
    linear = count * (4 * dim * heads + (2 + shape.gated_ffn) * dim * shape.ffn_dim)
    return linear + (_cross_products(count, text, dim, dim, heads) if text else 0)


def _audio_products(shape: ModelShape, video: int, sound: int) -> int:
    """Count a layer's multiply-adds of an audio stream, and of the exchange with the video's."""
    assert shape.audio is not None
    dim, text = shape.audio.dim, shape.text_tokens
    own = sound * (4 * dim**2 + 2 * dim * shape.audio.ffn_dim) + 2 * sound**2 * dim
    own += _cross_products(sound, text, dim, dim, dim)
    to_video = _cross_products(video, sound, shape.dim, dim, dim)
    return own + to_video + _cross_products(sound, video, dim, shape.dim, dim)


def _cross_products(queries: int, keys: int, query_dim: int, key_dim: int, heads_dim: int) -> int:
    """Count the multiply-adds of a cross-attention; widths of both sides, and of its heads."""
    linear = 2 * queries * query_dim * heads_dim + 2 * keys * key_dim * heads_dim
    return linear + 2 * queries * keys * heads_dim


def count_kept(kept: Sequence[int] | None, depth: int, per_frame: int) -> list[int]:
    """Return the computed tokens of every token frame; raise for counts of another clip."""
    if kept is None:
        return [per_frame] * depth
    if len(kept) != depth or not all(0 <= count <= per_frame for count in kept):
        raise ValueError(
            f"expected {depth} counts of kept tokens, 0 to {per_frame} each, got {list(kept)}; "
            "make the mask at the size of this clip."
        )
    return list(kept)


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
