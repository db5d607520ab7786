"""Score tokens by what refining would add to them, computed from the sharp clip.

A score is the root mean square of the sharp clip minus its own down-then-up version, over the
cells and channels of a token, times `UNIT`: for pixels in -1..1 that is 1/255 of their range; a
latent of unit variance takes the same factor.

Dims: B batch, C channels, F pixel frames, T latent frames, H, W rows and columns (pixels or
latent cells); T, h, w tokens of a score.
"""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from ..checks import check_latent, check_range
from ..resample import resize
from .mask import Mask, choose

UNIT = 127.5
"""Scores count in 1 / UNIT of a value."""
PATCH = (1, 2, 2)
"""Latent cells in a token: frames, rows, columns."""
LATENT = (1, 1)
"""The `cell` of a clip that is a latent already."""


def down_up(hr: Tensor, ratio: float = 4.0) -> Tensor:
    """Downscale a clip `ratio` times per side and upscale it to its size again.

    Args:
        hr: [B, C, T, H, W].
        ratio: 1..64; area mean down, bicubic up, frame by frame.

    Returns:
        Shape and dtype of hr, a new tensor.
    """
    check_range(ratio, "ratio", 1.0, 64.0, "pass the upscale of the refiner, e.g. 4")
    rows, columns = hr.shape[-2:]
    small = max(1, round(rows / ratio)), max(1, round(columns / ratio))
    return resize(resize(hr, small, "area"), (rows, columns), "bicubic")


def scores(
    hr: Tensor,
    low: Tensor,
    *,
    patch: tuple[int, int, int] = PATCH,
    cell: tuple[int, int] = LATENT,
) -> Tensor:
    """Measure the difference of two clips token by token, by the pixel frame where it is largest.

    Args:
        hr, low: [B, C, T, H, W], pixels in -1..1 or latents; one shape, not changed.
        patch: latent cells of a token.
        cell: pixel frames and pixels a side of a latent cell, (4, 8) for Wan 2.1; the first latent
            frame holds one pixel frame. `LATENT` for latents.

    Returns:
        [B, T, h, w], >= 0, fp32 or fp64.

    Raises:
        ValueError: unlike or bad clips, or a size that tokens do not divide.

    Source: ours, after SkipSR's description of its oracle.
    """
    check_latent(hr, "the sharp clip")
    check_latent(low, "its down-then-up version")
    if hr.ndim != 5 or hr.shape != low.shape:
        raise ValueError(
            f"expected two clips [B, C, T, H, W] of one shape, got {tuple(hr.shape)} and "
            f"{tuple(low.shape)}; enlarge the lower one first."
        )
    frames, side = cell
    sides = patch[1] * side, patch[2] * side
    later, rest = divmod(hr.shape[2] - 1, frames)
    if rest or (later + 1) % patch[0] or hr.shape[3] % sides[0] or hr.shape[4] % sides[1]:
        raise ValueError(
            f"expected frames, rows and columns of whole tokens for {patch=}, {cell=}, got "
            f"{tuple(hr.shape[2:])}; crop the clip."
        )
    wide = torch.promote_types(hr.dtype, torch.float32)
    error = (hr.to(wide) - low.to(wide)).square().mean(dim=1)
    return largest(UNIT * F.avg_pool2d(error, sides).sqrt(), frames, patch[0])


def largest(scores: Tensor, frames: int, depth: int) -> Tensor:
    """Reduce scores of pixel frames [B, F, h, w] to the largest of each token: [B, T, h, w].

    Args:
        frames: pixel frames of a latent frame; the first one holds a single frame.
        depth: latent frames of a token.
    """
    # The first latent frame has one pixel frame; repeated, it is as long as the others.
    scores = torch.cat([scores[:, :1].expand(-1, frames - 1, -1, -1), scores], dim=1)
    return scores.unflatten(1, (-1, frames * depth)).amax(dim=2)


def oracle_mask(
    hr: Tensor,
    *,
    tau: float | None = None,
    keep: float | None = None,
    ratio: float = 4.0,
    patch: tuple[int, int, int] = PATCH,
    cell: tuple[int, int] = LATENT,
    **options: Any,
) -> Mask:
    """Choose the tokens that refining would change by tau or more, from the sharp clip.

    Args:
        hr: [B, C, T, H, W], see `scores`; samples of a batch share the mask of their maximum.
        tau, keep: one of them, see `choose`.
        ratio: of `down_up`.
        options: of `choose`.

    Raises:
        ValueError: as `scores` and `choose`.
    """
    gains = scores(hr, down_up(hr, ratio), patch=patch, cell=cell)
    return choose(gains, source="oracle", tau=tau, keep=keep, **options)
