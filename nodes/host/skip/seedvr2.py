"""Skip tokens in the host's native SeedVR2: clone it so that its blocks run on refined tokens.

Those are gathered before the first block and put back after the last; in between run the host's
own blocks, windows and attention. Everywhere else the clean estimate is the low-quality
latent, which the model is conditioned on.

Dims: B batch, C latent channels, T latent frames, H, W latent cells; S samples of a call, N tokens
of a clip, K refined ones.
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
    predict_mask,
    weight,
)
from ....surf_core.skip import choose as choose_tokens
from ..conditioning import Conditioning
from ..models import check_guarded, uncompiled
from ..node import reporting_as, running_node
from .seedvr2_blocks import KEY, REPLACED, replace_blocks
from .seedvr2_pixels import score_pixels
from .skip_mask import CHOICES

CHANNELS = 16
"""Latent channels; the one behind them in the conditioning is a mask of the host."""


def skip_seedvr2(
    model: Any,
    conditioning: Conditioning,
    *,
    choose: str,
    keep: float,
    tau: float,
    dilate: int = 0,
    seam: int = 0,
    image: Tensor | None = None,
    latent: dict | None = None,
) -> tuple[Any, Mask]:
    """Clone a SeedVR2 MODEL that refines only the tokens with detail, and say which.

    Args:
        model: MODEL; not changed. What an earlier call has put on it is replaced.
        conditioning: of the host's SeedVR2Conditioning, for the clip that will be sampled.
        choose: one of CHOICES.
        keep: share of tokens to refine, with "keep ratio".
        tau: score from which on a token is refined, with "tau": of `surf_core.skip.pixel_detail`
            with an image, else of `surf_core.skip.detail`.
        dilate: tokens to every side of a refined one that are refined too.
        seam: latent cells of blending inside of what is refined.
        image, latent: see `score_pixels`; None: the latent in the conditioning is scored.

    Returns:
        The clone, which shares the weights, and the mask. With nothing to skip, the clone is the
        model as it is.

    Raises:
        ValueError: no SeedVR2, on this host or in this MODEL, or one from TorchCompileModel; no
            latent in the conditioning, or a bad one; a value out of range; everything skipped; or
            as `score_pixels`.
    """
    network = _network(model)
    check_choice(choose, "choose", CHOICES)
    clip, patch = _low_quality(conditioning), tuple(network.vid_in.patch_size)
    options = {"dilate": dilate} | ({"tau": tau} if choose == "tau" else {"keep": keep})
    if image is None:
        mask = predict_mask(clip, patch=patch, **options)
    else:
        scores = score_pixels(image, clip, latent, patch)
        mask = choose_tokens(scores, source="pixel detail", **options)
    check_keep(mask.tokens, mask.grid)
    share = weight(mask.tokens, patch, seam)
    hard = weight(mask.tokens, patch)
    clone = _without(model.clone())
    if not mask.tokens.all():
        check_guarded(model)
        put_back = replace_blocks(clone, network, mask)
        _compose(clone, clip, share, hard, put_back)
    return clone, mask


def _network(model: Any) -> Any:
    """Return the diffusion model inside, which must be the host's SeedVR2."""
    try:
        from comfy.ldm.seedvr.model import NaDiT
    except ImportError as error:
        raise ValueError(
            "expected a ComfyUI with SeedVR2 in it, such as 0.33, got an older one; "
            "update ComfyUI, or leave this node out."
        ) from error
    network = model.get_model_object("diffusion_model")
    network = uncompiled(network)
    if not isinstance(network, NaDiT):
        raise ValueError(
            f"expected a SeedVR2 model, got {type(network).__name__}; connect one, or use "
            "Surf Skip Mask and Surf Refiner for other models."
        )
    return network


def _low_quality(conditioning: Conditioning) -> Tensor:
    """Return the latent [B, 16, T, H, W] in conditioning of SeedVR2, on the CPU."""
    latents = [entry[1]["condition"] for entry in conditioning if "condition" in entry[1]]
    if not latents:
        raise ValueError(
            "expected conditioning with the latent to refine, got none; connect "
            "'positive' of Apply SeedVR2 Conditioning."
        )
    first = latents[0]
    check_latent(first, "conditioning", channels=CHANNELS + 1)
    if any(other.shape != first.shape or not torch.equal(other, first) for other in latents[1:]):
        raise ValueError("expected conditioning of one clip, got several; use one node for each.")
    return first[:, :CHANNELS].detach().cpu()


def _without(clone: Any) -> Any:
    """Remove from a clone what an earlier call has put on it."""
    kinds = comfy.patcher_extension.WrappersMP
    for kind in (kinds.OUTER_SAMPLE, kinds.APPLY_MODEL):
        clone.remove_wrappers_with_key(kind, KEY)
    options, slot = clone.model_options, "sampler_post_cfg_function"
    if slot in options:
        options[slot] = [each for each in options[slot] if not hasattr(each, REPLACED)]
    patches = options.get("transformer_options", {}).get("patches_replace", {}).get("dit", {})
    for key in [key for key, patch in patches.items() if hasattr(patch, REPLACED)]:
        earlier = getattr(patches.pop(key), REPLACED)
        if earlier is not None:
            patches[key] = earlier
    return clone


def _compose(
    clone: Any, clip: Tensor, share: Tensor, hard: Tensor, put_back: Callable[[dict], dict]
) -> None:
    """Set skipped cells to the low-quality latent, at every step and at the end.

    Args:
        clip: [B, 16, T, H, W], in the model's space, which takes it as it is.
        share, hard: [T, H, W], weight of the refined latent with and without the seam.
        put_back: of `replace_blocks`.
    """
    copies: dict[torch.device, Tensor] = {}
    latent_format, node = clone.get_model_object("latent_format"), running_node()

    def clip_like(x: Tensor) -> Tensor:
        if x.device not in copies:
            copies[x.device] = clip.to(x.device)
        return comfy.utils.repeat_to_batch_size(copies[x.device], len(x))

    def keep_skipped(args: dict) -> Tensor:
        x0 = args["denoised"]
        return compose(x0, clip_like(x0), share)

    def sample(executor, noise, latent, sampler, sigmas, denoise_mask=None, *args, **kwargs):
        with reporting_as(node):
            _check_size(noise, clip)
        out = executor(noise, latent, sampler, sigmas, denoise_mask, *args, **kwargs)
        if denoise_mask is not None or float(sigmas[-1]) > 0:
            return out
        return compose(out, latent_format.process_out(clip_like(out)), hard)

    def apply(executor, x, t, concat, text, control, options, **kwargs):
        with reporting_as(node):
            _check_size(x, clip)
            calls = len(options.get("cond_or_uncond") or (0,))
            expected = clip_like(x[: len(x) // calls]).repeat(calls, 1, 1, 1, 1)
            _check_clip(kwargs.get("condition"), expected)
        return executor(x, t, concat, text, control, put_back(options), **kwargs)

    setattr(keep_skipped, REPLACED, None)
    clone.set_model_sampler_post_cfg_function(keep_skipped)
    kinds = comfy.patcher_extension.WrappersMP
    clone.add_wrapper_with_key(kinds.OUTER_SAMPLE, KEY, sample)
    clone.add_wrapper_with_key(kinds.APPLY_MODEL, KEY, apply)


def _check_size(latent: Tensor, clip: Tensor) -> None:
    """Refuse to sample a latent of another size or length than the clip of the conditioning."""
    if latent.shape[1:] != clip.shape[1:]:
        raise ValueError(
            f"expected a latent of {tuple(clip.shape[1:])} (channels, frames, rows, "
            f"columns), as in its conditioning, got {tuple(latent.shape[1:])}; connect the same "
            "clip to Apply SeedVR2 Conditioning and to the sampler."
        )


def _check_clip(condition: Tensor | None, expected: Tensor) -> None:
    """Refuse conditioning of another clip than the one that chose the tokens.

    Args:
        condition: [S, 17, T, H, W]; None is left to the host, which asks for it.
        expected: [S, 16, T, H, W].
    """
    if condition is None:
        return
    clip = condition[:, :CHANNELS]
    if clip.shape != expected.shape or not torch.equal(clip, expected.to(clip)):
        raise ValueError(
            f"expected the conditioning that chose what to refine, "
            f"{tuple(expected.shape[1:])}, got that of another clip, {tuple(clip.shape[1:])}; "
            "connect one Apply SeedVR2 Conditioning to this node and to the sampler."
        )
