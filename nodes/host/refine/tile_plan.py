"""Choose the tiles of a picture for a host model: by hand, by its memory, smaller on demand.

Dims: B batch, C channels, T latent frames, H, W latent cells.
"""

from math import ceil, prod
from typing import Any

import comfy.model_management

from ....surf_core.tiles import Box, boxes, spans
from ..models import cell_side, patch_side
from ..nested import Shapes, sampled_shape
from ..node import NodeLog
from .tile_caches import TileCaches

log = NodeLog(__name__)

OVERLAP_PIXELS = 128
LATENT_COPIES = 8
"""fp32 latents of the picture during a sampling step: noise, x, both guidances and sums."""

Size = tuple[int, int]
"""Rows and columns in latent cells."""


def check_tile(tile: int) -> None:
    """Refuse a tile that two overlaps would fill."""
    if 0 < tile < 2 * OVERLAP_PIXELS:
        raise ValueError(
            f"a tile must hold two overlaps, {2 * OVERLAP_PIXELS} pixels, got {tile=}; use "
            f"{2 * OVERLAP_PIXELS} or more, or 0 for automatic."
        )


class TilePlan:
    """The size of a run's tiles, which shrinks when memory runs out."""

    def __init__(self, model: Any, shapes: Shapes, whole: str = ""):
        """Plan for a latent.

        Args:
            shapes: of its parts: the video's [B, C, (T,) H, W], and the audio's.
            whole: why it must not be cut, a clause; "" where it may.
        """
        self.cell, self.patch = cell_side(model), patch_side(model)
        self.shapes, self.whole = shapes, whole
        size = self.size = tuple(shapes[0][-2:])
        self.overlap = ceil(OVERLAP_PIXELS / self.cell / self.patch) * self.patch
        self.tile: Size = size
        self.caches = TileCaches(model)
        self.warned_of_caches = False

    def boxes(self, size: Size, tile: Size) -> list[Box]:
        return boxes(size, tile, self.overlap, self.patch)

    def pixels(self, size: Size) -> str:
        return f"{size[1] * self.cell} x {size[0] * self.cell}"

    def real(self, size: Size, tile: Size) -> Size:
        """Return the size of the tiles of a latent, where `tile` is the most that they may be."""
        rows, columns = self.boxes(size, tile)[0]
        return rows.stop, columns.stop

    def by_hand(self, tile_pixels: int) -> Size:
        least = 2 * self.overlap
        side = ceil(tile_pixels / (self.cell * self.patch)) * self.patch
        if side < least:
            raise ValueError(
                f"a tile must hold two overlaps, {least * self.cell} pixels, got "
                f"tile={tile_pixels}; use {least * self.cell} or more, or 0 for automatic."
            )
        if self.whole and len(self.boxes(self.size, (side, side))) > 1:
            raise ValueError(f"{self.whole}, got tile={tile_pixels}; set tile to 0.")
        if side < max(self.size):
            self._log((side, side), "as asked")
        return side, side

    def sampled(self, tile: Size) -> list[int]:
        """Return the shape of what the host samples, for one tile of a latent of this size."""
        return sampled_shape(self.shapes, self.real(self.size, tile))

    def automatic(self, model: Any) -> Size:
        """Choose the whole picture, or the tiles with the fewest cells in all, that fit the device.

        The host moves weights away to make room, so activations may take half of the device even
        beside large weights.
        """
        total = comfy.model_management.get_total_memory(model.load_device) - _reserved()
        latents = LATENT_COPIES * 4 * sum(map(prod, self.shapes))
        room = max(total - model.model_size(), total / 2) - latents

        def needed(tile: Size) -> float:
            return model.model.memory_required(self.sampled(tile))

        tile = self.size
        if needed(tile) > room and not self.whole:
            sides = [self._sides(length) for length in self.size]
            choices = [(rows, columns) for rows in sides[0] for columns in sides[1]]
            fitting = [choice for choice in choices if needed(choice) <= room]
            tile = min(fitting, key=self._cost) if fitting else min(choices, key=needed)
        whole, part, free, device = (
            f"{n / 2**30:.1f}" for n in (needed(self.size), needed(tile), room, total)
        )
        self._log(tile, f"needs {part} GB, whole {whole} GB; {free} of {device} GB are for it")
        return tile

    def _sides(self, length: int) -> list[int]:
        """List limits for a tile along an axis, one for each number of tiles."""
        limits = range(length, min(2 * self.overlap, length) - 1, -1)
        return list({spans(length, n, self.overlap, self.patch)[0]: n for n in limits}.values())

    def _cost(self, tile: Size) -> tuple[int, int]:
        """Count the cells computed for a picture; squarer tiles first among equals."""
        rows, columns = self.real(self.size, tile)
        return len(self.boxes(self.size, tile)) * rows * columns, abs(rows - columns)

    def _log(self, tile: Size, reason: str) -> None:
        count, side = len(self.boxes(self.size, tile)), self.real(self.size, tile)
        pieces = f"{count} tiles of {self.pixels(side)}" if count > 1 else "one piece"
        log.info("%s pixels in %s (%s).", self.pixels(self.size), pieces, reason)

    def halve(self, size: Size, tile: Size) -> Size | None:
        """Halve each side of a tile, with overlap; None where no side can shrink."""
        current, least = self.real(size, tile), 2 * self.overlap
        half = (ceil((side + self.overlap) / 2 / self.patch) * self.patch for side in current)
        rows, columns = (max(side, least) for side in half)
        return None if self.real(size, (rows, columns)) == current else (rows, columns)

    def shrink(self, size: Size, tile: Size) -> bool:
        """Take smaller tiles than `tile`, which did not fit; False where there are none."""
        new = self.halve(size, tile)
        if self.whole:
            log.error("out of memory with the whole picture, and %s; use fewer frames, a model in "
                      "fp8, or a smaller resolution.", self.whole)  # fmt: skip
            return False
        if new is None:
            log.error(
                "out of memory with the smallest tiles, %s pixels; use fewer frames, a model "
                "in fp8, or a smaller resolution.", self.pixels(self.real(size, tile)),
            )  # fmt: skip
            return False
        # The thread of another GPU may have shrunk them further.
        self.tile = (min(self.tile[0], new[0]), min(self.tile[1], new[1]))
        log.warning(
            "out of memory with tiles of %s pixels; this evaluation is repeated, and the run "
            "goes on, with %s. Finished steps stay.",
            self.pixels(self.real(size, tile)), self.pixels(self.real(size, self.tile)),
        )  # fmt: skip
        return True


def _reserved() -> float:
    """Return the bytes that the host reserves for others; 0 on older hosts."""
    reserved = getattr(comfy.model_management, "extra_reserved_memory", None)
    return reserved() if reserved else 0
