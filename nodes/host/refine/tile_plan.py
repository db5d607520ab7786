"""Choose tiles and chunks for a host model: by hand, by its memory, smaller on demand.

Dims: B batch, C channels, T latent frames, H, W latent cells.
"""

from collections.abc import Sequence
from math import ceil, prod
from typing import Any

import comfy.model_management
from torch import Tensor

from ....surf_core.chunks import Chunk
from ....surf_core.tiles import Box, boxes, spans
from ..models import cell_side, patch_side
from ..nested import Shapes, needs_audio, sampled_shape
from ..node import NodeLog
from .tile_caches import TileCaches
from .timeline import Timeline

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
    """The size of a run's tiles, and the length of its chunks; both shrink when memory runs out."""

    def __init__(
        self,
        model: Any,
        shapes: Shapes,
        whole: str = "",
        window: int = 0,
        preview: Tensor | None = None,
    ):
        """Plan for a latent.

        Args:
            shapes: of its parts: the video's [B, C, (T,) H, W], and the audio's.
            whole: why it must not be cut, a clause; "" where it may.
            window, preview: as in `Timeline`.
        """
        self.cell, self.patch = cell_side(model), patch_side(model)
        self.shapes, self.whole = shapes, whole
        size = self.size = tuple(shapes[0][-2:])
        self.time = Timeline(model, _frames(shapes[0]), window, preview)
        self.overlap = ceil(OVERLAP_PIXELS / self.cell / self.patch) * self.patch
        self.tile: Size = size
        self.most = self.time.frames
        """Latent frames of a chunk at most."""
        self.audio_axis = 3 if needs_audio(model) else 2
        self.caches = TileCaches(model)
        self.warned_of_caches = False

    def choose(self, model: Any, tile_pixels: int, chunk_frames: int) -> None:
        """Set the size of tiles and the length of chunks, by hand where not 0.

        Raises:
            ValueError: one that is too small, or any where the video must not be cut.
        """
        tiles = [self.by_hand(tile_pixels)] if tile_pixels else None
        lengths = [self.chunk_by_hand(chunk_frames)] if chunk_frames else None
        if tiles is not None and (lengths is not None or self.time.limit == self.time.frames):
            self.tile, self.most = tiles[0], (lengths or [self.time.frames])[0]
            if self.is_cut:
                self._log("as asked")
            return
        self.tile, self.most = self.automatic(model, tiles, lengths)

    @property
    def is_cut(self) -> bool:
        return len(self.boxes(self.size, self.tile)) > 1 or len(self.chunks(self.time.frames)) > 1

    def chunks(self, frames: int, most: int = 0) -> list[Chunk]:
        return self.time.chunks(frames, most or self.most)

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
        return side, side

    def chunk_by_hand(self, chunk_frames: int) -> int:
        most = self.time.by_hand(chunk_frames)
        if self.whole and most < self.time.frames:
            raise ValueError(f"{self.whole}, got {chunk_frames=}; set chunk_frames to 0.")
        return most

    def sampled(self, tile: Size, most: int) -> list[int]:
        """Return the shape of what the host samples, for one tile of one chunk of this latent."""
        (video, *others), frames = self.shapes, self.time.frames
        longest = max(self.time.chunks(frames, most), key=lambda chunk: chunk.length)
        if longest.length < frames:
            video = [*video[:2], longest.length, *video[3:]]
            others = [self._part(shape, longest) for shape in others]
        return sampled_shape([video, *others], self.real(self.size, tile))

    def _part(self, audio: Sequence[int], chunk: Chunk) -> list[int]:
        """Return the shape of a chunk's audio."""
        part = list(audio)
        sound = self.time.sound(chunk, self.time.frames, part[self.audio_axis])
        part[self.audio_axis] = sound.stop - sound.start
        return part

    def automatic(
        self, model: Any, tiles: list[Size] | None = None, lengths: list[int] | None = None
    ) -> tuple[Size, int]:
        """Choose the whole video, or the tiles and chunks with the fewest cells that fit.

        The host moves weights away to make room, so activations may take half of the device even
        beside large weights. No chunk is longer than the model was made for.

        Args:
            tiles, lengths: the only ones to choose from; None for any.
        """
        total = comfy.model_management.get_total_memory(model.load_device) - reserved()
        latents = LATENT_COPIES * 4 * sum(map(prod, self.shapes))
        room = max(total - model.model_size(), total / 2) - latents

        def needed(choice: tuple[Size, int]) -> float:
            return model.model.memory_required(self.sampled(*choice))

        whole = self.size, self.time.frames
        best = (tiles or [self.size])[0], (lengths or [self._limit()])[0]
        if needed(best) > room and not self.whole:
            sides = [self._sides(length) for length in self.size]
            sizes = tiles or [(rows, columns) for rows in sides[0] for columns in sides[1]]
            choices = [(size, most) for size in sizes for most in lengths or self._lengths()]
            fitting = [choice for choice in choices if needed(choice) <= room]
            best = min(fitting, key=self._cost) if fitting else min(choices, key=needed)
        self.tile, self.most = best
        all_of_it, part, free, device = (
            f"{n / 2**30:.1f}" for n in (needed(whole), needed(best), room, total)
        )
        self._log(f"needs {part} GB, whole {all_of_it} GB; {free} of {device} GB are for it")
        return best

    def _limit(self) -> int:
        """Return the latent frames that the model was made for, or all where none may be cut."""
        if self.time.limit < self.time.frames and self.whole:
            log.warning(
                "%d frames at once, and the model was made for %d: %s.",
                self.time.pixels(self.time.frames), self.time.pixels(self.time.limit), self.whole,
            )  # fmt: skip
            return self.time.frames
        return self.time.limit

    def _lengths(self) -> list[int]:
        """List limits for a chunk, one for each choice of chunks that comes of them."""
        time = self.time
        limits = range(time.shortest, time.limit + 1)
        found = {(time.longest(time.frames, most), time.computed(most)): most for most in limits}
        return list(found.values())

    def _sides(self, length: int) -> list[int]:
        """List limits for a tile along an axis, one for each number of tiles."""
        limits = range(length, min(2 * self.overlap, length) - 1, -1)
        return list({spans(length, n, self.overlap, self.patch)[0]: n for n in limits}.values())

    def _cost(self, choice: tuple[Size, int]) -> tuple[int, int]:
        """Count the cells computed for a video; squarer tiles first among equals."""
        tile, most = choice
        rows, columns = self.real(self.size, tile)
        cells = len(self.boxes(self.size, tile)) * rows * columns
        return cells * self.time.computed(most), abs(rows - columns)

    def _log(self, reason: str) -> None:
        count, side = len(self.boxes(self.size, self.tile)), self.real(self.size, self.tile)
        pieces = f"{count} tiles of {self.pixels(side)}" if count > 1 else "one piece"
        chunks = self.chunks(self.time.frames)
        if len(chunks) > 1:
            longest = self.time.pixels(max(chunk.length for chunk in chunks))
            pieces = f"{len(chunks)} chunks of {longest} of {self._all_frames} frames, {pieces}"
        log.info("%s pixels in %s (%s).", self.pixels(self.size), pieces, reason)

    @property
    def _all_frames(self) -> int:
        return self.time.pixels(self.time.frames)

    def halve(self, size: Size, tile: Size) -> Size | None:
        """Halve each side of a tile, with overlap; None where no side can shrink."""
        current, least = self.real(size, tile), 2 * self.overlap
        half = (ceil((side + self.overlap) / 2 / self.patch) * self.patch for side in current)
        rows, columns = (max(side, least) for side in half)
        return None if self.real(size, (rows, columns)) == current else (rows, columns)

    def shorten(self, frames: int, most: int) -> int | None:
        """Halve the length of a chunk, with overlap; None where it cannot shrink."""
        longest = self.time.longest(frames, most)
        shorter = max(ceil((longest + self.time.overlap(longest)) / 2), self.time.shortest)
        return shorter if shorter < longest else None

    def shrink(self, size: Size, frames: int, tile: Size, most: int) -> bool:
        """Take smaller tiles than `tile`, or where there are none shorter chunks than `most`.

        Returns:
            False where there is nothing smaller than what did not fit.
        """
        if self.whole:
            log.error("out of memory with the whole picture, and %s; use fewer frames, a model in "
                      "fp8, or a smaller resolution.", self.whole)  # fmt: skip
            return False
        before = self._piece(size, frames, tile, most)
        smaller = self.halve(size, tile)
        shorter = None if smaller else self.shorten(frames, most)
        if smaller is None and shorter is None:
            log.error(
                "out of memory with the smallest tiles, %s; use fewer frames, a model "
                "in fp8, or a smaller resolution.", before,
            )  # fmt: skip
            return False
        # The thread of another GPU may have shrunk them further.
        if smaller is not None:
            self.tile = (min(self.tile[0], smaller[0]), min(self.tile[1], smaller[1]))
        if shorter is not None:
            self.most = min(self.most, shorter)
        log.warning(
            "out of memory with tiles of %s; this evaluation is repeated, and the run "
            "goes on, with %s. Finished steps stay.",
            before, self._piece(size, frames, self.tile, self.most),
        )  # fmt: skip
        return True

    def _piece(self, size: Size, frames: int, tile: Size, most: int) -> str:
        """Say how large a piece is."""
        text = f"{self.pixels(self.real(size, tile))} pixels"
        longest = self.time.longest(frames, most)
        return text if longest == frames else f"{text} and {self.time.pixels(longest)} frames"


def _frames(shape: Sequence[int]) -> int:
    return shape[2] if len(shape) == 5 else 1


def reserved() -> float:
    """Return the bytes that the host reserves for others; 0 on older hosts."""
    reserved = getattr(comfy.model_management, "extra_reserved_memory", None)
    return reserved() if reserved else 0
