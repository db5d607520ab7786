"""Upsample a preview to its target size: through the pixels of a VAE, or in the latent itself.

A VAE sees all frames at once, so long and large videos pass through it in spatial pieces that
overlap and blend. The frames of the target never exist as a whole: each piece is enlarged from the
preview's by itself (481 frames of 3840 x 2160 pixels would be 48 GB).

Dims: B batch, C latent channels, T latent frames, H, W latent cells, F pixel frames.
"""

from collections.abc import Iterable

import torch
from torch import Tensor

from ....surf_core.resample import resize, resize_part
from ....surf_core.tiles import Box, blend, boxes
from ..finite import VAE_CAUSES, check_finite
from .decode import decode
from .decoding import pixels_on_device
from .frame_count import frames_of, latent_frames_for
from .memory import (
    PIECE_OVERLAP,
    PIXEL_BYTES,
    Size,
    check_main_memory,
    choose_piece,
    log_piece,
    real_piece,
    retry_smaller,
)
from .out_of_memory import without_fallback
from .watched import WatchedCalls

UPSAMPLE_METHODS = ("pixel", "latent")
ADVICE = "set upsample to latent, or refine fewer frames at a time"
HOST_COPIES = 4
"""fp32 copies of the frames that the host's encode makes in main memory, at most."""
FRAMES_AT_ONCE = 16


def check_vae(vae, samples: Tensor) -> None:
    """Refuse a pixel round trip that cannot give the preview's kind of latent back.

    Raises:
        ValueError: no VAE, or one of another latent.
    """
    check_has_vae("pixel", vae is not None)
    if vae.latent_channels != samples.shape[1]:
        raise ValueError(
            f"expected a VAE with the preview's {samples.shape[1]} latent channels, "
            f"got one with {vae.latent_channels}; connect the VAE that belongs to the model."
        )
    if samples.ndim == 4 and getattr(vae, "latent_dim", 2) == 3:
        raise ValueError(
            f"expected a VAE of images for the image latent {tuple(samples.shape)}, got one of "
            "videos; connect the VAE that belongs to the model."
        )


def check_has_vae(upsample: str, has_vae: bool) -> None:
    """Refuse to upsample through pixels without a VAE."""
    if upsample == "pixel" and not has_vae:
        raise ValueError(
            "upsample is pixel, which needs a VAE, got none; connect the VAE of the "
            "preview's model, or set upsample to latent."
        )


def upsample_latent(samples: Tensor, size: tuple[int, int], method: str, vae=None) -> Tensor:
    """Upsample a clean latent in space.

    Args:
        samples: [B, C, T, H, W] or [B, C, H, W], VAE space.
        size: rows and columns, latent cells.
        method: "pixel" decodes, resizes the frames and encodes, item by item; "latent" is linear
            (what the paper describes, at the price of grid artefacts).
        vae: host VAE, for "pixel".

    Returns:
        A new latent with the same batch, channels and frames; fp32 for "pixel".

    Raises:
        ValueError: no fitting VAE, one that gives back another shape, or frames of the preview, or
            a piece of the target's, for which the main memory is too small.
    """
    if method == "latent":
        return resize(samples, size, "bilinear")
    check_vae(vae, samples)
    frames = (decode_frames(vae, item) for item in samples.split(1))
    return encode_frames(vae, frames, samples, size)


def encode_frames(
    vae,
    frames: Iterable[Tensor],
    samples: Tensor,
    size: tuple[int, int],
    pixels: Size | None = None,
) -> Tensor:
    """Upsample frames and encode them, item by item.

    Frames that the VAE's groups lack are repeats of the last one.

    Args:
        frames: for each item [F, 3, height, width] in 0..1.
        samples: [B, C, (T,) H, W], the preview, whose batch, channels and frames must come out.
        size: rows and columns, latent cells.
        pixels: height and width that the frames are enlarged to, at most those of `size`: rows and
            columns beyond repeat the edge. None: those of `size`.

    Returns:
        [B, C, (T,) *size], fp32.

    Raises:
        ValueError: a VAE that gives another shape back or is not finite, or too little main memory.
    """
    expected = (*samples.shape[1:-2], *size)
    items = []
    for clip in frames:
        latent = _encode(vae, clip, size, pixels)
        if latent.shape[1:] != expected:
            raise ValueError(
                f"expected the VAE to give a latent {expected} back, got "
                f"{tuple(latent.shape[1:])}; connect the VAE of the preview's model."
            )
        items.append(latent)
    return torch.cat(items).to(dtype=torch.float32, device=samples.device)


def decode_frames(vae, item: Tensor) -> Tensor:
    """Decode one latent [1, C, ...] into frames [F, 3, height, width] between 0 and 1."""
    return decode(vae, item, "the preview's frames", ADVICE).movedim(-1, 1)


def _encode(vae, frames: Tensor, size: tuple[int, int], fit: Size | None) -> Tensor:
    """Encode frames [F, 3, height, width], upsampled to `size` cells, as one latent [1, C, ...]."""
    cell = vae.spacial_compression_encode()
    pixels = (size[0] * cell, size[1] * cell)
    video = vae.latent_dim == 3
    count = frames_of(vae, latent_frames_for(vae, len(frames))) if video else len(frames)

    def on_device(piece: Size) -> float:
        shape = (1, 3, count, *piece) if video else (1, 3, *piece)
        return vae.memory_used_encode(shape, vae.vae_dtype) + pixels_on_device(vae, count, piece)

    def in_memory(piece: Size) -> float:
        return HOST_COPIES * count * piece[0] * piece[1] * PIXEL_BYTES

    strict, watched = without_fallback(vae), None

    def encode(box: Box) -> Tensor:
        pixel_box = tuple(slice(part.start * cell, part.stop * cell) for part in box)
        piece = _enlarge(frames, fit or pixels, pixel_box, count)
        encoded = watched.run(lambda: strict.encode(piece), "encoder", count)
        check_finite(encoded, "the latent that the VAE encodes", VAE_CAUSES)
        return encoded

    def run(limit: Size) -> Tensor:
        nonlocal watched
        piece = real_piece(pixels, limit, cell)
        log_piece(vae, pixels, limit, cell, on_device(piece), "encode")
        check_main_memory(in_memory(piece), "a piece of the target's frames", ADVICE)
        watched = WatchedCalls(vae, len(boxes(pixels, limit, PIECE_OVERLAP, cell)))
        return blend(encode, size, (limit[0] // cell, limit[1] // cell), PIECE_OVERLAP // cell)

    limit = choose_piece(vae, pixels, cell, on_device, in_memory)
    return retry_smaller(run, pixels, limit, cell, "encoding")


def _enlarge(frames: Tensor, size: Size, box: Box, count: int) -> Tensor:
    """Resize frames [F, 3, ...] to `size` and keep a box of it: [count, rows, columns, 3] in 0..1.

    Frames of that size are copied as they are. The box may reach beyond it, and `count` beyond F:
    the edge and the last frame are repeated.
    """
    rows, columns = (part.stop - part.start for part in box)
    out = torch.empty(count, rows, columns, 3, dtype=frames.dtype, device=frames.device)
    inside = tuple(slice(p.start, min(p.stop, side)) for p, side in zip(box, size, strict=True))
    high, wide = (part.stop - part.start for part in inside)
    for start in range(0, len(frames), FRAMES_AT_ONCE):
        chunk = frames[start : start + FRAMES_AT_ONCE]
        if tuple(chunk.shape[-2:]) == size:
            large = chunk[(..., *inside)].clamp(0, 1)
        elif (high, wide) == size:
            large = resize(chunk, size, "bicubic").clamp_(0, 1)
        else:
            large = resize_part(chunk, size, inside, "bicubic").clamp_(0, 1)
        out[start : start + len(chunk), :high, :wide] = large.movedim(1, -1)
    out[: len(frames), high:, :wide] = out[: len(frames), high - 1 : high, :wide]
    out[: len(frames), :, wide:] = out[: len(frames), :, wide - 1 : wide]
    out[len(frames) :] = out[len(frames) - 1]
    return out
