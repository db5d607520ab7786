"""Find the tokens of the video in the sequences of a host model, for windows and masks.

Wan: [reference image | video | appended frames | context videos]. HunyuanVideo joins the text:
[reference | video | text], and in later hosts [text | reference | video]. MiniMax H3 joins all:
[text | keyframes | references | audio | video]. LTX-2 keeps the audio apart: [video | guides].

Dims: T latent frames, H, W latent cells.
"""

import inspect
from collections.abc import Callable
from math import ceil, prod

from torch import Tensor
from torch.nn import functional as F

from ....surf_core.refiner import SurfRefinerDiT
from ....surf_core.skip import packing
from ..compiling import outside_graphs
from ..models import patch_of, uncompiled
from .model_call import ModelCall

WAN_MODELS = ("WanModel", "VaceWanModel", "CameraWanModel")
KEEP_KEY = "surf_keep"
"""Where transformer_options carry the cells that are refined: [T, H, W] bool on the CPU, of the
picture, or of the tile, that the model is called with. Without it all are."""


def check_tokens_known(module) -> None:
    """Refuse a diffusion model whose order of tokens is not known.

    Args:
        module: the host's diffusion model, compiled or not.

    Raises:
        ValueError: neither Wan (T2V, I2V, VACE, camera control) nor HunyuanVideo, MiniMax H3 or
            LTX-2; or a refiner of ours, which cuts its windows itself.
    """
    network = uncompiled(module)
    if isinstance(network, SurfRefinerDiT):
        raise ValueError(
            "expected a model without windows of its own, got a Surf refiner, whose file "
            "says how its windows are cut; connect it directly, or set window to 0."
        )
    name, supported = type(network).__name__, (*WAN_MODELS, *CALLS)
    patch = patch_of(network)
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
        len(getattr(network, row, ()))
        for row in ("blocks", "double_blocks", "single_blocks", "transformer_blocks")
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
    return CALLS.get(type(network).__name__, _wan_call)(network, arguments)


def number_blocks(options: dict, count: int) -> dict:
    """Return transformer_options whose blocks tell their attentions their numbers.

    By a replacement of each block that calls the block, or what another node replaced it with.

    Args:
        options: the host's, of one model call; not changed.
        count: blocks of the model.
    """
    replaced = options.get("patches_replace", {})
    inner = replaced.get("dit", {})
    blocks = {("double_block", i): _numbering(i, inner.get(("double_block", i)))
              for i in range(count)}  # fmt: skip
    return {**options, "patches_replace": {**replaced, "dit": {**inner, **blocks}}}


def _numbering(index: int, inner: Callable | None) -> Callable:
    def call_numbered(args: dict, extra: dict) -> dict:
        options = {**args["transformer_options"], "block_type": "double", "block_index": index}
        args = {**args, "transformer_options": options}
        return inner(args, extra) if inner is not None else extra["original_block"](args)

    return outside_graphs(call_numbered, recursive=False)


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
    keep = kept_tokens(x, arguments.get("transformer_options") or {}, patch)
    tokens = None if keep is None else packing(keep)
    video = _tokens(x, patch) if tokens is None else len(tokens.indices)
    before = _tokens(arguments.get("ref_latent"), patch)
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
        before=before,
        packing=tokens,
        text_last=text_last,
        single_after=len(network.double_blocks),
    )


def _h3_call(network, arguments: dict) -> ModelCall:
    (x, audio), patch = arguments["x"], tuple(network.patch_size)
    video = _tokens(x, patch)
    # A row for each of the two channels of sound; keyframes and references come on top.
    least = arguments["context"].shape[1] + audio.shape[-2] * audio.shape[-1] + video
    return ModelCall(
        frames=x.shape[2],
        per_frame=_tokens(x[:, :, 0], patch),
        find_video=lambda queries: queries - video if queries >= least else None,
        numbered=False,
    )


def _ltx_call(network, arguments: dict) -> ModelCall:
    x, patch = arguments["x"], patch_of(network)
    # Video alone comes without a list where the host has not packed it.
    x = x[0] if isinstance(x, list | tuple) else x
    per_frame, tokens = _tokens(x[:, :, 0], patch), _tokens(x, patch)
    positions = arguments.get("keyframe_idxs")
    guides = 0 if positions is None else positions.shape[2]
    weighed = [
        entry for entry in arguments.get("guide_attention_entries") or ()
        if entry["strength"] != 1 or entry.get("pixel_mask") is not None
    ]  # fmt: skip
    if weighed:
        raise ValueError(
            "windowed attention expected guides with strength 1 and no attention mask, got "
            f"strength {weighed[0]['strength']}, for which LTX-2 attends in parts; set the "
            "strength of LTXVAddGuide to 1, take the guides out, or set window to 0."
        )
    return ModelCall(
        frames=x.shape[2] - guides // per_frame,
        per_frame=per_frame,
        find_video=lambda queries: 0 if queries == tokens else None,
        first_alone=True,
        numbered=False,
    )


CALLS: dict[str, Callable[..., ModelCall]] = {
    "HunyuanVideo": _joint_call, "MiniMaxH3Model": _h3_call, "LTXAVModel": _ltx_call,
}  # fmt: skip
"""Networks whose order of tokens is known, beside Wan's, and how to read a call of one."""
