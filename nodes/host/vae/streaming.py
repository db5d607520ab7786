"""Decode a video a few frames at a time, so that its frames are never all in memory.

Time is cut into stretches that overlap, and each stretch into bands of rows, which go to bytes as
they are final. Within a band a `Decoding` takes what the device holds.

Dims: C latent channels, T latent frames, H, W latent cells, F pixel frames.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import pairwise, product
from math import pi
from typing import Any

import torch
from torch import Tensor

from ....surf_core.tiles import Span, crossfading, rise, spans
from ..node import NodeLog
from .decoding import LEAST_STRETCH, REACH, Decoding, looks_ahead
from .memory import PIECE_OVERLAP, PIXEL_BYTES

log = NodeLog(__name__)

BYTE_PIXEL = 3
"""Bytes of a pixel that is ready for the encoder."""
LEAST_BAND = 3 * PIECE_OVERLAP
"""Rows of a band at least, so that no more than half of the picture is computed twice."""
PIECE = 512
"""Pixels of a piece where what the VAE returns would fill the memory beside what it goes into."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Stream:
    """How a clip is cut."""

    latent_frames: int
    """Of a stretch at most."""
    rows: int
    """Pixels of a band at most."""
    piece: int
    """Pixels of a piece of it at most; 0 leaves that to the device."""
    work: float
    """Pixels that are decoded, over those of the clip."""
    memory: int
    """Bytes of frames at a time, at most."""


class Streaming:
    """A latent of one video, and the VAE that decodes it.

    Args:
        vae: the host's VAE.
        samples: [1, C, T, H, W].
        memory: bytes of main memory for frames and encoder.
        beside: bytes of the encoder.
    """

    def __init__(self, vae: Any, samples: Tensor, memory: float, beside: int = 0):
        self.vae, self.samples = vae, samples
        self.whole, self.ahead = Decoding(vae, samples), looks_ahead(vae)
        self.stream = self._plan(memory, beside)

    def blocks(self, side: int) -> Iterator[Tensor]:
        """Yield frames in order: [f, rows, columns, 3], uint8, a stretch at most at a time."""
        whole, stream = self.whole, self.stream
        if stream.work > 1:
            log.info(
                "%d of %d frames and %d rows at a time, %.1f times the work of a whole decode, "
                "%.1f GB of frames.",
                whole.frames(stream.latent_frames), whole.frames(), stream.rows, stream.work,
                stream.memory / 2**30,
            )  # fmt: skip
        cuts = self._cuts(stream.latent_frames)
        shared = [0, *(self._shared(*pair) for pair in pairwise(cuts))]
        leads = [self._lead(frames) for frames in shared]
        starts = [start * whole.rate + lead for (start, _), lead in zip(cuts, leads, strict=True)]
        parts = (self._stretch(cut, lead, side) for cut, lead in zip(cuts, leads, strict=True))
        fades = iter(
            rise(frames, self.ahead)[lead:]
            for frames, lead in zip(shared[1:], leads[1:], strict=True)
        )
        yield from crossfading(parts, starts, whole.frames(), 0, lambda _: next(fades))

    def _cuts(self, latent_frames: int) -> list[Span]:
        count = self.whole.latent_frames
        return spans(count, latent_frames, min(REACH, latent_frames // 2))

    def _shared(self, before: Span, after: Span) -> int:
        """Count the frames that two stretches share."""
        return 1 + (before[1] - 1 - after[0]) * self.whole.rate

    def _lead(self, shared: int) -> int:
        """Count the first frames of a stretch that the one before stands for alone."""
        return int((rise(shared, self.ahead) == 0).sum()) if shared else 0

    def _stretch(self, cut: Span, lead: int, side: int) -> Tensor:
        """Decode latent frames: [f, rows, columns, 3], uint8, without the first `lead`."""
        samples, cell = self.samples[:, :, slice(*cut)], self.whole.cell
        bands = self._bands(self.stream.rows)
        out, done, piece = None, 0, side
        if self.stream.piece:
            piece = min(side or PIECE, PIECE)
        decoded = (
            Decoding(self.vae, samples[..., start // cell : stop // cell, :]).decode(piece)[lead:]
            for start, stop in bands
        )
        starts = [start for start, _ in bands]
        for rows in crossfading(decoded, starts, self.whole.size[0], 1, _wave):
            if out is None:
                out = torch.empty(
                    (rows.shape[0], *self.whole.size, rows.shape[-1]), dtype=torch.uint8
                )
            # As the host's nodes round frames for their encoder; frame by frame, without a copy.
            for frame, made in zip(out, rows, strict=True):
                frame[done : done + rows.shape[1]] = made.float().mul(255).clamp(0, 255).byte()
            done += rows.shape[1]
        assert out is not None
        return out

    def _plan(self, memory: float, beside: int) -> Stream:
        """Choose the stretches and bands that fit the memory with the least work.

        Raises:
            ValueError: not even the smallest fit.
        """
        whole, rows, count = self.whole, self.whole.size[0], self.whole.latent_frames
        least = min(LEAST_STRETCH if whole.divisible() else count, count)
        lengths = range(count, least - 1, -1)
        heights = range(rows, min(LEAST_BAND, rows) - 1, -whole.cell)
        if whole.tiles_itself:
            heights = range(rows, rows - 1, -1)
        # The shortest of each number of stretches, and of bands.
        lengths = {len(self._cuts(n)): n for n in lengths}.values()
        heights = {len(self._bands(height)): height for height in heights}.values()
        pieces = (0,) if whole.tiles_itself else (0, PIECE)
        plans = [self._priced(*cut) for cut in product(lengths, heights, pieces)]
        fitting = [plan for plan in plans if plan.memory + beside <= memory]
        if not fitting:
            needed = (min(plan.memory for plan in plans) + beside) / 2**30
            raise ValueError(
                f"expected memory of {needed:.2f} GB or more for frames of {whole.size[1]} x "
                f"{rows} and their encoder, got {memory / 2**30:.2f}; raise it, or decode a "
                "smaller video."
            )
        return min(fitting, key=lambda plan: (plan.work, plan.memory))

    def _priced(self, latent_frames: int, rows: int, piece: int) -> Stream:
        whole = self.whole
        cuts, bands = self._cuts(latent_frames), self._bands(rows)
        work = sum(stop - start for start, stop in cuts) / whole.latent_frames
        work *= sum(stop - start for start, stop in bands) / whole.size[0]
        frames, held = whole.frames(cuts[0][1]), 0
        if len(cuts) > 1:
            shared = self._shared(*cuts[:2])
            held = shared - self._lead(shared)
        width, band = whole.size[1], bands[0][1]
        kept = (frames + held) * whole.size[0] * width * BYTE_PIXEL
        # What the VAE returns, and what its pieces are blended into.
        returned = min(piece, width) if piece else width
        made = frames * band * (width + returned) * PIXEL_BYTES
        if piece and piece < width:
            across = spans(width, piece, PIECE_OVERLAP, whole.cell)
            work *= sum(stop - start for start, stop in across) / width
        return Stream(
            latent_frames=latent_frames, rows=rows, piece=piece, work=work,
            memory=int(kept + made),
        )  # fmt: skip

    def _bands(self, rows: int) -> list[Span]:
        return spans(self.whole.size[0], rows, PIECE_OVERLAP, self.whole.cell)


def _wave(shared: int) -> Tensor:
    """Weigh the lower band in rows that two share: a raised cosine, as tiles are blended."""
    return (1 - torch.arange(shared, dtype=torch.float64).add(0.5).mul(pi / shared).cos()) / 2
