"""Fit pictures to a video as the host's image-to-video nodes do, and encode them.

Dims: F pixel frames, C latent channels, T latent frames, H, W latent cells.
"""

from typing import Any

import comfy.utils
from torch import Tensor

from ..finite import VAE_CAUSES, check_finite, ends
from .watched import WatchedCalls

SLACK = 0.5
"""How far values may lie outside of 0..1: sharp upscalers overshoot at edges."""


def check_picture(image: Tensor, name: str) -> None:
    """Refuse what is no picture of three colours, [F, height, width, 3], not finite, or no 0..1."""
    if image.ndim != 4 or image.shape[-1] != 3 or not image.numel():
        raise ValueError(
            f"expected RGB, [F, height, width, 3], as {name}, got {tuple(image.shape)}; connect an "
            "image of three colours: Split Image with Alpha takes the fourth channel off, Convert "
            "Mask to Image makes three of one."
        )
    check_values(image, name)


def check_values(image: Tensor, name: str) -> None:
    """Refuse pictures with NaN, infinity, or values of another range than 0..1.

    A VAE would encode them without a word.
    """
    check_finite(image, name, "look at the node that made it")
    lowest, highest = ends(image).tolist()
    if lowest < -SLACK or highest > 1 + SLACK:
        raise ValueError(
            f"expected values of 0 to 1 as {name}, got {lowest:.3g} to {highest:.3g}; divide those "
            "of 0 to 255 by 255, or map those of a high dynamic range to 0 to 1."
        )


def check_one_picture(image: Tensor, name: str) -> None:
    """Refuse more than one picture."""
    check_picture(image, name)
    if len(image) != 1:
        raise ValueError(
            f"expected one picture as {name}, got {len(image)}; take one out of the batch with "
            "Get Image from Batch."
        )


def latent_frames(vae: Any, frames: int) -> int:
    """Return the latent frames of so many pictures."""
    return (frames - 1) // (vae.temporal_compression_decode() or 1) + 1


def fit_picture(image: Tensor, shape: tuple[int, int], pixels: tuple[int, int]) -> Tensor:
    """Cut a picture to the shape of a video about its centre, and stretch it to a size.

    A video keeps its content when a switch or a refiner changes its size, even where the shape
    changes a little, as from 832 x 480 to 1920 x 1080; so does the picture.

    Args:
        image: [F, height, width, 3].
        shape: rows and columns, in any unit, of the video that the picture begins.
        pixels: height and width after.

    Returns:
        [F, *pixels, 3]; at a size of this shape, what the host's nodes make.
    """
    height, width = image.shape[1:3]
    x = y = 0
    # The host's order of operations, for its roundings.
    old, new = width / height, shape[1] / shape[0]
    if old > new:
        x = round((width - width * (new / old)) / 2)
    elif old < new:
        y = round((height - height * (old / new)) / 2)
    cut = image.movedim(-1, 1)[:, :, y : height - y, x : width - x]
    return comfy.utils.common_upscale(cut, *pixels[::-1], "bilinear", "disabled").movedim(1, -1)


def encode_pictures(vae: Any, frames: Tensor, what: str) -> Tensor:
    """Encode frames [F, height, width, 3] as one latent, [1, C, T, H, W]."""
    latent = WatchedCalls(vae, 1).run(lambda: vae.encode(frames), "encoder", len(frames))
    check_finite(latent, what, VAE_CAUSES)
    return latent
