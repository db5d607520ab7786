"""Decodes of a video by the real VAE, whole and in pieces: which, in what order, and how long.

Dims: H, W rows and columns in pixels.
"""

import statistics
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import nn

from benchmarks.timing import FAILURES, reason, seconds

from .tables import NOT

TELLING = ("720p", "1080p")
"""Sizes that come first."""
HOST_TILES = 2
"""Place of the host's smallest tiles."""
CHANNELS, CELL, OVERLAP = 16, 8, 64
LOADED, LAST = "as loaded", "weights channels-last"
COLUMNS = "size | cut | by | layout | type | seconds, median | times faster | calls | peak, GiB"

Size = tuple[int, int]


def channels_last(module: nn.Module) -> None:
    """Lay the weights of all convolutions out with channels innermost."""
    for layer in module.modules():
        layouts = {5: torch.channels_last_3d, 4: torch.channels_last}
        weight = getattr(layer, "weight", None)
        if isinstance(weight, torch.Tensor) and weight.ndim in layouts:
            weight.data = weight.data.contiguous(memory_format=layouts[weight.ndim])


@dataclass(kw_only=True, slots=True, eq=False)
class Timed:
    """One way to decode one size in one layout, and what it took."""

    size: str
    cut: str
    by: str
    layout: str
    latent: torch.Tensor
    decode: Callable
    """A VAE and a latent to frames."""
    why_not: str = "not reached"
    took: list[float] = field(default_factory=list)
    """Seconds."""
    loaded: list[float] = field(default_factory=list)
    """Seconds as loaded, in the same turns."""
    peak: int = 0
    """Bytes."""

    def row(self, kind: str) -> list:
        start = [self.size, self.cut, self.by, self.layout, kind]
        if not self.took:
            return [*start, f"{NOT}: {self.why_not}", "-", "-", "-"]
        median, gain = statistics.median(self.took), "-"
        if self.layout == LOADED:
            gain = 1.0
        elif self.loaded:
            gain = statistics.median(self.loaded[: len(self.took)]) / median
        return [*start, median, gain, len(self.took), self.peak / 2**30 if self.peak else NOT]


def calls(vae: Any, latent: torch.Tensor, sides: tuple[int, ...], card: float) -> Iterator[tuple]:
    """Yield (place in the order, cut, by, decode); up to HOST_TILES they are the telling ones."""
    from surf.nodes.host.vae import decode, memory

    job = decode.Decoding(vae, latent)

    def ours(limit: Size) -> Callable:
        return lambda vae, latent: decode.Decoding(vae, latent).run(limit)

    def host(side: int) -> Callable:
        tile, overlap = side // CELL, OVERLAP // CELL
        return lambda vae, latent: vae.decode_tiled(
            latent, tile_x=tile, tile_y=tile, overlap=overlap
        )

    yield 0, "whole", "both", ours(job.size)
    room = memory.USABLE_MEMORY * card * 2**30
    chosen = memory.choose_piece(vae, job.size, CELL, job.needed, room=room)
    if chosen != job.size:
        yield 1, f"for {card:g} GB", "Surf", ours(chosen)
    for index, side in enumerate(side for side in sides if side < max(job.size)):
        yield HOST_TILES + 2 * index, f"{side} / {OVERLAP}", "host", host(side)
        yield HOST_TILES + 2 * index + 1, f"{side} / {OVERLAP}", "Surf", ours((side, side))


def cases(
    vae: Any, sizes: dict[str, Size], sides: tuple[int, ...], card: float, steps: int
) -> list[Timed]:
    """All calls, in the order in which they are made."""
    made = []
    for name in sorted(sizes, key=lambda name: name not in TELLING):
        cells = (length // CELL for length in sizes[name])
        generator = torch.Generator().manual_seed(0)
        latent = torch.randn(1, CHANNELS, steps, *cells, generator=generator)
        for place, cut, by, decode in calls(vae, latent, sides, card):
            later = place > HOST_TILES or name not in TELLING
            for layout in (LOADED, LAST):
                case = Timed(size=name, cut=cut, by=by, layout=layout, latent=latent, decode=decode)
                made.append(((later, layout == LAST, place), case))
    return [case for _, case in sorted(made, key=lambda pair: pair[0])]


def measure(case: Timed, coders: dict[str, Any], reps: int, deadline: float) -> None:
    """Call it in turns with the weights as loaded, as long as there is time."""
    cuda = torch.cuda.is_available()
    # The first turn warms up and does not count.
    for turn in range(reps + 1):
        if time.perf_counter() > deadline:
            case.why_not = "the minutes were over"
            return
        for layout in dict.fromkeys((LOADED, case.layout)):
            if cuda:
                torch.cuda.reset_peak_memory_stats()
            try:
                spent = seconds(lambda: case.decode(coders[layout], case.latent), cuda)  # noqa: B023
            except FAILURES as error:
                said = reason(error)
                case.why_not = said if layout == case.layout else f"{layout}, {said}"
                case.took.clear()
                return
            if turn and layout == LOADED:
                case.loaded.append(spent)
            if layout == case.layout:
                case.peak = max(case.peak, torch.cuda.max_memory_allocated() if cuda else 0)
                case.took += [spent] if turn else []
