"""Cut a picture into overlapping tiles, and blend results without a seam.

Dims: H, W rows and columns, in latent cells unless the caller says pixels; any axes before them.
"""

from collections.abc import Callable, Iterable, Iterator
from functools import partial
from itertools import pairwise
from math import ceil, pi

import torch
from torch import Tensor

Box = tuple[slice, slice]
"""Rows and columns of one tile; `x[(..., *box)]` is the tile."""
Span = tuple[int, int]
"""Half-open range of rows or of columns."""


def spans(length: int, tile: int, overlap: int, multiple: int = 1) -> list[Span]:
    """Cover one axis with the fewest tiles, all equally long, evenly spread.

    The tiles are as short as that number of them allows, so `tile` is the most they may be.

    Args:
        length: cells of the axis, >= 1.
        tile: cells of a tile at most; `length` or more gives one tile.
        overlap: cells that neighbours share at least.
        multiple: tiles are this many cells times a whole number, except one that is the axis. They
            start at such multiples too; where it does not divide the axis, the last one does not.

    Returns:
        (start, stop) in order; the first starts at 0, the last ends at `length`.

    Raises:
        ValueError: a size below 1, a negative overlap, or a tile below two overlaps or `multiple`.

    Source: ours.
    """
    if min(length, tile, multiple) < 1 or overlap < 0:
        raise ValueError(
            "expected a length, tile and multiple of at least 1 and an overlap of at least 0, got "
            f"{length=}, {tile=}, {multiple=}, {overlap=}; use a larger tile."
        )
    if tile >= length:
        return [(0, length)]
    longest, shared = tile // multiple, ceil(overlap / multiple)
    if longest < max(1, 2 * shared):
        raise ValueError(
            f"a tile must hold two overlaps, {max(1, 2 * shared) * multiple} cells, got {tile=} "
            f"with {overlap=} and {multiple=}; use a larger tile or a smaller overlap."
        )
    whole = ceil(length / multiple)
    count = max(2, ceil((whole - shared) / (longest - shared)))
    side = ceil((whole + (count - 1) * shared) / count)
    if side >= whole:
        return [(0, length)]
    starts = [round(i * (whole - side) / (count - 1)) * multiple for i in range(count)]
    starts[-1] = length - side * multiple
    return [(start, start + side * multiple) for start in starts]


def boxes(
    size: tuple[int, int], tile: tuple[int, int], overlap: int, multiple: int = 1
) -> list[Box]:
    """Cover a picture with tiles, row by row, see `spans`; all are of one size.

    Args:
        size: rows and columns of the picture.
        tile: rows and columns of a tile at most.
    """
    rows, columns = (spans(*pair, overlap, multiple) for pair in zip(size, tile, strict=True))
    return [(slice(*down), slice(*across)) for down in rows for across in columns]


def weights(axis: list[Span]) -> list[Tensor]:
    """Return each tile's blending weight along an axis: raised cosines over the overlaps.

    Args:
        axis: as `spans` returns them.

    Returns:
        One [stop - start] per tile, float64, above 0; over each cell they sum to 1.

    Source: ours, the raised cosine of overlap-add.
    """
    ramps = [torch.ones(stop - start, dtype=torch.float64) for start, stop in axis]
    for (left, right), ((_, stop), (start, _)) in zip(pairwise(ramps), pairwise(axis), strict=True):
        shared = stop - start
        if shared > 0:
            wave = torch.arange(shared, dtype=torch.float64).add(0.5).mul(pi / shared).cos()
            left[-shared:] *= (1 + wave) / 2
            right[:shared] *= (1 - wave) / 2
    total = torch.zeros(axis[-1][1], dtype=torch.float64)
    for ramp, (start, stop) in zip(ramps, axis, strict=True):
        total[start:stop] += ramp
    return [ramp / total[start:stop] for ramp, (start, stop) in zip(ramps, axis, strict=True)]


def blend(
    function: Callable[[Box], Tensor],
    size: tuple[int, int],
    tile: tuple[int, int],
    overlap: int,
    multiple: int = 1,
) -> Tensor:
    """Compute a picture tile by tile and blend; one tile exists at a time beside the picture.

    Args:
        function: makes the cells of a box: [..., rows, columns], any axes before them.
        size, tile, overlap, multiple: as in `boxes`.

    Returns:
        [..., *size], dtype of what `function` returns, summed in fp32 (float64 for float64). With
        one tile, the very tensor that `function` returned.

    Raises:
        ValueError: as `spans`, or a function that returns another size.

    Source: ours; the average of views is that of MultiDiffusion (arXiv:2302.08113).
    """
    axes = [spans(*pair, overlap, multiple) for pair in zip(size, tile, strict=True)]
    down, across = (list(zip(axis, weights(axis), strict=True)) for axis in axes)
    if len(down) == len(across) == 1:
        part = function((slice(*down[0][0]), slice(*across[0][0])))
        _check_part(part, down[0][0], across[0][0])
        return part
    out = torch.empty(0)
    for rows, row_weight in down:
        for columns, column_weight in across:
            y, x = box = slice(*rows), slice(*columns)
            part = function(box)
            _check_part(part, rows, columns)
            if not out.numel():
                exact = torch.promote_types(part.dtype, torch.float32)
                out = torch.zeros(*part.shape[:-2], *size, dtype=exact, device=part.device)
            share = (row_weight[:, None] * column_weight).to(out)
            out[..., y, x].addcmul_(part.to(out.dtype), share)
    return out.to(part.dtype)


def crossfade(
    parts: Iterable[Tensor], starts: list[int], length: int, axis: int, looks_ahead: bool = False
) -> Tensor:
    """Crossfade overlapping stretches of decoded frames, away from the ends where context lacked.

    A stretch has no past at its first frames, so those of the earlier one stand for most of what
    two share, and the rest is half a cosine wave. Where the decoder looks ahead, the last frames
    of the earlier stretch lack their future alike, and the wave lies in the middle.

    Args:
        parts: frames of each stretch along `axis`, in order; the first is complete.
        starts: frame at which each begins, rising; only neighbours overlap.
        length: frames in all.
        looks_ahead: whether a frame depends on later ones.

    Returns:
        [.., length, ..], dtype of the parts.

    Raises:
        ValueError: parts that leave a gap, or do not end at `length`.

    Source: ours.
    """
    out: Tensor | None = None
    done = 0
    for block in crossfading(parts, starts, length, axis, partial(rise, looks_ahead=looks_ahead)):
        if out is None:
            shape = list(block.shape)
            shape[axis] = length
            out = block.new_empty(shape)
        out.narrow(axis, done, block.shape[axis]).copy_(block)
        done += block.shape[axis]
    assert out is not None
    return out


def crossfading(
    parts: Iterable[Tensor],
    starts: list[int],
    length: int,
    axis: int,
    fade: Callable[[int], Tensor],
) -> Iterator[Tensor]:
    """Yield the frames of `crossfade` in order, as soon as no later stretch changes them.

    Args:
        parts, starts, length, axis: as there; a part's last frames are held until the next one.
        fade: weight of the later stretch in each of so many shared frames, see `rise`.

    Yields:
        [.., frames, ..], views of the parts where nothing is shared; `length` frames in all.

    Raises:
        ValueError: as there.
    """
    held: Tensor | None = None
    done = 0
    for start, following, part in zip(starts, [*starts[1:], length], parts, strict=True):
        shared, stop = done - start, start + part.shape[axis]
        if shared < 0 or not done < stop <= length:
            raise ValueError(
                f"expected frames that go on from {done} of {length}, got {start} to {stop}; cut "
                "time only for a decoder that makes as many frames of each latent frame."
            )
        rest = part.narrow(axis, shared, stop - done)
        if held is not None and shared:
            weights = fade(shared).view(-1, *[1] * (part.ndim - axis - 1))
            blended = _mixed(held, part.narrow(axis, 0, shared), weights)
            if following < done:
                rest, shared = torch.cat([blended, rest], axis), 0
            else:
                yield blended
        ready = min(following, stop) - start - shared
        if ready:
            yield rest.narrow(axis, 0, ready)
        held = rest.narrow(axis, ready, rest.shape[axis] - ready).clone()
        done = stop
    if done != length:
        raise ValueError(f"expected {length} frames, got {done}; decode all latent frames.")


def _mixed(old: Tensor, new: Tensor, weights: Tensor) -> Tensor:
    """Blend two parts in their own precision; whole numbers are rounded."""
    if old.is_floating_point():
        return old.lerp(new, weights.to(old))
    return old.float().lerp(new.float(), weights.to(old.device).float()).round().to(old.dtype)


def rise(shared: int, looks_ahead: bool) -> Tensor:
    """Return the weight of the later stretch in each shared frame: [shared], float64, 0 to 1."""
    wave = max(1, shared // 3)
    after = wave if looks_ahead else 0
    after = min(after, (shared - wave) // 2)
    phase = torch.arange(wave, dtype=torch.float64).add(0.5).mul(pi / wave)
    before = torch.zeros(shared - wave - after, dtype=torch.float64)
    return torch.cat([before, (1 - phase.cos()) / 2, torch.ones(after, dtype=torch.float64)])


def in_tiles(
    function: Callable[[Tensor, Box], Tensor],
    x: Tensor,
    tile: tuple[int, int],
    overlap: int,
    multiple: int = 1,
) -> Tensor:
    """Apply a function to a picture tile by tile and blend the results.

    Args:
        function: called with a tile of x (a view) and its box; keeps rows and columns.
        x: [..., H, W].
        tile, overlap, multiple: as in `boxes`.

    Returns:
        [..., H, W], see `blend`.
    """

    def apply(box: Box) -> Tensor:
        rows, columns = box
        return function(x[..., rows, columns], box)

    height, width = x.shape[-2:]
    return blend(apply, (height, width), tile, overlap, multiple)


def _check_part(part: Tensor, rows: Span, columns: Span) -> None:
    expected = (rows[1] - rows[0], columns[1] - columns[0])
    if tuple(part.shape[-2:]) != expected:
        raise ValueError(
            f"expected a tile of {expected} back, got {tuple(part.shape)}; the function must keep "
            "rows and columns."
        )
