"""Agree in time: what changes from frame to frame, and where it goes.

Dims: B batch, T frames, H, W pixels of the smaller video or cells of the flow's grid.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

from ..resample import resize
from .agreement import likeness, octaves, pair

SIDE = 64
"""Cells along the shorter side of the grid on which flow is estimated, at most."""
REACH = 4
"""Cells that a block is looked for to each side, from one frame to the next."""
_BLOCK = 7
_STAY = 1e-4
"""Squared difference of luma, 0..1, that a cell of displacement must earn: flat ground stays."""


def motion(video: Tensor, baseline: Tensor) -> Tensor:
    """Compare the changes from frame to frame, band by band.

    Args:
        video, baseline: [B, 3, T, H, W] in 0..1, T at least 2; heights and widths may differ.

    Returns:
        [B], -1..1, higher is better: `likeness` of the changes of each of the octaves, their
        mean. Frozen videos and grey score 0, another order of frames lowers it. Sees what moves,
        where and when; nothing of a still part, nor of brightness that changes everywhere at
        once, which no octave holds: see `surf_core.signature.survival.flicker`.

    Raises:
        ValueError: a single frame; see also `pair`.

    Source: ours.
    """
    _check_length(video)
    one, other = (octaves(x) for x in pair(video, baseline))
    found = [likeness(x.diff(dim=2), y.diff(dim=2)) for x, y in zip(one, other, strict=True)]
    return torch.stack(found).mean(dim=0)


def optical_flow(video: Tensor) -> Tensor:
    """Find where every block of 7 x 7 cells goes: [B, 2, T - 1, H, W], whole cells (x, y).

    The displacement of the least squared difference of luma within REACH cells, a search over all
    of them; blocks without contrast stay.

    Args:
        video: [B, 3, T, H, W] in 0..1, at the size of the grid.

    Source: full-search block matching, ours.
    """
    luma = video.mean(dim=1)
    before, after = luma[:, :-1], luma[:, 1:]
    rows, columns = luma.shape[-2:]
    wide = F.pad(after, (REACH,) * 4, mode="replicate")
    least = torch.full_like(before, torch.inf)
    best = torch.zeros(before.shape, dtype=torch.long, device=luma.device)
    reach = range(-REACH, REACH + 1)
    places = [(across, down) for down in reach for across in reach]
    for index, (across, down) in enumerate(places):
        top, left = down + REACH, across + REACH
        away = before - wide[..., top : top + rows, left : left + columns]
        cost = F.avg_pool2d(away.square(), _BLOCK, 1, _BLOCK // 2, count_include_pad=False)
        cost = cost + _STAY * (down**2 + across**2) ** 0.5
        best.masked_fill_(cost < least, index)
        least = torch.minimum(least, cost)
    found = torch.tensor(places, dtype=luma.dtype, device=luma.device)[best]
    return found.movedim(-1, 1)


def _flows(video: Tensor, baseline: Tensor) -> tuple[Tensor, Tensor]:
    _check_length(video)
    one, other = pair(video, baseline)
    rows, columns = one.shape[-2:]
    share = min(1.0, SIDE / min(rows, columns))
    size = round(rows * share), round(columns * share)
    return optical_flow(resize(one, size, "area")), optical_flow(resize(other, size, "area"))


def flow_lengths(video: Tensor, baseline: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Add up optical flow, in cells.

    Args:
        video, baseline: as for `motion`.

    Returns:
        End-point error, length of the video's flow, of the baseline's: three of [B].
    """
    one, other = _flows(video, baseline)
    dims = (1, 2, 3)
    error = (one - other).norm(dim=1).sum(dims)
    return error, one.norm(dim=1).sum(dims), other.norm(dim=1).sum(dims)


def flow(video: Tensor, baseline: Tensor) -> tuple[Tensor, Tensor]:
    """Compare optical flow: its end-point error, and how much motion there is.

    Args:
        video, baseline: as for `motion`.

    Returns:
        Agreement [B], 0..1, higher is better: 1 - end-point error over the sum of both lengths,
        all cells together, so that no motion scores 0, and so does motion the other way. And the
        magnitude ratio [B], 0.., motion over the baseline's, 1 is as much. No headlines: half the
        contrast and inverted colours reach the first, another seed the second. Whole cells of
        at most SIDE: a pan slower than half a cell a frame is not seen, and faithful copies lose
        a few hundredths to rounding.

    Raises:
        ValueError: as for `motion`.

    Source: end-point error after Otte and Nagel 1994, normalized by us.
    """
    error, mine, theirs = flow_lengths(video, baseline)
    both = mine + theirs
    agreement = torch.where(both > 0, 1 - error / both.clamp(min=1), 1.0)
    return agreement, mine / theirs.clamp(min=1)


def _check_length(video: Tensor) -> None:
    if video.ndim == 5 and video.shape[2] < 2:
        raise ValueError("expected at least 2 frames, got 1; a still picture has no motion.")
