"""Decode latents into frames: whole where the VAE's device can hold it, else in blended pieces.

Out of memory, the host's VAE goes on with 256-pixel tiles of its own. Here a copy of the VAE object
(the network stays shared) raises instead, and decoding starts again with smaller pieces.

Dims: B batch, C latent channels, T latent frames, H, W latent cells, F pixel frames.
"""

import copy
from collections.abc import Callable
from math import ceil
from typing import Any

import comfy.model_management
import comfy.utils
import torch
from torch import Tensor

from ....surf_core.tiles import Box, blend, boxes
from ..latents import check_plain
from ..node_name import NodeLog, label
from .memory import (
    PIECE_OVERLAP,
    PIXEL_BYTES,
    USABLE_MEMORY,
    Size,
    check_main_memory,
    choose_piece,
    halve,
    is_out_of_memory,
    log_piece,
    real_piece,
)

log = NodeLog(__name__)

ADVICE = "decode fewer frames at a time"
FALLBACKS = ("decode_tiled_", "decode_tiled_3d", "_decode_tiled_owned")
"""What the host's decode calls when memory ran out, by version and kind of VAE."""
LEAST_FRAMES = 2
"""Latent frames that the host's tiled decoder takes at a time, at least."""


def decode_latent(vae: Any, latent: dict, width: int, height: int, side: int) -> Tensor:
    """Decode a LATENT into frames, and crop them.

    Args:
        vae: the host's VAE; not changed.
        latent: LATENT dictionary, 4-D or 5-D samples.
        width, height: pixels to keep, from the top left; 0 keeps all.
        side: pixels along a side of a piece; 0 chooses.

    Returns:
        IMAGE [B * F, height, width, channels], a view of all that was decoded.

    Raises:
        ValueError: no latent of this VAE, a crop above its size, a piece that is too small, or
            too little main memory.
    """
    samples = latent.get("samples")
    check_plain(samples, "samples")
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
    frames = decode(vae, samples, "the frames", ADVICE, side)
    return frames[:, : crop[0], : crop[1]]


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
    check_main_memory(
        2 * len(samples) * decoding.frames * decoding.pixels * PIXEL_BYTES, what, advice
    )
    limit = (
        (side, side) if side else choose_piece(vae, decoding.size, decoding.cell, decoding.needed)
    )
    while True:
        try:
            return decoding.run(limit)
        except RuntimeError as error:
            smaller = halve(decoding.size, limit, decoding.cell)
            if not is_out_of_memory(error) or smaller is None:
                raise
        # Outside of the except block, where the tensors of the failed call are free.
        log.warning(
            "out of memory with %s pixels at a time; decoding begins anew, with %s.",
            decoding.pixels_of(limit), decoding.pixels_of(smaller),
        )  # fmt: skip
        limit = smaller
        comfy.model_management.soft_empty_cache()


class Decoding:
    """A latent and the VAE that decodes it, in pieces of any size."""

    def __init__(self, vae: Any, samples: Tensor):
        self.vae, self.samples = vae, samples
        self.cell = vae.spacial_compression_decode()
        self.size: Size = (samples.shape[-2] * self.cell, samples.shape[-1] * self.cell)
        self.pixels = self.size[0] * self.size[1]
        self.latent_frames = samples.shape[2] if samples.ndim == 5 else 1
        self.frames = 1 + (self.latent_frames - 1) * (vae.temporal_compression_decode() or 1)

    def needed(self, piece: Size, latent_frames: int = 0) -> float:
        """Estimate the bytes on the device for a piece, by default of all latent frames."""
        shape = [*self.samples.shape[:-2], piece[0] // self.cell, piece[1] // self.cell]
        if latent_frames and len(shape) == 5:
            shape[2] = latent_frames
        used = self.vae.memory_used_decode(tuple(shape), self.vae.vae_dtype)
        return used + pixels_on_device(self.vae, self.frames, piece)

    def at_a_time(self, piece: Size) -> int:
        """Find how many latent frames fit at a time: all, where fewer would need no less.

        Causal VAEs keep a few frames in memory, however long the clip is; others hold all.
        """
        count = self.latent_frames
        room = USABLE_MEMORY * comfy.model_management.get_total_memory(self.vae.device)
        while count > LEAST_FRAMES and self.needed(piece, count) > room:
            fewer = max(LEAST_FRAMES, ceil(count / 2))
            if self.needed(piece, fewer) >= self.needed(piece, count):
                break
            count = fewer
        return count

    def pixels_of(self, limit: Size) -> str:
        """Format the width and height of the pieces."""
        rows, columns = real_piece(self.size, limit, self.cell)
        return f"{columns} x {rows}"

    def run(self, limit: Size) -> Tensor:
        """Decode in pieces of this size at most; the host's own tiles where time is cut, too."""
        piece = real_piece(self.size, limit, self.cell)
        count, whole = self.at_a_time(piece), piece == self.size
        memory = self.needed(piece, count)
        log_piece(self.vae, self.size, limit, self.cell, memory, "decode")
        if count < self.latent_frames or (getattr(self.vae, "handles_tiling", False) and not whole):
            return self._host_tiles(piece, count)
        return self._pieces(limit, whole)

    def _pieces(self, limit: Size, whole: bool) -> Tensor:
        bar = comfy.utils.ProgressBar(len(boxes(self.size, limit, PIECE_OVERLAP, self.cell)))
        vae, done = _without_fallback(self.vae), 0

        def one(box: Box) -> Tensor:
            nonlocal done
            comfy.model_management.throw_exception_if_processing_interrupted()
            cells = (slice(part.start // self.cell, part.stop // self.cell) for part in box)
            frames = vae.decode(self.samples[(..., *cells)])
            done += 1
            bar.update_absolute(done)
            return frames.reshape(-1, *frames.shape[-3:]).movedim(-1, 1)

        frames = blend(one, self.size, limit, PIECE_OVERLAP, self.cell).movedim(1, -1)
        # Shares of a full white sum to more than 1 by a rounding.
        return frames if whole else frames.clamp_(0, 1)

    def _host_tiles(self, piece: Size, count: int) -> Tensor:
        time = {}
        if count < self.latent_frames:
            time = {"tile_t": count, "overlap_t": max(1, count // 4)}
            log.info(
                "%d of %d latent frames at a time, in the host's own tiles.",
                count, self.latent_frames,
            )  # fmt: skip
        rows, columns = (side // self.cell for side in piece)
        frames = self.vae.decode_tiled(
            self.samples, tile_x=columns, tile_y=rows, overlap=ceil(PIECE_OVERLAP / self.cell),
            **time,
        )  # fmt: skip
        return frames.reshape(-1, *frames.shape[-3:])


def pixels_on_device(vae: Any, frames: int, piece: Size) -> float:
    """Count the bytes of the frames of a piece in the precision of the VAE."""
    return frames * piece[0] * piece[1] * 3 * vae.vae_dtype.itemsize


def _without_fallback(vae: Any) -> Any:
    """Copy a VAE object so that it raises where it would take smaller tiles by itself."""

    def refuse(name: str) -> Callable:
        def out_of_memory(*args: Any, **kwargs: Any) -> None:
            raise torch.cuda.OutOfMemoryError(
                f"{label()}: out of memory while the VAE decodes ({name})."
            )

        return out_of_memory

    shallow = copy.copy(vae)
    for name in FALLBACKS:
        if hasattr(shallow, name):
            setattr(shallow, name, refuse(name))
    return shallow


def _check_kind(vae: Any, latent: dict, samples: Tensor) -> None:
    """Refuse sound, and latents of another VAE."""
    sound = latent.get("type") == "audio" or vae.latent_dim == 1
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
