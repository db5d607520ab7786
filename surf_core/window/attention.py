"""Attention inside windows: few dense calls on views, laid side by side by one copy.

Dims: B batch, T latent frames, N tokens of a frame, S tokens of a sequence, n sequences of a
dense call, L, M their queries and keys, H heads, K channels of a head.
"""

from collections.abc import Callable, Iterator

import torch
import torch.nn.functional as F
from torch import Tensor

from .geometry import Bounds, StridedRanges, check_bounds, segments, strided_ranges, token_bounds

Dense = Callable[[Tensor, Tensor, Tensor], Tensor]
"""(q [n, L, H, K], k [n, M, H, K], v [n, M, H, K]) -> [n, L, H, K]. Never a mask: some kernels
drop it in silence. Inputs are strided views, channels of a token side by side."""
Packed = Callable[[Tensor, Tensor, Tensor, Bounds], Tensor]
"""(q, k, v [B, S, H, K], bounds) -> [B, S, H, K]: each range of tokens attends to itself."""


def sdpa(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """Dense attention by torch's own kernels; a `Dense`."""
    q, k, v = (x.transpose(1, 2) for x in (q, k, v))
    return F.scaled_dot_product_attention(q, k, v).transpose(1, 2)


def grouped(dense: Dense) -> Packed:
    """Make a packed attention of a dense one, with as few calls as the ranges allow.

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
            # Before the plan, which a compiler would make for this one length.
            return dense(q, k, v)
        check_bounds(bounds, q.shape[1])
        plan = strided_ranges(bounds)
        if not plan:
            return torch.zeros_like(v)
        if len(plan) == 1 and plan[0].count == 1:
            return dense(q, k, v)
        pieces = {place: part for run in plan for place, part in _attend_run(dense, q, k, v, run)}
        joined = torch.cat([pieces[place] for place in sorted(pieces)])
        return joined.unflatten(0, q.shape[:2])

    return attend


def _attend_run(
    dense: Dense, q: Tensor, k: Tensor, v: Tensor, run: StridedRanges
) -> Iterator[tuple[tuple[int, int], Tensor]]:
    """Yield ((sample, first token), result [L, H, K]) for every range of a run."""
    q, k, v = (ranges_of(x, run) for x in (q, k, v))
    by_sample = len(q) <= run.count
    for index in range(len(q) if by_sample else run.count):
        here = index if by_sample else (slice(None), index)
        for other, part in enumerate(dense(q[here], k[here], v[here]).unbind()):
            sample, place = (index, other) if by_sample else (other, index)
            yield (sample, run.starts[place]), part


def ranges_of(x: Tensor, run: StridedRanges) -> Tensor:
    """View x [B, S, H, K] as the ranges of a run: [B, count, length, H, K], no copy."""
    span = (run.count - 1) * run.step + run.length
    return x.narrow(1, run.start, span).unfold(1, run.length, run.step).movedim(-1, 2)


def window_attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    *,
    window: int,
    shifted: bool,
    attention: Packed = grouped(sdpa),  # noqa: B008
) -> Tensor:
    """Let every temporal window of a clip attend to itself.

    Args:
        q, k, v: [B, T, N, H, K]; rotary positions may count from the clip's start or from the
            window's, which is the same.
        window: latent frames, >= 2; 0 for full attention.
        shifted: True on every second layer.
        attention: what runs the ranges; `backend` has others.

    Returns:
        [B, T, N, H, K].

    Raises:
        ValueError: no frames, a window of 1, or an attention that cannot run here.

    Source: SURF 3.3 eq. 3; segments instead of roll and mask are ours.
    """
    frames, per_frame = q.shape[1:3]
    bounds = token_bounds(per_frame, segments(frames, window, shifted))
    out = attention(*(x.flatten(1, 2) for x in (q, k, v)), bounds)
    return out.unflatten(1, (frames, per_frame))
