"""Gather the kept tokens of a clip, and put them back.

Tokens keep their order (time, row, column) and their original positions; the windows of a layer
become ranges of unequal length.

Dims: B batch, N tokens of the clip, K kept ones; T, h, w tokens along time, rows and columns.
"""

from dataclasses import dataclass, replace
from functools import cached_property
from itertools import pairwise

import torch
from torch import Tensor

from ..window import Bounds, segments, token_bounds
from .mask import Mask

MULTIPLE = 128
"""Tokens that a tile of an attention kernel holds."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Packing:
    """Where the kept tokens of a clip come from."""

    grid: tuple[int, int, int]
    """Tokens of the clip along time, rows and columns."""
    places: Tensor
    """[K] int64, ascending: the place of every kept token among the N of the clip."""

    @cached_property
    def counts(self) -> tuple[int, ...]:
        """Kept tokens of every latent frame."""
        frame = self.grid[1] * self.grid[2]
        return tuple((self.places // frame).bincount(minlength=self.grid[0]).tolist())

    def bounds(self, window: int, shifted: bool) -> Bounds:
        """Ranges of kept tokens that attend among themselves, see `segments`; no empty ones."""
        ranges = token_bounds(self.counts, segments(self.grid[0], window, shifted))
        return tuple((start, stop) for start, stop in ranges if stop > start)

    def positions(self, window: int, shifted: bool) -> Tensor:
        """The place of every kept token in its own window: [K] int64, rows of a rotary table."""
        frame = self.grid[1] * self.grid[2]
        first = torch.tensor(
            [
                start * frame
                for start, stop in segments(self.grid[0], window, shifted)
                for _ in range(start, stop)
            ],
            device=self.places.device,
        )
        return self.places - first[self.places // frame]

    def within(self, start: int, stop: int) -> "Packing":
        """The same for latent frames start to stop alone, counted from the first of them."""
        frame = self.grid[1] * self.grid[2]
        first = sum(self.counts[:start])
        places = self.places.narrow(0, first, sum(self.counts[start:stop])) - start * frame
        return Packing(grid=(stop - start, *self.grid[1:]), places=places)

    def to(self, device: torch.device) -> "Packing":
        """The same on a device, with the counts that are known already."""
        moved = replace(self, places=self.places.to(device))
        moved.__dict__["counts"] = self.counts
        return moved


def packing(keep: Tensor) -> Packing:
    """Number the kept tokens of a mask [T, h, w] of bool; all or none of them will do."""
    return Packing(grid=tuple(keep.shape), places=keep.flatten().nonzero().flatten())


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
    return x.index_select(1, packed.places)


def unpack(x: Tensor, packed: Packing, base: Tensor | None = None) -> Tensor:
    """Put kept tokens back: [B, K, ...] -> [B, N, ...], a new tensor.

    Args:
        base: [B, N, ...], what the other tokens are; None for zeros.

    Raises:
        ValueError: another number of tokens than were kept.
    """
    if x.shape[1] != len(packed.places):
        raise ValueError(
            f"expected {len(packed.places)} kept tokens, got {x.shape[1]}; unpack with the "
            "packing that gathered them."
        )
    if base is None:
        count = packed.grid[0] * packed.grid[1] * packed.grid[2]
        base = x.new_zeros(x.shape[0], count, *x.shape[2:])
    return base.index_copy(1, packed.places, x)


def round_up(mask: Mask, window: int, multiple: int = MULTIPLE) -> Mask:
    """Refine a few tokens more, so that kernels get whole tiles; never fewer.

    Every half window, of which the windows of both phases are made, is filled up to a multiple
    with its best-scored skipped tokens, or until it is whole; where nothing is kept, nothing is
    added. So a window holds a multiple of tokens unless one of its halves is whole.

    Args:
        window: latent frames of a window, in tokens along time; 0 for full attention.
        multiple: >= 1; 1 changes nothing.

    Raises:
        ValueError: multiple < 1, or a bad window.

    Source: ours.
    """
    if multiple < 1:
        raise ValueError(f"expected a multiple of at least 1, got {multiple=}; use 128.")
    tokens = mask.tokens.clone()
    cuts = {edge for shifted in (False, True) for cut in segments(len(tokens), window, shifted)
            for edge in cut}  # fmt: skip
    for start, stop in pairwise(sorted(cuts)):
        part = tokens[start:stop].view(-1)
        kept = int(part.sum())
        missing = min(-kept % multiple, len(part) - kept)
        if kept and missing:
            candidates = mask.scores[start:stop].flatten().masked_fill(part, -1)
            part[candidates.topk(missing).indices] = True
    return replace(mask, tokens=tokens)
