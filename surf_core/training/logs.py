"""Log a training run: JSON lines always, TensorBoard or W&B on request."""

import json
import logging
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Protocol

from ..header import json_object

log = logging.getLogger(__name__)

FILE = "log.jsonl"


class Tracker(Protocol):
    """A tracking service that the numbers of a run are sent to."""

    def add(self, step: int, numbers: dict[str, float]) -> None:
        """Log the numbers of a step."""

    def close(self) -> None:
        """Flush and close."""


class TensorBoard:
    """Event files in the folder `tensorboard` of the run."""

    def __init__(self, out: Path, step: int, notes: dict):
        from torch.utils.tensorboard import SummaryWriter

        # Hides the events after the checkpoint, which are written again.
        self.writer = SummaryWriter(str(out / "tensorboard"), purge_step=step + 1)
        self.writer.add_text("recipe", json.dumps(notes, indent=1), step)

    def add(self, step: int, numbers: dict[str, float]) -> None:
        for name, value in numbers.items():
            self.writer.add_scalar(name, value, step)

    def close(self) -> None:
        self.writer.close()


class WeightsAndBiases:
    """A run of the W&B project `surf`, named after the folder and resumed with it."""

    def __init__(self, out: Path, step: int, notes: dict):
        import wandb

        self.run = wandb.init(
            project="surf", name=out.name, id=out.name, dir=str(out), resume="allow", config=notes
        )

    def add(self, step: int, numbers: dict[str, float]) -> None:
        self.run.log(numbers, step=step)

    def close(self) -> None:
        self.run.finish()


TRACKERS: dict[str, Callable[[Path, int, dict], Tracker]] = {
    "tensorboard": TensorBoard,
    "wandb": WeightsAndBiases,
}


def tracker(name: str, out: Path, step: int, notes: dict) -> Tracker:
    """Open a tracker by name.

    Raises:
        ValueError: no tracker has this name.
        ImportError: its package is not installed.
    """
    if name not in TRACKERS:
        raise ValueError(f"expected a tracker of {', '.join(TRACKERS)}, got {name!r}.")
    try:
        return TRACKERS[name](out, step, notes)
    except ImportError as error:
        raise ImportError(
            f"expected the package {name} for the tracker of that name, got {error!r}; "
            f"install it with `pip install {name}`, or leave the tracker out."
        ) from error


class Log:
    """Writes the JSON lines of a run, and its trackers; does nothing without a folder."""

    def __init__(self, out: Path | None, trackers: tuple[str, ...], step: int, notes: dict):
        self.file = out / FILE if out else None
        self.trackers = [tracker(name, out, step, notes) for name in trackers] if out else []
        if self.file and self.file.exists():
            _truncate(self.file, step)

    def add(self, step: int, **numbers: Any) -> None:
        """Append a line of numbers, or of dicts of numbers."""
        if self.file is None:
            return
        with self.file.open("a", encoding="utf-8") as file:
            file.write(json.dumps({"step": step, **numbers}) + "\n")
        flat = dict(_flat(numbers))
        for other in self.trackers:
            other.add(step, flat)

    def close(self) -> None:
        for other in self.trackers:
            other.close()


def _flat(numbers: dict[str, Any], prefix: str = "") -> Iterator[tuple[str, float]]:
    """Yield the numbers of nested dicts under names like "held_out/mean"."""
    for name, value in numbers.items():
        if isinstance(value, dict):
            yield from _flat(value, f"{prefix}{name}/")
        else:
            yield prefix + name, value


def _truncate(file: Path, step: int) -> None:
    """Drop the lines after a step, and those that are no lines of a log."""
    lines = file.read_text(encoding="utf-8", errors="replace").splitlines(keepends=True)
    steps = [_step_of(line) for line in lines]
    if damaged := sum(found is None for found in steps[:-1]):
        log.warning("%s: %d damaged lines are left out", file, damaged)
    kept = [
        line
        for line, found in zip(lines, steps, strict=True)
        if found is not None and found <= step
    ]
    shorter = file.with_suffix(".tmp")
    shorter.write_text("".join(kept), encoding="utf-8")
    shorter.replace(file)


def _step_of(line: str) -> int | None:
    """The step of a line; None where it is damaged, or not written to its end."""
    try:
        step = json_object(line).get("step")
    except ValueError:
        return None
    return step if type(step) is int and line.endswith("\n") else None
