"""Lock the low band of a latent to the preview's: hard by cosines, or softly by wavelets.

All of it is ours except where a source is named; space only, frame by frame.

Dims: B batch, C channels, T latent frames, H, W latent cells.
"""

from math import pi

import torch
import torch.nn.functional as F
from torch import Tensor

from .checks import check_range


def low_band(x: Tensor, factor: float) -> Tensor:
    """Low-pass a picture to what one `factor` times smaller per side can hold.

    The first H / factor and W / factor coefficients of a cosine transform survive. It is a
    projection: a second pass changes nothing, and factor 1 keeps everything.

    Args:
        x: [..., H, W], floating; half precision is computed in fp32.
        factor: >= 1; with a factor above the size only the mean of each frame is left.

    Returns:
        [..., H, W], dtype of x, a new tensor.

    Raises:
        ValueError: factor < 1.
    """
    check_range(factor, "factor", 1.0, 1e6, "pass the upscale of the refiner, e.g. 3")
    wider = x if x.dtype == torch.float64 else x.float()
    rows, columns = (_projection(side, factor, wider) for side in x.shape[-2:])
    return (rows @ wider @ columns).to(x.dtype)


def _projection(count: int, factor: float, like: Tensor) -> Tensor:
    """Project onto the low cosines (DCT-II): [count, count], symmetric, on the device of `like`."""
    frequency = torch.arange(max(1, round(count / factor)), dtype=torch.float64)
    cell = torch.arange(count, dtype=torch.float64)
    wave = torch.cos(frequency[:, None] * (cell + 0.5) * pi / count)
    wave = wave / wave.norm(dim=1, keepdim=True)
    return (wave.T @ wave).to(like)


def lock_low_band(x0: Tensor, reference: Tensor, factor: float) -> Tensor:
    """Swap the low band of a clean estimate for that of the upsampled preview.

    Args:
        x0, reference: [..., H, W], one shape; not changed.
        factor: see `low_band`.

    Returns:
        x0 + low_band(reference - x0): its low band is that of `reference`, its high band its own.
    """
    _check_same_shape(x0, reference)
    return x0 + low_band(reference - x0, factor)


def wavelet_match(x: Tensor, reference: Tensor, levels: int = 5) -> Tensor:
    """Give x the colours of `reference` where they vary slowly; detail stays.

    Like `lock_low_band` with a soft edge: the smooth part, left after `levels` passes of a
    [1, 2, 1] kernel whose taps lie 1, 2, 4, ... cells apart, is swapped. In the latent here.

    Args:
        x, reference: [..., H, W], one shape; not changed.
        levels: 1..16; the kernel reaches 2 ** levels - 1 cells, edges repeat.

    Returns:
        [..., H, W], dtype of x, a new tensor.

    Raises:
        ValueError: other shapes, or levels out of range.

    Source: a trous wavelet; the colour fix of StableSR and SeedVR, there in pixels.
    """
    _check_same_shape(x, reference)
    check_range(levels, "levels", 1, 16, "use 5")
    change = reference - x
    smooth = change if change.dtype == torch.float64 else change.float()
    for level in range(levels):
        smooth = _smooth(_smooth(smooth, 2**level).mT, 2**level).mT
    return x + smooth.to(x.dtype)


def _smooth(x: Tensor, apart: int) -> Tensor:
    """Blur along the last dim with taps 1, 2, 1 that lie `apart` cells apart."""
    wide = F.pad(x.flatten(0, -2)[None], (apart, apart), mode="replicate")[0].view(
        *x.shape[:-1], -1
    )
    return (wide[..., : -2 * apart] + 2 * x + wide[..., 2 * apart :]) / 4


def _check_same_shape(x: Tensor, reference: Tensor) -> None:
    if x.shape != reference.shape:
        raise ValueError(
            f"expected a reference shaped like the latent {tuple(x.shape)}, "
            f"got {tuple(reference.shape)}; upsample the preview first."
        )
