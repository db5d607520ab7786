"""StagePrice a plan in seconds, from evaluations that were timed on a machine.

A stage is a number of evaluations at one size. What was timed is multiplied; what was not follows
from the rates at which the same network runs linear maps and self-attention.
"""

from collections.abc import Sequence
from dataclasses import dataclass

from .operations import Work


@dataclass(frozen=True, kw_only=True, slots=True)
class PlanStage:
    """Evaluations of one network at one size."""

    name: str
    """What the stage does, for tables."""
    network: str
    """Which network runs; rates of one are not those of another."""
    count: int
    """Evaluations, >= 0; a guided one counts once."""
    work: Work | None = None
    """Operations of one evaluation, of all its forwards; None: not known."""
    seconds: float | None = None
    """What one evaluation took, > 0; None: not timed."""

    @property
    def flops(self) -> int | None:
        """Operations of all evaluations; None: not known."""
        return None if self.work is None else self.count * self.work.flops


@dataclass(frozen=True, kw_only=True, slots=True)
class Rate:
    """Seconds that an operation takes on a machine."""

    linear: float
    """Of linear maps."""
    pairs: float
    """Of self-attention."""

    def seconds(self, work: Work) -> float:
        """Predict what these operations take."""
        return self.linear * work.linear + self.pairs * work.pairs


@dataclass(frozen=True, kw_only=True, slots=True)
class StagePrice:
    """What a stage takes."""

    stage: PlanStage
    seconds: float | None
    """Of all evaluations; None: neither timed nor predictable."""
    timed: bool
    """Whether an evaluation of this work was timed; else it is predicted from others."""


def fit(stages: Sequence[PlanStage]) -> Rate | None:
    """Find the rates that explain what evaluations of one network took.

    Two or more sizes tell both rates, by least squares of the relative errors; two are met exactly.
    One size, or sizes that would give a negative rate, tell one rate for both, that of the largest.

    Returns:
        None where nothing was timed whose operations are known.
    """
    known = [(x.work, x.seconds) for x in stages if x.work is not None and x.seconds]
    if not known:
        return None
    rows = [(work.linear / took, work.pairs / took) for work, took in known]
    ll, lp, pp = (sum(a[i] * a[j] for a in rows) for i, j in ((0, 0), (0, 1), (1, 1)))
    right = [sum(row[i] for row in rows) for i in (0, 1)]
    area = ll * pp - lp * lp
    # Sizes with the same share of self-attention do not tell the rates apart.
    if area > 1e-9 * ll * pp:
        rate = Rate(
            linear=(right[0] * pp - right[1] * lp) / area,
            pairs=(right[1] * ll - right[0] * lp) / area,
        )
        if rate.linear > 0 and rate.pairs > 0:
            return rate
    work, took = max(known, key=lambda pair: pair[0].flops)
    return Rate(linear=took / work.flops, pairs=took / work.flops)


def price(stages: Sequence[PlanStage], others: Sequence[PlanStage] = ()) -> list[StagePrice]:
    """Price every stage: by a timed evaluation of the same work, else by the rates of its network.

    Args:
        others: further stages with timed evaluations.
    """
    prices = []
    for stage in stages:
        peers = [each for each in (*stages, *others) if each.network == stage.network]
        took = stage.seconds if stage.seconds is not None else _same(stage, peers)
        seconds = took
        if took is None and stage.work is not None:
            rate = fit(peers)
            seconds = None if rate is None else rate.seconds(stage.work)
        total = None if seconds is None else stage.count * seconds
        prices.append(StagePrice(stage=stage, seconds=total, timed=took is not None))
    return prices


def _same(stage: PlanStage, peers: Sequence[PlanStage]) -> float | None:
    """Return what an evaluation with the operations of a stage took; None where none was timed."""
    if stage.work is None:
        return None
    return next((each.seconds for each in peers if each.work == stage.work and each.seconds), None)
