"""Bring a preview to its target size: through the pixels of a VAE, or in the latent itself.

Dims: B batch, C latent channels, T latent frames, H, W latent cells, F pixel frames.
"""

import logging

import torch
from torch import Tensor

from ...surf_core.resample import resize

log = logging.getLogger(__name__)

UPSAMPLE_METHODS = ("pixel", "latent")
TILE_PIXELS = 512
TILE_OVERLAP = 64
USABLE_MEMORY = 0.8


def check_vae(vae, samples: Tensor) -> None:
    """Refuse a pixel round trip that cannot give the preview's kind of latent back.

    Raises:
        ValueError: no VAE, or one of another latent.
    """
    if vae is None:
        raise ValueError(
            "Surf Refiner: upsample is pixel, which needs a VAE, got none; connect the VAE of the "
            "preview's model, or set upsample to latent."
        )
    if vae.latent_channels != samples.shape[1]:
        raise ValueError(
            f"Surf Refiner: expected a VAE with the preview's {samples.shape[1]} latent channels, "
            f"got one with {vae.latent_channels}; connect the VAE that belongs to the model."
        )


def upsample_latent(samples: Tensor, size: tuple[int, int], method: str, vae=None) -> Tensor:
    """Enlarge a clean latent in space.

    Args:
        samples: [B, C, T, H, W] or [B, C, H, W], VAE space.
        size: rows and columns, latent cells.
        method: "pixel" decodes, resizes the frames and encodes, item by item; "latent" is linear
            (what the paper describes, at the price of grid artefacts).
        vae: host VAE, for "pixel".

    Returns:
        A new latent with the same batch, channels and frames; fp32 for "pixel".

    Raises:
        ValueError: no fitting VAE, or one that gives back another shape.
    """
    if method == "latent":
        return resize(samples, size, "bilinear")
    check_vae(vae, samples)
    expected = (*samples.shape[1:-2], *size)
    items = []
    for item in samples.split(1):
        encoded = _encode(vae, _enlarge_frames(_decode(vae, item), vae, size))
        if encoded.shape[1:] != expected:
            raise ValueError(
                f"Surf Refiner: expected the VAE to give a latent {expected} back, got "
                f"{tuple(encoded.shape[1:])}; connect the VAE of the preview's model."
            )
        items.append(encoded)
    return torch.cat(items).to(dtype=torch.float32, device=samples.device)


def _decode(vae, item: Tensor) -> Tensor:
    """Decode one latent [1, C, ...] into frames [F, height, width, 3] between 0 and 1."""
    if _fits(vae, vae.memory_used_decode(item.shape, vae.vae_dtype), "decode"):
        frames = vae.decode(item)
    else:
        cell = vae.spacial_compression_decode()
        tile, overlap = TILE_PIXELS // cell, TILE_OVERLAP // cell
        frames = vae.decode_tiled(item, tile_x=tile, tile_y=tile, overlap=overlap)
    return frames.reshape(-1, *frames.shape[-3:])


def _enlarge_frames(frames: Tensor, vae, size: tuple[int, int]) -> Tensor:
    """Resize frames [F, height, width, 3] to the pixels of `size` latent cells."""
    cell = vae.spacial_compression_encode()
    pixels = (size[0] * cell, size[1] * cell)
    return resize(frames.movedim(-1, 1), pixels, "bicubic").clamp_(0, 1).movedim(1, -1)


def _encode(vae, frames: Tensor) -> Tensor:
    """Encode frames [F, height, width, 3] into one latent [1, C, ...]."""
    shape = (1, frames.shape[-1], frames.shape[0], *frames.shape[1:3])
    if vae.latent_dim == 2:
        shape = (shape[0], shape[1], *shape[3:])
    if _fits(vae, vae.memory_used_encode(shape, vae.vae_dtype), "encode"):
        return vae.encode(frames)
    return vae.encode_tiled(frames, tile_x=TILE_PIXELS, tile_y=TILE_PIXELS, overlap=TILE_OVERLAP)


def _fits(vae, needed: float, task: str) -> bool:
    """Whether the VAE can do it in one piece.

    Held against the whole device, because the host moves other models away for a VAE; where that
    is not allowed, its own fallback is smaller tiles.
    """
    import comfy.model_management

    total = comfy.model_management.get_total_memory(vae.device)
    fits = needed <= USABLE_MEMORY * total
    log.info(
        "Surf Refiner: VAE %s %s (needs %.1f GB of %.1f GB)",
        task, "in one piece" if fits else f"in tiles of {TILE_PIXELS} pixels",
        needed / 2**30, total / 2**30,
    )  # fmt: skip
    return fits
