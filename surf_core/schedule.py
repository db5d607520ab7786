"""Noise schedules: flow sigmas, their shift, and the cut where the resolution changes.

Sigma runs from 1 (noise) to 0 (clean); z = (1 - sigma) * x0 + sigma * noise.

Dims: N steps; a schedule holds N + 1 sigmas.
"""

from dataclasses import dataclass
from typing import TypeVar

import torch
from torch import Tensor

from .checks import check_choice, check_range

SIGMA_POLICIES = ("same", "snr_equal")
"""First sigma of the low-resolution leg: that of the switch (SURF), or the one at which a block of
cells has the same signal to noise ratio as before (ours)."""
HANDOVERS = ("reuse", "evaluate")
"""Which clean estimate is handed to the low-resolution leg: that of the last high-resolution step,
or of one more evaluation at the sigma of the switch."""
Level = TypeVar("Level", float, Tensor)
"""A noise level, or a tensor of them."""


def shift_sigma(sigma: Level, shift: float) -> Level:
    """Shift noise levels: shift * sigma / (1 + (shift - 1) * sigma), for a float or a tensor.

    0 and 1 are fixed points, shift 1.0 is the identity, and shift a after shift b is shift a * b.

    Source: timestep shift of SD3 and Wan; SURF Tab. R6 uses 3 for the preview, 1 for the refiner.
    """
    check_range(shift, "shift", 1e-3, 1e3, "use 3 for a preview, 1 for none")
    return shift * sigma / (1 + (shift - 1) * sigma)


def flow_sigmas(steps: int, shift: float) -> Tensor:
    """Make a flow model's schedule: 1 to 0 in `steps` equal parts, shifted; [N + 1] fp32.

    Raises:
        ValueError: steps < 1, or a shift that is not positive.
    """
    if steps < 1:
        raise ValueError(f"expected at least one step, got {steps=}; use 40 for a preview.")
    return shift_sigma(torch.linspace(1, 0, steps + 1, dtype=torch.float64), shift).float()


def snr_equal_sigma(sigma: float, ratio: float) -> float:
    """Return the sigma at which a smaller picture has the signal to noise ratio of the larger one.

    Averaging `ratio` x `ratio` cells divides the deviation of the noise by `ratio` and keeps the
    picture, so (1 - sigma) / sigma must grow by `ratio` when a block becomes one fresh cell.

    Args:
        sigma: noise level before, 0..1.
        ratio: spatial downscale factor per side, > 0; 2.0 for 480p to 240p.

    Returns:
        sigma / (sigma + ratio * (1 - sigma)), 0..1; the shift by 1 / ratio.

    Source: ours; the inverse of the shift that goes with a higher resolution (SD3).
    """
    check_range(sigma, "sigma", 0.0, 1.0, "pass a flow model's noise level")
    check_range(ratio, "ratio", 1e-3, 1e3, "pass the downscale factor per side")
    return sigma / (sigma + ratio * (1 - sigma))


def check_sigmas(sigmas: Tensor) -> None:
    """Raise for what is no flow schedule.

    Raises:
        ValueError: not one dimension of floats, fewer than two values, NaN, a rise, or a value
            outside 0..1.
    """
    if sigmas.ndim != 1 or not sigmas.is_floating_point():
        raise ValueError(
            "sigmas must be one row of floating point values, got "
            f"shape={tuple(sigmas.shape)}, {sigmas.dtype}; connect a scheduler."
        )
    if len(sigmas) < 2:
        raise ValueError(
            f"the schedule is empty: expected at least two sigmas, got {sigmas.tolist()}; "
            "use at least one step and a denoise above 0."
        )
    if not torch.isfinite(sigmas).all() or (sigmas.diff() > 0).any():
        raise ValueError(
            f"sigmas must fall from step to step, got {sigmas.tolist()}; use a scheduler that "
            "goes from noise to clean."
        )
    # Some schedulers reach 1 through powers and overshoot it by a rounding error.
    if sigmas[0] > 1 + 1e-4 or sigmas[-1] < 0:
        raise ValueError(
            f"sigmas must lie within 0..1, got {sigmas[0].item()} to {sigmas[-1].item()}; "
            "this needs a flow model such as Wan or HunyuanVideo."
        )


def respace(sigmas: Tensor, highest: float, steps: int) -> Tensor:
    """Resample a schedule to `steps` steps from `highest` down to its last sigma.

    The schedule is a piecewise linear function of the step number, and its part below `highest`
    is sampled at equal distances. A `highest` above the first sigma stretches the schedule.

    Args:
        sigmas: [N + 1], non-increasing.
        highest: first sigma of the result, not below the last of `sigmas`, at most 1.
        steps: >= 1.

    Returns:
        [steps + 1], dtype and device of `sigmas`, a new tensor; bit-equal to
        sigmas[-steps - 1:] when `highest` is its first value.

    Raises:
        ValueError: a bad schedule, `steps` < 1, or `highest` out of range.

    Source: ours.
    """
    check_sigmas(sigmas)
    if steps < 1:
        raise ValueError(f"expected at least one step, got {steps=}; switch earlier.")
    first, last = sigmas[0].item(), sigmas[-1].item()
    check_range(highest, "the first sigma", last, max(first, 1.0), "switch earlier or denoise more")
    if steps < len(sigmas) and sigmas[-steps - 1].item() == highest:
        return sigmas[-steps - 1 :].clone()
    values = sigmas.double().cpu()
    if highest > first:
        share = (highest - last) / (first - last) if first > last else 0.0
        values = last + (values - last) * share
        values[0] = highest
    # The last step at or above `highest`, then the fraction of a step that is left below it.
    index = min(int((values >= highest).sum()) - 1, len(values) - 2)
    drop = (values[index] - values[index + 1]).item()
    position = index + ((values[index].item() - highest) / drop if drop else 1.0)
    at = torch.linspace(position, len(values) - 1, steps + 1, dtype=torch.float64)
    below = at.long().clamp(max=len(values) - 2)
    result = torch.lerp(values[below], values[below + 1], at - below)
    result[0], result[-1] = highest, last
    return result.to(sigmas)


def reach_sigma(sigmas: Tensor, step: int, sigma: float) -> Tensor:
    """Move a schedule so that it is at `sigma` after `step` steps: cut there, it switches later.

    The first steps are spread over the schedule's part above `sigma`, the others over that below,
    each at equal distances of the step number. Fewer high-resolution steps reach a lower noise
    level so, where more of the layout is known, at unchanged cost; each of them is coarser.

    Args:
        sigmas: [N + 1], non-increasing; not changed.
        step: 1..N - 1.
        sigma: strictly between the last and the first of `sigmas`.

    Returns:
        [N + 1], dtype and device of `sigmas`, a new tensor; `sigmas` if it is at `sigma` there.

    Raises:
        ValueError: a bad schedule, or a step or sigma out of range.

    Source: ours.
    """
    check_sigmas(sigmas)
    total, first, last = len(sigmas) - 1, sigmas[0].item(), sigmas[-1].item()
    check_range(step, "the switch step", 1, total - 1, "leave steps on both sides of the switch")
    if not last < sigma < first:
        raise ValueError(
            f"the sigma of the switch must lie between {last:.3g} and {first:.3g}, where the "
            f"schedule ends and begins, got {sigma}; use about 0.75."
        )
    if sigmas[step].item() == sigma:
        return sigmas.clone()
    # Upside down, the part above is one that respace takes from its end.
    above = 1 - respace(1 - sigmas.double().clamp(max=1).flip(0), 1 - sigma, step).flip(0)
    below = respace(sigmas.double(), sigma, total - step)
    return torch.cat([above[:-1], below]).to(sigmas)


@dataclass(frozen=True, kw_only=True, slots=True)
class SwitchedSchedule:
    """A schedule, cut in two where the resolution changes."""

    high: Tensor
    """Sigmas of the high-resolution leg, ends in 0; empty when all steps are low."""
    low: Tensor
    """Sigmas of the low-resolution leg; empty when all steps are high."""
    sigma: float
    """First sigma of the low-resolution leg; the last of the schedule where there is none."""


def switch(
    sigmas: Tensor,
    step: int,
    *,
    ratio: float,
    sigma_policy: str = "same",
    handover: str = "reuse",
    sigmas_low: Tensor | None = None,
    steps_low: int = 0,
    estimated: bool = False,
) -> SwitchedSchedule:
    """Cut a schedule where the resolution drops.

    The high leg ends in 0, so that its result is a clean estimate: with "reuse" the last of
    `step` evaluations jumps to 0, with "evaluate" there is one more evaluation at sigmas[step].

    Args:
        sigmas: [N + 1], non-increasing, 0..1; not changed.
        step: evaluations before the switch, 0..N; 0 is all low, N all high.
        ratio: downscale factor per side, see `snr_equal_sigma`.
        sigma_policy: one of SIGMA_POLICIES.
        handover: one of HANDOVERS.
        sigmas_low: the schedule that the low leg follows, e.g. with another shift; default
            `sigmas`.
        steps_low: steps of the low leg; 0 for those that are left of `sigmas`.
        estimated: at step 0, whether the latent is noisy and its clean part was estimated at
            sigmas[0]; then `sigma_policy` applies there too.

    Returns:
        New tensors, never views.

    Raises:
        ValueError: a bad schedule, `step` outside 0..N, an unknown policy, or one that leads below
            the end of the schedule.

    Source: SURF 3.2; the low leg of "snr_equal" is ours.
    """
    check_sigmas(sigmas)
    check_choice(sigma_policy, "sigma_policy", SIGMA_POLICIES)
    check_choice(handover, "handover", HANDOVERS)
    total, below = len(sigmas) - 1, sigmas if sigmas_low is None else sigmas_low
    check_sigmas(below)
    check_range(steps_low, "steps_low", 0, 10_000, "use 0 for the rest of the schedule")
    if not 0 <= step <= total:
        raise ValueError(
            f"the switch step must lie within 0 to {total}, the steps of the schedule, "
            f"got {step=}; use about a quarter of the steps."
        )
    if step == 0 and not estimated:
        low = respace(below, below[0].item(), steps_low or len(below) - 1)
        return SwitchedSchedule(high=sigmas[:0].clone(), low=low, sigma=below[0].item())
    if step == total:
        return SwitchedSchedule(
            high=sigmas.clone(), low=sigmas[:0].clone(), sigma=sigmas[-1].item()
        )
    high = torch.cat([sigmas[: step + (handover == "evaluate")], sigmas.new_zeros(1)])
    sigma = sigmas[step].item()
    if sigma_policy == "snr_equal":
        sigma = snr_equal_sigma(min(sigma, 1.0), ratio)
        if sigma <= below[-1]:
            raise ValueError(
                f"equal signal to noise after a switch at sigma {sigmas[step].item():.3g} is "
                f"sigma {sigma:.3g}, which the schedule, ending at {below[-1].item():.3g}, does "
                "not reach; split the sigmas later, switch earlier, or set sigma_policy to same."
            )
    low = respace(below, sigma, steps_low or total - step)
    return SwitchedSchedule(high=high if step else high[:0], low=low, sigma=sigma)
