"""Where a host model keeps the tokens of the video: the facts that windowed attention rests on.

Wan: [reference image | video | appended frames | context videos]. HunyuanVideo joins the text:
[reference | video | text], and in later hosts [text | reference | video].

Dims: T latent frames, H, W latent cells.
"""

import inspect
from collections.abc import Callable
from dataclasses import dataclass, field
from math import ceil, prod

from torch import Tensor

from ...surf_core.refiner import SurfRefinerDiT

WAN_MODELS = ("WanModel", "VaceWanModel", "CameraWanModel")
JOINT_MODELS = ("HunyuanVideo",)


@dataclass(kw_only=True, slots=True)
class ModelCall:
    """One call of a diffusion model: its grid, and which attention comes next."""

    who: str
    """The node that asked for windows, as its errors name it."""
    frames: int
    """Latent frames, and frames of tokens: the patch is 1 in time."""
    per_frame: int
    """Video tokens of one frame."""
    find_video: Callable[[int], int | None]
    """Length of a sequence -> its first video token; None if no block has such a sequence."""
    cross_lengths: frozenset[int] = frozenset()
    """Lengths that the cross-attention of a block brings, for the rare tie with its own."""
    single_after: int = 0
    """Blocks that come before the single-stream ones."""
    control_order: dict[int, int] = field(default_factory=dict)
    """Block -> place of the control block (VACE) that runs after it under the same number."""
    block: tuple[str, int] | None = None
    cross_is_next: bool = False
    seen: int = 0
    strays: set[int] = field(default_factory=set)

    def self_attention_depth(self, queries: int, keys: int, options: dict) -> int | None:
        """Which block's self-attention this is, counted from 0; None for any other attention.

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
                self.strays.add(queries)
            return None
        block = options.get("block_type", "double"), options.get("block_index")
        if block[1] is None:
            raise ValueError(
                f"{self.who}: windowed attention needs a host that numbers its blocks (ComfyUI "
                f"0.8.0 or later), got {sorted(options)}; update it, or set window to 0."
            )
        again = block == self.block
        if queries in self.cross_lengths:
            # Same length on both sides: a block attends to itself first, then to the text.
            self.cross_is_next = not (again and self.cross_is_next)
            if not self.cross_is_next:
                return None
        self.block = block
        self.seen += 1
        if again:
            return self.control_order.get(block[1], block[1])
        return block[1] + (self.single_after if block[0] == "single" else 0)

    def check_windowed(self) -> None:
        """Refuse to go on when every sequence was longer than expected.

        Raises:
            ValueError: no block's self-attention was found, yet longer sequences were seen.
        """
        if self.strays and not self.seen:
            raise ValueError(
                f"{self.who}: expected self-attention over {self.frames} frames of "
                f"{self.per_frame} tokens, got {sorted(self.strays)} tokens; another node adds "
                "tokens to this model: set window to 0."
            )


def check_tokens_known(module, who: str) -> None:
    """Refuse a diffusion model whose order of tokens we would have to guess.

    Args:
        module: the host's diffusion model, compiled or not.
        who: the node that asks, for its errors.

    Raises:
        ValueError: neither Wan (T2V, I2V, VACE, camera control) nor HunyuanVideo; or a refiner of
            ours, which cuts its windows itself.
    """
    network = _uncompiled(module)
    if isinstance(network, SurfRefinerDiT):
        raise ValueError(
            f"{who}: expected a model without windows of its own, got a Surf refiner, whose file "
            "says how its windows are cut; connect it directly, or set window to 0."
        )
    name, known = type(network).__name__, WAN_MODELS + JOINT_MODELS
    patch = tuple(getattr(network, "patch_size", ()))
    if name not in known or len(patch) != 3 or patch[0] != 1:
        raise ValueError(
            f"{who}: windowed attention expected one of {', '.join(known)} with a patch of "
            f"one frame, got {name} with {patch=}; set window to 0 for full attention."
        )


def read_call(executor, args: tuple, kwargs: dict, who: str) -> ModelCall:
    """Work out the grid of a model call from its arguments.

    Args:
        executor: the host's wrapper executor; `original` is the model's own method.
        args, kwargs: what the method will be called with.
        who: the node that asked for windows, for the errors of this call.
    """
    named = inspect.signature(executor.original).bind(*args, **kwargs).arguments
    named = {**named, **named.get("kwargs", {})}
    network = _uncompiled(executor.class_obj)
    joint = type(network).__name__ in JOINT_MODELS
    return (_joint_call if joint else _wan_call)(network, named, who)


def _uncompiled(module):
    """The model inside a torch.compile wrapper."""
    return getattr(module, "_orig_mod", module)


def _tokens(latent: Tensor | None, patch: tuple[int, int, int]) -> int:
    """Tokens of a latent [B, C, T, H, W] or [B, C, H, W] after padding to whole patches."""
    if latent is None:
        return 0
    sizes = latent.shape[2:]
    return prod(ceil(size / step) for size, step in zip(sizes, patch[-len(sizes) :], strict=True))


def _wan_call(network, named: dict, who: str) -> ModelCall:
    x, patch = named["x"], tuple(network.patch_size)
    has_reference = getattr(network, "ref_conv", None) is not None
    before = _tokens(named.get("reference_latent"), patch) if has_reference else 0
    after = _tokens(named.get("time_dim_concat"), patch)
    after += sum(_tokens(latent, patch) for latent in named.get("context_latents") or ())
    length = before + _tokens(x, patch) + after
    clip = named.get("clip_fea")
    return ModelCall(
        who=who,
        frames=x.shape[2],
        per_frame=_tokens(x[:, :, 0], patch),
        find_video=lambda queries: before if queries == length else None,
        cross_lengths=frozenset(t.shape[-2] for t in (named["context"], clip) if t is not None),
        control_order=getattr(network, "vace_layers_mapping", {}),
    )


def _joint_call(network, named: dict, who: str) -> ModelCall:
    x, patch = named["x"], tuple(network.patch_size)
    before, video = _tokens(named.get("ref_latent"), patch), _tokens(x, patch)
    least = before + video + named["context"].shape[1]
    text_last = getattr(network.double_blocks[0], "flipped_img_txt", False)

    def find_video(queries: int) -> int | None:
        if queries < least:
            return None
        return before if text_last else queries - video

    return ModelCall(
        who=who,
        frames=x.shape[2],
        per_frame=_tokens(x[:, :, 0], patch),
        find_video=find_video,
        single_after=len(network.double_blocks),
    )
