"""Check the noise mask of a LATENT: its parts, what it holds, and how many frames it is for.

Dims: B batch, C channels, T latent frames, H, W latent cells.
"""

import math
from typing import Any

import torch
from torch import Tensor

from ...surf_core.checks import FLOATS
from .nested import check_mask_parts, tensors_of


def check_noise_mask(mask: Any, name: str) -> None:
    """Refuse a noise mask of other parts, of bools or whole numbers, or not finite."""
    check_mask_parts(mask, name)
    for part in tensors_of(mask):
        _check_part(part, name)


def _check_part(mask: Any, name: str) -> None:
    if mask is None:
        return
    kind = mask.dtype if isinstance(mask, Tensor) else type(mask).__name__
    if kind not in FLOATS:
        raise ValueError(
            f"{name}: the noise mask must hold floating point values from 0, kept, to 1, got "
            f"{kind}; convert it, e.g. with mask.float()."
        )
    if mask.ndim < 2 or not mask.numel() or not torch.isfinite(mask).all():
        raise ValueError(
            f"{name}: the noise mask must be finite with rows and columns, got "
            f"{tuple(mask.shape)}; set it again with Set Latent Noise Mask."
        )


def check_mask_count(mask: Any, samples: Any) -> None:
    """Refuse a noise mask of more or fewer items or frames than a latent has.

    The host would stretch it along time, or repeat it, without a word.

    Args:
        mask: [(B,) (1,) (T,) H, W]; frames may be those of the video before it was encoded.
        samples: [B, C, (T,) H, W].
    """
    if not isinstance(mask, Tensor) or not isinstance(samples, Tensor):
        return
    items = frames = math.prod(mask.shape[:-2])
    if samples.ndim == 5 and mask.ndim == 5:
        items, frames = mask.shape[0], mask.shape[2]
    elif samples.ndim == 5:
        items = 1
    fits = items in (1, len(samples))
    if samples.ndim == 5:
        fits = fits and _are_frames(frames, samples.shape[2])
    if not fits:
        batch, times = len(samples), samples.shape[2] if samples.ndim == 5 else 1
        raise ValueError(
            f"expected a noise mask for 1 or {batch} items and 1 or {times} latent frames, got "
            f"{tuple(mask.shape)} for a latent of {tuple(samples.shape)}; make one mask, or one "
            "for each frame, and for several videos [B, 1, T, rows, columns]."
        )


def _are_frames(count: int, frames: int) -> bool:
    """Say whether masks are one, or one for each latent frame, or for each of the video's."""
    if count in (1, frames):
        return True
    return frames > 1 and count > frames and (count - 1) % (frames - 1) == 0
