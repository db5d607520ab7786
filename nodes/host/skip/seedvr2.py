"""Token skipping in the host's native SeedVR2: its blocks run on kept tokens, on a clone.

Tokens are gathered before the first block and put back after the last; in between the host's own
blocks, windows and attention serve them. Everywhere else the clean estimate is the low-quality
latent, which the model is conditioned on.

Dims: B batch, C latent channels, T latent frames, H, W latent cells; S samples of a call, N tokens
of a clip, K kept ones.
"""

from collections.abc import Callable
from typing import Any

import comfy.patcher_extension
import comfy.utils
import torch
from torch import Tensor

from ....surf_core.checks import check_choice, check_latent
from ....surf_core.skip import (
    Mask,
    check_keep,
    compose,
    pack,
    packing,
    predict_mask,
    unpack,
    weight,
)
from ..conditioning import Conditioning
from ..models import check_guarded
from ..node_name import errors_named, running_node
from .seedvr2_windows import Told, deal, phase, tell
from .skip_mask import CHOICES

KEY = "surf_seedvr2_skip"
"""Names our wrappers, and what we keep for the length of a call in the host's cache."""
REPLACED = "surf_seedvr2_replaced"
"""Attribute of our functions: the one that each took the place of, or None."""
CHANNELS = 16
"""Latent channels; the one behind them in the conditioning is a mask of the host."""
MODULATION = "emb_repeat_0_vid"
"""Entry of the host's cache that the output norm shares with the blocks."""


def skip_seedvr2(
    model: Any,
    conditioning: Conditioning,
    *,
    choose: str,
    keep: float,
    tau: float,
    dilate: int = 0,
    seam: int = 0,
) -> tuple[Any, Mask]:
    """Clone a SeedVR2 MODEL that refines only the tokens with detail, and say which.

    Args:
        model: MODEL; not changed. What an earlier call has put on it is replaced.
        conditioning: of the host's SeedVR2Conditioning, for the clip that will be sampled.
        choose: one of CHOICES.
        keep: wanted share of refined tokens, with "keep ratio".
        tau: score of `surf_core.skip.detail` from which on a token is refined, with "tau".
        dilate: tokens to every side of a refined one that are refined too.
        seam: latent cells of blending inside of what is refined.

    Returns:
        The clone, which shares the weights, and the mask. With nothing to skip, the clone is the
        model as it is.

    Raises:
        ValueError: no SeedVR2, on this host or in this MODEL, or one from TorchCompileModel; no
            latent in the conditioning, or a bad one; a value out of range; everything skipped.
    """
    network = _network(model)
    check_choice(choose, "choose", CHOICES)
    start, patch = _low_quality(conditioning), tuple(network.vid_in.patch_size)
    wanted = {"tau": tau} if choose == "tau" else {"keep": keep}
    mask = predict_mask(start, patch=patch, dilate=dilate, **wanted)
    check_keep(mask.tokens, mask.grid)
    share = weight(mask.tokens, patch, seam)
    hard = weight(mask.tokens, patch)
    clone = _without(model.clone())
    if not mask.tokens.all():
        check_guarded(model)
        _replace_blocks(clone, network, mask)
        _compose(clone, start, share, hard)
    return clone, mask


def _network(model: Any) -> Any:
    """The diffusion model inside, which must be the host's SeedVR2."""
    try:
        from comfy.ldm.seedvr.model import NaDiT
    except ImportError as error:
        raise ValueError(
            "expected a ComfyUI with SeedVR2 in it, such as 0.33, got an older one; "
            "update ComfyUI, or leave this node out."
        ) from error
    network = model.get_model_object("diffusion_model")
    network = getattr(network, "_orig_mod", network)
    if not isinstance(network, NaDiT):
        raise ValueError(
            f"expected a SeedVR2 model, got {type(network).__name__}; connect one, or use "
            "Surf Skip Mask and Surf Refiner for other models."
        )
    return network


def _low_quality(conditioning: Conditioning) -> Tensor:
    """The latent [B, 16, T, H, W] that conditioning of SeedVR2 holds, on the CPU."""
    found = [entry[1]["condition"] for entry in conditioning if "condition" in entry[1]]
    if not found:
        raise ValueError(
            "expected conditioning with the latent to refine, got none; connect "
            "'positive' of Apply SeedVR2 Conditioning."
        )
    first = found[0]
    check_latent(first, "conditioning", channels=CHANNELS + 1)
    if any(other.shape != first.shape or not torch.equal(other, first) for other in found[1:]):
        raise ValueError("expected conditioning of one clip, got several; use one node for each.")
    return first[:, :CHANNELS].detach().cpu()


def _without(clone: Any) -> Any:
    """Take what an earlier call has put on a clone off again."""
    kinds = comfy.patcher_extension.WrappersMP
    for kind in (kinds.OUTER_SAMPLE, kinds.APPLY_MODEL):
        clone.remove_wrappers_with_key(kind, KEY)
    options, slot = clone.model_options, "sampler_post_cfg_function"
    if slot in options:
        options[slot] = [found for found in options[slot] if not hasattr(found, REPLACED)]
    patches = options.get("transformer_options", {}).get("patches_replace", {}).get("dit", {})
    for place in [place for place, found in patches.items() if hasattr(found, REPLACED)]:
        earlier = getattr(patches.pop(place), REPLACED)
        if earlier is not None:
            patches[place] = earlier
    return clone


def _replace_blocks(clone: Any, network: Any, mask: Mask) -> None:
    """Run every block on kept tokens; a replacement that is there already is called inside."""
    patches = clone.model_options.get("transformer_options", {}).get("patches_replace", {})
    present, dealt = dict(patches.get("dit", {})), {}
    for block in network.blocks:
        cuts, name = block.attn.window_op(mask.grid, block.attn.window), phase(block.attn)
        if name not in dealt:
            dealt[name] = deal(mask.tokens, cuts)
    places = packing(mask.tokens)
    last = len(network.blocks) - 1
    for index, block in enumerate(network.blocks):
        earlier = present.get(("block", index))
        run = _run_block(block.attn, dealt[phase(block.attn)], places, index, last, earlier)
        clone.set_model_patch_replace(run, "dit", "block", index)


def _run_block(attention, dealt, places, index: int, last: int, earlier) -> Callable:
    """Make the replacement of one block: gathers if it is the first, puts back if the last."""

    node = running_node()

    def run_kept(args: dict, extra: dict) -> dict:
        def block(args: dict) -> dict:
            return extra["original_block"](args) if earlier is None else earlier(args, extra)

        cache = args["cache"]
        if isinstance(cache.cache, Told):
            # An earlier skip of ours that another node has chained: its tokens are gathered.
            return block(args)
        if index == 0:
            with errors_named(node):
                args = {**args, "vid": _gather(args["vid"], args["vid_shape"], places)}
            cache.cache[KEY] = Told()
            lengths = [len(places.indices)] * len(args["vid_shape"])
            cache.cache[KEY].give("vid_len", torch.tensor(lengths, device=args["vid"].device))
        told = cache.cache[KEY]
        if f"{phase(attention)}.win_transform" not in told:
            tell(told, attention, dealt, args["txt_shape"])
        out = block({**args, "cache": type(cache)(cache=told)})
        if index < last:
            return out
        with errors_named(node):
            return {**out, "vid": _scatter(out["vid"], cache.cache, told, places)}

    setattr(run_kept, REPLACED, earlier)
    return run_kept


def _gather(vid: Tensor, vid_shape: Tensor, places) -> Tensor:
    """Take the kept tokens of every sample: [S * N, D] -> [S * K, D].

    Raises:
        ValueError: a clip of another size than the mask's.
    """
    tokens = vid.unflatten(0, (len(vid_shape), -1))
    return pack(tokens, places.to(vid.device)).flatten(0, 1)


def _scatter(vid: Tensor, cache: dict, told: Told, places) -> Tensor:
    """Put kept tokens back among zeros: [S * K, D] -> [S * N, D].

    What follows the blocks runs on all tokens. It shares a modulation with them, which it expects
    in the cache, one row a token.

    Raises:
        ValueError: the host's blocks did not ask for all that they were told.
    """
    if told.unread:
        raise ValueError(
            f"expected SeedVR2 as ComfyUI 0.33 has it, got one that does not look up "
            f"{sorted(told.unread)}; leave this node out, and look for a newer version of it."
        )
    whole, kept = places.grid[0] * places.grid[1] * places.grid[2], len(places.indices)
    if MODULATION in told:
        rows = told[MODULATION]
        cache[MODULATION] = rows[::kept].repeat_interleave(whole, dim=0)
    return unpack(vid.unflatten(0, (-1, kept)), places.to(vid.device)).flatten(0, 1)


def _compose(clone: Any, start: Tensor, share: Tensor, hard: Tensor) -> None:
    """Let skipped cells be the low-quality latent, at every step and at the end.

    Args:
        start: [B, 16, T, H, W], in the model's space, which takes it as it is.
        share, hard: [T, H, W], weight of the refined latent with and without the seam.
    """
    moved: dict[torch.device, Tensor] = {}
    latent_format, node = clone.get_model_object("latent_format"), running_node()

    def start_like(x: Tensor) -> Tensor:
        if x.device not in moved:
            moved[x.device] = start.to(x.device)
        return comfy.utils.repeat_to_batch_size(moved[x.device], len(x))

    def keep_skipped(args: dict) -> Tensor:
        x0 = args["denoised"]
        return compose(x0, start_like(x0), share)

    def sample(executor, noise, latent, sampler, sigmas, denoise_mask=None, *args, **kwargs):
        with errors_named(node):
            _check_size(noise, start)
        out = executor(noise, latent, sampler, sigmas, denoise_mask, *args, **kwargs)
        if denoise_mask is not None or float(sigmas[-1]) > 0:
            return out
        return compose(out, latent_format.process_out(start_like(out)), hard)

    def apply(executor, x, t, concat, text, control, options, **kwargs):
        with errors_named(node):
            _check_size(x, start)
            calls = len(options.get("cond_or_uncond") or (0,))
            expected = start_like(x[: len(x) // calls]).repeat(calls, 1, 1, 1, 1)
            _check_clip(kwargs.get("condition"), expected)
        return executor(x, t, concat, text, control, options, **kwargs)

    setattr(keep_skipped, REPLACED, None)
    clone.set_model_sampler_post_cfg_function(keep_skipped)
    kinds = comfy.patcher_extension.WrappersMP
    clone.add_wrapper_with_key(kinds.OUTER_SAMPLE, KEY, sample)
    clone.add_wrapper_with_key(kinds.APPLY_MODEL, KEY, apply)


def _check_size(latent: Tensor, start: Tensor) -> None:
    """Refuse to sample a latent of another size or length than the one that was looked at."""
    if latent.shape[1:] != start.shape[1:]:
        raise ValueError(
            f"expected a latent of {tuple(start.shape[1:])} (channels, frames, rows, "
            f"columns), as in its conditioning, got {tuple(latent.shape[1:])}; connect the same "
            "clip to Apply SeedVR2 Conditioning and to the sampler."
        )


def _check_clip(condition: Tensor | None, expected: Tensor) -> None:
    """Refuse conditioning of another clip than the one that was looked at.

    Args:
        condition: [S, 17, T, H, W]; None is left to the host, which asks for it.
        expected: [S, 16, T, H, W].
    """
    if condition is None:
        return
    given = condition[:, :CHANNELS]
    if given.shape != expected.shape or not torch.equal(given, expected.to(given)):
        raise ValueError(
            f"expected the conditioning that chose what to refine, "
            f"{tuple(expected.shape[1:])}, got that of another clip, {tuple(given.shape[1:])}; "
            "connect one Apply SeedVR2 Conditioning to this node and to the sampler."
        )
