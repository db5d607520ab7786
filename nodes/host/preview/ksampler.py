"""Sample like a KSampler with a switch of resolution: schedules, noise, one sampling call.

Dims: B batch, C channels, T latent frames, H, W latent cells.
"""

from typing import Any

import comfy.sample
import comfy.samplers
import comfy.utils
import latent_preview
from torch import Tensor

from ....surf_core.checks import check_choice, check_range
from .. import models
from ..conditioning import Conditioning
from ..latents import close_latent, open_latent, to_intermediate
from .guider import ReshiftGuider, check_sampler
from .plan import Switch

SAMPLERS = tuple(comfy.samplers.KSampler.SAMPLERS)
SCHEDULERS = tuple(comfy.samplers.KSampler.SCHEDULERS)


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


def check_settings(
    seed: int,
    steps: int,
    sampler: str,
    scheduler: str,
    denoise: float,
    shifts: dict[str, float],
) -> None:
    """Refuse settings that a workflow file or an API call can carry past the widgets."""
    check_choice(sampler, "sampler_name", SAMPLERS)
    check_choice(scheduler, "scheduler", SCHEDULERS)
    check_range(seed, "seed", 0, 2**64 - 1, "use a number of the seed widget")
    check_range(steps, "steps", 1, 10000, "use 40")
    for name, shift in shifts.items():
        check_range(shift, f"{name}", 0.0, 100.0, "use 3, or 0 for the model's own")
    if not 0 < denoise <= 1:
        raise ValueError(
            f"the schedule is empty: denoise must be above 0 and at most 1, got {denoise=}; "
            "use 1.0 to start from noise."
        )


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
        (preview, switch_x0): LATENTs at the low and at the high resolution.

    Raises:
        ValueError: anything that cannot work, before the first evaluation.
    """
    check_settings(
        seed, steps, sampler_name, scheduler, denoise, {"shift": shift, "shift_low": shift_low}
    )
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
    batch_index, estimates = latent.get("batch_index"), []
    guider = ReshiftGuider(
        model,
        positive,
        negative,
        plan,
        model_low=low,
        sigmas_low=sigmas_low,
        batch_index=batch_index,
        on_switch=estimates.append,
    )
    out = guider.sample(
        comfy.sample.prepare_noise(samples, seed, batch_index),
        samples,
        sampler,
        sigmas,
        denoise_mask=latent.get("noise_mask"),
        callback=latent_preview.prepare_callback(model, plan.evaluations(len(sigmas) - 1)),
        disable_pbar=not comfy.utils.PROGRESS_BAR_ENABLED,
        seed=seed,
    )
    estimate = estimates[0] if plan.switch_step == 0 else to_intermediate(estimates[0])
    return close_latent(latent, to_intermediate(out)), close_latent(latent, estimate)
