"""Find the tokens of the video in the sequences of a host model, for windows and masks.

Wan: [reference image | video | appended frames | context videos]. HunyuanVideo joins the text:
[reference | video | text], and in later hosts [text | reference | video].

Dims: T latent frames, H, W latent cells.
"""

import inspect
from collections.abc import Callable
from dataclasses import dataclass, field
from math import ceil, prod

from torch import Tensor
from torch.nn import functional as F

from ....surf_core.refiner import SurfRefinerDiT
from ....surf_core.skip import Packing, packing
from ....surf_core.window import token_bounds
from ..models import uncompiled

WAN_MODELS = ("WanModel", "VaceWanModel", "CameraWanModel")
JOINT_MODELS = ("HunyuanVideo",)
KEEP_KEY = "surf_keep"
"""Where transformer_options carry the cells that are refined: [T, H, W] bool on the CPU, of the
picture, or of the tile, that the model is called with. Without it all are."""


@dataclass(kw_only=True, slots=True)
class ModelCall:
    """One call of a diffusion model: its grid, and the block that attends."""

    frames: int
    """Latent frames, and frames of tokens: the patch is 1 in time."""
    per_frame: int
    """Video tokens of one frame."""
    find_video: Callable[[int], int | None]
    """Length of a sequence -> its first video token; None if no block has such a sequence."""
    before: int = 0
    """Tokens ahead of the video's; of Wan only."""
    length: int = 0
    """Tokens of the whole sequence, skipped ones included; of Wan only."""
    packing: Packing | None = None
    """The video tokens that a mask refines, on the CPU; None for all of them."""
    cross_lengths: frozenset[int] = frozenset()
    """Lengths of the sequences that a block cross-attends to, in case one equals its own."""
    single_after: int = 0
    """Blocks that come before the single-stream ones."""
    control_order: dict[int, int] = field(default_factory=dict)
    """Block -> index of the control block (VACE) that runs after it under the same number."""
    block: tuple[str, int] | None = None
    """Kind and number of the block that attended last."""
    cross_is_next: bool = False
    self_attentions: int = 0
    """Self-attentions over the video so far."""
    longer: set[int] = field(default_factory=set)
    """Lengths of sequences too long to be the video's."""

    def self_attention_depth(self, queries: int, keys: int, options: dict) -> int | None:
        """Return the index of the block whose self-attention this is; None for any other attention.

        Args:
            queries, keys: tokens of both sides.
            options: the host's transformer_options, with the number of the block.

        Raises:
            ValueError: the host does not number its blocks.
        """
        if queries != keys:
            return None
        if self.find_video(queries) is None:
            if queries > self.frames * self.per_frame:
                self.longer.add(queries)
            return None
        block = options.get("block_type", "double"), options.get("block_index")
        if block[1] is None:
            raise ValueError(
                f"windowed attention needs a host that numbers its blocks (ComfyUI "
                f"0.8.0 or later), got {sorted(options)}; update it, or set window to 0."
            )
        again = block == self.block
        if queries in self.cross_lengths:
            # Same length on both sides: a block attends to itself first, then to the text.
            self.cross_is_next = not (again and self.cross_is_next)
            if not self.cross_is_next:
                return None
        self.block = block
        self.self_attentions += 1
        if again:
            return self.control_order.get(block[1], block[1])
        return block[1] + (self.single_after if block[0] == "single" else 0)

    def token_ranges(self, first: int, cuts: list[tuple[int, int]]) -> list[slice]:
        """Return the tokens of a sequence that belong to each range of frames; no empty ones.

        Args:
            first: the first video token.
            cuts: ranges of latent frames, in order.
        """
        counts = self.per_frame if self.packing is None else self.packing.counts
        bounds = token_bounds(counts, cuts)
        return [slice(first + start, first + stop) for start, stop in bounds if stop > start]

    def check_windowed(self) -> None:
        """Refuse to go on when every sequence was longer than expected.

        Raises:
            ValueError: no self-attention over the video, yet one over more tokens.
        """
        if self.longer and not self.self_attentions:
            raise ValueError(
                f"expected self-attention over {self.frames} frames of "
                f"{self.per_frame} tokens, got {sorted(self.longer)} tokens; another node adds "
                "tokens to this model: set window to 0."
            )


def check_tokens_known(module) -> None:
    """Refuse a diffusion model whose order of tokens is not known.

    Args:
        module: the host's diffusion model, compiled or not.

    Raises:
        ValueError: neither Wan (T2V, I2V, VACE, camera control) nor HunyuanVideo; or a refiner of
            ours, which cuts its windows itself.
    """
    network = uncompiled(module)
    if isinstance(network, SurfRefinerDiT):
        raise ValueError(
            "expected a model without windows of its own, got a Surf refiner, whose file "
            "says how its windows are cut; connect it directly, or set window to 0."
        )
    name, supported = type(network).__name__, WAN_MODELS + JOINT_MODELS
    patch = getattr(network, "patch_size", None)
    # An image model has one number for both sides, or none.
    fits = isinstance(patch, list | tuple) and len(patch) == 3 and patch[0] == 1
    if name not in supported or not fits:
        raise ValueError(
            f"windowed attention expected one of {', '.join(supported)} with a patch of "
            f"one frame, got {name} with {patch=}; set window to 0 for full attention."
        )


def count_blocks(module) -> int:
    """Count the blocks of a diffusion model whose tokens are known, control blocks left out."""
    network = uncompiled(module)
    return sum(
        len(getattr(network, row, ())) for row in ("blocks", "double_blocks", "single_blocks")
    )


def read_call(executor, args: tuple, kwargs: dict) -> ModelCall:
    """Read the grid of a model call from its arguments.

    Args:
        executor: the host's wrapper executor; `original` is the model's own method.
        args, kwargs: what the method will be called with.
    """
    arguments = inspect.signature(executor.original).bind(*args, **kwargs).arguments
    arguments = {**arguments, **arguments.get("kwargs", {})}
    network = uncompiled(executor.class_obj)
    joint = type(network).__name__ in JOINT_MODELS
    return (_joint_call if joint else _wan_call)(network, arguments)


def kept_tokens(x: Tensor, options: dict, patch: tuple[int, int, int]) -> Tensor | None:
    """Find the tokens of a call that a mask refines: those with a refined cell.

    Args:
        x: [B, C, T, H, W], what the model is called with.
        options: its transformer_options.
        patch: latent cells of a token.

    Returns:
        [T, h, w] bool on the CPU, partial tokens counted; None where nothing is skipped.

    Raises:
        ValueError: a call with a part of the picture that the mask does not know of.
    """
    cells = options.get(KEEP_KEY)
    if cells is None or cells.all():
        return None
    if cells.shape != x.shape[2:]:
        raise ValueError(
            f"expected the model to be called with the mask's {tuple(cells.shape)} latent "
            f"cells, got {tuple(x.shape[2:])}; an area prompt or a context window computes a part "
            "of the picture: take it out, or take the mask out."
        )
    return F.max_pool3d(cells[None].float(), patch, ceil_mode=True)[0] > 0


def _tokens(latent: Tensor | None, patch: tuple[int, int, int]) -> int:
    """Count the tokens of a latent [B, C, (T,) H, W] after padding to whole patches."""
    if latent is None:
        return 0
    sizes = latent.shape[2:]
    return prod(ceil(size / cells) for size, cells in zip(sizes, patch[-len(sizes) :], strict=True))


def _wan_call(network, arguments: dict) -> ModelCall:
    x, patch = arguments["x"], tuple(network.patch_size)
    has_reference = getattr(network, "ref_conv", None) is not None
    before = _tokens(arguments.get("reference_latent"), patch) if has_reference else 0
    after = _tokens(arguments.get("time_dim_concat"), patch)
    after += sum(_tokens(latent, patch) for latent in arguments.get("context_latents") or ())
    video = _tokens(x, patch)
    keep = kept_tokens(x, arguments.get("transformer_options") or {}, patch)
    tokens = None if keep is None else packing(keep)
    length = before + (video if tokens is None else len(tokens.indices)) + after
    clip = arguments.get("clip_fea")
    return ModelCall(
        frames=x.shape[2],
        per_frame=_tokens(x[:, :, 0], patch),
        find_video=lambda queries: before if queries == length else None,
        before=before,
        length=before + video + after,
        packing=tokens,
        cross_lengths=frozenset(t.shape[-2] for t in (arguments["context"], clip) if t is not None),
        control_order=getattr(network, "vace_layers_mapping", {}),
    )


def _joint_call(network, arguments: dict) -> ModelCall:
    x, patch = arguments["x"], tuple(network.patch_size)
    before, video = _tokens(arguments.get("ref_latent"), patch), _tokens(x, patch)
    least = before + video + arguments["context"].shape[1]
    text_last = getattr(network.double_blocks[0], "flipped_img_txt", False)

    def find_video(queries: int) -> int | None:
        if queries < least:
            return None
        return before if text_last else queries - video

    return ModelCall(
        frames=x.shape[2],
        per_frame=_tokens(x[:, :, 0], patch),
        find_video=find_video,
        single_after=len(network.double_blocks),
    )
