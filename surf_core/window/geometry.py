"""Shifted temporal windows as ranges of tokens, grouped into the fewest dense attention calls.

Tokens are frame-major, so a window over the full height and width is a contiguous range of
tokens: shifted windows need no roll and no mask.

Dims: T latent frames, N tokens of a frame.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from itertools import accumulate, pairwise

Bounds = tuple[tuple[int, int], ...]
"""Half-open token ranges in order that cover a sequence once; empty ones are allowed."""


def segments(frames: int, window: int, shifted: bool) -> list[tuple[int, int]]:
    """Cut a clip into the half-open frame ranges that attend among themselves.

    Segments are clipped to [0, frames): the last one may be shorter, and with `shifted` the first
    one is `window // 2` long. One window holds everything when `frames <= window`.

    Args:
        frames: latent frames of the clip, >= 1.
        window: latent frames of a window, >= 2; 0 stands for full attention.
        shifted: True on every second layer.

    Returns:
        Ranges (start, stop) in latent frames, in order, that cover every frame once.

    Raises:
        ValueError: frames < 1, or window is 1 or negative.

    Source: SURF 3.3; clipped boundaries as in SeedVR, without a wrapped window.
    """
    if frames < 1:
        raise ValueError(f"expected at least one latent frame, got {frames=}; pass a video latent.")
    if window < 0 or window == 1:
        raise ValueError(
            f"window must be 0 (full attention) or at least 2 latent frames, got {window=}; "
            "a window of 1 would cut the video into still images."
        )
    if window == 0 or frames <= window:
        return [(0, frames)]
    first = window // 2 if shifted else window
    return list(pairwise([0, *range(first, frames, window), frames]))


def token_bounds(counts: int | Sequence[int], cuts: Sequence[tuple[int, int]]) -> Bounds:
    """Turn frame ranges into token ranges.

    Args:
        counts: tokens of every frame, or one number per frame where frames differ; 0 is allowed.
        cuts: frame ranges as `segments` gives them.

    Returns:
        As many ranges as `cuts`, in tokens; a range of frames without tokens is empty.

    Raises:
        ValueError: not one count for each frame, or a negative count.
    """
    frames = cuts[-1][1]
    if isinstance(counts, int):
        counts = [counts] * frames
    if len(counts) != frames or min(counts) < 0:
        raise ValueError(
            f"expected {frames} token counts of at least 0, one for each latent frame, "
            f"got {list(counts)}; count the tokens that each frame keeps."
        )
    ends = [0, *accumulate(counts)]
    return tuple((ends[start], ends[stop]) for start, stop in cuts)


def check_bounds(bounds: Bounds, tokens: int) -> None:
    """Raise for ranges that do not cover `tokens` tokens once and in order."""
    edges = [0, *(stop for _, stop in bounds)]
    pairs = zip(bounds, pairwise(edges), strict=True)
    if edges[-1] != tokens or any(one != other or one[0] > one[1] for one, other in pairs):
        raise ValueError(
            f"expected ranges that cover {tokens} tokens once and in order, got {bounds=}; "
            "make them with token_bounds, and pass the video tokens only."
        )


@dataclass(frozen=True, order=True, slots=True)
class StridedRanges:
    """Ranges of equal length at equal distances: one strided view, so one dense call."""

    start: int
    """First token of the first range."""
    length: int
    """Tokens of a range, >= 1."""
    stride: int
    """Tokens from the start of one range to that of the next; `length` for a single range."""
    count: int
    """Ranges, >= 1."""

    @property
    def starts(self) -> range:
        """First token of each range."""
        return range(self.start, self.start + self.count * self.stride, self.stride)


@lru_cache(maxsize=256)
def strided_ranges(bounds: Bounds) -> tuple[StridedRanges, ...]:
    """Group ranges of equal length at equal distances, for few dense calls.

    The windows of a clip need one call per distinct length, at most three, which is the minimum: a
    dense call without a mask takes sequences of one length. The first and the last window are one
    call if equally long. Among ragged ranges the longest progression is taken first; two ranges
    are always one, so k ranges of one length need at most (k + 1) // 2 calls.

    Returns:
        Groups by start. Together they have every range of `bounds` once, except empty ones.

    Source: ours.
    """
    by_length: dict[int, list[int]] = {}
    for start, stop in bounds:
        if stop > start:
            by_length.setdefault(stop - start, []).append(start)
    plan = []
    for length, starts in by_length.items():
        while starts:
            chain = _longest_progression(starts)
            stride = chain[1] - chain[0] if len(chain) > 1 else length
            plan.append(StridedRanges(chain[0], length, stride, len(chain)))
            starts = [start for start in starts if start not in chain]
    return tuple(sorted(plan))


def _longest_progression(starts: list[int]) -> list[int]:
    """Find the longest arithmetic progression among ascending numbers; the first of several."""
    best, known = starts[:1], set(starts)
    for index, first in enumerate(starts):
        if len(best) >= len(starts) - index:
            break
        for second in starts[index + 1 :]:
            chain = [first]
            while (following := chain[-1] + second - first) in known:
                chain.append(following)
            best = max(best, chain, key=len)
            if len(best) == len(starts) - index:
                break
    return best
