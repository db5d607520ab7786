"""Distances and sharpness that say one thing each; blur and absence can win, so none is a headline.

Dims: B batch, T frames.
"""

import torch
from torch import Tensor


def _check(video: Tensor, baseline: Tensor) -> None:
    if video.ndim != 5 or video.shape[:3] != baseline.shape[:3]:
        raise ValueError(
            "expected two videos [B, 3, T, H, W] of the same batch and length, got "
            f"{tuple(video.shape)} and {tuple(baseline.shape)}; compare frame for frame."
        )


def colour_distance(video: Tensor, baseline: Tensor) -> Tensor:
    """Compare mean and deviation of every colour channel: [B], 0..1, whatever the layout."""
    _check(video, baseline)
    dims = (2, 3, 4)
    mean = video.float().mean(dims) - baseline.float().mean(dims)
    deviation = video.float().std(dims) - baseline.float().std(dims)
    return torch.cat([mean, deviation], dim=1).square().mean(dim=1).sqrt()


def detail(video: Tensor) -> Tensor:
    """Measure sharpness: [B], variance of the Laplacian of luma, in squared units of 0..255."""
    luma = video.float().mean(dim=1) * 255
    laplacian = (
        luma[..., :-2, 1:-1] + luma[..., 2:, 1:-1] + luma[..., 1:-1, :-2] + luma[..., 1:-1, 2:]
    ) - 4 * luma[..., 1:-1, 1:-1]
    return laplacian.flatten(1).var(dim=1)


def psnr(video: Tensor, truth: Tensor) -> Tensor:
    """Peak signal to noise ratio of videos [B, ...] in 0..1: [B] in dB, 100 at most."""
    from kornia.metrics import psnr as psnr_of_all

    pairs = zip(video, truth, strict=True)
    return torch.stack([psnr_of_all(one, other, 1.0) for one, other in pairs]).clamp(max=100)
