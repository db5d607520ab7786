"""Attention inside windows: few dense calls on views, joined by one copy.

Dims: B batch, T latent frames, N tokens of a frame, S tokens of a sequence, n sequences of a
dense call, L, M their queries and keys, H heads, K channels of a head.
"""

from collections.abc import Callable, Iterator

import torch
import torch.nn.functional as F
from torch import Tensor

from .geometry import Bounds, StridedRanges, check_bounds, segments, strided_ranges, token_bounds

Dense = Callable[[Tensor, Tensor, Tensor], Tensor]
"""(q [n, L, H, K], k [n, M, H, K], v [n, M, H, K]) -> [n, L, H, K]. Without a mask, which some
kernels ignore silently. Inputs are strided views whose channels are contiguous."""
Packed = Callable[[Tensor, Tensor, Tensor, Bounds], Tensor]
"""(q, k, v [B, S, H, K], bounds) -> [B, S, H, K]: each range of tokens attends to itself."""


def sdpa(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """Dense attention by torch's own kernels; a `Dense`."""
    q, k, v = (x.transpose(1, 2) for x in (q, k, v))
    return F.scaled_dot_product_attention(q, k, v).transpose(1, 2)


def grouped(dense: Dense) -> Packed:
    """Build a packed attention from a dense one, with as few calls as the ranges allow.

    Each of `strided_ranges` is one call when B is 1 or it has one range; otherwise one call for
    each sample or for each range, whichever are fewer, since one view cannot hold both.
    Inputs of `dense` are views, and one copy joins the results; where one range holds the
    sequence, the result of `dense` is returned as it is.

    Raises:
        ValueError: when called with ranges that do not cover the sequence.

    Source: ours.
    """

    def attend(q: Tensor, k: Tensor, v: Tensor, bounds: Bounds) -> Tensor:
        if q.shape[1] > 0 and bounds == ((0, q.shape[1]),):
            # Before planning, which compiled code would specialise to this length.
            return dense(q, k, v)
        check_bounds(bounds, q.shape[1])
        plan = strided_ranges(bounds)
        if not plan:
            return torch.zeros_like(v)
        if len(plan) == 1 and plan[0].count == 1:
            return dense(q, k, v)
        parts = dict(item for ranges in plan for item in _attend_ranges(dense, q, k, v, ranges))
        joined = torch.cat([parts[index] for index in sorted(parts)])
        return joined.unflatten(0, q.shape[:2])

    return attend


def _attend_ranges(
    dense: Dense, q: Tensor, k: Tensor, v: Tensor, ranges: StridedRanges
) -> Iterator[tuple[tuple[int, int], Tensor]]:
    """Yield ((sample, first token), result [L, H, K]) for every range."""
    q, k, v = (view_ranges(x, ranges) for x in (q, k, v))
    by_sample = len(q) <= ranges.count
    for outer in range(len(q) if by_sample else ranges.count):
        index = outer if by_sample else (slice(None), outer)
        for inner, part in enumerate(dense(q[index], k[index], v[index]).unbind()):
            sample, number = (outer, inner) if by_sample else (inner, outer)
            yield (sample, ranges.starts[number]), part


def view_ranges(x: Tensor, ranges: StridedRanges) -> Tensor:
    """View x [B, S, H, K] as ranges: [B, count, length, H, K], no copy."""
    span = (ranges.count - 1) * ranges.stride + ranges.length
    return x.narrow(1, ranges.start, span).unfold(1, ranges.length, ranges.stride).movedim(-1, 2)


def window_attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    *,
    window: int,
    shifted: bool,
    attention: Packed = grouped(sdpa),  # noqa: B008
) -> Tensor:
    """Attend within every temporal window of a clip.

    Args:
        q, k, v: [B, T, N, H, K]; rotary positions may count from the clip's start or from the
            window's, which is the same.
        window: latent frames, >= 2; 0 for full attention.
        shifted: True on every second layer.
        attention: attends within the ranges of tokens; `backend` has others.

    Returns:
        [B, T, N, H, K].

    Raises:
        ValueError: no frames, a window of 1, or an attention that cannot run here.

    Source: SURF 3.3 eq. 3; segments instead of roll and mask are ours.
    """
    frames, per_frame = q.shape[1:3]
    bounds = token_bounds(per_frame, segments(frames, window, shifted))
    out = attention(q.flatten(1, 2), k.flatten(1, 2), v.flatten(1, 2), bounds)
    return out.unflatten(1, (frames, per_frame))
