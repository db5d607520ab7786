"""Plan a run as legs: sampling calls between cuts of resolution and of expert.

Two experts share the noise levels of some models, Wan 2.2 for one: the high-noise expert evaluates
sigmas at or above a boundary, the low-noise expert those below it.

Dims: N steps; a schedule holds N + 1 sigmas.
"""

from collections.abc import Sequence
from dataclasses import dataclass

from torch import Tensor

from .checks import check_choice, check_range
from .schedule import HANDOVERS, SIGMA_POLICIES, check_sigmas, switch

START, ESTIMATE, LEFTOVER = "start", "estimate", "leftover"
"""How a leg begins: from the latent of the run; from the clean estimate of the leg before, resized
and noised again; or from the latent of the leg before with the noise that is left in it."""
SLACK = 1e-6
"""Sigmas this little below the boundary are at it: schedules are fp32."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Leg:
    """One sampling call at one size with one expert."""

    size: int
    """How many switches of resolution come before it; 0 is the size of the latent."""
    expert: int
    """0 for the high-noise expert, or where there is one model; 1 for the low-noise expert."""
    sigmas: Tensor
    """[n + 1]; ends in 0 where the next leg begins with its estimate. Nobody else's tensor."""
    begins: str
    """START, ESTIMATE or LEFTOVER."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Turn:
    """A switch of resolution."""

    step: int
    """Evaluations before it, at all earlier sizes together."""
    ratio: float
    """Downscale factor per side from the size before; 1 where only other settings change."""


def plan_legs(
    sigmas: Tensor,
    turns: Sequence[Turn],
    *,
    sigma_policy: str = "same",
    handover: str = "reuse",
    keeps_noise: bool = True,
    sigmas_low: Tensor | None = None,
    steps_low: int = 0,
    boundary: float = 0.0,
    holds_noise: bool = False,
) -> list[Leg]:
    """Cut a schedule into legs.

    Args:
        sigmas: [N + 1], non-increasing, 0..1; not changed.
        turns: in order of their steps.
        sigma_policy, handover: see `schedule.switch`.
        keeps_noise: whether a switch that leaves the size as it is also leaves the noise as it is,
            so that no estimate is needed; False where fresh noise is asked for.
        sigmas_low: the schedule after the first switch, e.g. with another shift; default `sigmas`.
        steps_low: evaluations after the last switch; 0 for the rest of the schedule.
        boundary: sigma from which on down the low-noise expert evaluates, 0..1; 0 for one model.
        holds_noise: whether the latent comes with its noise; a switch at step 0 then resizes its
            estimate, which somebody else makes.

    Returns:
        At least one leg; no evaluation of an expert lies out of its range.

    Raises:
        ValueError: a bad schedule, steps outside 0..N or not rising, an unknown policy, or one that
            leads below the end of the schedule.
    """
    check_sigmas(sigmas)
    check_range(boundary, "expert_boundary", 0.0, 1.0, "use 0.9 for I2V, 0.875 for T2V, 0 for off")
    check_turns(turns, len(sigmas) - 1)
    legs: list[Leg] = []
    begins, below, done = START, sigmas, 0
    for size, turn in enumerate(turns):
        leftover = keeps_noise and turn.ratio == 1
        before, below = cut_at(
            below,
            turn.step - done,
            turn,
            sigma_policy=sigma_policy,
            handover=handover,
            leftover=leftover,
            sigmas_low=sigmas_low if size == 0 else None,
            steps_low=steps_low if size == len(turns) - 1 else 0,
            holds_noise=holds_noise and not done,
        )
        legs += by_expert(before, boundary, size, begins)
        if not len(below):
            return legs
        begins, done = (LEFTOVER if leftover else ESTIMATE), turn.step
        if not legs and (leftover or not holds_noise):
            begins = START
    return legs + by_expert(below, boundary, len(turns), begins)


def check_turns(turns: Sequence[Turn], total: int) -> None:
    """Refuse steps that do not rise, or lie outside 0 to `total`."""
    steps = [turn.step for turn in turns]
    if any(later <= step for step, later in zip(steps, steps[1:], strict=False)):
        raise ValueError(
            f"expected a later step for each smaller size, got {steps}; "
            "list the switches in the order in which they come."
        )
    for step in steps:
        if not 0 <= step <= total:
            raise ValueError(
                f"the switch step must lie within 0 to {total}, the steps of the schedule, "
                f"got {step=}; use about a quarter of the steps."
            )


def cut_at(
    sigmas: Tensor,
    step: int,
    turn: Turn,
    *,
    sigma_policy: str,
    handover: str,
    leftover: bool,
    sigmas_low: Tensor | None,
    steps_low: int,
    holds_noise: bool,
) -> tuple[Tensor, Tensor]:
    """Cut a schedule at one switch: sigmas before and after, either may be empty."""
    check_choice(sigma_policy, "sigma_policy", SIGMA_POLICIES)
    check_choice(handover, "handover", HANDOVERS)
    cut = switch(
        sigmas,
        step,
        ratio=turn.ratio,
        sigma_policy="same" if turn.ratio == 1 else sigma_policy,
        handover="reuse" if leftover else handover,
        sigmas_low=sigmas_low,
        steps_low=steps_low,
        estimated=holds_noise,
    )
    before = cut.high
    if leftover and len(cut.low) and len(before):
        before = sigmas[: step + 1].clone()
    return before, cut.low


def by_expert(sigmas: Tensor, boundary: float, size: int, begins: str) -> list[Leg]:
    """Cut the sigmas of one size where the expert changes: none, one or two legs."""
    count = len(sigmas) - 1
    if count < 1:
        return []
    first = count
    if boundary > 0:
        first = int((sigmas[:-1].double() >= boundary - SLACK).sum())
    legs = []
    if first > 0:
        legs.append(Leg(size=size, expert=0, sigmas=sigmas[: first + 1].clone(), begins=begins))
    if first < count:
        begins = LEFTOVER if legs else begins
        legs.append(Leg(size=size, expert=1, sigmas=sigmas[first:].clone(), begins=begins))
    return legs
