"""Agree in space: what a video shows where its baseline shows it, in [B] from -1 or 0 to 1.

Every measure brings both videos to the smaller of their sizes and compares frame for frame; 1 is
the same picture. Absence scores 0 or little, and blur, noise and another place lower the score;
tests/core/test_signature.py holds adversaries against those that are headlines.

Dims: B batch, T frames, H, W pixels of the smaller video.
"""

import torch
from torch import Tensor

from ..resample import resize

_SAME_SHAPE = 1.1
COARSEST = 8
"""Pixels along a side, at least."""
_FLAT = 1e-9
_WINDOW, _SIGMA = 11, 1.5


def pair(video: Tensor, baseline: Tensor) -> tuple[Tensor, Tensor]:
    """Bring two videos to the smaller of their sizes, by area means: two of [B, 3, T, H, W], fp32.

    Raises:
        ValueError: other batches, channels or lengths, another aspect ratio, under 8 pixels.
    """
    if video.ndim != 5 or baseline.ndim != 5 or video.shape[:3] != baseline.shape[:3]:
        raise ValueError(
            "expected two videos [B, 3, T, H, W] of the same batch and length, got "
            f"{tuple(video.shape)} and {tuple(baseline.shape)}; compare frame for frame."
        )
    check_shape(video, baseline, "baseline")
    (rows, columns), (high, wide) = video.shape[-2:], baseline.shape[-2:]
    size = min(rows, high), min(columns, wide)
    if min(size) < COARSEST:
        raise ValueError(f"expected at least {COARSEST} pixels a side, got {size}; decode first.")
    return resize(video.float(), size, "area"), resize(baseline.float(), size, "area")


def check_shape(video: Tensor, baseline: Tensor, name: str) -> None:
    """Refuse a baseline of another aspect ratio than the video's; `name` is what errors call it."""
    (rows, columns), (high, wide) = video.shape[-2:], baseline.shape[-2:]
    if not 1 / _SAME_SHAPE <= columns * high / (rows * wide) <= _SAME_SHAPE:
        raise ValueError(
            f"expected {name} in the shape of the video, {columns} x {rows} pixels, got "
            f"{wide} x {high}; crop neither, or both."
        )


def likeness(x: Tensor, y: Tensor) -> Tensor:
    """Correlate about 0, over the greater power of both: [B, ...] -> [B], -1..1.

    <x, y> / max(<x, x>, <y, y>): 0 if one is absent, a if one is a times the other, a <= 1; 1 if
    both are absent. Less power never helps, so neither does blur; a correlation, or Lin's
    concordance 2 <x, y> / (<x, x> + <y, y>), rises when a misplaced video is blurred.

    Source: the smaller of the two slopes of regression, ours as a measure.
    """
    dims = tuple(range(1, x.ndim))
    power = torch.maximum(x.square().mean(dims), y.square().mean(dims))
    return torch.where(power > _FLAT, (x * y).mean(dims) / power.clamp(min=_FLAT), 1.0)


def frames(video: Tensor) -> Tensor:
    """[B, C, T, H, W] -> [B * T, C, H, W]."""
    return video.transpose(1, 2).flatten(0, 1)


def octaves(video: Tensor) -> list[Tensor]:
    """Split a video [B, C, T, H, W] into bands an octave apart, the finest first.

    Each band is half as large a side as the one before it; the mean of what is left, under 8
    pixels a side, is no part of any.

    Source: Burt and Adelson 1983, without the upsampling.
    """
    from kornia.filters import gaussian_blur2d

    bands = []
    while min(video.shape[-2:]) >= COARSEST:
        smooth = gaussian_blur2d(frames(video), (7, 7), (1.0, 1.0))
        smooth = smooth.unflatten(0, (len(video), -1)).transpose(1, 2)
        bands.append(video - smooth)
        rows, columns = video.shape[-2:]
        video = resize(smooth, (rows // 2, columns // 2), "area")
    return bands


def structure(video: Tensor, baseline: Tensor) -> Tensor:
    """Measure structural similarity where there is structure.

    Args:
        video, baseline: [B, 3, T, H, W] in 0..1; heights and widths may differ.

    Returns:
        [B], -1..1, higher is better. SSIM of every colour channel and frame in a window of sigma
        1.5 pixels, weighted by the local variance of both videos: plain SSIM gives grey .36, and
        another seed .19, for the flat ground that they share. Sees place, contrast and noise;
        not time, and little of slow changes of brightness. No headline: blur of a misplaced
        video raises it by .08.

    Raises:
        ValueError: see `pair`.

    Source: Wang et al. 2004, by kornia; weights after Wang and Li 2011, theirs are logarithmic.
    """
    from kornia.filters import gaussian_blur2d
    from kornia.metrics import ssim

    one, other = (frames(x) for x in pair(video, baseline))

    def variance(x: Tensor) -> Tensor:
        size, sigma = (_WINDOW, _WINDOW), (_SIGMA, _SIGMA)
        mean = gaussian_blur2d(x, size, sigma)
        return (gaussian_blur2d(x.square(), size, sigma) - mean.square()).clamp(min=0)

    weight = variance(one) + variance(other) + _FLAT
    found = ssim(one, other, _WINDOW) * weight
    batch = len(video)
    return found.view(batch, -1).sum(dim=1) / weight.view(batch, -1).sum(dim=1)


def bands(video: Tensor, baseline: Tensor) -> Tensor:
    """Compare band by band: what is where, at every scale.

    Args:
        video, baseline: as for `structure`.

    Returns:
        [B], -1..1, higher is better: `likeness` of each of the `octaves`, their mean. Grey
        scores 0, a picture of half the contrast .5. Sees place, contrast, blur and noise; not
        the mean colour.

    Source: ours.
    """
    one, other = (octaves(x) for x in pair(video, baseline))
    found = [likeness(x, y) for x, y in zip(one, other, strict=True)]
    return torch.stack(found).mean(dim=0)


def fine(video: Tensor, baseline: Tensor) -> Tensor:
    """Compare the finest octave: detail that is the baseline's, not just any.

    Args:
        video, baseline: as for `structure`.

    Returns:
        [B], -1..1, higher is better: `likeness` of the finest of the `octaves`. Sharpness
        that stands elsewhere, or is noise, lowers it as blur does. The strictest of all: two
        pixels of displacement take all of it, and below .1 it says no more than "elsewhere".

    Source: ours.
    """
    one, other = (octaves(x)[0] for x in pair(video, baseline))
    return likeness(one, other)


def finest(video: Tensor) -> Tensor:
    """Measure the root mean square of the finest octave of a video [B, 3, T, H, W]: [B]."""
    return octaves(video)[0].square().mean((1, 2, 3, 4)).sqrt()


def sharpness(video: Tensor, baseline: Tensor) -> Tensor:
    """Compare the power of the finest octave: [B], 0.., 1 is as sharp; the partner of `fine`.

    Says which way `fine` was lost: below 1 by blur, above 1 by noise. No headline: noise and
    another seed reach 1.
    """
    one, other = (octaves(x)[0] for x in pair(video, baseline))
    dims = (1, 2, 3, 4)
    return (one.square().mean(dims) / other.square().mean(dims).clamp(min=_FLAT)).sqrt()


def edges(video: Tensor, baseline: Tensor) -> Tensor:
    """Compare edges by place, direction and strength.

    Args:
        video, baseline: as for `structure`.

    Returns:
        [B], -1..1, higher is better: `likeness` of the gradients of every colour channel
        (Sobel). An edge counts by its squared strength, so texture counts little. Sees outlines
        of things; not flat colour, nor time.

    Source: Sobel by kornia, the rest ours.
    """
    from kornia.filters import spatial_gradient

    batch = len(video)
    one, other = (spatial_gradient(frames(x)).reshape(batch, -1) for x in pair(video, baseline))
    return likeness(one, other)
