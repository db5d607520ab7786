"""Do spatial tiles leave seams? Steps between neighbouring cells, at tile edges and elsewhere.

    python -m benchmarks.quality.seams --videos 12

The step ratio is the mean absolute difference of neighbours across the edges of tiles, divided by
that across all other boundaries. First for functions whose result depends on the tile on purpose
(they add half of the tile's mean; they blur and see zeros beyond the tile), on random fields that
are alike everywhere; then for the embedded model through a whole refine run. The model changes its
mind at the boundaries of its patches, so only those are compared, and it draws its objects near the
middle, so its ratio without tiles stands beside. Hard tiles, without overlap, are the control.
"""

import argparse
import time
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path

import torch
from torch import Tensor
from torch.nn import functional as F

from benchmarks.page import provenance
from surf_core.flow import refine
from surf_core.resample import resize
from surf_core.tiles import in_tiles, spans
from surf_core.tiny import codec
from surf_core.tiny.demo import to_pixels
from surf_core.tiny.model import CELLS, FRAMES, TinyT2V
from surf_core.tiny.refiner import enlarge
from surf_core.training.tiny.scenes import render

SIDE, TILE = 128, 40
"""Cells of the random fields and of their tiles."""
MARGIN = 8
"""Cells at the border of the fields that are left out: the blur sees zeros beyond it, too."""
LARGE = 2 * CELLS
"""Cells of the model's pictures."""
STEPS, SIGMA, CFG = 10, 0.65, 4.0
PATCH = 2


def random_field(count: int, side: int, length: float, channels: int = 1) -> Tensor:
    """Random pictures [count, channels, side, side], alike everywhere, of unit variance.

    Args:
        length: cells over which they are smooth; 0 gives white noise.
    """
    generator = torch.Generator().manual_seed(11)
    white = torch.randn(count, channels, side, side, generator=generator)
    down, across = torch.fft.fftfreq(side)[:, None], torch.fft.rfftfreq(side)
    low = torch.exp(-2 * (torch.pi * length) ** 2 * (down**2 + across**2))
    field = torch.fft.irfft2(torch.fft.rfft2(white) * low)
    return field / field.std()


def mean_offset(part: Tensor, box) -> Tensor:
    """Add half of the tile's mean."""
    return part + 0.5 * part.mean((-2, -1), keepdim=True)


def short_sighted_blur(part: Tensor, box) -> Tensor:
    """Mean of 5 x 5 cells, zeros beyond the tile."""
    return F.avg_pool2d(part, 5, 1, 2)


def interior(edges: list[tuple[int, int]], length: int) -> list[int]:
    """Boundaries where a tile starts or stops; boundary b is between cells b - 1 and b."""
    return sorted({edge for span in edges for edge in span if 0 < edge < length})


def profile(x: Tensor, unit: int = 1) -> Tensor:
    """Mean step over each boundary of `unit` cells, both axes together."""
    across = (x[..., unit::unit] - x[..., unit - 1 : -1 : unit]).abs().flatten(0, -2).mean(0)
    x = x.transpose(-1, -2)
    down = (x[..., unit::unit] - x[..., unit - 1 : -1 : unit]).abs().flatten(0, -2).mean(0)
    return (across + down) / 2


def ratio(steps: Tensor, at: list[int], neither: list[int], margin: int = 0) -> float:
    """Mean step over the boundaries `at` (1 is the first), over that of all others.

    Args:
        neither: boundaries that are not counted among the others.
        margin: boundaries at either end of the axis that are left out.
    """
    here, there = (
        torch.zeros(len(steps), dtype=torch.bool),
        torch.ones(len(steps), dtype=torch.bool),
    )
    here[torch.tensor(at) - 1] = True
    there[torch.tensor([*at, *neither]) - 1] = False
    steps, here, there = (x[margin : len(x) - margin] for x in (steps, here, there))
    return (steps[here].mean() / steps[there].mean()).item()


def field_rows(count: int) -> Iterator[str]:
    """Table lines of the functions on random fields."""
    for name, length in (("smooth", 12.0), ("textured", 0.0)):
        x = 1 + 0.5 * random_field(count, SIDE, length)
        for function in (mean_offset, short_sighted_blur):
            plain = profile(function(x, None))
            for overlap in (0, 8, 16):
                axis = spans(SIDE, TILE, overlap)
                at = interior(axis, SIDE)
                near = [edge + shift for edge in at for shift in range(-2, 3)]
                inside = [b for a, c in pairwise(axis) for b in range(c[0] + 1, a[1])]
                steps = profile(in_tiles(function, x, (TILE, TILE), overlap))
                odd = [*near, *inside]
                found = [ratio(steps, places, odd, MARGIN) for places in (at, near, inside or at)]
                cells = [f"{value:.3f}" for value in (*found, ratio(plain, at, odd, MARGIN))]
                what = f"{overlap} cells" if overlap else "none: hard edges"
                yield f"| {name} | {function.__name__} | {what} | {' | '.join(cells)} |"


def starts(kind: str, count: int) -> tuple[list[str], Tensor]:
    """Prompts and upsampled previews [count, 16, FRAMES, LARGE, LARGE], content at any place."""
    generator = torch.Generator().manual_seed(5)
    scenes = render(count, FRAMES, CELLS * codec.CELL, generator)
    if kind == "smooth":
        frame = 0.35 * random_field(count, LARGE * codec.CELL, 12.0, channels=3)
        video = frame[:, :, None].expand(-1, -1, FRAMES, -1, -1)
        return scenes.prompts, codec.encode(video.clamp(-1, 1).contiguous())
    low = codec.encode(resize(scenes.video, (CELLS * codec.CELL,) * 2))
    moves = torch.randint(LARGE, (count, 2), generator=generator).tolist()
    large = enlarge(low, LARGE)
    moved = [x.roll(tuple(m), (-2, -1)) for x, m in zip(large, moves, strict=True)]
    return scenes.prompts, torch.stack(moved)


def model_rows(kind: str, count: int) -> Iterator[str]:
    """Table lines of the embedded model, a whole refine run each."""
    prompts, start = starts(kind, count)
    tiny = TinyT2V(prompts)
    velocity = tiny.velocity(CFG)
    noise = tiny.noise([100 + index for index in range(count)], LARGE)

    def run(sizes: list[tuple[int, int]]) -> Tensor:
        turn = iter(range(STEPS))

        def in_parts(z: Tensor, sigma: float) -> Tensor:
            tile, overlap = sizes[next(turn) % len(sizes)]
            return in_tiles(lambda part, _: velocity(part, sigma), z, (tile, tile), overlap, PATCH)

        return refine(in_parts, start, SIGMA, STEPS, noise)

    def steps(z: Tensor) -> tuple[Tensor, Tensor]:
        return profile(z, PATCH), profile(to_pixels(z), PATCH * codec.CELL)

    plain = steps(run([(LARGE, 0)]))
    variants: list[tuple[str, list[tuple[int, int]]]] = [
        ("none: hard edges", [(CELLS, 0)]),
        ("4 cells", [(CELLS, 4)]),
        ("8 cells", [(CELLS, 8)]),
        ("4 cells, other tiles at every second step", [(CELLS, 4), (CELLS + 4, 4)]),
    ]
    for name, sizes in variants:
        found = steps(run(sizes))
        axis = spans(LARGE, *sizes[0], PATCH)
        at = [edge // PATCH for edge in interior(axis, LARGE)]
        pairs = zip(found, plain, strict=True)
        cells = [f"{ratio(x, at, []):.3f} | {ratio(y, at, []):.3f}" for x, y in pairs]
        yield f"| {kind} | {name} | {' | '.join(cells)} |"


def tables(fields: int, videos: int) -> Iterator[str]:
    yield "| field | function | overlap | at edges | 2 cells round | in overlaps | without tiles |"
    yield "| --- | --- | --- | --- | --- | --- | --- |"
    yield from field_rows(fields)
    yield ""
    yield "| start | overlap | latent | without tiles | pixels | without tiles |"
    yield "| --- | --- | --- | --- | --- | --- |"
    for kind in ("smooth", "textured"):
        yield from model_rows(kind, videos)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--fields", type=int, default=64, help="random fields of each kind")
    parser.add_argument("--videos", type=int, default=12, help="videos of each kind")
    parser.add_argument("--out", type=Path, help="a Markdown file to write the tables to")
    args = parser.parse_args()
    began, lines = time.time(), []
    for line in tables(args.fields, args.videos):
        lines.append(line)
        print(line, flush=True)
    how = (
        f"{args.fields} fields of {SIDE} x {SIDE} cells, tiles of {TILE}; {args.videos} videos of "
        f"{LARGE} x {LARGE} cells, {FRAMES} frames, tiles of {CELLS}, {STEPS} steps from "
        f"{SIGMA}, cfg {CFG}; {time.time() - began:.0f} s. {provenance()}"
    )
    print(how)
    if args.out:
        args.out.write_text("\n".join([*lines, "", how, ""]))


if __name__ == "__main__":
    main()
