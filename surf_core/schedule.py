"""Noise levels: the schedule, its shift, and where it is cut when the resolution changes.

Sigma runs from 1 (noise) to 0 (clean); z = (1 - sigma) * x0 + sigma * noise.

Dims: N steps; a schedule holds N + 1 sigmas.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from .checks import check_choice, check_range

SIGMA_POLICIES = ("same", "snr_equal")
"""Where the low resolution starts: at the sigma of the switch (SURF), or where a patch of the
picture has the same signal to noise ratio as before (ours)."""
HANDOVERS = ("reuse", "evaluate")
"""Which clean estimate crosses the switch: that of the last high-resolution step, or one more
evaluation at the sigma of the switch."""


def shift_sigma(sigma, shift: float):
    """Move noise levels up: shift * sigma / (1 + (shift - 1) * sigma), for floats or tensors.

    0 and 1 stay, 1.0 changes nothing, and shift a after shift b is shift a * b.

    Source: timestep shift of SD3 and Wan; SURF Tab. R6 uses 3 for the preview, 1 for the refiner.
    """
    check_range(shift, "shift", 1e-3, 1e3, "use 3 for a preview, 1 for none")
    return shift * sigma / (1 + (shift - 1) * sigma)


def flow_sigmas(steps: int, shift: float) -> Tensor:
    """Cut 1 to 0 in `steps` equal parts, then shift: [N + 1] fp32.

    Raises:
        ValueError: steps < 1, or a shift that is not positive.
    """
    if steps < 1:
        raise ValueError(f"expected at least one step, got {steps=}; use 40 for a preview.")
    return shift_sigma(torch.linspace(1, 0, steps + 1, dtype=torch.float64), shift).float()


def snr_equal_sigma(sigma: float, ratio: float) -> float:
    """Find the sigma at which a smaller picture is as noisy as the larger one was.

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
    """Refuse what is no flow schedule.

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


def respace(sigmas: Tensor, start: float, steps: int) -> Tensor:
    """Spend `steps` steps from `start` down to the last sigma, in the rhythm of `sigmas`.

    The schedule is read as a piecewise linear function of the step; what lies below `start` is
    cut in equal parts of a step. A `start` above the first sigma stretches the whole schedule.

    Args:
        sigmas: [N + 1], non-increasing.
        start: first sigma of the result, not below the last of `sigmas`, at most 1.
        steps: >= 1.

    Returns:
        [steps + 1], dtype and device of `sigmas`, a new tensor; bit-equal to
        sigmas[-steps - 1:] when `start` is its first value.

    Raises:
        ValueError: a bad schedule, `steps` < 1, or `start` out of range.

    Source: ours.
    """
    check_sigmas(sigmas)
    if steps < 1:
        raise ValueError(f"expected at least one step, got {steps=}; switch earlier.")
    first, last = sigmas[0].item(), sigmas[-1].item()
    check_range(start, "the first sigma", last, max(first, 1.0), "switch earlier or denoise more")
    if steps < len(sigmas) and sigmas[-steps - 1].item() == start:
        return sigmas[-steps - 1 :].clone()
    values = sigmas.double().cpu()
    if start > first:
        share = (start - last) / (first - last) if first > last else 0.0
        values = last + (values - last) * share
        values[0] = start
    # The last step at or above start, then the fraction of a step that is still to go down.
    index = min(int((values >= start).sum()) - 1, len(values) - 2)
    drop = (values[index] - values[index + 1]).item()
    position = index + ((values[index].item() - start) / drop if drop else 1.0)
    at = torch.linspace(position, len(values) - 1, steps + 1, dtype=torch.float64)
    below = at.long().clamp(max=len(values) - 2)
    result = torch.lerp(values[below], values[below + 1], at - below)
    result[0], result[-1] = start, last
    return result.to(sigmas)


@dataclass(frozen=True, kw_only=True, slots=True)
class SwitchedSchedule:
    """One schedule, cut where the resolution changes."""

    high: Tensor
    """Sigmas of the high-resolution leg, ends in 0; empty when all steps are low."""
    low: Tensor
    """Sigmas of the low-resolution leg; empty when all steps are high."""
    sigma: float
    """Where the low-resolution leg starts; the last sigma when there is none."""


def switch(
    sigmas: Tensor,
    step: int,
    *,
    ratio: float,
    sigma_policy: str = "same",
    handover: str = "reuse",
    sigmas_low: Tensor | None = None,
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

    Returns:
        New tensors, never views.

    Raises:
        ValueError: a bad schedule, `step` outside 0..N, or an unknown policy.

    Source: SURF 3.2; the low leg of "snr_equal" is ours.
    """
    check_sigmas(sigmas)
    check_choice(sigma_policy, "sigma_policy", SIGMA_POLICIES)
    check_choice(handover, "handover", HANDOVERS)
    total, below = len(sigmas) - 1, sigmas if sigmas_low is None else sigmas_low
    check_sigmas(below)
    if not 0 <= step <= total:
        raise ValueError(
            f"the switch step must lie within 0 to {total}, the steps of the schedule, "
            f"got {step=}; use about a quarter of the steps."
        )
    if step == 0:
        return SwitchedSchedule(high=sigmas[:0].clone(), low=below.clone(), sigma=below[0].item())
    if step == total:
        return SwitchedSchedule(
            high=sigmas.clone(), low=sigmas[:0].clone(), sigma=sigmas[-1].item()
        )
    high = torch.cat([sigmas[: step + (handover == "evaluate")], sigmas.new_zeros(1)])
    start = sigmas[step].item()
    if sigma_policy == "snr_equal":
        start = snr_equal_sigma(min(start, 1.0), ratio)
    low = respace(below, start, total - step)
    return SwitchedSchedule(high=high, low=low, sigma=start)
