"""Write videos as mp4, and a contact sheet to compare them.

Dims: B batch, T frames.
"""

from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import torch
from PIL import Image, ImageDraw
from torch import Tensor

_LABEL = 16
_GAP = 6


def _frames(video: Tensor, size: int) -> np.ndarray:
    """Enlarge [3, T, H, W] in 0..1 to [T, size, size, 3] bytes, without smoothing."""
    frames = torch.nn.functional.interpolate(video.transpose(0, 1), size=(size, size))
    return (frames.clamp(0, 1) * 255).round().byte().permute(0, 2, 3, 1).numpy()


def write_mp4(path: Path, video: Tensor, size: int = 256, fps: int = 4) -> None:
    """Write one video [3, T, H, W] in 0..1 as H.264."""
    with av.open(str(path.absolute()), "w") as container:
        stream = container.add_stream("libx264", rate=fps)
        stream.width = stream.height = size
        stream.pix_fmt = "yuv420p"
        stream.time_base = Fraction(1, fps)
        for frame in _frames(video, size):
            container.mux(stream.encode(av.VideoFrame.from_ndarray(frame, format="rgb24")))
        container.mux(stream.encode())


def contact_sheet(
    path: Path, prompts: list[str], columns: dict[str, Tensor], size: int = 128
) -> None:
    """Write a PNG with a row per prompt and a column per method: its first and last frame.

    Args:
        path: the file.
        prompts: B titles.
        columns: method -> videos [B, 3, T, H, W] in 0..1; sizes may differ between methods.
        size: pixels of a shown frame.
    """
    wide, tall = 2 * size + _GAP, size + _LABEL + _GAP
    sheet = Image.new(
        "RGB", (wide * len(columns) + _GAP, tall * len(prompts) + _LABEL + _GAP), "white"
    )
    pen = ImageDraw.Draw(sheet)
    for column, (name, videos) in enumerate(columns.items()):
        left = _GAP + column * wide
        pen.text((left, 2), name, fill="black")
        for row, video in enumerate(videos):
            top = _LABEL + _GAP + row * tall
            if column == 0:
                pen.text((left, top), prompts[row], fill="#555555")
            frames = _frames(video, size)
            for index, frame in enumerate((frames[0], frames[-1])):
                sheet.paste(Image.fromarray(frame), (left + index * size, top + _LABEL))
    sheet.save(path)
