"""Frames as the preview: a video of the user's own, or what an upscale model made of the preview.

Dims: B batch, C latent channels, T latent frames, H, W latent cells, F pixel frames.
"""

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ..models import cell_side
from ..nested import Parts, check_parts, video_channels
from ..node import NodeLog
from ..vae import (
    check_picture,
    check_vae,
    encode_frames,
    frames_of,
    latent_frames_for,
    with_frame_count,
)

log = NodeLog(__name__)

Size = tuple[int, int]
"""Height and width in pixels, or rows and columns in cells."""


def check_preview(has_latent: bool, has_image: bool) -> None:
    """Refuse a refinement of nothing."""
    if not (has_latent or has_image):
        raise ValueError(
            "expected a preview, got neither a latent nor an image; connect the latent that was "
            "sampled, or the frames of a video as image."
        )


def check_image_vae(has_image: bool, has_vae: bool) -> None:
    """Refuse frames that nothing could encode."""
    if has_image and not has_vae:
        raise ValueError(
            "an image is encoded, which needs a VAE, got none; connect the VAE of the model."
        )


@dataclass(frozen=True, slots=True, eq=False)
class FramesIn:
    """Frames [F, height, width, 3] and the VAE that encodes them."""

    image: Tensor
    vae: Any

    def __post_init__(self):
        check_picture(self.image, "image")
        check_image_vae(True, self.vae is not None)

    @property
    def size(self) -> Size:
        return tuple(self.image.shape[1:3])

    def stand_in(self, model: Any) -> Parts:
        """Return zeros of the shape that the frames have in the latent, sides rounded up.

        Several pictures are a batch to a model of images.

        Raises:
            ValueError: a VAE of another model, or a model that needs audio.
        """
        cell, channels, count = cell_side(model), video_channels(model), len(self.image)
        cells = [-(-side // cell) for side in self.size]
        shape = [count, channels, *cells]
        if model.get_model_object("latent_format").latent_dimensions == 3:
            shape = [1, channels, latent_frames_for(self.vae, count), *cells]
        parts = Parts(torch.zeros(()).expand(shape))
        check_vae(self.vae, parts.video)
        check_parts(model, parts, "image")
        return parts

    def check_beside(self, samples: Tensor, cell: int, size: Size, pixels: Size) -> None:
        """Refuse frames that are not those of a latent, at its size or at the target's.

        Args:
            samples: [B, C, (T,) H, W], the latent beside them.
            cell: pixels of a latent cell.
            size, pixels: of the target, rows and columns and pixels.
        """
        check_vae(self.vae, samples)
        rows, columns = samples.shape[-2:]
        low, grid = (rows * cell, columns * cell), (size[0] * cell, size[1] * cell)
        if self.size not in (low, pixels, grid):
            raise ValueError(
                f"expected an image of the latent's {_said(low)} pixels or of the target's "
                f"{_said(pixels)}, got {_said(self.size)}; scale it to the target with Upscale "
                "Image, or disconnect the latent, to have frames of any size enlarged."
            )
        count, video = len(samples), samples.ndim == 5
        whole = count * (frames_of(self.vae, samples.shape[2]) if video else 1)
        fills = video and count == 1 and self.held == samples.shape[2]
        if len(self.image) != whole and not fills:
            raise ValueError(
                f"expected an image of {whole} frames, which the latent makes, got "
                f"{len(self.image)}; connect the frames of this latent, or disconnect the latent."
            )

    @property
    def held(self) -> int:
        """Latent frames that hold all frames."""
        return latent_frames_for(self.vae, len(self.image))

    def encode(self, samples: Tensor, size: Size, pixels: Size) -> Tensor:
        """Encode the frames at the target, enlarged unless they have its size.

        Args:
            samples: [B, C, (T,) H, W], whose batch, channels and frames come out.
            size: rows and columns of the target.
            pixels: height and width that were asked for; what the model needs more repeats the
                edge, and is to be cropped.

        Returns:
            [B, C, (T,) *size], fp32.
        """
        cell = self.vae.spacial_compression_encode()
        grid = (size[0] * cell, size[1] * cell)
        fit = grid if self.size == grid else pixels
        how = "taken as they are" if self.size == fit else f"enlarged to {_said(fit)}"
        log.info("%d frames of %s pixels, %s.", len(self.image), _said(self.size), how)
        clips = self.image.movedim(-1, 1).chunk(len(samples))
        return encode_frames(self.vae, clips, samples, size, fit).to("cpu")

    def counted(self, latent: dict, video: Tensor) -> dict:
        """Return a LATENT that carries the count of the frames, where the VAE made them more.

        Args:
            video: of the latent.
        """
        if video.ndim != 5 or len(video) != 1:
            return latent
        return with_frame_count(latent, self.vae, len(self.image))


def _said(size: Size) -> str:
    return f"{size[1]} x {size[0]}"
