"""Time decodes of a video by the real VAE, whole and in pieces, the most telling first.

Dims: H, W rows and columns in pixels.
"""

import statistics
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

import torch

from benchmarks.page import NOT_MEASURED
from benchmarks.timing import FAILURES, OVER, reason, seconds

TELLING = ("720p", "1080p")
"""Sizes that come first."""
HOST_TILES = 2
"""Place of the host's smallest tiles."""
CHANNELS, CELL, OVERLAP = 16, 8, 64
COLUMNS = "size | cut | by | type | seconds, median | calls | peak, GiB"

Size = tuple[int, int]


@dataclass(kw_only=True, slots=True, eq=False)
class TimedDecode:
    """One way to decode one size, and what it took."""

    size: str
    cut: str
    by: str
    decode: Callable[[], torch.Tensor]
    why_not: str = "not reached"
    took: list[float] = field(default_factory=list)
    """Seconds."""
    peak: int = 0
    """Bytes."""

    def row(self, kind: str) -> list:
        start = [self.size, self.cut, self.by, kind]
        if not self.took:
            return [*start, f"{NOT_MEASURED}: {self.why_not}", "-", "-"]
        peak = self.peak / 2**30 if self.peak else NOT_MEASURED
        return [*start, statistics.median(self.took), len(self.took), peak]

    def measure(self, reps: int, deadline: float) -> None:
        """Warm up once, then time it as often as there is time."""
        cuda = torch.cuda.is_available()
        for turn in range(reps + 1):
            if time.perf_counter() > deadline:
                self.why_not = OVER
                return
            if cuda:
                torch.cuda.reset_peak_memory_stats()
            try:
                spent = seconds(self.decode, cuda)
            except FAILURES as error:
                self.why_not = reason(error)
                self.took.clear()
                return
            self.peak = max(self.peak, torch.cuda.max_memory_allocated() if cuda else 0)
            self.took += [spent] if turn else []


def ways(vae: Any, latent: torch.Tensor, sides: tuple[int, ...], card: float) -> Iterator[tuple]:
    """Yield (place in the order, cut, by, decode); up to HOST_TILES they are the telling ones."""
    from surf.nodes.host.vae import decode, memory

    whole = decode.Decoding(vae, latent)

    def ours(limit: Size) -> Callable:
        return lambda: decode.Decoding(vae, latent).run(limit)

    def host(side: int) -> Callable:
        tile, overlap = side // CELL, OVERLAP // CELL
        return lambda: vae.decode_tiled(latent, tile_x=tile, tile_y=tile, overlap=overlap)

    yield 0, "whole", "both", ours(whole.size)
    room = memory.USABLE_MEMORY * card * 2**30
    chosen = memory.choose_piece(vae, whole.size, CELL, whole.needed, room=room)
    if chosen != whole.size:
        yield 1, f"for {card:g} GB", "Surf", ours(chosen)
    for index, side in enumerate(side for side in sides if side < max(whole.size)):
        yield HOST_TILES + 2 * index, f"{side} / {OVERLAP}", "host", host(side)
        yield HOST_TILES + 2 * index + 1, f"{side} / {OVERLAP}", "Surf", ours((side, side))


def decodes(
    vae: Any, sizes: dict[str, Size], sides: tuple[int, ...], card: float, frames: int
) -> list[TimedDecode]:
    """List all decodes, in the order in which they are measured.

    Args:
        frames: latent frames.
    """
    planned = []
    for name in sorted(sizes, key=lambda name: name not in TELLING):
        cells = (length // CELL for length in sizes[name])
        generator = torch.Generator().manual_seed(0)
        latent = torch.randn(1, CHANNELS, frames, *cells, generator=generator)
        for place, cut, by, decode in ways(vae, latent, sides, card):
            later = place > HOST_TILES or name not in TELLING
            timed = TimedDecode(size=name, cut=cut, by=by, decode=decode)
            planned.append(((later, place), timed))
    return [timed for _, timed in sorted(planned, key=lambda pair: pair[0])]
