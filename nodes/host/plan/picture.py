"""Draw a plan: its stages to scale as one bar, beside the bar of the plain run."""

from PIL import Image, ImageDraw
from torch import Tensor

from ..drawing import default_font, pixels_of
from ..skip import flops_text
from .report import PricedPlan, size_text, time_text, warnings

WIDTH, MARGIN, BAR, LINE, FONT = 440, 12, 36, 26, 20
GROUND, TEXT, DIM, PLAIN, WARNING = "#202226", "#eeeeee", "#9aa0a6", "#6b7078", "#ffb454"
COLOURS = {
    "before the switch": "#4f9dde", "after the switch": "#58c2a9", "refinement": "#e08f4f",
}  # fmt: skip
LONGEST = 3
"""Warnings in the picture; all are in the text."""


def draw(plan: PricedPlan) -> Tensor:
    """Draw bars and a legend, legible in a node of its default width: IMAGE [1, rows, 440, 3]."""
    bars, notes = _bars(plan), _wrapped(plan)
    lines = 2 * (len(plan.stages) + 1) + 1 + len(notes)
    height = 2 * MARGIN + 2 * (BAR + LINE) + lines * LINE
    image = Image.new("RGB", (WIDTH, height), GROUND)
    canvas, font = ImageDraw.Draw(image), default_font(FONT)
    y = MARGIN
    for title, parts in bars:
        canvas.text((MARGIN, y), title, fill=TEXT, font=font)
        _bar(canvas, y + LINE, parts, bars)
        y += LINE + BAR
    y += LINE // 2
    for name, what, takes in _legend(plan):
        colour = COLOURS.get(name, PLAIN)
        canvas.rectangle((MARGIN, y + 5, MARGIN + 13, y + 18), fill=colour)
        canvas.text((MARGIN + 24, y), what, fill=TEXT, font=font)
        canvas.text((MARGIN + 24, y + LINE), takes, fill=DIM, font=font)
        y += 2 * LINE
    for note, colour in notes:
        canvas.text((MARGIN, y), note, fill=colour, font=font)
        y += LINE
    return pixels_of(image)[None]


Parts = list[tuple[str, float]]


def _bars(plan: PricedPlan) -> list[tuple[str, Parts]]:
    """Give both bars a title, and lengths in seconds where all are known, else in operations."""
    timed = plan.seconds is not None and plan.plain_price.seconds is not None
    names = [each.stage.name for each in plan.stages]
    if timed:
        sizes = [price.seconds for price in plan.prices]
        plain, total = plan.plain_price.seconds, time_text(None, plan.seconds)
        beside = time_text(plan.plain_price, plain)
    else:
        sizes, plain = [each.stage.flops for each in plan.stages], plan.plain_flops
        total = "" if plan.flops is None else flops_text(plan.flops)
        beside = "" if plain is None else flops_text(plain)
        total, beside = (f"{text}, counted" if text else "not known" for text in (total, beside))
    known = None not in sizes and plain is not None
    parts = list(zip(names, sizes, strict=True)) if known else []
    return [(f"this plan: {total}", parts),
            (f"plain run: {beside}", [("plain run", plain)] if known else [])]  # fmt: skip


def _bar(canvas: ImageDraw.ImageDraw, y: int, parts: Parts, bars: list[tuple[str, Parts]]) -> None:
    """Draw the parts of a bar one after the other, the longest bar from margin to margin."""
    longest = max((sum(size for _, size in each) for _, each in bars), default=0)
    x, scale = float(MARGIN), (WIDTH - 2 * MARGIN) / longest if longest else 0
    for name, size in parts:
        end = x + size * scale
        canvas.rectangle((x, y, max(x + 1, end), y + BAR - 10), fill=COLOURS.get(name, PLAIN))
        x = end


def _legend(plan: PricedPlan) -> list[tuple[str, str, str]]:
    """List stage, what it does, and what it takes."""
    priced = [*zip(plan.stages, plan.prices, strict=True), (plan.plain, plan.plain_price)]
    lines = []
    for each, price in priced:
        said = [] if each.stage.flops is None else [flops_text(each.stage.flops)]
        if price.seconds is not None:
            said.append(time_text(price, price.seconds))
        said.append(f"{each.memory / 2**30:.2g} GB")
        what = f"{each.stage.name}: {each.stage.count} at {size_text(each.pixels)}"
        lines.append((each.stage.name, what, ", ".join(said)))
    return lines


def _wrapped(plan: PricedPlan) -> list[tuple[str, str]]:
    """Break the warnings into lines of the picture."""
    lines, wide = [], (WIDTH - 2 * MARGIN) // 10
    for said in warnings(plan)[:LONGEST]:
        line = ""
        for word in said.split():
            if len(line) + len(word) >= wide:
                lines.append((line, WARNING))
                line = ""
            line = f"{line} {word}".strip()
        lines.append((line, WARNING))
    return lines
