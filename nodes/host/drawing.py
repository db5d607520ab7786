"""Draw pictures, and show them in a node."""

import inspect

import torch
from comfy_api.latest import io, ui
from PIL import Image, ImageFont
from torch import Tensor

from .disk import writing


def default_font(size: int) -> ImageFont.ImageFont | ImageFont.FreeTypeFont:
    """Return Pillow's own font; before 10.1 it has one size."""
    scales = "size" in inspect.signature(ImageFont.load_default).parameters
    return ImageFont.load_default(size) if scales else ImageFont.load_default()


def pixels_of(image: Image.Image) -> Tensor:
    """Turn a picture into [rows, columns, 3] in 0..1, fp32."""
    columns, rows = image.size
    data = torch.frombuffer(bytearray(image.convert("RGB").tobytes()), dtype=torch.uint8)
    return data.view(rows, columns, 3).float() / 255


def saved_frames(images: Tensor, name: str, fps: float, *, lossless: bool) -> ui.SavedImages:
    """Save frames as one animation in the host's folder for temporary files, to be shown.

    Args:
        images: IMAGE [F, rows, columns, 3].
        name: of the file.
        lossless: for pictures that hold text.

    Raises:
        ValueError: the folder takes no file.
    """
    with writing("temp"):
        saved = ui.ImageSaveHelper.save_animated_webp(
            images, name, io.FolderType.temp, cls=None, fps=fps, lossless=lossless,
            quality=80, method=4 if lossless else 0,
        )  # fmt: skip
    return ui.SavedImages([saved], is_animated=len(images) > 1)
