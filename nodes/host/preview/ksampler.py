"""Sample like a KSampler with a switch of resolution: schedules, noise, one sampling call.

Dims: B batch, C channels, T latent frames, H, W latent cells.
"""

from typing import Any

import comfy.sample
import comfy.samplers
import comfy.utils
import latent_preview
from torch import Tensor

from ....surf_core.checks import check_choice
from .. import models
from ..conditioning import Conditioning, with_made_for
from ..latents import close_latent, open_latent, to_intermediate
from .guider import ReshiftGuider
from .leg import OWN_GRID, check_sampler
from .plan import Switch


def samplers() -> tuple[str, ...]:
    """List the host's samplers, with those that packs add later, without OWN_GRID."""
    return tuple(name for name in comfy.samplers.KSampler.SAMPLERS if name not in OWN_GRID)


def schedulers() -> tuple[str, ...]:
    """List the host's schedulers, with those that packs add later."""
    return tuple(comfy.samplers.KSampler.SCHEDULERS)


def schedule(model: Any, steps: int, sampler: str, scheduler: str, denoise: float) -> Tensor:
    """Build the sigmas of a plain KSampler: [steps + 1], on the CPU."""
    ksampler = comfy.samplers.KSampler(
        model,
        steps=steps,
        device=model.load_device,
        sampler=sampler,
        scheduler=scheduler,
        denoise=denoise,
        model_options=model.model_options,
    )
    return ksampler.sigmas.cpu()


def sample_preview(
    model: Any,
    positive: Conditioning,
    negative: Conditioning,
    latent: dict,
    seed: int,
    plan: Switch,
    *,
    steps: int,
    shift: float,
    shift_low: float,
    sampler_name: str,
    scheduler: str,
    denoise: float,
    model_low: Any = None,
) -> tuple[dict, dict]:
    """Sample a LATENT with a switch of resolution.

    Args:
        seed: 0..2**64 - 1.
        shift, shift_low: timestep shifts before and after; 0 leaves the model's own.

    Returns:
        (preview, switch_x0): LATENTs at the low and at the high resolution; both carry the high
        one, for which the conditioning was made.

    Raises:
        ValueError: anything that cannot work, before the first evaluation.
    """
    if sampler_name not in OWN_GRID:
        check_choice(sampler_name, "sampler_name", samplers())
    check_choice(scheduler, "scheduler", schedulers())
    sampler = comfy.samplers.sampler_object(sampler_name)
    check_sampler(sampler)
    low = model if model_low is None else model_low
    for each in (model, low):
        models.check_flow(each)
    model, low = models.with_shift(model, shift), models.with_shift(low, shift_low)
    samples = open_latent(model, latent, "latent_image")
    sigmas, sigmas_low = (
        schedule(each, steps, sampler_name, scheduler, denoise) for each in (model, low)
    )
    estimates = []
    guider = ReshiftGuider(
        model,
        positive,
        negative,
        plan,
        model_low=low,
        sigmas_low=sigmas_low,
        on_switch=estimates.append,
    )
    out = guider.sample(
        comfy.sample.prepare_noise(samples, seed, latent.get("batch_index")),
        samples,
        sampler,
        sigmas,
        denoise_mask=latent.get("noise_mask"),
        callback=latent_preview.prepare_callback(model, plan.evaluations(len(sigmas) - 1)),
        disable_pbar=not comfy.utils.PROGRESS_BAR_ENABLED,
        seed=seed,
    )
    estimate = estimates[0] if plan.switch_step == 0 else to_intermediate(estimates[0])
    made_for = tuple(side * models.cell_side(model) for side in samples.shape[-2:])
    preview, switch_x0 = (
        with_made_for(close_latent(latent, x), made_for) for x in (to_intermediate(out), estimate)
    )
    return preview, switch_x0
