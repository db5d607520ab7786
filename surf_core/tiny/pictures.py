"""Bring videos to pictures: frames, a sheet of several methods, an mp4.

Dims: B prompts, T frames.
"""

from collections.abc import Sequence
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import torch
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

FPS = 8
_GAP, _LINE, _TEXT = 8, 17, 13
_INK = "#1a1a1a"


def pictures(video: Tensor, size: int) -> np.ndarray:
    """Bring [3, T, H, W] in 0..1 to [T, size, size, 3] bytes, as a player would show it."""
    frames = video.transpose(0, 1)
    if video.shape[-1] != size:
        frames = torch.nn.functional.interpolate(
            frames, size=(size, size), mode="bicubic", antialias=True
        )
    return (frames.clamp(0, 1) * 255).round().byte().permute(0, 2, 3, 1).numpy()


def contact_sheet(
    path: Path,
    prompts: list[str],
    columns: dict[str, Tensor],
    size: int = 160,
    shown: tuple[int, ...] = (0, -1),
) -> None:
    """Write a picture with a row per prompt and a column per method.

    Args:
        path: the file; its ending says which format.
        prompts: B titles.
        columns: name of a method -> videos [B, 3, T, H, W] in 0..1, whose sizes may differ.
        size: pixels along a side of a shown frame.
        shown: frames of each video, side by side.
    """
    wide, tall = len(shown) * size + _GAP, size + _LINE + _GAP
    head = 2 * _GAP + _LINE
    page = Image.new("RGB", (wide * len(columns) + _GAP, head + tall * len(prompts)), "white")
    pen, font = ImageDraw.Draw(page), ImageFont.load_default(_TEXT)
    for row, prompt in enumerate(prompts):
        pen.text((_GAP, head + row * tall), prompt, fill=_INK, font=font)
    for place, (name, videos) in enumerate(columns.items()):
        left = _GAP + place * wide
        pen.text((left, _GAP), name, fill=_INK, font=font)
        for row, video in enumerate(videos):
            for index, frame in enumerate(pictures(video[:, list(shown)], size)):
                at = (left + index * size, head + row * tall + _LINE)
                page.paste(Image.fromarray(frame), at)
    page.save(path)


def write_mp4(path: Path, video: Tensor, size: int = 256, fps: int = FPS) -> None:
    """Write one video [3, T, H, W] in 0..1 as H.264."""
    encode(path, list(pictures(video, size)), fps)


def encode(path: Path, pages: Sequence[np.ndarray | Image.Image], fps: int = FPS) -> None:
    """Write pages of bytes [H, W, 3], one size with even sides, as H.264."""
    frames = [np.ascontiguousarray(page) for page in pages]
    with av.open(str(path.absolute()), "w") as container:
        stream = container.add_stream("libx264", rate=fps, options={"crf": "18"})
        stream.height, stream.width = frames[0].shape[:2]
        stream.pix_fmt = "yuv420p"
        stream.time_base = Fraction(1, fps)
        for frame in frames:
            video = av.VideoFrame.from_ndarray(frame, format="rgb24")
            container.mux(stream.encode(video))
        container.mux(stream.encode())
