"""Do spatial tiles leave seams? Differences of neighbouring cells, at tile edges and elsewhere.

    python -m benchmarks.quality.seams --videos 12

The ratio is the mean absolute difference of neighbours across the edges of tiles, divided by that
across all other boundaries, of the embedded model through a whole refine run. Its output differs at
the boundaries of its patches, so only those are compared, and it draws its objects near the middle,
so its ratio without tiles is beside. Hard tiles, without overlap, are the control.
"""

from collections.abc import Iterator

import torch
from torch import Tensor

from benchmarks.page import Page, parser, table
from benchmarks.quality.held_out import painted, prompts
from surf_core.flow import refine
from surf_core.tiles import in_tiles, spans
from surf_core.tiny import vae
from surf_core.tiny.demo import Settings
from surf_core.tiny.model import CELLS, CLIP, PIXELS, TinyT2V, to_latent, to_pixels
from surf_core.tiny.refiner import enlarge

LARGE = 2 * CELLS
"""Cells of the model's pictures."""
STEPS, SIGMA = 10, 0.65
CFG = Settings().cfg
PATCH = 2
COLUMNS = "overlap | latent | without tiles | pixels | without tiles"
VARIANTS: dict[str, list[tuple[int, int]]] = {
    "none: hard edges": [(CELLS, 0)],
    "4 cells": [(CELLS, 4)],
    "8 cells": [(CELLS, 8)],
    "4 cells, other tiles at every second evaluation": [(CELLS, 4), (CELLS + 4, 4)],
}
"""Name -> (tile, overlap) in cells, of evaluations in turn."""


def profile(x: Tensor, unit: int) -> Tensor:
    """Average the differences over each boundary of `unit` cells, both axes together."""

    def along(x: Tensor) -> Tensor:
        return (x[..., unit::unit] - x[..., unit - 1 : -1 : unit]).abs().flatten(0, -2).mean(0)

    return (along(x) + along(x.transpose(-1, -2))) / 2


def ratio(differences: Tensor, at: list[int]) -> str:
    """Divide the mean over the boundaries `at` (1 is the first) by that over all others."""
    here = torch.isin(torch.arange(1, len(differences) + 1), torch.tensor(at))
    return f"{differences[here].mean() / differences[~here].mean():.3f}"


def starts(count: int) -> tuple[list[str], Tensor]:
    """Make prompts and upsampled previews [count, 16, T, LARGE, LARGE], content anywhere."""
    generator, numbers = torch.Generator().manual_seed(5), list(range(count))
    large = enlarge(to_latent(painted(numbers, PIXELS)), LARGE)
    moves = torch.randint(LARGE, (count, 2), generator=generator).tolist()
    moved = [x.roll(tuple(move), (-2, -1)) for x, move in zip(large, moves, strict=True)]
    return prompts(numbers), torch.stack(moved)


def rows(count: int) -> Iterator[list]:
    """Yield the rows of all variants, a whole refine run each."""
    asked, start = starts(count)
    tiny = TinyT2V(asked)
    velocity = tiny.velocity(CFG)
    noise = tiny.noise([100 + index for index in range(count)], LARGE)

    def profiles(sizes: list[tuple[int, int]]) -> tuple[Tensor, Tensor]:
        evaluation = iter(range(STEPS))

        def in_parts(z: Tensor, sigma: float) -> Tensor:
            tile, overlap = sizes[next(evaluation) % len(sizes)]
            return in_tiles(lambda part, _: velocity(part, sigma), z, (tile, tile), overlap, PATCH)

        z = refine(in_parts, start, SIGMA, STEPS, noise)
        return profile(z, PATCH), profile(to_pixels(z), PATCH * vae.CELL)

    plain = profiles([(LARGE, 0)])
    for name, sizes in VARIANTS.items():
        edges = {edge // PATCH for span in spans(LARGE, *sizes[0], PATCH) for edge in span}
        at = sorted(edges - {0, LARGE // PATCH})
        pairs = zip(profiles(sizes), plain, strict=True)
        yield [name, *(ratio(each, at) for pair in pairs for each in pair)]


def main() -> None:
    line = parser(__doc__)
    line.add_argument("--videos", type=int, default=12)
    args = line.parse_args()
    how = (
        f"{args.videos} videos of {LARGE} x {LARGE} cells, {CLIP} frames, tiles of {CELLS}, "
        f"{STEPS} steps from {SIGMA}, cfg {CFG}"
    )
    with Page(__spec__.name, "Seams of spatial tiles", args.out, "1 is no seam.") as page:
        page.write([*table(COLUMNS, rows(args.videos)), "", page.origin(how)])


if __name__ == "__main__":
    main()
