"""Pack the kept tokens of a clip, and unpack them.

Tokens keep their order (time, row, column) and their positions in the clip; the windows of a layer
become ranges of unequal length.

Dims: B batch, N tokens of the clip, K kept ones; T, h, w tokens along time, rows and columns.
"""

from dataclasses import dataclass, replace
from functools import cached_property

import torch
from torch import Tensor

from ..window import Bounds, segments, token_bounds


@dataclass(frozen=True, kw_only=True, eq=False)
class Packing:
    """Indices of the kept tokens of a clip."""

    grid: tuple[int, int, int]
    """Tokens of the clip along time, rows and columns."""
    indices: Tensor
    """[K] int64, ascending: the index of every kept token among the N of the clip."""

    @cached_property
    def counts(self) -> tuple[int, ...]:
        """Kept tokens of every latent frame."""
        frame = self.grid[1] * self.grid[2]
        return tuple((self.indices // frame).bincount(minlength=self.grid[0]).tolist())

    def bounds(self, window: int, shifted: bool) -> Bounds:
        """Return the ranges of kept tokens that attend among themselves; no empty ones."""
        ranges = token_bounds(self.counts, segments(self.grid[0], window, shifted))
        return tuple((start, stop) for start, stop in ranges if stop > start)

    def positions(self, window: int, shifted: bool) -> Tensor:
        """Return the index of every kept token in its window: [K] int64, rows of a rotary table."""
        frame = self.grid[1] * self.grid[2]
        first = torch.tensor(
            [
                start * frame
                for start, stop in segments(self.grid[0], window, shifted)
                for _ in range(start, stop)
            ],
            device=self.indices.device,
        )
        return self.indices - first[self.indices // frame]

    def within(self, start: int, stop: int) -> "Packing":
        """Restrict to latent frames start to stop, with indices counted from the first of them."""
        frame = self.grid[1] * self.grid[2]
        first = sum(self.counts[:start])
        indices = self.indices.narrow(0, first, sum(self.counts[start:stop])) - start * frame
        return Packing(grid=(stop - start, *self.grid[1:]), indices=indices)

    def to(self, device: torch.device) -> "Packing":
        """Move to a device; the counts are not computed again."""
        moved = replace(self, indices=self.indices.to(device))
        moved.__dict__["counts"] = self.counts
        return moved


def packing(keep: Tensor) -> Packing:
    """Index the kept tokens of a mask [T, h, w] of bool, which may be all or none."""
    depth, rows, columns = keep.shape
    return Packing(grid=(depth, rows, columns), indices=keep.flatten().nonzero().flatten())


def pack(x: Tensor, packed: Packing) -> Tensor:
    """Gather kept tokens: [B, N, ...] -> [B, K, ...], a new tensor.

    Raises:
        ValueError: another number of tokens than the mask has.
    """
    count = packed.grid[0] * packed.grid[1] * packed.grid[2]
    if x.shape[1] != count:
        raise ValueError(
            f"expected {count} tokens, as the mask of grid {packed.grid} has, got {x.shape[1]}; "
            "make the mask from this clip."
        )
    return x.index_select(1, packed.indices)


def unpack(x: Tensor, packed: Packing, base: Tensor | None = None) -> Tensor:
    """Scatter kept tokens: [B, K, ...] -> [B, N, ...], a new tensor.

    Args:
        base: [B, N, ...], values of the other tokens; None for zeros.

    Raises:
        ValueError: another number of tokens than were kept.
    """
    if x.shape[1] != len(packed.indices):
        raise ValueError(
            f"expected {len(packed.indices)} kept tokens, got {x.shape[1]}; unpack with the "
            "packing that gathered them."
        )
    if base is None:
        count = packed.grid[0] * packed.grid[1] * packed.grid[2]
        base = x.new_zeros(x.shape[0], count, *x.shape[2:])
    return base.index_copy(1, packed.indices, x)
