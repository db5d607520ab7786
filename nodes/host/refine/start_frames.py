"""First frames that a noise mask keeps: encoded from pictures at the target size, or refined.

Wan 2.2 5B starts from a picture in the latent, under a noise mask of 0. In the preview it has the
preview's size, and enlarging it would bring none of the picture's detail back.

Dims: B batch, C latent channels, T latent frames, H, W latent cells.
"""

from typing import Any

import comfy.sampler_helpers
import torch
from torch import Tensor

from ..node import NodeLog
from ..vae import check_picture, check_vae, encode_pictures, fit_picture, latent_frames

log = NodeLog(__name__)


def kept_frames(mask: Tensor | None, shape: torch.Size) -> int:
    """Count the latent frames from the first that a noise mask keeps whole.

    Args:
        mask: of a LATENT; None keeps nothing.
        shape: [B, C, T, H, W] of its samples; an image [B, C, H, W] has no frames.

    Returns:
        0 where all frames are kept: these are no start of a video.
    """
    if mask is None or len(shape) != 5:
        return 0
    changing = _expanded(mask, shape).amax((0, 1, 3, 4)) > 0
    return int(changing.int().argmax())


def held_frames(mask: Tensor | None, shape: torch.Size) -> int:
    """Count the latent frames from the first that a noise mask keeps whole or in part.

    LTX-2 starts from a picture under a mask of 1 - strength.
    """
    return kept_frames(None if mask is None else (mask >= 1).to(mask.dtype), shape)


def with_kept(mask: Tensor, shape: torch.Size, count: int) -> Tensor:
    """Return a noise mask that keeps the first frames whole, which it kept in part; else itself."""
    if kept_frames(mask, shape) >= count:
        return mask
    out = _expanded(mask, shape).clone()
    out[:, :, :count] = 0
    return out


def check_start(image: Tensor, vae: Any, samples: Tensor, kept: int) -> None:
    """Refuse start pictures that cannot be the frames that the noise mask keeps.

    Args:
        image: [F, height, width, 3].
        samples: the preview.
        kept: its frames that the mask keeps.
    """
    check_picture(image, "start_image")
    if vae is None:
        raise ValueError(
            "start_image needs a VAE, got none; connect the VAE of the model, or disconnect "
            "start_image."
        )
    check_vae(vae, samples)
    count = latent_frames(vae, len(image))
    if count != kept:
        raise ValueError(
            f"expected a latent whose noise mask keeps the {count} first latent frames, which "
            f"start_image makes, got one that keeps {kept}; connect the pictures that the latent "
            "began with. For a model that takes them as conditioning, disconnect start_image and "
            "connect positive_target and negative_target of Surf Image To Video."
        )


def with_start(upsampled: Tensor, vae: Any, image: Tensor, shape: tuple[int, int]) -> Tensor:
    """Return the upsampled preview with its first frames encoded from pictures.

    Args:
        upsampled: [B, C, T, H, W], VAE space; not changed.
        shape: rows and columns of the size that the first sampler had, for the crop.
    """
    cell = vae.spacial_compression_encode()
    rows, columns = upsampled.shape[-2:]
    frames = fit_picture(image, shape, (rows * cell, columns * cell))
    start = encode_pictures(vae, frames, "start_image, encoded").to(upsampled)
    out = upsampled.clone()
    out[:, :, : start.shape[2]] = start
    return out


def without_kept(mask: Tensor | None, shape: torch.Size) -> Tensor | None:
    """Return a noise mask that lets the first frames change that it kept, and say so.

    Args:
        shape: [B, C, T, H, W] of the target.

    Returns:
        [B, 1, T, H, W]; the mask itself where it keeps none of them.
    """
    kept = kept_frames(mask, shape)
    if not kept:
        return mask
    log.warning(
        "the noise mask keeps the first %s, which the preview has at its own size only: they are "
        "refined with the rest. Connect start_image and vae to encode them at the target size.",
        "latent frame" if kept == 1 else f"{kept} latent frames",
    )  # fmt: skip
    out = _expanded(mask, shape).clone()
    out[:, :, :kept] = 1
    return out


def _expanded(mask: Tensor, shape: torch.Size) -> Tensor:
    """Resize a mask as the host does, to [B, 1, T, H, W]."""
    return comfy.sampler_helpers.prepare_mask(mask, (shape[0], 1, *shape[2:]), mask.device)
