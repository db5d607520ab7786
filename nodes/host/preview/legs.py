"""Build the legs of a run: each with its model, guidance, conditioning, sampler and size.

Everything that cannot work is refused here; nothing is evaluated.

Dims: B batch, C channels, T latent frames, H, W latent cells.
"""

from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from ....surf_core.legs import ESTIMATE, LEFTOVER, SLACK, Leg, plan_legs
from ....surf_core.schedule import check_sigmas
from .. import models
from ..audio_length import check_length
from ..bound_patches import check_bound
from ..conditioning import (
    Conditioning,
    Grid,
    SizeChange,
    check_areas,
    check_frames_beside,
    check_keyframes,
    check_text_width,
    low_conds,
)
from ..finite import check_conditioning, check_finite
from ..latents import check_channels, is_blank
from ..leftover_noise import warn_of_noise
from ..nested import split_mask
from ..noise_mask import check_mask_count, check_noise_mask
from . import audio
from .after_switch import with_changes
from .guiders import conds_of
from .leg import Segment, check_sampler, warn_of_mask
from .masked import can_hook
from .pictures import Pictures
from .plan import Policies, Size, Stage, ratio, turns
from .samples import parts_of


@dataclass(frozen=True, kw_only=True, slots=True)
class Course:
    """A run's settings: where the resolution drops, and what samples on each side of it."""

    plan: Any
    """A Switch, or another of Policies with `sizes` and `steps_low`."""
    high: Stage
    low: Stage
    boundary: float = 0.0
    """Sigma at which the low-noise expert takes over; 0 for one model."""
    sigmas_low: Tensor | None = None
    """The schedule after the switch; None for that of the sampling call."""
    pictures: Pictures = Pictures()
    """Pictures that are encoded anew for the sizes after a switch."""

    def stage(self, size: int) -> Stage:
        """Return what samples after so many switches."""
        return self.low if size else self.high


@dataclass(frozen=True, kw_only=True, slots=True)
class Call:
    """What a guider's `sample` was given."""

    noise: Tensor
    samples: Tensor
    sampler: Any
    sigmas: Tensor
    mask: Tensor | None

    @property
    def noisy(self) -> bool:
        """Whether the latent came with its noise: zeros for noise, and a schedule below 1."""
        blank, first = is_blank(self.noise), self.sigmas[0].item()
        return blank and not is_blank(self.samples) and first < 1


def segments(guider: Any, course: Course, call: Call) -> list[Segment]:
    """Cut a run into its legs, or refuse it.

    Args:
        guider: the GUIDER that is copied for each leg.
    """
    conds = conds_of(guider)
    _check_call(guider, course, call, conds)
    source = tuple(call.samples.shape[-2:])
    sizes = course.plan.sizes(guider.model_patcher, call.samples)
    legs = _plan(guider, course, call, source, sizes)
    _check_noise(course.plan, call, legs)
    grids = [source, *(size for _, size in sizes)]
    fitting = _fitting(course, call, conds, grids, {leg.size for leg in legs})
    made = [_segment(guider, course, call, leg, grids, fitting) for leg in legs]
    made = _with_estimate(made, course, call)
    if call.mask is not None:
        warn_of_mask(call.noisy, call.sigmas[-1].item())
    made = [_with_traits(made, index, course.plan) for index in range(len(made))]
    return with_changes(made, course.plan)


def _check_call(guider: Any, course: Course, call: Call, conds: dict[str, Conditioning]) -> None:
    """Refuse latents, masks, noise and schedules that no leg can start from."""
    model, samples = guider.model_patcher, call.samples
    for stage in (course.high, course.low):
        check_sampler(stage.sampler or call.sampler)
    check_channels(model, samples, "latent_image")
    check_noise_mask(call.mask, "latent_image")
    check_mask_count(split_mask(call.mask)[0], parts_of(samples).video)
    check_sigmas(call.sigmas)
    check_conditioning(conds)
    check_text_width(model, conds)
    check_areas(conds, tuple(samples.shape[2:]), Grid.of(model))
    check_frames_beside(conds, model, tuple(samples.shape[2:-2]))
    check_keyframes(conds, tuple(samples.shape[-2:]))
    models.check_grid(model, *samples.shape[-2:])
    check_length(model, parts_of(samples))
    check_noise(call.noise, samples)
    for stage in (course.high, course.low):
        check_masked_sound(call, stage.sampler or call.sampler)
    if not call.noisy and not is_blank(samples):
        warn_of_noise(parts_of(samples).video, "latent_image")


def check_masked_sound(call: Call, sampler: Any) -> None:
    """Refuse a noise mask on video and sound with a sampler that takes no other start."""
    if call.mask is None or parts_of(call.samples).audio is None or can_hook(sampler):
        return
    raise ValueError(
        "expected a sampler of the host, or of its kind, for a noise mask on video and sound, got "
        f"{type(sampler).__name__}; choose one with KSamplerSelect, or take the mask out."
    )


def check_noise(noise: Any, samples: Any) -> None:
    """Refuse noise that is not finite, or of other parts than the samples."""
    drawn, parts = parts_of(noise), parts_of(samples)
    if drawn.shapes != parts.shapes:
        raise ValueError(
            f"expected noise of the shape of the latent, {parts.shapes}, got {drawn.shapes}; draw "
            "it for this latent, e.g. with RandomNoise."
        )
    for part in drawn.tensors:
        check_finite(part, "the noise", "look at the node that made it")


def _plan(
    guider: Any, course: Course, call: Call, source: Size, sizes: list[tuple[int, Size]]
) -> list[Leg]:
    """Cut the schedule."""
    plan, below, made = course.plan, course.sigmas_low, turns(source, sizes)
    whole = plan.schedule(call.sigmas.cpu())
    if audio.carries(guider, course.low.models[0], plan.sigma_policy):
        below = audio.lowered(whole, made[0].ratio)
    legs = plan_legs(
        whole,
        made,
        sigma_policy=plan.sigma_policy,
        handover=plan.handover,
        keeps_noise=plan.inherits,
        sigmas_low=None if below is None else below.cpu(),
        steps_low=plan.steps_low,
        boundary=course.boundary,
        holds_noise=call.noisy,
    )
    if legs[-1].sigmas[-1] >= 1:
        raise ValueError(
            f"the schedule must end below sigma 1, got {call.sigmas.tolist()}; "
            "there is nothing to denoise, use the lower part of the schedule."
        )
    return legs


def _check_noise(plan: Policies, call: Call, legs: list[Leg]) -> None:
    """Refuse fresh noise after a switch where there was none before it."""
    if plan.inherits or not is_blank(call.noise):
        return
    if any(leg.begins == ESTIMATE for leg in legs):
        raise ValueError(
            "fresh noise after the switch follows from the noise before it, got none "
            "(DisableNoise); set noise_policy to inherited, or connect Random Noise where the "
            "latent is clean."
        )


def _fitting(
    course: Course,
    call: Call,
    conds: dict[str, Conditioning],
    grids: list[Size],
    places: set[int],
) -> dict[int, dict[str, Conditioning]]:
    """Fit the conditioning to the sizes after a switch: number of switches -> conditioning."""
    frames = tuple(call.samples.shape[2:-2])
    model = course.low.models[0]
    return {
        place: low_conds(
            course.pictures.encoded(model, conds, call.samples.shape[2], grids[place]),
            course.low.conds,
            SizeChange.of(model, grids[0], grids[place]),
            frames,
        )
        for place in sorted(places - {0})
    }


def _segment(
    guider: Any,
    course: Course,
    call: Call,
    leg: Leg,
    grids: list[Size],
    fitting: dict[int, dict[str, Conditioning]],
) -> Segment:
    """Find what one leg runs with."""
    stage, size = course.stage(leg.size), grids[leg.size]
    model = stage.models[min(leg.expert, len(stage.models) - 1)]
    own = model is guider.model_patcher
    if size != grids[0]:
        check_bound(model, (*call.samples.shape[:-2], *size), {grids[0]})
        if audio.carries(guider, model, course.plan.sigma_policy):
            model = audio.for_ratio(model, ratio(grids[0], size))
    return Segment(
        model=model,
        own_model=own,
        cfg=stage.cfg_of(leg.expert),
        conds=fitting.get(leg.size),
        size=size,
        sigmas=leg.sigmas,
        place=leg.size,
        sampler=stage.sampler or call.sampler,
        begins=leg.begins,
    )


def _with_estimate(made: list[Segment], course: Course, call: Call) -> list[Segment]:
    """Put one evaluation before a latent that must be parted into its picture and its noise."""
    first = made[0]
    if not call.noisy or not (call.mask is not None or first.begins == ESTIMATE):
        return made
    sigma = call.sigmas[0].item()
    low_noise = course.boundary > 0 and sigma < course.boundary - SLACK
    model = course.high.models[int(low_noise)]
    estimate = Segment(
        model=model,
        own_model=model is course.high.models[0],
        cfg=course.high.cfg_of(int(low_noise)),
        conds=None,
        size=tuple(call.samples.shape[-2:]),
        sigmas=torch.tensor([sigma, 0.0]),
        place=0,
        sampler=call.sampler,
        estimates=True,
    )
    return [estimate, replace(first, begins=ESTIMATE), *made[1:]]


def _with_traits(made: list[Segment], index: int, plan: Policies) -> Segment:
    """Switch off what would spoil the hand-over of a leg: step caches, and a second FreeNoise."""
    segment, model = made[index], made[index].model
    last = index == len(made) - 1
    if segment.estimates or (not last and made[index + 1].begins == ESTIMATE):
        model = models.without_step_caches(model)
    inherits = plan.inherits or (index and made[index - 1].estimates)
    if segment.begins == LEFTOVER or (segment.begins == ESTIMATE and inherits):
        model = models.without_noise_shuffle(model)
    switches = segment.place == 0 and (last or made[index + 1].place > 0)
    return replace(segment, model=model, switches=switches)
