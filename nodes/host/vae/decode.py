"""Decode latents into frames: check and crop what Surf VAE Decode and the refiner ask for.

Dims: B batch, C latent channels, T latent frames, H, W latent cells, F pixel frames.
"""

from dataclasses import dataclass
from math import ceil
from typing import Any

import torch
from torch import Tensor

from ....surf_core.tiles import boxes
from ..nested import is_joint, split
from .decoding import Decoding
from .frame_count import cut_frames
from .memory import PIECE_OVERLAP, PIXEL_BYTES, check_main_memory, real_piece

ADVICE = "use Surf Decode Video, which decodes a few at a time into a file"


def decode_latent(vae: Any, latent: dict, width: int, height: int, side: int) -> Tensor:
    """Decode a LATENT into frames, and crop them.

    Args:
        vae: the host's VAE; not changed.
        latent: LATENT dictionary, 4-D or 5-D samples, or video and audio: the video is decoded.
        width, height: pixels to keep, from the top left; 0 keeps all.
        side: pixels along a side of a piece; 0 chooses.

    Returns:
        IMAGE [B * F, height, width, channels], without the frames that a video was filled up with.

    Raises:
        ValueError: no latent of this VAE, a crop above its size, a piece that is too small, too
            little main memory, or frames that are not finite.
    """
    samples, crop = checked(vae, latent, width, height, side)
    frames = decode(vae, samples, "the frames", ADVICE, side)
    frames = cut_frames(latent, samples, vae, frames)
    return frames[:, : crop[0], : crop[1]]


def checked(
    vae: Any, latent: dict, width: int, height: int, side: int
) -> tuple[Tensor, tuple[int, int]]:
    """Check what `decode_latent` takes: the video's samples, and (height, width) to keep."""
    samples = split(latent.get("samples"), "samples").video
    _check_kind(vae, latent, samples)
    cell = vae.spacial_compression_decode()
    size = (samples.shape[-2] * cell, samples.shape[-1] * cell)
    crop = tuple(asked or have for asked, have in zip((height, width), size, strict=True))
    if crop[0] > size[0] or crop[1] > size[1]:
        raise ValueError(
            f"the frames are {size[1]} x {size[0]} pixels and cannot be cropped to "
            f"{crop[1]} x {crop[0]}; connect the width and height of the Surf Refiner that made "
            "the latent, or set both to 0."
        )
    least = 2 * ceil(PIECE_OVERLAP / cell) * cell
    if 0 < side < min(least, max(size)):
        raise ValueError(
            f"a piece must hold two overlaps, {least} pixels, got piece={side}; use {least} "
            "or more, or 0 to take the cheapest that fits."
        )
    return samples, crop


def check_piece(piece: int) -> None:
    """Refuse a piece that no VAE could blend; for cells of odd sizes it may have to be larger."""
    if 0 < piece < 2 * PIECE_OVERLAP:
        raise ValueError(
            f"a piece must hold two overlaps, {2 * PIECE_OVERLAP} pixels, got {piece=}; use "
            f"{2 * PIECE_OVERLAP} or more, or 0 to take the cheapest that fits."
        )


def decode(vae: Any, samples: Tensor, what: str, advice: str, side: int = 0) -> Tensor:
    """Decode in one piece, or in the cheapest that fit; if memory runs out, in smaller ones.

    Args:
        samples: [B, C, (T,) H, W], of this VAE.
        what, advice: the frames, and what to do where the main memory is too small for them.
        side: pixels along a side of a piece at most; 0 chooses.

    Returns:
        [B * F, rows, columns, channels] as the host's decode node gives them; in one piece they are
        those, bit for bit.
    """
    if vae.latent_dim == 2 and samples.ndim == 5:
        # As the host does: such a VAE sees one frame.
        samples = samples[:, :, 0]
    decoding = Decoding(vae, samples)
    pixels = len(samples) * decoding.frames() * decoding.size[0] * decoding.size[1]
    check_main_memory(2 * pixels * PIXEL_BYTES, what, advice)
    if decoding.tiles_itself and len(samples) > 1:
        # Such a VAE carries state from one part to the next: one video at a time.
        return torch.cat([Decoding(vae, item).decode(side) for item in samples.split(1)])
    return decoding.decode(side)


@dataclass(frozen=True, kw_only=True, slots=True)
class DecodePlan:
    """How a latent will be decoded."""

    size: tuple[int, int]
    """Height and width of the frames in pixels."""
    piece: tuple[int, int]
    """Height and width of a piece; `size` where it is whole."""
    count: int
    """Pieces of a frame."""
    at_a_time: int
    """Frames of a video that are decoded together."""
    frames: int
    """Of the whole video, all items."""
    needed: float
    """Bytes on the device, as the host estimates."""

    @property
    def main_memory(self) -> int:
        """Bytes of main memory that the frames take while they are decoded."""
        return 2 * self.frames * self.size[0] * self.size[1] * PIXEL_BYTES


def plan_decode(vae: Any, samples: Tensor) -> DecodePlan:
    """Say how a latent of this shape will be decoded, where its side is left to be chosen.

    Args:
        samples: [B, C, (T,) H, W], on any device, the meta device included.

    Raises:
        ValueError: a VAE of another kind of latent.
    """
    _check_kind(vae, {"samples": samples}, samples)
    if vae.latent_dim == 2 and samples.ndim == 5:
        samples = samples[:, :, 0]
    decoding = Decoding(vae, samples)
    limit = decoding.choose()
    piece = real_piece(decoding.size, limit, decoding.cell)
    stretch = decoding.at_a_time(piece)
    return DecodePlan(
        size=decoding.size, piece=piece, at_a_time=decoding.frames(stretch),
        count=len(boxes(decoding.size, limit, PIECE_OVERLAP, decoding.cell)),
        frames=len(samples) * decoding.frames(), needed=decoding.needed(piece, stretch),
    )  # fmt: skip


def _check_kind(vae: Any, latent: dict, samples: Tensor) -> None:
    """Refuse sound, and latents of another VAE."""
    # Nodes that join video and audio keep the type of the audio's dictionary.
    typed = latent.get("type") == "audio" and not is_joint(latent["samples"])
    sound = typed or vae.latent_dim == 1
    if sound or getattr(vae, "extra_1d_channel", None) is not None:
        raise ValueError(
            "expected a latent and a VAE of pictures, got sound; decode it with VAE Decode Audio."
        )
    if vae.latent_channels != samples.shape[1]:
        raise ValueError(
            f"expected a latent of the VAE's {vae.latent_channels} channels, got "
            f"{samples.shape[1]}; connect the VAE that belongs to the model."
        )
    tiles_itself = getattr(vae, "handles_tiling", False)
    if vae.latent_dim == 3 and samples.ndim == 4 and not tiles_itself:
        raise ValueError(
            f"expected a video latent [B, C, T, H, W] for this VAE, got "
            f"{tuple(samples.shape)}; connect the VAE that belongs to the model."
        )
