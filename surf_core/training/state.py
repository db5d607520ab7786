"""Checkpoints of a run: complete or not there at all, and readable by any number of processes.

A checkpoint is the folder `step-000123`, 123 steps done, with the shards of all tensors and,
written last, `complete.json`. It comes to be as `step-000123.tmp`, and goes that way too.
Where the data and the random numbers are needs no state: both follow from the seed and the step.
"""

import errno
import json
import logging
import os
import shutil
import warnings
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path

import torch
import torch.distributed.checkpoint as dcp
from torch import Tensor, nn
from torch.distributed.checkpoint.api import CheckpointException
from torch.distributed.checkpoint.metadata import TensorStorageMetadata

from ..header import listed
from .distributed import World
from .intact import (
    FORMAT,
    MARKER,
    MetadataReader,
    complete,
    damage,
    half_written,
    marker,
    read_marker,
    strangers,
)
from .optim import Average, Optimizers
from .prepare.storage import file_hash
from .task import MAY_CHANGE

log = logging.getLogger(__name__)

Tensors = dict[str, Tensor]


def tensors_of(model: nn.Module, average: Average, opts: Optimizers) -> Tensors:
    """Name every tensor of a run: model/, average/ and optimizer/, by parameter; aliases."""
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    tensors = {f"model/{name}": value for name, value in model.state_dict().items()}
    tensors |= {f"average/{name}": value for name, value in average.weights.items()}
    for opt in opts:
        for parameter, slots in opt.state.items():
            for slot, value in slots.items():
                tensors[f"optimizer/{names[id(parameter)]}/{slot}"] = value
    return tensors


def prepare_optimizers(model: nn.Module, opts: Optimizers, path: Path) -> None:
    """Give fresh optimizers the tensors that a checkpoint has for them, empty of content."""
    weights = dict(model.named_parameters())
    owner = {id(p): opt for opt in opts for group in opt.param_groups for p in group["params"]}
    stored = MetadataReader(path).read_metadata().state_dict_metadata
    for key, entry in stored.items():
        if not key.startswith("optimizer/"):
            continue
        assert isinstance(entry, TensorStorageMetadata)
        name, slot = key.removeprefix("optimizer/").rsplit("/", 1)
        weight, kind = weights[name], entry.properties.dtype
        like = entry.size == weight.shape
        value = (
            torch.zeros_like(weight, dtype=kind) if like else torch.zeros(entry.size, dtype=kind)
        )
        owner[id(weight)].state[weight][slot] = value


def identity(model: nn.Module, recipe: dict, task: dict) -> dict:
    """What a checkpoint must have in common with the run that goes on from it; JSON-able."""
    shapes = {name: list(value.shape) for name, value in model.state_dict().items()}
    return json.loads(json.dumps({"recipe": recipe, "task": task, "model": shapes}))


def differences(saved: dict, mine: dict) -> list[str]:
    """List what two identities do not have in common, less what may change; a line each."""
    lines = []
    for part in ("recipe", "task", "model"):
        allowed = MAY_CHANGE if part == "recipe" else ()
        one, other = saved[part], mine[part]
        for name in sorted(one.keys() | other.keys()):
            before, now = one.get(name, "nothing"), other.get(name, "nothing")
            if before != now and name not in allowed:
                lines.append(f"{part} {name} was {before}, is {now}")
    return lines


def latest(out: Path, mine: dict, world: World) -> tuple[Path, dict] | None:
    """Find the checkpoint to go on from, and read its notes; None for none.

    Damaged ones are passed over by name, and half-written ones; the next checkpoint removes them.

    Raises:
        ValueError: all of them are damaged, or the last whole one is of another recipe, task, model
            or format.
    """
    say = log.warning if world.first else log.debug
    for path in half_written(out):
        say("%s is half-written and ignored; the next checkpoint removes it", path)
    for path in strangers(out):
        say("%s has no name of a checkpoint and is left alone", path)
    damaged: dict[Path, str] = {}
    for path in reversed(complete(out)):
        if problems := [said for said in world.gather(damage(path, world)) if said]:
            damaged[path] = problems[0]
            say("%s is damaged and passed over: %s", path, problems[0])
            continue
        notes = read_marker(path)
        _check_same(path, notes, mine)
        _together(world, lambda: _give_up(damaged), out)
        return path, notes
    if damaged:
        path, reason = damaged.popitem()
        raise ValueError(
            f"expected a whole checkpoint in {out}, got {len(damaged) + 1} that are damaged, "
            f"{path.name} for one: {reason}. Bring one back from a copy, or remove these folders "
            "to begin anew."
        )
    return None


def _give_up(damaged: Iterable[Path]) -> None:
    """Let checkpoints count as half-written ones."""
    for path in damaged:
        _clear(path.with_suffix(".tmp"))
        path.rename(path.with_suffix(".tmp"))


def _check_same(path: Path, notes: dict, mine: dict) -> None:
    lines = (
        [f"format was {notes['format']}, is {FORMAT}"]
        if notes["format"] != FORMAT
        else differences(notes, mine)
    )
    if lines:
        raise ValueError(
            f"expected a checkpoint of this recipe, got {path} of another: {listed(lines)}. "
            "Choose a new folder, or the old recipe."
        )


def load(path: Path, tensors: Tensors, world: World) -> None:
    """Read a checkpoint into tensors of the same names, in place, however they are sharded.

    Raises:
        ValueError: a file of it is damaged or missing.
    """
    try:
        with _quiet():
            dcp.load(tensors, storage_reader=MetadataReader(path), no_dist=world.size == 1)
    except CheckpointException as failed:
        _unwrap(failed)
        raise ValueError(
            f"expected a readable checkpoint, {path} is damaged: {_reasons(failed)}. "
            "Remove that folder to go on from the one before it."
        ) from failed


def save(out: Path, step: int, tensors: Tensors, notes: dict, world: World, keep: int) -> None:
    """Write a checkpoint, then remove all but the last `keep`; all processes take part.

    Raises:
        OSError: it could not be written, a full disk for one. The checkpoint before is as it was.
    """
    final = out / f"step-{step:06d}"
    if any(world.gather((final / MARKER).exists())):
        return
    partial = final.with_suffix(".tmp")
    _together(world, lambda: _clear(partial, final), out)
    try:
        with _quiet():
            dcp.save(tensors, checkpoint_id=partial, no_dist=world.size == 1)
    except CheckpointException as failed:
        _unwrap(failed)
        if world.first:
            shutil.rmtree(partial, ignore_errors=True)
        raise _cannot_save(out, _reasons(failed)) from failed
    checksums = _checksums(partial, world, out)
    _together(world, lambda: _publish(partial, final, checksums, notes), out)
    if world.first:
        _tidy(out, keep)


@contextmanager
def _quiet() -> Iterator[None]:
    """Leave out the remark that one process is no group of processes."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "torch.distributed is disabled")
        yield


def _clear(*folders: Path) -> None:
    for folder in folders:
        if folder.exists():
            shutil.rmtree(folder)


def _checksums(partial: Path, world: World, out: Path) -> dict[str, str]:
    """Checksums of the files that the processes wrote, by name; each hashes its own."""
    mine: dict[str, str] = {}
    problem = ""
    try:
        mine = {path.name: file_hash(path) for path in partial.glob(f"__{world.rank}_*")}
    except OSError as error:
        problem = repr(error)
    answers = world.gather((mine, problem))
    if problems := [said for _, said in answers if said]:
        raise _cannot_save(out, problems[0])
    return {name: checksum for one, _ in answers for name, checksum in one.items()}


def _publish(partial: Path, final: Path, checksums: dict[str, str], notes: dict) -> None:
    rest = [path for path in sorted(partial.iterdir()) if path.name not in checksums]
    checksums |= {path.name: file_hash(path) for path in rest}
    step = int(final.name.removeprefix("step-"))
    with (partial / MARKER).open("w", encoding="utf-8") as file:
        file.write(marker(step, checksums, notes))
        file.flush()
        os.fsync(file.fileno())
    partial.rename(final)


def _tidy(out: Path, keep: int) -> None:
    """Remove old checkpoints and half-written ones; none is ever seen without some of its files."""
    for path in complete(out)[:-keep]:
        path.rename(path.with_suffix(".tmp"))
    for path in half_written(out):
        shutil.rmtree(path, ignore_errors=True)


def _together(world: World, act: Callable[[], None], out: Path) -> None:
    """Let the first process act; all of them learn whether it could."""
    problem = ""
    try:
        if world.first:
            act()
    except OSError as error:
        problem = repr(error)
    problems = [said for said in world.gather(problem) if said]
    if problems:
        raise _cannot_save(out, problems[0])


def _cannot_save(out: Path, reason: str) -> OSError:
    last = complete(out)
    fallback = f"{last[-1].name} is intact" if last else "there is none yet"
    full = os.strerror(errno.ENOSPC) in reason
    what = "Free space there" if full else "See to the folder"
    return OSError(
        errno.ENOSPC if full else errno.EIO,
        f"expected to write a checkpoint, got {reason}. The last good checkpoint: {fallback}. "
        f"{what}, or lower `keep`, and start the same command again",
        str(out),
    )


def _unwrap(failed: CheckpointException) -> None:
    """Raise what is no failure of the checkpoint: an interruption by the user, for one."""
    for error, _ in failed.failures.values():
        if not isinstance(error, Exception):
            raise error from failed


def _reasons(failed: CheckpointException) -> str:
    return "; ".join(f"{error!r} in process {r}" for r, (error, _) in failed.failures.items())
