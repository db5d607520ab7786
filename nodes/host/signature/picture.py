"""Draw a signature: frames of both videos, and a bar for each part between floor and ceiling."""

import torch.nn.functional as F
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

from ....surf_core.signature import Survival
from ..drawing import default_font, pixels_of

WIDTH, MARGIN, GAP, LINE, BAR, FONT, BESIDE = 720, 16, 8, 24, 14, 17, 190
GROUND, TEXT, DIM, TRACK, KEPT = "#202226", "#eeeeee", "#9aa0a6", "#3a3e45", "#58c2a9"
SHOWN = 3
"""Frames of each video: first, middle, last."""
Font = ImageFont.ImageFont | ImageFont.FreeTypeFont


def draw_signature(found: Survival, video: Tensor, reference: Tensor) -> Tensor:
    """Draw frames and bars: IMAGE [1, height, 720, 3].

    Args:
        video, reference: IMAGE [F, H, W, channels], as they were compared.
    """
    wide = (WIDTH - 2 * MARGIN - (SHOWN - 1) * GAP) // SHOWN
    tall = max(1, round(wide * reference.shape[1] / reference.shape[2]))
    top = MARGIN + 2 * (LINE + tall + GAP)
    font = default_font(FONT)
    note = f"0 % is {found.floor}, 100 % a faithful copy; {found.frames} frames. {found.note}"
    notes = wrapped(note, font, WIDTH - 2 * MARGIN)
    says = {
        name: wrapped(part.says, font, WIDTH - 2 * MARGIN - BESIDE)
        for name, part in found.parts.items()
    }
    rows = sum(len(lines) * LINE + LINE + GAP for lines in says.values())
    height = top + rows + len(notes) * LINE + MARGIN
    image = Image.new("RGB", (WIDTH, height), GROUND)
    canvas = ImageDraw.Draw(image)
    places = {}
    for row, (title, frames) in enumerate((("video", video), ("reference", reference))):
        y = MARGIN + row * (LINE + tall + GAP)
        canvas.text((MARGIN, y), title, fill=DIM, font=font)
        places[y + LINE] = frames
    y = top
    for name, part in found.parts.items():
        kept = "not measured" if part.kept is None else f"{part.kept:.0%}"
        canvas.text((MARGIN, y), f"{name}: {kept}", fill=TEXT, font=font)
        y = _written(canvas, (MARGIN + BESIDE, y), says[name], font)
        canvas.rectangle((MARGIN, y, WIDTH - MARGIN, y + BAR), fill=TRACK)
        if part.kept:
            end = MARGIN + part.kept * (WIDTH - 2 * MARGIN)
            canvas.rectangle((MARGIN, y, end, y + BAR), fill=KEPT)
        y += LINE + GAP
    _written(canvas, (MARGIN, y), notes, font)
    pixels = pixels_of(image)
    for y, frames in places.items():
        for column, frame in enumerate(_shown(frames, (tall, wide), found.frames)):
            x = MARGIN + column * (wide + GAP)
            pixels[y : y + tall, x : x + wide] = frame
    return pixels[None]


def wrapped(text: str, font: Font, width: int) -> list[str]:
    """Break a text between words into lines of at most so many pixels."""
    lines = [""]
    for word in text.split():
        longer = f"{lines[-1]} {word}".lstrip()
        if lines[-1] and font.getlength(longer) > width:
            lines.append(word)
        else:
            lines[-1] = longer
    return lines


def _written(
    canvas: ImageDraw.ImageDraw, place: tuple[int, int], lines: list[str], font: Font
) -> int:
    """Write lines below each other; return the row below them."""
    x, y = place
    for line in lines:
        canvas.text((x, y), line, fill=DIM, font=font)
        y += LINE
    return y


def _shown(frames: Tensor, size: tuple[int, int], count: int) -> Tensor:
    """Return the first, middle and last frame at a size: [3, *size, 3]."""
    chosen = frames[[0, (count - 1) // 2, count - 1]].float()
    chosen = (
        chosen[..., :3] if chosen.shape[-1] >= 3 else chosen[..., :1].expand(*chosen.shape[:3], 3)
    )
    resized = F.interpolate(chosen.movedim(-1, 1), size=size, mode="area")
    return resized.movedim(1, -1).clamp(0, 1).cpu()
