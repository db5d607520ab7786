"""Notice a run that goes wrong before its checkpoints do, and note which samples it was."""

import json
from collections import deque
from math import isfinite
from pathlib import Path
from statistics import median

MEMORY = 100
"""Losses that the running median is of."""
FIRST = 20
"""Losses before there is a median to speak of."""
PATIENCE = 5
"""Exploding losses in a row that stop a run; a single bad batch does not."""


class DivergenceGuard:
    """The last losses, and whether they explode.

    Args:
        explode: multiple of the median that counts.
        losses, streak: as they were, of a run that goes on.
    """

    def __init__(self, explode: float, losses: list[float] = (), streak: int = 0):
        self.explode, self.streak = explode, streak
        self.losses: deque[float] = deque(losses, maxlen=MEMORY)

    @property
    def calm(self) -> bool:
        """Whether the last loss was no exploding one: weights worth saving."""
        return self.streak == 0

    def see(self, loss: float, norm: float) -> str:
        """Take note of a step; what is wrong with it, or nothing.

        A loss or a gradient norm that is not finite is wrong at once; one above `explode` times the
        median of the last losses when it is the fifth in a row.
        """
        if not isfinite(loss) or not isfinite(norm):
            return f"loss is {loss}, gradient norm is {norm}"
        usual = median(self.losses) if len(self.losses) >= FIRST else float("inf")
        # Exploding losses do not count towards what is usual.
        if loss <= self.explode * usual:
            self.losses.append(loss)
            self.streak = 0
            return ""
        self.streak += 1
        if self.streak < PATIENCE:
            return ""
        return f"loss is {loss}, for {PATIENCE} steps above {self.explode} times its median {usual}"

    def state(self) -> dict:
        """What a checkpoint keeps of it; JSON-able."""
        return {"losses": list(self.losses), "streak": self.streak}


def write_report(out: Path, step: int, numbers: dict, keys: list, guard: DivergenceGuard) -> Path:
    """Write `bad-step-000123.json`: step (from 0), loss, keys by process, losses before it."""
    path = out / f"bad-step-{step:06d}.json"
    report = {"step": step, **numbers, "keys": keys, "recent": list(guard.losses)}
    path.write_text(json.dumps(report, indent=1), encoding="utf-8")
    return path
