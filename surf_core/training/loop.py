"""The training loop: resume from the last checkpoint, train, save, export.

A step is a function of the seed and its number, so that the result depends neither on
interruptions nor, up to rounding, on the number of processes.
"""

import logging
import tempfile
import time
from collections.abc import Iterable
from pathlib import Path
from typing import cast

import torch
from torch.distributed.checkpoint.state_dict import StateDictOptions, get_model_state_dict
from torch.distributed.tensor import DTensor

from . import state
from .distributed import World, processes, shard_model
from .divergence import DivergenceGuard, write_report
from .lock import locked_by_first
from .logs import Log
from .optim import Average, optimizers, take_step
from .task import Batch, Recipe, Task

log = logging.getLogger(__name__)


def run(
    task: Task,
    recipe: Recipe,
    out: Path,
    *,
    compile_model: bool = False,
    max_minutes: float | None = None,
    trackers: tuple[str, ...] = (),
    device: str | None = None,
    shards: int | None = None,
) -> Path | None:
    """Start or resume a run in the folder `out`, then export the averaged weights.

    The folder gets `log.jsonl`, the last checkpoints, `samples/`, and `<name>.safetensors` at the
    end. Call this in every process that torchrun starts, or in one; all must share the folder.

    Args:
        compile_model: use torch.compile; the first steps take longer.
        max_minutes: stop with a checkpoint after that long; the same call resumes.
        trackers: of `logs.TRACKERS`, besides the log.
        device, shards: see `distributed.processes`.

    Returns:
        The exported file; None if the time ran out before the last step.

    Raises:
        ValueError: a batch that the processes do not divide, a checkpoint of another recipe, only
            damaged ones, or another run in the same folder.
        FloatingPointError: the loss is not finite, or explodes; `bad-step-*.json` says where.
        OSError: a checkpoint could not be written; the one before is intact.
        ImportError: a tracker's package is missing.
    """
    out.mkdir(parents=True, exist_ok=True)
    with (
        processes(device, shards) as world,
        locked_by_first(out / "run.lock", f"the folder {out}", world),
    ):
        return TrainingLoop(task, recipe, out, world, compile_model, trackers).to_the_end(
            max_minutes
        )


class TrainingLoop:
    """The state of a run: weights, their average, optimizers, and the current step."""

    def __init__(
        self,
        task: Task,
        recipe: Recipe,
        out: Path,
        world: World,
        compile_model: bool = False,
        trackers: tuple[str, ...] = (),
    ):
        if recipe.batch % (world.size * recipe.micro):
            raise ValueError(
                f"expected a batch that is a multiple of processes times micro, got "
                f"{recipe.batch=}, {world.size=}, {recipe.micro=}."
            )
        self.task, self.recipe, self.out, self.world = task, recipe, out, world
        self.step, self.seconds = 0, 0.0
        self.pending: list[list[float]] = []
        self.guard = DivergenceGuard(recipe.explode)
        self.model = task.build()
        if recipe.checkpointing:
            if not hasattr(self.model, "checkpointing"):
                raise ValueError(
                    f"expected a model that can recompute activations, got "
                    f"{type(self.model).__name__} without `checkpointing`; turn that off."
                )
            setattr(self.model, "checkpointing", True)  # noqa: B010
        self.identity = state.identity(self.model, recipe.notes(), task.notes())
        self._place(compile_model)
        self.average = Average(self.model)
        self.opts = optimizers(self.model, recipe, world.size)
        self._resume()
        folder = out if world.first else None
        self.log = Log(folder, trackers, self.step, self.identity | {"model": ""})
        self.mark = (time.monotonic(), 0)

    def _place(self, compile_model: bool) -> None:
        """Compile if asked, block by block where the model is sharded, and shard the model."""
        if compile_model and self.world.mesh:
            for block in cast(Iterable[torch.nn.Module], self.model.blocks):
                block.compile(dynamic=False)
        self.model = shard_model(self.model, self.world, self.recipe.precision)
        self.forward = self.model
        if compile_model and not self.world.mesh:
            self.forward = cast(torch.nn.Module, torch.compile(self.model, dynamic=False))

    def _resume(self) -> None:
        """Load the last checkpoint, if there is one."""
        checkpoint = state.latest(self.out, self.identity, self.world)
        if checkpoint is None:
            return
        path, notes = checkpoint
        state.prepare_optimizers(self.model, self.opts, path)
        tensors = state.tensors_of(self.model, self.average, self.opts)
        state.load(path, tensors, self.world)
        self.step, self.seconds, self.pending = notes["step"], notes["seconds"], notes["pending"]
        self.guard = DivergenceGuard(self.recipe.explode, **notes["watch"])
        log.info("resumed at step %d", self.step)

    def to_the_end(self, max_minutes: float | None = None) -> Path | None:
        """Train to the last step and export; None if the time runs out before."""
        began = time.monotonic()
        before = self.seconds
        self.mark = (began, 0)
        late = False
        while self.step < self.recipe.steps and not late:
            elapsed = time.monotonic() - began
            late = self.advance(max_minutes is not None and elapsed > 60 * max_minutes)
            self.seconds = before + time.monotonic() - began
            self.report()
            if late or self._due(self.recipe.save_every) or self.step == self.recipe.steps:
                self.save()
        self.log.close()
        return None if self.step < self.recipe.steps else self.export()

    def _due(self, every: int) -> bool:
        return every > 0 and self.step % every == 0

    def autocast(self) -> torch.autocast:
        half = self.recipe.precision == "bf16"
        return torch.autocast(self.world.device.type, torch.bfloat16, enabled=half)

    def advance(self, stop: bool = False) -> bool:
        """Take one step; return whether any process asked to stop after it."""
        recipe, world = self.recipe, self.world
        # For models with dropout; tasks draw from generators of their own.
        torch.manual_seed((recipe.seed * 1_000_003 + self.step) * 4099 + world.rank)
        batch = self.task.batch(self.step, world.rank, world.size)
        loss, stops = world.mean(self._backward(batch), float(stop))
        total = torch.nn.utils.clip_grad_norm_(self.model.parameters(), recipe.clip)
        norm = (total.full_tensor() if isinstance(total, DTensor) else total).item()
        problem = self.guard.check(loss, norm)
        if problem:
            self._give_up(problem, batch, {"loss": loss, "grad_norm": norm})
        take_step(self.opts, recipe.rate(self.step))
        self.step += 1
        self.average.update(recipe.decay(self.step))
        self.pending.append([loss, norm])
        self.mark = self.mark[0], self.mark[1] + len(batch.keys) * world.size
        return stops > 0

    def _backward(self, batch: Batch) -> float:
        """Accumulate the gradient of the mean loss over all parts; return that loss."""
        total = 0.0
        # Gradients are reduced to shards after every part: unsharded ones would need more memory.
        for part in batch.parts(self.recipe.micro):
            with self.autocast():
                loss = self.task.loss(self.forward, part.to(self.world.device))
            (loss / self.recipe.micro).backward()
            total += loss.item() / self.recipe.micro
        return total

    def _give_up(self, problem: str, batch: Batch, numbers: dict) -> None:
        keys = self.world.gather(batch.keys)
        name = f"bad-step-{self.step:06d}.json"
        if self.world.first:
            write_report(self.out, self.step, numbers, keys, self.guard)
        raise FloatingPointError(
            f"expected a loss that stays finite, at step {self.step} {problem}; {self.out / name} "
            "names the samples. Lower lr or leave them out, and go on from the last checkpoint."
        )

    def report(self) -> None:
        """Write what is due after a step: a line of the log, held-out losses, samples."""
        recipe = self.recipe
        if self._due(recipe.log_every):
            self._line()
        if not (self._due(recipe.held_out_every) or self._due(recipe.sample_every)):
            return
        with self.average.in_place() as model, self.autocast():
            if self._due(recipe.held_out_every):
                self.log.add(self.step, held_out=self.task.held_out(model))
            if self._due(recipe.sample_every):
                self._samples(model)

    def _line(self) -> None:
        """Log mean loss and gradient norm since the last line, rate, speed and memory."""
        now = time.monotonic()
        losses, norms = zip(*self.pending, strict=True)
        line = {"loss": sum(losses) / len(losses), "lr": self.recipe.rate(self.step - 1)}
        line |= {"grad_norm": sum(norms) / len(norms), "seconds": round(self.seconds, 1)}
        line["samples_per_second"] = round(self.mark[1] / (now - self.mark[0]), 3)
        if self.world.device.type == "cuda":
            line["peak_gib"] = round(torch.cuda.max_memory_allocated() / 2**30, 2)
        self.log.add(self.step, **line)
        self.pending.clear()
        self.mark = now, 0

    def _samples(self, model: torch.nn.Module) -> None:
        """Let the task write samples; those of other processes than the first are discarded."""
        if self.world.first:
            folder = self.out / "samples" / f"{self.step:06d}"
            folder.mkdir(parents=True, exist_ok=True)
            self.task.samples(model, folder, self.step)
            return
        with tempfile.TemporaryDirectory() as discarded:
            self.task.samples(model, Path(discarded), self.step)

    def save(self) -> None:
        """Write a checkpoint, unless the loss explodes."""
        if not self.guard.calm:
            log.warning("step %d is not saved: its loss explodes", self.step)
            return
        tensors = state.tensors_of(self.model, self.average, self.opts)
        notes = self.identity | {"seed": self.recipe.seed, "seconds": self.seconds}
        notes |= {"pending": self.pending, "watch": self.guard.state()}
        state.save(self.out, self.step, tensors, notes, self.world, self.recipe.keep)

    def export(self) -> Path:
        """Gather the averaged weights and let the task write them."""
        path = self.out / f"{self.recipe.name}.safetensors"
        options = StateDictOptions(full_state_dict=True, cpu_offload=True)
        with self.average.in_place() as model:
            weights = cast(dict[str, torch.Tensor], get_model_state_dict(model, options=options))
            if self.world.first:
                notes = {"recipe": self.recipe.notes(), "task": self.task.notes()}
                self.task.export(weights, path, notes | {"loss": self._usual_loss()})
        return path

    def _usual_loss(self) -> float:
        """Return the mean of the last losses."""
        return sum(self.guard.losses) / len(self.guard.losses)
