"""Stop a run whose loss diverges before it is saved, and report the samples of that step."""

import json
from collections import deque
from collections.abc import Iterable
from math import isfinite
from pathlib import Path
from statistics import median

MEMORY = 100
"""Losses that the running median is taken over."""
FIRST = 20
"""Least losses for a median."""
PATIENCE = 5
"""Exploding losses in a row that stop a run; a single bad batch does not."""


class DivergenceGuard:
    """Compares each loss with the running median of the last ones.

    Args:
        explode: multiple of the median from which on a loss explodes.
        losses, streak: state of a run that is resumed, see `state`.
    """

    def __init__(self, explode: float, losses: Iterable[float] = (), streak: int = 0):
        self.explode, self.streak = explode, streak
        self.losses: deque[float] = deque(losses, maxlen=MEMORY)

    @property
    def calm(self) -> bool:
        """Whether the last loss did not explode, so that the weights are worth saving."""
        return self.streak == 0

    def check(self, loss: float, norm: float) -> str:
        """Record the loss and gradient norm of a step; return the reason to stop, or "".

        The run stops at the first value that is not finite, and at the fifth loss in a row above
        `explode` times the median.
        """
        if not isfinite(loss) or not isfinite(norm):
            return f"loss is {loss}, gradient norm is {norm}"
        usual = median(self.losses) if len(self.losses) >= FIRST else float("inf")
        # Exploding losses stay out of the median.
        if loss <= self.explode * usual:
            self.losses.append(loss)
            self.streak = 0
            return ""
        self.streak += 1
        if self.streak < PATIENCE:
            return ""
        return f"loss is {loss}, for {PATIENCE} steps above {self.explode} times its median {usual}"

    def state(self) -> dict:
        """Return the state for a checkpoint, JSON-able."""
        return {"losses": list(self.losses), "streak": self.streak}


def write_report(out: Path, step: int, numbers: dict, keys: list, guard: DivergenceGuard) -> Path:
    """Write `bad-step-000123.json`: step (from 0), loss, keys by process, losses before it."""
    path = out / f"bad-step-{step:06d}.json"
    report = {"step": step, **numbers, "keys": keys, "recent": list(guard.losses)}
    path.write_text(json.dumps(report, indent=1), encoding="utf-8")
    return path
