"""Count the pairs of tokens that attend to each other in windows along time, rows and columns.

SeedVR2 cuts a clip into boxes, whose sides are parts of those of a 720p clip; every second block
has them moved by half a box. Text attends in each box.

Dims: T token frames, h, w tokens along rows and columns.
"""

from collections.abc import Sequence
from itertools import product
from math import ceil, sqrt

REFERENCE = 45 * 80
"""Tokens of a frame at 720p."""
LONGEST = 30
"""Token frames from which on a clip gets more boxes along time, not longer ones."""


def box_sides(parts: tuple[int, int, int], grid: tuple[int, int, int]) -> tuple[int, int, int]:
    """Return the tokens of a box along time, rows and columns.

    Args:
        parts: of a clip of LONGEST frames at 720p, along each axis.
        grid: T, h, w.

    Source: SeedVR2, windows of its transformer.
    """
    frames, rows, columns = grid
    scale = sqrt(REFERENCE / (rows * columns))
    sizes = min(frames, LONGEST), round(rows * scale), round(columns * scale)
    time, height, width = (ceil(size / part) for size, part in zip(sizes, parts, strict=True))
    return time, height, width


def cuts(length: int, side: int, shifted: bool) -> list[tuple[int, int]]:
    """Cut an axis into parts of `side` tokens, shifted by half of one; partial ones at its ends."""
    first = side // 2 if shifted and 1 < side < length else side
    bounds = [0, *range(first, length, side), length]
    return list(zip(bounds, bounds[1:], strict=False))


def box_pairs(
    parts: tuple[int, int, int],
    grid: tuple[int, int, int],
    counts: Sequence[int],
    text: int,
    shifted: bool,
) -> float:
    """Count the pairs of query and key of one block, all of its boxes together.

    Args:
        parts, grid: as in `box_sides`.
        counts: tokens that are computed in each token frame. Those left out are taken to lie
            evenly: where kept tokens cluster, there are more pairs, up to all of full boxes.
        text: tokens of text in every box.
    """
    sides = box_sides(parts, grid)
    times, *planes = (cuts(n, side, shifted) for n, side in zip(grid, sides, strict=True))
    total = 0.0
    for (first, last), (top, bottom), (left, right) in product(times, *planes):
        share = (bottom - top) * (right - left) / (grid[1] * grid[2])
        inside = share * sum(counts[first:last])
        total += (inside + text) ** 2 if inside else 0
    return total
