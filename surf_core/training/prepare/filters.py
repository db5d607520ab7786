"""Quality filters for clips: brightness, clipping, sharpness, compression.

Dims: T frames, N frames of a call, H, W rows and columns in pixels.
"""

from collections.abc import Callable
from dataclasses import dataclass
from statistics import fmean

import torch
import torch.nn.functional as F
from torch import Tensor

LOOKED_AT = 10
"""Frames of a clip that are measured, evenly spread, the first and the last among them."""
BAND = 256
"""Rows that are measured at a time: the memory is that of a frame's luma, whatever its size."""
Scorer = Callable[[Tensor], float]
"""A frame [1, H, W, 3] uint8 -> quality 0..100, larger is better. The paper's is MUSIQ."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Limits:
    """Limits of the quality filters."""

    darkest: float = 25.0
    """Least mean luma, 0..255. Ours: the paper gives no number."""
    brightest: float = 230.0
    """Greatest mean luma, 0..255. Ours."""
    clipped: float = 0.25
    """Greatest share of pixels that are black or white. Ours."""
    sharpness: float = 30.0
    """Least variance of the Laplacian of luma 0..255. Source: Bowtie-flow B.3."""
    quality: float = 40.0
    """Least score. Source: Bowtie-flow B.3, for MUSIQ; another scorer needs its own."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Verdict:
    """The measurements of a clip, and the filters that it fails."""

    reasons: tuple[str, ...]
    """Of "dark", "bright", "clipped", "blurred", "poor"; empty for a clip to keep."""
    numbers: dict[str, float]
    """"luma", "clipped", "sharpness", "quality": means over the frames looked at."""
    scorer: str
    """Name of what measured "quality"."""


def luma(frames: Tensor) -> Tensor:
    """Rec. 601 luma of [N, H, W, 3] uint8, in whole steps 0..255: [N, H, W] float32."""
    weights = torch.tensor([0.299, 0.587, 0.114])
    y = torch.empty(frames.shape[:3])
    for top in range(0, y.shape[1], BAND):
        rows = slice(top, top + BAND)
        y[:, rows] = (frames[:, rows].float() * weights).sum(-1).round()
    return y


def laplacian_variance(y: Tensor) -> Tensor:
    """Variance over each [N, H, W] frame of its 4-neighbour Laplacian, edges mirrored: [N].

    The number that 30 is a limit for, OpenCV's `Laplacian(grey, CV_64F).var()`. It depends on the
    size of the picture: measure frames as they are, not enlarged.
    """
    kernel = torch.tensor([[0.0, 1, 0], [1, -4, 1], [0, 1, 0]])[None, None]
    height, (total, squares) = y.shape[1], y.new_zeros(2, len(y), dtype=torch.float64)
    for top in range(0, height, BAND):
        rows = torch.arange(top - 1, min(top + BAND, height) + 1).abs()
        rows = torch.where(rows < height, rows, 2 * (height - 1) - rows)
        edges = F.conv2d(F.pad(y[:, None, rows], (1, 1, 0, 0), mode="reflect"), kernel).double()
        total += edges.sum((1, 2, 3))
        squares += edges.square().sum((1, 2, 3))
    count = y[0].numel()
    return squares / count - (total / count).square()


def _blocks(y: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Step at every 8th column, step elsewhere, share of zero crossings; [N] each, fp64."""
    height, width = y.shape[1:]
    border, whole, crossings = y.new_zeros(3, len(y), dtype=torch.float64)
    for top in range(0, height, BAND):
        steps = y[:, top : top + BAND].diff(dim=2)
        sizes = steps.abs()
        border += sizes[:, :, 7::8].sum((1, 2), dtype=torch.float64)
        whole += sizes.sum((1, 2), dtype=torch.float64)
        crossings += (steps[:, :, 1:] * steps[:, :, :-1] < 0).sum((1, 2))
    border /= height * len(range(7, width - 1, 8))
    inside = (8 * whole / (height * (width - 1)) - border) / 7
    return border, inside, crossings / (height * (width - 2))


def compression_quality(frames: Tensor) -> float:
    """Score 0..100 how little frames [N, H, W, 3] uint8 look like a strong JPEG; no weights.

    It sees 8 x 8 blocks on the grid and the loss of fine detail inside them, and nothing else: no
    noise, no exposure, no composition, no blocks that were scaled or filtered since. It is not
    MUSIQ, and 40 of the one is not 40 of the other. A frame without any detail scores 0.

    Source: Wang, Sheikh and Bovik, No-reference perceptual quality assessment of JPEG compressed
    images (2002), whose 1..10 is stretched to 10..100.
    """
    y = luma(frames)
    if min(y.shape[1:]) < 16:
        raise ValueError(f"expected frames of at least 16x16, got {tuple(y.shape)}; drop them.")
    pairs = zip(_blocks(y), _blocks(y.mT), strict=True)
    border, inside, crossings = ((a + b) / 2 for a, b in pairs)
    score = -245.8909 + 261.9373 * (
        border**-0.02398886 * inside**0.01601664 * crossings**0.00642859
    )
    score = torch.where(border * inside * crossings > 0, 10 * score, torch.zeros_like(score))
    return score.clamp(0, 100).mean().item()


def _brightness(frame: Tensor) -> dict[str, float]:
    """The numbers of one frame [1, H, W, 3] that luma alone tells."""
    y = luma(frame)
    bands = y.split(BAND, dim=1)
    clipped = sum(((band <= 2) | (band >= 253)).sum().item() for band in bands)
    return {
        "luma": sum(band.double().sum().item() for band in bands) / y.numel(),
        "clipped": clipped / y.numel(),
        "sharpness": laplacian_variance(y).item(),
    }


def examine(
    frames: Tensor, limits: Limits | None = None, scorer: Scorer = compression_quality
) -> Verdict:
    """Measure a clip frame by frame, and name all filters that it fails.

    Args:
        frames: [T, H, W, 3] uint8, RGB, at the size they came in.
        limits: None for the paper's, and ours where it gives none.
        scorer: what measures quality; called with one frame after the other.

    Returns:
        Reasons and numbers; all are measured, whatever the first finds.

    Raises:
        ValueError: frames of another shape or dtype.

    Source: Bowtie-flow B.3.
    """
    if frames.ndim != 4 or frames.shape[-1] != 3 or frames.dtype != torch.uint8 or not len(frames):
        raise ValueError(
            f"expected frames [T, H, W, 3] uint8, got {tuple(frames.shape)}, {frames.dtype}; "
            "pass a clip's frames."
        )
    limits = limits or Limits()
    picks = torch.linspace(0, len(frames) - 1, min(LOOKED_AT, len(frames))).round().long().tolist()
    looked_at = (frames[pick : pick + 1] for pick in picks)
    measured = [_brightness(one) | {"quality": float(scorer(one))} for one in looked_at]
    numbers = {name: fmean(one[name] for one in measured) for name in measured[0]}
    against = {
        "dark": numbers["luma"] < limits.darkest,
        "bright": numbers["luma"] > limits.brightest,
        "clipped": numbers["clipped"] > limits.clipped,
        "blurred": numbers["sharpness"] < limits.sharpness,
        # Written so that a score of NaN does not pass.
        "poor": not numbers["quality"] >= limits.quality,
    }
    return Verdict(
        reasons=tuple(word for word, true in against.items() if true),
        numbers=numbers,
        scorer=getattr(scorer, "__name__", type(scorer).__name__),
    )
