"""Agree on toys: where pixels of named colours are, for scenes whose colours are known.

Dims: B batch, N colours, T frames, H, W pixels of the smaller video.
"""

from math import pi

import torch
from torch import Tensor

from .agreement import pair

_CHROMA, _SATURATION = 0.16, 0.42
_WIDTH = 30.0
"""Degrees of hue to both sides that still count as the colour, if none is nearer."""
_SEEN = 1e-3
"""Share of a frame from which on a colour has a place."""


def _hue(red: Tensor, green: Tensor, blue: Tensor) -> Tensor:
    return torch.atan2(3**0.5 * (green - blue), 2 * red - green - blue) * (180 / pi)


def named_pixels(video: Tensor, palette: Tensor) -> Tensor:
    """Find the pixels of each colour by hue, shaded or not: [B, N, T, H, W] of 0 and 1.

    Args:
        video: [B, 3, T, H, W] in 0..1.
        palette: [N, 3], red, green and blue of the colours, none of them grey.

    Source: ours.
    """
    chroma = video.amax(dim=1) - video.amin(dim=1)
    strong = (chroma > _CHROMA) & (chroma > _SATURATION * video.amax(dim=1))
    named = _hue(*palette.to(video).unbind(dim=1)).view(1, -1, 1, 1, 1)
    off = ((_hue(*video.unbind(dim=1))[:, None] - named + 180) % 360 - 180).abs()
    nearest = off == off.amin(dim=1, keepdim=True)
    return (nearest & (off < _WIDTH) & strong[:, None]).float()


def named_iou(video: Tensor, baseline: Tensor, palette: Tensor) -> Tensor:
    """Measure how far pixels of named colours are the same pixels.

    Args:
        video, baseline: [B, 3, T, H, W] in 0..1; heights and widths may differ.
        palette: [N, 3], see `named_pixels`.

    Returns:
        [B], 0..1, higher is better: pixels that have the same colour in both over those that
        have one in either, all colours and frames together; 1 if neither has any. Large things
        count by their area. Sees place, size, colour and time of the things; no ground, and of
        blur only what moves their outlines.

    Source: Jaccard's index, ours for colours.
    """
    one, other = (named_pixels(x, palette) for x in pair(video, baseline))
    dims = (1, 2, 3, 4)
    both, either = (one * other).sum(dims), torch.maximum(one, other).sum(dims)
    return torch.where(either > 0, both / either.clamp(min=1), 1.0)


def place_error(video: Tensor, baseline: Tensor, palette: Tensor) -> Tensor:
    """Measure how far the centre of each colour is from where the baseline has it.

    Args:
        video, baseline, palette: as for `named_iou`.

    Returns:
        [B], percent of the frame's height or width, lower is better, up to 100 for what is
        absent; the mean over colours and frames of the baseline that fill a thousandth. NaN if
        none does. No headline: a centre does not move with mild blur, and swarms have one centre.

    Source: ours.
    """
    (mine, area), (theirs, shown) = (
        _centres(named_pixels(x, palette)) for x in pair(video, baseline)
    )
    away = 100 * (mine - theirs).norm(dim=-1).clamp(max=1)
    away = torch.where(area < _SEEN, 100.0, away)
    counts = (shown >= _SEEN).float()
    return (away * counts).sum(dim=(1, 2)) / counts.sum(dim=(1, 2))


def _centres(mask: Tensor) -> tuple[Tensor, Tensor]:
    """Centre (x, y) in 0..1 [B, N, T, 2], and share of the frame [B, N, T]."""
    rows, columns = mask.shape[-2:]
    x = (torch.arange(columns, device=mask.device) + 0.5) / columns
    y = (torch.arange(rows, device=mask.device) + 0.5)[:, None] / rows
    area = mask.mean(dim=(3, 4))
    sums = torch.stack([(mask * x).mean(dim=(3, 4)), (mask * y).mean(dim=(3, 4))], dim=-1)
    return sums / area.clamp(min=1e-9)[..., None], area
