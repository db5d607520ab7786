"""Cut a video in time into overlapping chunks, and blend what is computed of each.

Neighbours share frames and blend over them, as tiles do; at a scene cut they meet without, since
nobody sees a jump there. A causal model gives its first latent frame another meaning than the
others (one pixel frame, nothing before it), so a later chunk begins with frames that it computes
and throws away: its lead.

Dims: T latent frames.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from math import ceil

import torch
from torch import Tensor

from .tiles import Span, weights

SHORTEST_SHOT = 4
"""A scene has a chunk of its own from this part of the longest chunk on; shorter ones join."""


@dataclass(frozen=True, slots=True)
class Chunk:
    """A range of frames that is computed at a time."""

    start: int
    stop: int
    lead: int = 0
    """First frames whose result is thrown away."""

    @property
    def length(self) -> int:
        return self.stop - self.start


def chunks(
    length: int,
    most: int,
    overlap: int,
    *,
    lead: int = 0,
    multiple: int = 1,
    cuts: Sequence[int] = (),
) -> list[Chunk]:
    """Cover time with the chunks that compute the fewest frames, at scene cuts where that helps.

    Within a scene they are evenly spread, and as short as their number allows.

    Args:
        length: frames of the video, >= 1.
        most: frames of a chunk at most; `length` or more gives one chunk.
        overlap: frames that neighbours within a scene share, `lead` included.
        lead: first frames of a later chunk whose result is thrown away.
        multiple: chunks start at multiples of this many frames.
        cuts: frames at which a new scene begins, rising. A scene shorter than a part of `most`,
            `SHORTEST_SHOT`, shares a chunk with its neighbour.

    Returns:
        In order; the first starts at 0, the last stops at `length`.

    Raises:
        ValueError: a size below 1, an overlap that does not hold the lead, or a chunk that does not
            hold two overlaps and a multiple.

    Source: ours.
    """
    if min(length, most, multiple) < 1 or not 0 <= lead <= overlap:
        raise ValueError(
            "expected a length, chunk and multiple from 1, and a lead within the overlap, got "
            f"{length=}, {most=}, {multiple=}, {lead=}, {overlap=}; use a longer chunk."
        )
    if most >= length:
        return [Chunk(0, length)]
    least = max(2 * overlap, overlap + multiple)
    if most < least:
        raise ValueError(
            f"a chunk must hold two overlaps, {least} frames, got {most=} with {overlap=} and "
            f"{multiple=}; use a longer chunk or a smaller overlap."
        )
    begins = [0, *(cut for cut in sorted(set(cuts)) if 0 < cut < length)]
    best: dict[int, tuple[tuple[int, int, int], list[Chunk]]] = {0: ((0, 0, 0), [])}
    for stop in [*begins[1:], length]:
        options = []
        for begin in begins:
            alone = begin or stop < length
            if begin >= stop or begin not in best:
                continue
            if alone and stop - begin < max(lead + 1, most // SHORTEST_SHOT):
                continue
            (frames, blends, count), before = best[begin]
            scene = _scene(begin, stop, most, overlap, lead, multiple)
            frames += sum(chunk.length for chunk in scene)
            price = (frames, blends + len(scene) - 1, count + len(scene))
            options.append((price, before + scene))
        if options:
            best[stop] = min(options, key=lambda option: option[0])
    return best[length][1]


def _scene(begin: int, stop: int, most: int, overlap: int, lead: int, multiple: int) -> list[Chunk]:
    """Spread chunks over a scene; where others come before it, from the lead on."""
    origin = max(0, begin - lead) // multiple * multiple
    length = stop - origin
    first = begin - origin
    if length <= most:
        return [Chunk(origin, stop, first)]
    advance = (most - overlap) // multiple * multiple
    count = ceil((length - overlap) / advance)
    side = overlap + ceil((length - overlap) / count / multiple) * multiple
    starts = [ceil(i * (length - side) / (count - 1) / multiple) * multiple for i in range(count)]
    spans = [(origin + start, min(origin + start + side, stop)) for start in starts]
    return [Chunk(*span, lead if i else first) for i, span in enumerate(spans)]


def blend_weights(parts: Sequence[Chunk]) -> list[Tensor]:
    """Return each chunk's weight of its frames: raised cosines where neighbours share some.

    Returns:
        One [length] per chunk, float64; 0 in the lead. Over each frame they sum to 1.
    """
    told: list[Span] = [(part.start + part.lead, part.stop) for part in parts]
    return [
        torch.cat([torch.zeros(part.lead, dtype=torch.float64), weight])
        for part, weight in zip(parts, weights(told), strict=True)
    ]


def in_chunks(
    function: Callable[[Tensor, Chunk], Tensor], x: Tensor, parts: Sequence[Chunk], axis: int = 2
) -> Tensor:
    """Apply a function to a video chunk by chunk, and blend the results.

    Args:
        function: called with the frames of a chunk (a view) and the chunk; keeps the shape.
        x: [.., T, ..], T on `axis`; not changed.
        parts: of `chunks`.

    Returns:
        Like x, dtype of what `function` returns, summed in fp32 (float64 for float64); one chunk's
        result exists at a time beside it. With one chunk, the very tensor that came back.

    Raises:
        ValueError: a function that returns another shape.

    Source: ours; the average of views is that of MultiDiffusion (arXiv:2302.08113), over time as
    in Gen-L-Video (arXiv:2305.18264).
    """
    out: Tensor | None = None
    for chunk, weight in zip(parts, blend_weights(parts), strict=True):
        view = x.narrow(axis, chunk.start, chunk.length)
        part = function(view, chunk)
        if part.shape != view.shape:
            raise ValueError(
                f"expected a chunk of {tuple(view.shape)} back, got {tuple(part.shape)}; the "
                "function must keep the shape."
            )
        if len(parts) == 1:
            return part
        if out is None:
            exact = torch.promote_types(part.dtype, torch.float32)
            out = torch.zeros(x.shape, dtype=exact, device=part.device)
        share = weight[chunk.lead :].to(out).view(-1, *[1] * (x.ndim - axis - 1))
        told = chunk.length - chunk.lead
        fresh = part.narrow(axis, chunk.lead, told).to(out.dtype)
        out.narrow(axis, chunk.start + chunk.lead, told).addcmul_(fresh, share)
        dtype = part.dtype
    assert out is not None
    return out.to(dtype)
