"""Lay out the demo's videos: a scene for each prompt, as an mp4, and a sheet of all of them.

Dims: B prompts, T frames.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from textwrap import shorten, wrap

from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

from .pictures import FPS, encode, pictures

GROUND, INK, PALE = "#0f1216", "#ffffff", "#b4bdc7"
SURF, RIGHT, WRONG = "#3fc1c9", "#5fd38d", "#ff7a6b"
SCENE, TILE, SHEET_TILE = (1080, 1376), 320, 256
"""Size of a scene, and pixels along a side of a video there and on the sheet."""
EDGE, ACROSS = 24, 3
TITLE, TEXT, NOTE, SMALL, TINY = 50, 28, 26, 24, 20
HEAD, MARK, BAR, FOOT = 34, 26, 34, 58
TURNS, HELD = 2, FPS // 2
"""How often a scene plays, and for how many frames its last picture stays."""
HOW = (
    "Per video of 13 frames: operations of the models, seconds without decoding, earlier stages "
    "included. A program looks for the named colours; most frames decide."
)
"""How the page is to be read."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Panel:
    """What one method made of the prompts."""

    name: str
    videos: Tensor
    """[B, 3, T, H, W] in 0..1; sizes may differ between panels."""
    gflops: float
    """Cost of one video, above 0."""
    seconds: float
    """Time of one video."""
    faults: list[list[tuple[str, str]]]
    """For each video: what its prompt names, and what is wrong with it; "" where it is right."""
    ours: bool = False
    """Whether it is a stage of the method, in the order of the panels."""

    @property
    def ink(self) -> str:
        return SURF if self.ours else INK

    @property
    def size(self) -> str:
        return f"{self.videos.shape[-1]} px"

    @property
    def right(self) -> tuple[int, int]:
        """Things that are right, of all that are named."""
        faults = [fault for named in self.faults for _, fault in named]
        return faults.count(""), len(faults)


class DarkPage:
    """A dark picture to write on."""

    def __init__(self, size: tuple[int, int]):
        self.image = Image.new("RGB", size, GROUND)
        self.pen = ImageDraw.Draw(self.image)

    def say(
        self, at: tuple[int, int], words: str, ink: str = INK, size: int = SMALL, anchor: str = "la"
    ) -> None:
        self.pen.text(at, words, fill=ink, font=ImageFont.load_default(size), anchor=anchor)

    def paragraph(
        self, at: tuple[int, int], words: str, width: int, ink: str = INK, size: int = TEXT
    ) -> None:
        """Write at most two lines."""
        lines = wrap(words, int(width / (0.46 * size)), max_lines=2, placeholder=" ...")
        for line, part in enumerate(lines):
            self.say((at[0], at[1] + line * (size + 6)), part, ink, size)

    def marks(self, panel: Panel, row: int, left: int, top: int, width: int) -> None:
        """Write a line for each thing, with a tick or with a cross and what is wrong."""
        said = [f"{noun}: {fault}" if fault else noun for noun, fault in panel.faults[row]]
        beside = min((0, 1), key=lambda line: len(said[line]) if line < len(said) else 0)
        self.say((left + width, top + beside * MARK), panel.size, PALE, anchor="ra")
        for line, (words, (_, fault)) in enumerate(zip(said, panel.faults[row], strict=True)):
            at, ink = top + line * MARK, WRONG if fault else RIGHT
            low, high = at + 18, at + 5
            if fault:
                self.pen.line([(left + 1, high), (left + 14, low)], fill=ink, width=3)
                self.pen.line([(left + 1, low), (left + 14, high)], fill=ink, width=3)
            else:
                tick = [(left, at + 12), (left + 6, low), (left + 17, high)]
                self.pen.line(tick, fill=ink, width=3)
            self.say((left + 24, at), words, ink)

    def bars(self, panels: list[Panel], left: int, top: int, width: int, how: str) -> None:
        """Draw what each method costs, and how much of all prompts is right."""
        self.paragraph((left, top), how, width, PALE, TINY)
        top += FOOT
        most, start = max(panel.gflops for panel in panels), left + 300
        room = width - 300 - 400
        best = max(panel.right[0] for panel in panels)
        for line, panel in enumerate(panels):
            at = top + line * BAR
            self.say((left, at), panel.name, panel.ink)
            stop = start + max(4, round(room * panel.gflops / most))
            self.pen.rounded_rectangle(
                (start, at + 5, stop, at + 23), 4, fill=SURF if panel.ours else PALE
            )
            digits = 1 if panel.seconds >= 1 else 2
            cost = f"{panel.gflops:.1f} GFLOPs, {panel.seconds:.{digits}f} s"
            self.say((stop + 12, at), cost)
            right, count = panel.right
            ink = RIGHT if right == best > 0 else INK
            if count:
                self.say((left + width, at), f"{right} of {count} right", ink, anchor="ra")


class Poster:
    """Scenes and a sheet of what several methods made of the same prompts.

    Args:
        prompts: B.
        panels: six methods: three to compare with, then the three stages.
        title, note: the words at the top; the note in two lines at most.
        aside: words after HOW.
    """

    def __init__(
        self, prompts: list[str], panels: list[Panel], title: str, note: str, aside: str = ""
    ):
        self.prompts, self.panels, self.title = prompts, panels, title
        self.note, self.how = note, f"{HOW} {aside}"
        self.marks = MARK * max(2, *(len(named) for panel in panels for named in panel.faults))

    def _head(self, page: DarkPage, width: int) -> None:
        page.say((EDGE, EDGE - 6), self.title, INK, TITLE)
        page.paragraph((EDGE, 92), self.note, width - 2 * EDGE, PALE, NOTE)

    def scene(self, row: int) -> Iterator[Image.Image]:
        """Draw every frame of what all methods made of one prompt."""
        width, height = SCENE[0], SCENE[1] + 2 * (self.marks - 2 * MARK)
        page, gap = DarkPage((width, height)), (width - 2 * EDGE - ACROSS * TILE) // (ACROSS - 1)
        self._head(page, width)
        page.paragraph((EDGE, 172), self.prompts[row], width - 2 * EDGE)
        places = []
        for place, panel in enumerate(self.panels):
            left = EDGE + place % ACROSS * (TILE + gap)
            top = 246 + place // ACROSS * (HEAD + TILE + self.marks + 16)
            page.say((left, top), panel.name, panel.ink)
            page.marks(panel, row, left, top + HEAD + TILE + 6, TILE)
            places.append((left, top + HEAD, pictures(panel.videos[row], TILE)))
            if panel.ours and place % ACROSS:
                tip, middle = left - gap // 2 + 7, top + HEAD + TILE // 2
                back = tip - 14
                page.pen.polygon(
                    [(back, middle - 12), (back, middle + 12), (tip, middle)], fill=SURF
                )
        foot = height - FOOT - len(self.panels) * BAR - 14
        page.bars(self.panels, EDGE, foot, width - 2 * EDGE, self.how)
        for index in range(self.panels[0].videos.shape[2]):
            shown = page.image.copy()
            for left, top, frames in places:
                shown.paste(Image.fromarray(frames[index]), (left, top))
            yield shown

    def sheet(self) -> Image.Image:
        """Draw the middle frame of every video: a row a prompt, a column a method."""
        tile, gap = SHEET_TILE, 20
        band, count = TEXT + 12 + tile + self.marks + gap, len(self.panels)
        width, top = 2 * EDGE + count * tile + (count - 1) * gap, 170 + HEAD
        foot = top + len(self.prompts) * band + gap
        page = DarkPage((width, foot + FOOT + count * BAR + EDGE))
        self._head(page, width)
        for place, panel in enumerate(self.panels):
            left = EDGE + place * (tile + gap)
            page.say((left, top - HEAD), panel.name, panel.ink)
            for row, video in enumerate(panel.videos):
                at = top + row * band + TEXT + 12
                middle = video.shape[1] // 2
                frame = pictures(video[:, [middle]], tile)[0]
                page.image.paste(Image.fromarray(frame), (left, at))
                page.marks(panel, row, left, at + tile + 6, tile)
        for row, prompt in enumerate(self.prompts):
            short = shorten(prompt, int((width - 2 * EDGE) / (0.46 * TEXT)), placeholder=" ...")
            page.say((EDGE, top + row * band + 2), short, INK, TEXT)
        page.bars(self.panels, EDGE, foot, width - 2 * EDGE, self.how)
        return page.image

    def play(self, path: Path) -> None:
        """Write an mp4 of all scenes."""
        pages: list[Image.Image] = []
        for row in range(len(self.prompts)):
            frames = list(self.scene(row))
            pages += frames * TURNS + [frames[-1]] * HELD
        encode(path, pages)
