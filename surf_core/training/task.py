"""The interface between the loop and what it trains: task, batch, and recipe.

Dims: B samples of a batch.
"""

from collections.abc import Iterator
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Protocol

import torch
from torch import Tensor, nn

PRECISIONS = ("fp32", "bf16")
OPTIMIZERS = ("adamw", "muon")
MAY_CHANGE = {
    "steps", "cooldown", "micro", "checkpointing", "explode",
    "save_every", "log_every", "held_out_every", "sample_every", "keep",
}  # fmt: skip
"""Fields of a recipe that a resumed run may change: its length, its use of memory, and how
often it writes. `steps` and `cooldown` change the rate of the remaining steps only."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Batch:
    """One process's share of the samples of a step."""

    tensors: dict[str, Tensor]
    """Each [B, ...], samples first."""
    keys: tuple[str, ...]
    """B names of the samples, for the report on a step that went wrong."""

    def to(self, device: torch.device) -> "Batch":
        """Move to a device."""
        moved = {name: value.to(device, non_blocking=True) for name, value in self.tensors.items()}
        return Batch(tensors=moved, keys=self.keys)

    def parts(self, count: int) -> Iterator["Batch"]:
        """Split into `count` equal parts, in order; views.

        Raises:
            ValueError: B is not a multiple of count.
        """
        size, rest = divmod(len(self.keys), count)
        if rest or not size:
            raise ValueError(
                f"expected samples that divide into micro={count} parts, got "
                f"{len(self.keys)} in a process; choose a batch that is a multiple of "
                "micro times the processes."
            )
        for start in range(0, len(self.keys), size):
            cut = slice(start, start + size)
            tensors = {name: value[cut] for name, value in self.tensors.items()}
            yield Batch(tensors=tensors, keys=self.keys[cut])


@dataclass(frozen=True, kw_only=True, slots=True)
class Recipe:
    """The hyperparameters that the loop reads; those of the data and the loss are the task's."""

    steps: int
    """Steps of the optimizer."""
    name: str = "model"
    """Stem of the exported file."""
    lr: float = 5e-5
    """Peak learning rate. Source: SURF 4.1."""
    betas: tuple[float, float] = (0.9, 0.999)
    """Betas of AdamW."""
    weight_decay: float = 0.01
    """Decoupled weight decay, of all weights."""
    optimizer: str = "adamw"
    """`adamw`, or `muon` for the matrices inside blocks: one process only."""
    warmup: int = 100
    """Steps of linear warm-up."""
    cooldown: float = 0.0
    """Last share of all steps, over which the rate falls linearly to nothing."""
    clip: float = 1.0
    """Norm that gradients are clipped to."""
    ema: float = 0.999
    """Decay of the averaged weights, the ones exported; less in the first steps."""
    precision: str = "bf16"
    """`bf16` computes in half precision, with weights, sums and optimizer in fp32."""
    batch: int = 24
    """Samples of a step over all processes."""
    micro: int = 1
    """Microbatches per process: equal parts that its samples are computed in, one after another."""
    checkpointing: bool = False
    """Recompute activations in the backward pass, to save memory."""
    seed: int = 0
    """Seed of weights and data."""
    explode: float = 10.0
    """Multiple of the running median from which on a loss explodes."""
    save_every: int = 250
    """Steps between checkpoints; the last step is always saved."""
    log_every: int = 10
    """Steps between lines of the log, which hold the mean loss since the line before."""
    held_out_every: int = 0
    """Steps between held-out losses; 0 for none."""
    sample_every: int = 0
    """Steps between samples; 0 for none."""
    keep: int = 2
    """Checkpoints kept."""

    def __post_init__(self) -> None:
        for name, allowed in (("precision", PRECISIONS), ("optimizer", OPTIMIZERS)):
            if getattr(self, name) not in allowed:
                raise ValueError(
                    f"expected {name} of {', '.join(allowed)}, got {getattr(self, name)!r}."
                )
        for name in ("steps", "batch", "micro", "warmup", "save_every", "log_every", "keep"):
            if getattr(self, name) < 1:
                raise ValueError(f"expected {name} of at least 1, got {getattr(self, name)}.")
        for name in ("cooldown", "ema"):
            if not 0 <= getattr(self, name) <= 1:
                raise ValueError(f"expected {name} within 0..1, got {getattr(self, name)}.")
        if min(self.lr, self.clip) <= 0 or self.explode <= 1:
            raise ValueError(
                f"expected a positive lr and clip and an explode above 1, got "
                f"{self.lr=}, {self.clip=}, {self.explode=}."
            )

    def rate(self, step: int) -> float:
        """Learning rate at `step`, from 0: warm-up, plateau, linear cool-down."""
        rising = (step + 1) / self.warmup
        if not self.cooldown:
            return self.lr * min(1.0, rising)
        left = (self.steps - step) / (self.cooldown * self.steps)
        return self.lr * min(1.0, rising, left)

    def decay(self, step: int) -> float:
        """Decay of the average after `step` steps, close to a plain mean at first."""
        return min(self.ema, step / (step + 9))

    def notes(self) -> dict:
        """Return all fields, JSON-able."""
        return asdict(self) | {"betas": list(self.betas)}

    @classmethod
    def of(cls, notes: dict) -> "Recipe":
        """Read the recipe back from its notes."""
        known = {field.name for field in fields(cls)}
        values = {name: value for name, value in notes.items() if name in known}
        return cls(**values | {"betas": tuple(notes["betas"])})


class Task(Protocol):
    """A model, its data and its loss; a base class with defaults for the optional methods."""

    def build(self) -> nn.Module:
        """Build a model with fresh weights on the CPU, fp32, the same every time.

        The loop shards every module in `model.blocks`, and the rest as one. It sets
        `model.checkpointing` if the recipe says so.
        """
        ...

    def batch(self, step: int, rank: int, world: int) -> Batch:
        """Draw one process's share of a step's samples, on the CPU.

        A function of its arguments and the task's seed alone: no global random numbers, no state.
        The samples of a step are the same for every world.
        """
        ...

    def loss(self, model: nn.Module, batch: Batch) -> Tensor:
        """Compute the mean loss over the samples, fp32; on their device, under autocast."""
        ...

    def held_out(self, model: nn.Module) -> dict[str, float]:
        """Compute losses on held-out data, with fixed noise, from the averaged weights.

        All processes call it, and the model, with the same inputs; rank 0's result is logged.
        """
        return {}

    def samples(self, model: nn.Module, folder: Path, step: int) -> None:
        """Write pictures into an existing folder, from the averaged weights.

        All processes call it, and the model; only rank 0's folder is not temporary.
        """
        return

    def export(self, weights: dict[str, Tensor], path: Path, notes: dict) -> None:
        """Write the averaged weights for inference; `notes` has the recipe and the last loss."""
        ...

    def notes(self) -> dict:
        """Return what identifies the task, JSON-able; a run resumes with equal notes only."""
        return {}
