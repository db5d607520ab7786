"""The Surf Refiner's run: upsample a preview, re-noise part of the way, sample down to zero.

One path for any flow model and for a trained flow-mapping refiner, which in sigma form is one too.

Dims: B batch, C latent channels, T latent frames, H, W latent cells.
"""

import logging
from typing import Any

import comfy.sample
import comfy.sampler_helpers
import comfy.samplers
import comfy.utils
import latent_preview
import torch
from torch import Tensor

from ....surf_core.checks import check_choice
from ....surf_core.flow import interpolate
from ....surf_core.lowband import lock_low_band, wavelet_match
from ....surf_core.skip import compose
from ..attention import windowed
from ..conditioning import Conditioning, Step, carry, references_are_bound
from ..latents import close_latent, open_latent, to_intermediate
from ..models import cell_side, check_flow, target_cells
from ..refiner import TRAITS_KEY, RefinerTraits
from ..skip import SkipMask, cell_weight, check_mask, skipping
from ..vae import UPSAMPLE_METHODS, check_vae, upsample_latent
from .tiling import tiled
from .traits import RefineSettings, apply_traits, check_prompts, with_sigma_start

log = logging.getLogger(__name__)

WHO = "Surf Refiner"
VIDEO_LATENTS = ("concat_latent_image", "vace_frames", "time_dim_concat", "pose_video_latent")
"""Conditioning that is a latent of the whole picture, and so tells its size."""


def refine(
    model: Any,
    positive: Conditioning,
    negative: Conditioning,
    latent: dict,
    settings: RefineSettings,
    *,
    upsample: str,
    vae: Any = None,
    mask: SkipMask | None = None,
    seam: int = 0,
    **wanted: Any,
) -> tuple[dict, tuple[int, int]]:
    """Turn a preview LATENT into one of the target size.

    Args:
        model: any flow video MODEL; not changed.
        positive, negative: CONDITIONING of the preview; what is bound to its size is resized.
        latent: the preview, in the latent space of `model`; not changed.
        settings: how to sample; a trained refiner's own sigma_start and window come first.
        upsample: "pixel" (through `vae`) or "latent".
        mask: what to refine; the rest comes out as the enlarged preview, bit for bit. None, or one
            with nothing to skip: all of it.
        seam: latent cells over which refined parts blend into the rest.
        wanted: resolution, scale, width and height, as in `target_cells`.

    Returns:
        LATENT with samples [B, C, T, H, W] of the new size, noise mask along; and (height, width)
        in pixels that were asked for: what a model needs more is to be cropped after decoding.

    Raises:
        ValueError: anything that does not fit, before a model runs.
    """
    check_flow(model, WHO)
    samples = open_latent(model, latent, f"{WHO}: latent")
    traits: RefinerTraits | None = model.get_attachment(TRAITS_KEY)
    conds = {"positive": positive, "negative": negative}
    settings = apply_traits(traits, settings)
    check_prompts(traits, conds, settings.cfg)
    size, asked = target_cells(model, samples, who=WHO, **wanted)
    check_choice(upsample, f"{WHO}: upsample", UPSAMPLE_METHODS)
    # By its shape alone, so that what does not fit is refused before the VAE works.
    shape = torch.empty((*samples.shape[:-2], *size), device="meta")
    start = None
    if mask is not None:
        check_mask(mask.mask, model, shape, seam, WHO)
        start = _start_of(mask, samples, shape, upsample)
        mask = None if mask.mask.tokens.all() else mask
        _check_areas(mask, conds)
    if start is None and upsample == "pixel":
        check_vae(vae, samples)
    sampled = (
        with_sigma_start(traits, model, settings) if traits else windowed(model, settings.window)
    )
    sampled = tiled(sampled, shape, settings.tile, WHO)
    if start is None:
        start = upsample_latent(samples, size, upsample, vae)
    sampled = _with_locked_low_band(sampled, start, settings, _ratio(samples, start))
    if mask is not None:
        sampled = skipping(sampled, start, mask.mask, seam=seam, who=WHO)
    step = Step(
        source=_made_for(conds) or tuple(samples.shape[-2:]),
        target=size,
        cell=cell_side(model),
        bound_references=references_are_bound(model),
    )
    out = _sample(sampled, carry(conds, step), latent, start, settings)
    if settings.colour_match:
        out = wavelet_match(out, start.to(out))
    if mask is not None:
        out = compose(out, start, cell_weight(mask.mask, model, start))
    return close_latent(latent, to_intermediate(out)), asked


def _start_of(mask: SkipMask, samples: Tensor, shape: Tensor, upsample: str) -> Tensor | None:
    """The enlarged preview that came with a mask, if it is this one, made in this way."""
    start = mask.start
    if start is None or mask.upsample != upsample or start.shape != shape.shape:
        return None
    same = mask.samples.shape == samples.shape and torch.equal(mask.samples.to(samples), samples)
    return start if same else None


def _check_areas(mask: SkipMask | None, conds: dict[str, Conditioning]) -> None:
    """Refuse areas beside a mask: for one, the model is called with a part of the picture."""
    if mask is None:
        return
    if any(entry[1].get("area") is not None for cond in conds.values() for entry in cond):
        raise ValueError(
            f"{WHO}: a prompt with an area and a mask do not go together, got both; confine the "
            "prompt with Conditioning (Set Mask), or disconnect the mask."
        )


def _ratio(samples: Tensor, start: Tensor) -> float:
    """Enlargement per side, the mean of both."""
    low, high = samples.shape[-2:], start.shape[-2:]
    return (high[0] * high[1] / (low[0] * low[1])) ** 0.5


def _with_locked_low_band(model: Any, start: Tensor, settings: RefineSettings, ratio: float) -> Any:
    """Clone a MODEL whose first clean estimates keep what the preview could already show.

    Runs after the guidance and after the functions that other nodes put there.

    Args:
        start: the upsampled preview, VAE space.
        ratio: how many target cells one preview cell covers, per side.
    """
    locked = round(settings.low_band_lock * settings.steps)
    if not locked:
        return model
    # Between two steps, so that rounding in the sampler's sigma cannot move a step across.
    last = float(settings.sigmas()[locked - 1 : locked + 1].mean())
    references: dict[torch.device, Tensor] = {}

    def lock(args: dict) -> Tensor:
        x0 = args["denoised"]
        if float(args["sigma"].max()) < last:
            return x0
        if x0.device not in references:
            moved = start.to(device=x0.device, dtype=torch.float32)
            references[x0.device] = args["model"].process_latent_in(moved)
        return lock_low_band(x0, references[x0.device].to(x0.dtype), ratio)

    clone = model.clone()
    clone.set_model_sampler_post_cfg_function(lock)
    return clone


def _made_for(conds: dict[str, Conditioning]) -> tuple[int, int] | None:
    """Rows and columns that conditioning was made for, where it holds a latent of the video.

    Often the size before the preview was made smaller, as one prompt serves both nodes.
    """
    for options in (entry[1] for cond in conds.values() for entry in cond):
        for key in VIDEO_LATENTS:
            value = options.get(key)
            value = value[0] if isinstance(value, list | tuple) and value else value
            if isinstance(value, Tensor):
                return tuple(value.shape[-2:])
    return None


def _sample(
    model: Any,
    conds: dict[str, Conditioning],
    latent: dict,
    start: Tensor,
    settings: RefineSettings,
) -> Tensor:
    """Noise the upsampled preview once and follow the flow to 0.

    The host mixes (1 - sigma) * clean + sigma * noise by itself. Told the noise, that is the start:
    it gets the upsampled preview and noise. Told the time of the flow map, its noise is the
    preview's end of the way, and nothing is clean; its mask would paste that nothing.
    """
    guider = comfy.samplers.CFGGuider(model)
    guider.set_conds(conds["positive"], conds["negative"])
    guider.set_cfg(settings.cfg)
    clean, mask = start, latent.get("noise_mask")
    noise = comfy.sample.prepare_noise(start, settings.seed, latent.get("batch_index"))
    if settings.time == "t":
        end = model.model.process_latent_in(start.float())
        noise = interpolate(end, noise.to(end), settings.sigma_start)
        clean = torch.zeros_like(end)
    out = guider.sample(
        noise,
        clean,
        comfy.samplers.sampler_object("euler"),
        settings.sigmas(),
        denoise_mask=mask if settings.time == "sigma" else None,
        callback=latent_preview.prepare_callback(model, settings.steps),
        disable_pbar=not comfy.utils.PROGRESS_BAR_ENABLED,
        seed=settings.seed,
    )
    if mask is None or settings.time == "sigma":
        return out
    kept = 1 - comfy.sampler_helpers.prepare_mask(mask, out.shape, out.device)
    return out + kept * (start.to(out) - out)
