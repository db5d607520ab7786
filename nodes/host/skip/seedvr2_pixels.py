"""Score the tokens of a SeedVR2 clip by the pixels of the video that it was encoded from.

Dims: F pixel frames, B batch, C latent channels, T latent frames, H, W latent cells; h, w tokens.
"""

from math import ceil
from typing import Any

import torch
from torch import Tensor

from ....surf_core.checks import FLOATS, check_latent
from ....surf_core.skip import pixel_detail
from ..vae import check_values

FRAMES, SIDE = 4, 8
"""Pixel frames and pixels a side of a latent cell; the first latent frame holds one frame."""
PADDED = 16
"""Pixels of a side are padded to a multiple of this by Pre-Process SeedVR2 Input, right and
below."""


def score_pixels(
    image: Tensor, clip: Tensor, latent: dict | None, patch: tuple[int, int, int]
) -> Tensor:
    """Score tokens by the detail of the video's own pixels, enlarged to the size of the clip.

    Args:
        image: [F, height, width, 3 or 4] in 0..1, the whole video before it was padded, at its own
            size or at that of the clip; alpha is left out.
        clip: [B, C, T, H, W], the latent in the conditioning: the video or a part of it.
        latent: the LATENT that the part was split from, which says where it lies; None: `clip` is
            the video.
        patch: latent cells of a token.

    Returns:
        [1, T, h, w], in the unit of `pixel_detail`.

    Raises:
        ValueError: frames of another number or shape than the clip's, several videos, or a clip
            that is no part of the latent.
    """
    _check_image(image)
    if len(clip) > 1:
        raise ValueError(
            f"an image is the frames of one video, got conditioning of {len(clip)}; take the "
            "image out, or use one node for each video."
        )
    if any(side % cells for side, cells in zip(clip.shape[2:], patch, strict=True)):
        raise ValueError(
            f"expected a latent of whole tokens of {patch} cells, got {tuple(clip.shape)}; put "
            "Pre-Process SeedVR2 Input before the VAE."
        )
    whole = clip if latent is None else _open_whole(latent)
    first = _find(clip, whole)
    _check_count(len(image), clip, whole, latent is None)
    rows, columns = (SIDE * side for side in clip.shape[-2:])
    size, ratio = _at_the_target(tuple(image.shape[1:3]), (rows, columns))
    frames = _frames_of(image, first, clip.shape[2])
    scores = pixel_detail(
        frames[..., :3].movedim(-1, 0)[None], size, max(1.0, ratio), cell=(FRAMES, SIDE),
        patch=patch,
    )  # fmt: skip
    return scores[:, -clip.shape[2] :]


def _check_image(image: Tensor) -> None:
    """Refuse what is not the frames of a video in colour."""
    if image.dtype not in FLOATS or not image.numel() or image.shape[-1] not in (3, 4):
        raise ValueError(
            f"expected an image [frames, height, width, 3], got {tuple(image.shape)} of "
            f"{image.dtype}; connect the images of Get Video Components."
        )
    check_values(image, "image")


def _open_whole(latent: dict) -> Tensor:
    """Take the latent [1, C, T, H, W] of the whole video out of a LATENT, on the CPU."""
    whole: Any = latent.get("samples")
    check_latent(whole, "latent")
    return whole.detach().cpu()


def _find(clip: Tensor, whole: Tensor) -> int:
    """Return the latent frame of `whole` at which the clip begins.

    Parts with the same latent show the same, so the first will do.
    """
    count, fits = clip.shape[2], whole.shape[:2] == clip.shape[:2] and whole.ndim == clip.ndim
    if fits and whole.shape[3:] == clip.shape[3:]:
        for first in range(whole.shape[2] - count + 1):
            if torch.equal(whole[:, :, first : first + count], clip.to(whole)):
                return first
    raise ValueError(
        f"expected the latent that the conditioning's part, {tuple(clip.shape)}, was split from, "
        f"got {tuple(whole.shape)} without it; connect what goes into Split SeedVR2 Latent."
    )


def _check_count(count: int, clip: Tensor, whole: Tensor, alone: bool) -> None:
    """Refuse frames of another number than the video's, which repeats its last one up to 4n + 1."""
    if 1 + ceil((count - 1) / FRAMES) == whole.shape[2]:
        return
    most = 1 + FRAMES * (whole.shape[2] - 1)
    least = max(1, most - FRAMES + 1)
    advice = "connect the frames that were resized and encoded, all of them"
    if alone and count > most:
        advice += ", and to latent, after Split SeedVR2 Latent, the latent that goes into it"
    raise ValueError(
        f"expected an image of {least} to {most} frames, for {whole.shape[2]} latent frames, got "
        f"{count}; {advice}."
    )


def _at_the_target(
    given: tuple[int, int], padded: tuple[int, int]
) -> tuple[tuple[int, int], float]:
    """Return rows and columns of the frames in the padded clip, and how many times enlarged.

    Frames are enlarged alike along both sides and padded to whole tokens: the greatest enlargement
    that fits is at most a token off.
    """

    def fits(size: tuple[int, int]) -> bool:
        return all(0 <= most - side < PADDED for side, most in zip(size, padded, strict=True))

    if fits(given):
        return given, 1.0
    ratio = min(most / side for side, most in zip(given, padded, strict=True))
    size = round(given[0] * ratio), round(given[1] * ratio)
    if not fits(size):
        raise ValueError(
            f"expected frames of the clip's shape, {padded[1]} x {padded[0]} pixels, got "
            f"{given[1]} x {given[0]}, which are not that enlarged; connect the frames as they "
            "were resized, neither cropped nor stretched."
        )
    return size, ratio


def _frames_of(image: Tensor, first: int, count: int) -> Tensor:
    """Take the frames of `count` latent frames from `first` on: 4n + 1, the last one repeated.

    A later part begins with the last frame of the latent frame before it, in place of the single
    frame of a video's first.
    """
    start = max(0, FRAMES * (first - 1))
    stop = FRAMES * (first + count - 1) + 1
    frames = image[start:stop]
    missing = stop - start - len(frames)
    return torch.cat([frames, frames[-1:].expand(missing, -1, -1, -1)])
