"""Lay out the demo's videos as one page: a block for each prompt, and a bar for each cost.

Dims: B prompts, T frames.
"""

from dataclasses import dataclass, field
from math import ceil
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

from .pictures import encode, pictures

_GROUND, _CARD, _INK, _PALE = "#0f1216", "#1a1f26", "#eef1f4", "#98a2ad"
_SURF, _PLAIN, _RIGHT, _WRONG = "#3fc1c9", "#5c6773", "#5fd38d", "#ff7a6b"
_EDGE, _GAP, _PAD, _LINE, _CAPTION, _BAR = 32, 10, 14, 28, 46, 28
_TITLE, _TEXT, _SMALL, _SMALL_LINE = 34, 16, 14, 18
_PROMPT = 2 * _SMALL_LINE + 4
_COSTS = "Operations of a video, earlier stages included, and how much is as its prompt says"
_ACROSS = 2
"""Blocks of a row, and large videos of a block."""


def _width(words: str) -> int:
    """Measure small words, in pixels."""
    return round(ImageFont.load_default(_SMALL).getlength(words))


def wrapped(words: str, width: int) -> list[str]:
    """Break words into at most two lines of this width in pixels; what is left is cut."""
    lines = [""]
    for word in words.split():
        if _width(f"{lines[-1]} {word}") <= width:
            lines[-1] = f"{lines[-1]} {word}".strip()
        elif len(lines) < 2:
            lines.append(word)
        else:
            lines[-1] += " ..."
            break
    return lines


@dataclass(frozen=True, kw_only=True, slots=True)
class Panel:
    """What one method made of the prompts."""

    name: str
    videos: Tensor
    """[B, 3, T, H, W] in 0..1; sizes may differ between panels."""
    gflops: float
    """Cost of one video."""
    answers: list[dict[str, bool]] = field(default_factory=list)
    """For each video: what its prompt names, and whether it is right."""
    ours: bool = False
    """Whether it is drawn in the colour of the method."""

    @property
    def size(self) -> str:
        """Pixels along a side, for people."""
        return f"{self.videos.shape[-1]} px"


class Poster:
    """A page of all methods; the first and the last one are shown large, the others below them.

    Args:
        prompts: B.
        panels: methods; at least three.
        title, note: the words at the top.
        small: pixels along a side of a small video.
    """

    def __init__(
        self, prompts: list[str], panels: list[Panel], title: str, note: str, small: int = 176
    ):
        self.panels, self.small = panels, small
        count = len(panels) - _ACROSS
        self.inner = count * small + (count - 1) * _GAP
        self.large = (self.inner - _GAP) // _ACROSS
        wide = self.inner + 2 * _PAD
        tall = self.large + small + 2 * _CAPTION + _PROMPT + _PAD
        lines, head = ceil(len(prompts) / _ACROSS), _EDGE + _TITLE + 2 * _LINE
        foot = head + lines * (tall + _GAP) + _GAP
        width = 2 * _EDGE + _ACROSS * wide + _GAP
        height = foot + _LINE + len(panels) * _BAR + _EDGE
        self.page = Image.new("RGB", (width + width % 2, height + height % 2), _GROUND)
        self.pen = ImageDraw.Draw(self.page)
        self._places: list[tuple[int, int, np.ndarray]] = []
        self._say((_EDGE, _EDGE - _GAP), title, _INK, _TITLE)
        self._say((_EDGE, _EDGE + _TITLE), note, _PALE)
        for row, prompt in enumerate(prompts):
            left = _EDGE + (row % _ACROSS) * (wide + _GAP)
            top = head + row // _ACROSS * (tall + _GAP)
            self.pen.rounded_rectangle((left, top, left + wide, top + tall), 10, fill=_CARD)
            self._block(row, prompt, left + _PAD, top + _PAD)
        self._bars(_EDGE, foot, width - 2 * _EDGE)

    def _say(self, at: tuple[int, int], words: str, ink: str, size: int = _TEXT) -> None:
        self.pen.text(at, words, fill=ink, font=ImageFont.load_default(size))

    def _block(self, row: int, prompt: str, left: int, top: int) -> None:
        """Draw what all methods made of one prompt."""
        for line, words in enumerate(wrapped(prompt, self.inner)):
            self._say((left, top - 4 + line * _SMALL_LINE), words, _INK, _SMALL)
        top += _PROMPT
        plain, *between, refined = self.panels
        self._video(plain, row, left, top, self.large)
        self._video(refined, row, left + self.inner - self.large, top, self.large)
        for place, panel in enumerate(between):
            across = left + place * (self.small + _GAP)
            self._video(panel, row, across, top + self.large + _CAPTION, self.small)

    def _video(self, panel: Panel, row: int, left: int, top: int, side: int) -> None:
        """Keep a place for a video, and draw what is below it."""
        self._places.append((left, top, pictures(panel.videos[row], side)))
        below = top + side + 4
        self._say((left, below), panel.name, _SURF if panel.ours else _INK, _SMALL)
        self._say((int(left + side - _width(panel.size)), below), panel.size, _PALE, _SMALL)
        at = left
        for words, right in (panel.answers[row] if panel.answers else {}).items():
            ink, noun = _RIGHT if right else _WRONG, words.split()[-1]
            self._mark(at, below + 21, right, ink)
            self._say((at + 15, below + 17), noun, ink, _SMALL)
            at += _width(noun) + 30

    def _mark(self, left: int, top: int, right: bool, ink: str) -> None:
        """Draw a tick or a cross, so that colour is not all that tells them apart."""
        if right:
            self.pen.line(
                [(left, top + 5), (left + 4, top + 9), (left + 11, top)], fill=ink, width=2
            )
            return
        for ends in ((top, top + 9), (top + 9, top)):
            self.pen.line([(left, ends[0]), (left + 9, ends[1])], fill=ink, width=2)

    def _bars(self, left: int, top: int, width: int) -> None:
        """Draw what each method costs, and how much of it is right."""
        self._say((left, top), _COSTS, _PALE)
        most, start = max(panel.gflops for panel in self.panels), left + 210
        room = width - 210 - 210
        for line, panel in enumerate(self.panels):
            at, ink = top + _LINE + line * _BAR, _SURF if panel.ours else _PLAIN
            self._say((left, at), f"{panel.name}, {panel.size}", _INK)
            stop = start + max(4, round(room * panel.gflops / most))
            self.pen.rounded_rectangle((start, at + 1, stop, at + 17), 4, fill=ink)
            answers = [right for named in panel.answers for right in named.values()]
            counts = f", {sum(answers)} of {len(answers)} right" if answers else ""
            self._say((stop + _GAP, at), f"{panel.gflops:.1f} GFLOPs{counts}", _INK)

    def frame(self, index: int) -> Image.Image:
        """Draw the page with this frame of every video."""
        page = self.page.copy()
        for left, top, frames in self._places:
            page.paste(Image.fromarray(frames[index]), (left, top))
        return page

    def save(self, path: Path) -> None:
        """Write the page with the middle frames; the ending says which format."""
        self.frame(self.panels[0].videos.shape[2] // 2).save(path)

    def play(self, path: Path, turns: int = 4) -> None:
        """Write an mp4 that plays all videos at once, `turns` times."""
        count = self.panels[0].videos.shape[2]
        encode(path, [self.frame(index) for index in range(count)] * turns)
