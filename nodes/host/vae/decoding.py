"""Decode with a VAE: whole where its device can hold it, else in blended pieces and stretches.

Out of memory, the host's VAE goes on with 256-pixel tiles of its own. Here a copy of the VAE object
(the network stays shared) raises instead, and decoding starts again with smaller pieces. Where not
even they hold all frames, time is cut into stretches that overlap.

Dims: B batch, C latent channels, T latent frames, H, W latent cells, F pixel frames.
"""

from math import ceil
from typing import Any

import comfy.model_management
from torch import Tensor

from ....surf_core.tiles import Box, Span, blend, boxes, crossfade, spans
from ..finite import VAE_CAUSES, check_finite
from ..node import NodeLog, show_status
from .frame_count import frames_of
from .memory import (
    PIECE_OVERLAP,
    USABLE_MEMORY,
    Size,
    choose_piece,
    log_piece,
    real_piece,
    retry_smaller,
)
from .out_of_memory import without_fallback
from .watched import WatchedCalls

log = NodeLog(__name__)

REACH = 8
"""Latent frames that two stretches share at most; what a VAE remembers has faded by then."""
LEAST_STRETCH = 8
"""Latent frames below which pieces are made smaller before stretches get shorter."""
SHORTEST = 4
"""Latent frames of a stretch at least: two overlaps of two."""


class Decoding:
    """A latent and the VAE that decodes it, in pieces of any size."""

    def __init__(self, vae: Any, samples: Tensor):
        self.vae, self.samples = vae, samples
        self.cell = vae.spacial_compression_decode()
        self.size: Size = (samples.shape[-2] * self.cell, samples.shape[-1] * self.cell)
        self.latent_frames = samples.shape[2] if samples.ndim == 5 else 1
        self.rate = vae.temporal_compression_decode() or 1
        """Frames per latent frame; the first makes one."""
        self.tiles_itself = getattr(vae, "handles_tiling", False)
        self.at_most = self.latent_frames
        """Latent frames at a time; falls when memory runs out."""

    def frames(self, latent_frames: int = 0) -> int:
        """Count the frames that latent frames make, by default all of them."""
        return frames_of(self.vae, latent_frames or self.latent_frames)

    def needed(self, piece: Size, latent_frames: int = 0) -> float:
        """Estimate the bytes on the device for a piece, by default of all latent frames."""
        frames = self.frames(latent_frames)
        return self._used(piece, latent_frames) + pixels_on_device(self.vae, frames, piece)

    def _used(self, piece: Size, latent_frames: int = 0) -> float:
        """Ask the host what the network needs."""
        shape = [*self.samples.shape[:-2], piece[0] // self.cell, piece[1] // self.cell]
        if latent_frames and len(shape) == 5:
            shape[2] = latent_frames
        return self.vae.memory_used_decode(tuple(shape), self.vae.vae_dtype)

    def at_a_time(self, piece: Size) -> int:
        """Find how many latent frames fit at a time: all, where fewer would need no less.

        Causal VAEs keep a few frames in memory, however long the clip is; others hold all.
        """
        fewest = min(SHORTEST, self.latent_frames)
        if not self.divisible() or self._used(piece, fewest) >= self._used(piece):
            return self.latent_frames
        room = USABLE_MEMORY * comfy.model_management.get_total_memory(self.vae.device)
        fitting = (n for n in range(self.at_most, fewest, -1) if self.needed(piece, n) <= room)
        return next(fitting, fewest)

    def divisible(self) -> bool:
        """Say whether part of the latent frames decodes to as many frames as within the clip."""
        counts = range(1, self.latent_frames + 1)
        even = all(self.frames(n) == 1 + (n - 1) * self.rate for n in counts)
        return even and not self.tiles_itself

    def decode(self, side: int) -> Tensor:
        """Decode in pieces of `side` pixels at most (0 chooses); in smaller ones if that fails.

        Pieces hold all frames where any piece does. Else, or where pieces of `side` do not, time
        is cut; but pieces get smaller before stretches get too short to hide where they join.

        Returns:
            [B * F, rows, columns, channels].
        """
        return retry_smaller(self.run, self.size, self.choose(side), self.cell, "decoding")

    def choose(self, side: int = 0) -> Size:
        """Choose what pieces may be at most: `side` pixels, or for 0 as large as fits."""
        limit = (side, side) if side else self._choose(self.latent_frames)
        least = min(self.latent_frames, LEAST_STRETCH)
        if self.at_a_time(real_piece(self.size, limit, self.cell)) < least:
            smaller = self._choose(least)
            limit = (min(limit[0], smaller[0]), min(limit[1], smaller[1]))
        return limit

    def _choose(self, latent_frames: int) -> Size:
        def on_device(piece: Size) -> float:
            return self.needed(piece, latent_frames)

        return choose_piece(self.vae, self.size, self.cell, on_device)

    def run(self, limit: Size) -> Tensor:
        """Decode in pieces of this size at most."""
        piece = real_piece(self.size, limit, self.cell)
        self.at_most = self.at_a_time(piece)
        used = self.needed(piece, self.at_most)
        log_piece(self.vae, self.size, limit, self.cell, used, "decode")
        if self.tiles_itself and piece != self.size:
            return self._own_tiles(piece)
        return self._pieces(limit)

    def _pieces(self, limit: Size) -> Tensor:
        stretches = self._stretches()
        count = len(boxes(self.size, limit, PIECE_OVERLAP, self.cell)) * len(stretches)
        call = _Calls(self.vae, count)

        def one(box: Box) -> Tensor:
            cells = (slice(part.start // self.cell, part.stop // self.cell) for part in box)
            samples = self.samples[(..., *cells)]
            if len(stretches) == 1:
                decoded = call(samples)
            else:
                parts = (call(samples[:, :, slice(*span)]) for span in stretches)
                starts = [start * self.rate for start, _ in stretches]
                decoded = crossfade(parts, starts, self.frames(), 1, looks_ahead(self.vae))
            return decoded.reshape(-1, *decoded.shape[-3:]).movedim(-1, 1)

        frames = blend(one, self.size, limit, PIECE_OVERLAP, self.cell).movedim(1, -1)
        # Shares of a full white sum to more than 1 by a rounding.
        return frames if count == 1 else frames.clamp_(0, 1)

    def _stretches(self) -> list[Span]:
        """Cut the latent frames into stretches that overlap by half, or as far as a VAE reaches."""
        count = self.at_most
        if count == self.latent_frames:
            return [(0, count)]
        stretches = spans(self.latent_frames, count, min(REACH, count // 2))
        log.info(
            "%d stretches of %d of %d frames.",
            len(stretches), self.frames(stretches[0][1]), self.frames(),
        )  # fmt: skip
        if count < LEAST_STRETCH:
            log.warning(
                "the memory holds %d frames at a time; brightness may jump where they join. Use a "
                "VAE in half precision, or a smaller picture.", self.frames(count),
            )  # fmt: skip
        return stretches

    def _own_tiles(self, piece: Size) -> Tensor:
        """Let the VAE cut the picture, and time, by itself."""
        rows, columns = (side // self.cell for side in piece)
        overlap = ceil(PIECE_OVERLAP / self.cell)
        decoded = WatchedCalls(self.vae, 1).run(
            lambda: self.vae.decode_tiled(
                self.samples, tile_x=columns, tile_y=rows, overlap=overlap
            ),
            "decoder",
            self.latent_frames,
        )
        check_finite(decoded, "the frames that the VAE decodes", VAE_CAUSES)
        return decoded.reshape(-1, *decoded.shape[-3:])


class _Calls:
    """Calls of a VAE: watched, finite, and without a fallback."""

    def __init__(self, vae: Any, count: int):
        self.vae, self.watched = without_fallback(vae), WatchedCalls(vae, count)

    def __call__(self, samples: Tensor) -> Tensor:
        frames = samples.shape[2] if samples.ndim == 5 else 1
        decoded = self.watched.run(lambda: self.vae.decode(samples), "decoder", frames)
        check_finite(decoded, "the frames that the VAE decodes", VAE_CAUSES)
        if self.watched.count > 1:
            show_status(f"decoded {self.watched.done}/{self.watched.count} pieces")
        return decoded


def pixels_on_device(vae: Any, frames: int, piece: Size) -> float:
    """Count the bytes of the frames of a piece in the precision of the VAE."""
    return frames * piece[0] * piece[1] * 3 * vae.vae_dtype.itemsize


def looks_ahead(vae: Any) -> bool:
    """Say whether frames depend on later ones, as with LTX-V; most VAEs of video are causal."""
    decoder = getattr(getattr(vae, "first_stage_model", None), "decoder", None)
    return getattr(decoder, "causal", True) is False
