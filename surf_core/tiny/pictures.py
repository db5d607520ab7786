"""Lay out videos of several methods side by side, as a sheet and as an mp4.

Dims: B prompts, T frames.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import torch
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

FPS = 8
_GAP, _LINE, _TEXT = 8, 17, 13
_INK, _PALE, _RIGHT, _WRONG = "#1a1a1a", "#606060", "#167a2e", "#b3261e"


@dataclass(frozen=True, kw_only=True, slots=True)
class Column:
    """What one method made of the prompts."""

    title: tuple[str, ...]
    """Lines above the column, the first one its name."""
    videos: Tensor
    """[B, 3, T, H, W] in 0..1; sizes may differ between columns."""
    answers: list[dict[str, bool]] = field(default_factory=list)
    """For each video: what its prompt names, and whether it is right; empty for none."""


def _pictures(video: Tensor, size: int) -> np.ndarray:
    """Bring [3, T, H, W] in 0..1 to [T, size, size, 3] bytes, as a player would show it."""
    frames = video.transpose(0, 1)
    if video.shape[-1] != size:
        frames = torch.nn.functional.interpolate(
            frames, size=(size, size), mode="bicubic", antialias=True
        )
    return (frames.clamp(0, 1) * 255).round().byte().permute(0, 2, 3, 1).numpy()


def _lay_out(
    prompts: list[str], columns: list[Column], size: int, shown: tuple[int, ...]
) -> Image.Image:
    """Draw one page: a row per prompt, a column per method, in each cell the shown frames."""
    named = max((len(words) for column in columns for words in column.answers), default=0)
    wide, tall = len(shown) * size + _GAP, size + (1 + named) * _LINE + _GAP
    head = 2 * _GAP + _LINE * max(len(column.title) for column in columns)
    height = head + tall * len(prompts)
    page = Image.new("RGB", (wide * len(columns) + _GAP, height + height % 2), "white")
    pen, font = ImageDraw.Draw(page), ImageFont.load_default(_TEXT)
    for row, prompt in enumerate(prompts):
        pen.text((_GAP, head + row * tall), prompt, fill=_INK, font=font)
    for place, column in enumerate(columns):
        left = _GAP + place * wide
        for line, words in enumerate(column.title):
            ink = _PALE if line else _INK
            pen.text((left, _GAP + line * _LINE), words, fill=ink, font=font)
        for row, video in enumerate(column.videos):
            top = head + row * tall + _LINE
            for index, frame in enumerate(_pictures(video[:, list(shown)], size)):
                page.paste(Image.fromarray(frame), (left + index * size, top))
            answers = column.answers[row] if column.answers else {}
            for line, (words, right) in enumerate(answers.items()):
                text = f"{words}: {'right' if right else 'wrong'}"
                ink = _RIGHT if right else _WRONG
                pen.text((left, top + size + line * _LINE), text, fill=ink, font=font)
    return page


def contact_sheet(
    path: Path,
    prompts: list[str],
    columns: list[Column],
    size: int = 160,
    shown: tuple[int, ...] = (0, -1),
) -> None:
    """Write a picture with a row per prompt and a column per method.

    Args:
        path: the file; its ending says which format.
        prompts: B titles.
        columns: methods.
        size: pixels along a side of a shown frame.
        shown: frames of each video, side by side.
    """
    _lay_out(prompts, columns, size, shown).save(path)


def moving_sheet(
    path: Path, prompts: list[str], columns: list[Column], size: int = 256, turns: int = 4
) -> None:
    """Write the same as an mp4 that plays all videos at once, `turns` times."""
    frames = columns[0].videos.shape[2]
    pages = [np.array(_lay_out(prompts, columns, size, (frame,))) for frame in range(frames)]
    _encode(path, pages * turns, FPS)


def write_mp4(path: Path, video: Tensor, size: int = 256, fps: int = FPS) -> None:
    """Write one video [3, T, H, W] in 0..1 as H.264."""
    _encode(path, list(_pictures(video, size)), fps)


def _encode(path: Path, pages: Sequence[np.ndarray], fps: int) -> None:
    """Write pages [H, W, 3], bytes, one size with even sides, as H.264."""
    with av.open(str(path.absolute()), "w") as container:
        stream = container.add_stream("libx264", rate=fps, options={"crf": "18"})
        stream.height, stream.width = pages[0].shape[:2]
        stream.pix_fmt = "yuv420p"
        stream.time_base = Fraction(1, fps)
        for page in pages:
            frame = av.VideoFrame.from_ndarray(np.ascontiguousarray(page), format="rgb24")
            container.mux(stream.encode(frame))
        container.mux(stream.encode())
