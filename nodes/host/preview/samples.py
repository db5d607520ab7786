"""Change samples between legs, plain or nested: of video and audio, only the video has a size.

Dims: B batch, C channels, T latent frames, H, W latent cells, N numbers of an item's parts.
"""

from typing import Any

import torch
from torch import Tensor

from ....surf_core.resample import resize
from ..nested import Parts, tensors_of, unpack


def parts_of(samples: Any) -> Parts:
    """Take checked samples apart."""
    return Parts(*tensors_of(samples))


def resized(samples: Any, size: tuple[int, int]) -> Any:
    """Resize the video to (rows, columns); audio stays."""
    parts = parts_of(samples)
    return parts.with_video(resize(parts.video, size)).joined()


def zeros_like(samples: Any) -> Any:
    """Make zeros of the same form."""
    return parts_of(samples).each(torch.zeros_like).joined()


def packed(samples: Any) -> Tensor:
    """Return what the host samples of it: a pack [B, 1, N], or plain samples themselves."""
    return parts_of(samples).packed()


def like_samples(x: Tensor, samples: Any) -> Any:
    """Give a pack, or plain x, the form of samples: nested or plain."""
    shapes = parts_of(samples).shapes
    return unpack(x, shapes if len(shapes) > 1 else None).joined()
