"""Sample like a KSampler with a switch of resolution: schedules, noise, one sampling call.

Dims: B batch, C channels, T latent frames, H, W latent cells.
"""

from dataclasses import asdict
from typing import Any

import comfy.sample
import comfy.samplers
import comfy.utils
import latent_preview
from torch import Tensor

from ....surf_core.checks import check_choice
from .. import models
from ..conditioning import Conditioning, with_made_for
from ..draft_record import SEED, maker, with_record
from ..latents import close_latent, open_latent, to_intermediate
from .guider import ReshiftGuider, cfg_guider
from .leg import OWN_GRID, check_sampler
from .legs import Call, Course
from .plan import Switch
from .sides import Sides

SAME = "same"
"""Name of the sampler or scheduler before the switch, for those after it."""


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
    plan: Switch,
    sides: Sides,
    *,
    seed: int,
    steps: int,
    shift: float,
    shift_low: float,
    sampler_name: str,
    scheduler: str,
    denoise: float = 1.0,
    sampler_low: str = SAME,
    scheduler_low: str = SAME,
) -> tuple[dict, dict]:
    """Sample a LATENT with a switch of resolution.

    Args:
        seed: 0..2**64 - 1.
        shift, shift_low: timestep shifts before and after; 0 leaves the model's own.
        sampler_low, scheduler_low: after the switch; SAME for those before it.

    Returns:
        (preview, switch_x0): LATENTs at the low and at the high resolution; both carry the high
        one, for which the conditioning was made, and a record of seed and settings.

    Raises:
        ValueError: anything that cannot work, before the first evaluation.
    """
    after = sampler_name if sampler_low == SAME else sampler_low
    spaced = scheduler if scheduler_low == SAME else scheduler_low
    sampler = _sampler(sampler_name, "sampler_name")
    other = sampler if sampler_low == SAME else _sampler(sampler_low, "sampler_low")
    check_choice(scheduler, "scheduler", schedulers())
    check_choice(spaced, "scheduler_low", schedulers())
    high, low = sides.stages(model, shift, shift_low, other)
    samples = open_latent(high.models[0], latent, "latent_image")
    course = Course(
        plan=plan,
        high=high,
        low=low,
        boundary=sides.expert_boundary,
        sigmas_low=schedule(low.models[0], steps, after, spaced, denoise),
    )
    sigmas = schedule(high.models[0], steps, sampler_name, scheduler, denoise)
    guider = cfg_guider(high.models[0], positive, negative, sides.cfg)
    made = sample_latent(guider, course, latent, samples, sampler, sigmas, seed)
    numbers = {"cfg": sides.cfg, "cfg_low": sides.cfg_low, "shift": shift, "shift_low": shift_low}
    numbers |= {"expert_boundary": sides.expert_boundary, "cfg_low_noise": sides.cfg_low_noise}
    names = {"sampler_name": sampler_name, "scheduler": scheduler, **maker(model)}
    names |= {"sampler_low": after, "scheduler_low": spaced}
    record = {SEED: seed, "steps": steps, "denoise": denoise, **asdict(plan), **numbers, **names}
    preview, switch_x0 = (with_record(latent, **record) for latent in made)
    return preview, switch_x0


def _sampler(name: str, which: str) -> Any:
    """Return the host's sampler of a name, or refuse it."""
    if name not in OWN_GRID:
        check_choice(name, which, samplers())
    sampler = comfy.samplers.sampler_object(name)
    check_sampler(sampler)
    return sampler


def sample_latent(
    guider: Any,
    course: Course,
    latent: dict,
    samples: Tensor,
    sampler: Any,
    sigmas: Tensor,
    seed: int,
) -> tuple[dict, dict]:
    """Sample a LATENT in legs, under one progress bar: LATENTs (preview, switch_x0)."""
    estimates: list[Tensor] = []
    reshift = ReshiftGuider(guider, course, estimates.append)
    model = guider.model_patcher
    noise = comfy.sample.prepare_noise(samples, seed, latent.get("batch_index"))
    call = Call(
        noise=noise, samples=samples, sampler=sampler, sigmas=sigmas, mask=latent.get("noise_mask")
    )
    legs = reshift.legs(call)
    callback = latent_preview.prepare_callback(model, sum(leg.evaluations for leg in legs))
    out = reshift.run(legs, call, callback, not comfy.utils.PROGRESS_BAR_ENABLED, seed)
    estimate = estimates[0] if legs[0].place else to_intermediate(estimates[0])
    made_for = tuple(side * models.cell_side(model) for side in samples.shape[-2:])
    preview, switch_x0 = (
        with_made_for(close_latent(latent, x), made_for) for x in (to_intermediate(out), estimate)
    )
    return preview, switch_x0
