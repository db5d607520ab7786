"""Encode MiniMax H3's first and last frame for the size after a switch, as its own node does.

The conditioning holds their latents only, on the grid of the video before the switch.

Dims: T latent frames, H, W latent cells.
"""

from dataclasses import dataclass
from typing import Any

import comfy.utils
from torch import Tensor

from ..audio_length import pixel_frames
from ..conditioning import KEYFRAMES, Conditioning, pad_cells
from ..models import cell_side
from ..nested import needs_audio
from ..vae import check_picture, encode_pictures

CHANNELS = 24
"""Of MiniMax H3's video latents."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Pictures:
    """Pictures at the ends of a video, and what encodes them."""

    first_frame: Tensor | None = None
    """IMAGE [B, rows, columns, 3]; the first of it."""
    last_frame: Tensor | None = None
    """IMAGE, as `first_frame`."""
    vae: Any = None
    """VAE of the model."""

    def __post_init__(self) -> None:
        given = self.first_frame is not None or self.last_frame is not None
        if given != (self.vae is not None):
            raise ValueError(
                "first_frame and last_frame are encoded by vae, got "
                f"{'pictures without it' if given else 'a vae without a picture'}; connect both, "
                "or neither."
            )
        for name in ("first_frame", "last_frame"):
            if getattr(self, name) is not None:
                check_picture(getattr(self, name), name)

    def encoded(
        self, model: Any, conds: dict[str, Conditioning], frames: int, size: tuple[int, int]
    ) -> dict[str, Conditioning]:
        """Replace the latents of keyframes by those of these pictures at another size.

        Args:
            model: MODEL that the conditioning is for.
            conds: name -> CONDITIONING; not changed.
            frames: T of the video.
            size: rows and columns of the video.

        Raises:
            ValueError: another model than MiniMax H3, or no keyframe where a picture belongs.
        """
        if self.vae is None:
            return conds
        if not needs_audio(model):
            raise ValueError(
                "first_frame and last_frame are for MiniMax H3, got "
                f"{type(model.model).__name__}; disconnect them, or connect positive_low where "
                "the node has it."
            )
        latents = self._latents(frames, [side * cell_side(model) for side in size])
        found: set[int] = set()
        out = {
            name: [[entry[0], self._fit(entry[1], latents, found), *entry[2:]] for entry in cond]
            for name, cond in conds.items()
        }
        for index in latents.keys() - found:
            which = "last_frame" if index else "first_frame"
            raise ValueError(
                f"{which} belongs to a keyframe at frame {index}, got conditioning without one; "
                f"connect it to {which} of MiniMaxH3ImageToVideo too, or take it out here."
            )
        return out

    def _latents(self, frames: int, sides: list[int]) -> dict[int, Tensor]:
        """Encode the pictures: pixel frame -> latent [1, 24, 1, H, W]."""
        last = pixel_frames(frames) - 1
        # The first one is stretched, the last one cropped, as the host's node does.
        given = ((0, self.first_frame, "disabled"), (last, self.last_frame, "center"))
        return {
            index: self._encode(picture, sides, crop)
            for index, picture, crop in given if picture is not None
        }  # fmt: skip

    def _encode(self, picture: Tensor, sides: list[int], crop: str) -> Tensor:
        height, width = sides
        pixels = picture[:1, ..., :3].movedim(-1, 1)
        pixels = comfy.utils.common_upscale(pixels, width, height, "lanczos", crop)
        latent = encode_pictures(self.vae, pixels.movedim(1, -1), "an encoded keyframe")
        if latent.ndim != 5 or tuple(latent.shape[1:3]) != (CHANNELS, 1):
            raise ValueError(
                f"expected the video VAE of MiniMax H3, of {CHANNELS} channels, got one that makes "
                f"{tuple(latent.shape)} of a picture; connect minimax_h3_video_vae."
            )
        return pad_cells(latent)

    def _fit(
        self, options: dict[str, Any], latents: dict[int, Tensor], found: set[int]
    ) -> dict[str, Any]:
        """Copy an entry's options with new latents for single frames; note where there was one."""
        if not options.get(KEYFRAMES):
            return options
        fitted = []
        for keyframe in options[KEYFRAMES]:
            index, latent = keyframe["resolved_frame_index"], keyframe.get("latent")
            if index in latents and latent is not None and latent.shape[2] == 1:
                found.add(index)
                keyframe = {**keyframe, "latent": latents[index]}
            fitted.append(keyframe)
        return {**options, KEYFRAMES: fitted}
