"""Fit a run into its minutes: drop repetitions first, then evaluations, then whole stages."""

import sys
import time

from benchmarks.timing import FAILURES, reason

from .calls import HostCalls
from .plans import StageCall
from .stages import Machine, TimedStage

LEVELS = (1, 2, 3, 5, 10, 20, 50, 1000)
"""Evaluations of a call, from level to level."""
GUESS = 1.5
"""Times its floor that an evaluation is taken for before one ran."""
CODING = {"decode": 8.6e6, "encode": 5.1e6}
"""Operations of the host's Wan VAE for a pixel of a frame; only for the plan."""
VAE_WIDTH = 96
"""Channels of that VAE."""


def guess(stages: list[TimedStage], calls: HostCalls, machine: Machine) -> None:
    """Estimate what each stage may take, before any of them ran."""

    def code(how: str, side: str) -> float:
        height, width = calls.setting.sides[side]
        work = CODING[how] * height * width * calls.setting.frames * (calls.width / VAE_WIDTH) ** 2
        return 4 * work / machine.matmul

    for stage in stages:
        if stage.work is None:
            stage.guess = code("decode", stage.target)
            continue
        stage.guess = GUESS * machine.floor(stage)
        if stage.refiner and calls.upsample == "pixel":
            stage.setup = code("decode", "240p") + code("encode", stage.target)


def plan(stages: list[TimedStage], seconds: float, most: int) -> None:
    """Give each stage the evaluations of its next call; level by level, the cheapest first.

    The guidance that was named first comes first.

    Args:
        most: evaluations of a call, however much time there is.
    """
    left, early = seconds, {stages[0].cfg, "-"}
    stages = [stage for stage in stages if not stage.failed]
    for stage in stages:
        stage.planned = 0
        stage.why_not = f"an evaluation takes about {stage.needs(1):.3g} s, too long for --minutes"
    for before, level in zip((0, *LEVELS), LEVELS, strict=False):
        for stage in sorted(stages, key=lambda each: (each.cfg not in early, each.needs(1))):
            count, reached = (min(each, stage.full, most) for each in (level, before))
            spent = stage.needs(stage.planned) if stage.planned else 0.0
            more = max(1, stage.times) * (stage.needs(count) - spent)
            if stage.planned == reached and more <= left:
                left -= more
                stage.planned = count


def turn(case: StageCall, calls: HostCalls, deadline: float) -> None:
    """Call once, if there is time: with fewer evaluations where all of them would not fit."""
    stages, left = case.stages, deadline - time.perf_counter()
    if not all(stage.planned for stage in stages):
        return
    if sum(stage.needs(stage.planned) for stage in stages) > left:
        need = sum(stage.needs(1) for stage in stages)
        if any(stage.calls for stage in stages) or need > left:
            for stage in stages:
                stage.why_not = f"it takes about {need:.3g} s, {left:.3g} s were left of --minutes"
            return
        for stage in stages:
            stage.planned = 1
    try:
        calls.run(case)
    except FAILURES as error:
        why = reason(error)
        for stage in stages:
            stage.planned, stage.failed, stage.why_not = 0, True, why
    for stage in stages:
        text = f"{stage.later:.4g} s, all {stage.total:.4g} s" if stage.calls else stage.why_not
        name = f"{stage.target} {stage.cfg} {stage.name}"
        print(f"{name}: an evaluation {text}", file=sys.stderr, flush=True)
