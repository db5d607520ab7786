"""Render clips for the toy suite and tests: coloured shapes that move over textured backgrounds.

Each leaves a pale wake, so that a single picture tells where it goes.

Lengths are fractions of the frame, so a scene can be rendered at any size.

Dims: B batch, T frames, S pixels along a side.
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from .prompt import BACKGROUNDS, COLOURS, DIRECTIONS, SHAPES

PALETTE = torch.tensor([[0.9, 0.1, 0.1], [0.1, 0.7, 0.2], [0.15, 0.25, 0.95], [0.95, 0.85, 0.1]])
"""Red, green and blue of each of COLOURS, 0..1."""
STEPS = torch.tensor([[-1.0, 0], [1, 0], [0, -1], [0, 1]])
"""Unit step (x, y) of each of DIRECTIONS; y points down."""
WAKE, WIDTH, PALE = 2.6, 0.6, 0.95
"""Length and half the width of a wake, in radii of its object, and its brightness, 0..1."""


@dataclass(frozen=True, kw_only=True, slots=True)
class CaptionedScenes:
    """A batch of scenes, all drawn from one generator."""

    prompts: list[str]
    """One prompt per scene."""
    video: Tensor
    """[B, 3, T, S, S] in -1..1."""


def _texture(
    kind: Tensor, axes: tuple[Tensor, Tensor], draw: Callable[[float, float], Tensor]
) -> Tensor:
    """Backgrounds [B, 1, S, S] in 0..1: stripes, checks or clouds, faint, on a random grey."""
    x, y = axes
    angle, cycles, phase = draw(0, torch.pi), draw(3, 6), draw(0, 2 * torch.pi)
    along = 2 * torch.pi * cycles * (x * angle.cos() + y * angle.sin()) + phase
    across = 2 * torch.pi * cycles * (y * angle.cos() - x * angle.sin())
    stripes, checks = along.sin(), along.sin() * across.sin()
    waves = (
        (2 * torch.pi * (x * draw(-2, 2) + y * draw(-2, 2)) + draw(0, 2 * torch.pi)).sin()
        for _ in range(3)
    )
    clouds = sum(waves, torch.zeros(())) / 2
    pattern = torch.stack([stripes, checks, clouds], dim=1)
    pattern = pattern.gather(1, kind[:, None, None, None].expand(-1, 1, *pattern.shape[2:]))
    return draw(0.35, 0.65)[:, None] + 0.1 * pattern


def distance(shape: Tensor, dx: Tensor, dy: Tensor) -> Tensor:
    """Signed distance, in radii, to circle, square or triangle; negative is inside."""
    circle = (dx**2 + dy**2).sqrt() - 1
    square = torch.maximum(dx.abs(), dy.abs()) - 0.9
    triangle = torch.maximum(0.866 * dx.abs() - 0.5 * dy - 0.5, dy - 0.75)
    kinds = torch.stack([circle, square, triangle], dim=1)
    return kinds.gather(1, shape[:, None, None, None].expand(-1, 1, *kinds.shape[2:]))[:, 0]


def wake(direction: Tensor, dx: Tensor, dy: Tensor) -> Tensor:
    """Opacity 0..1 of the wake: whole at the object's centre, nothing `WAKE` radii behind it."""
    x, y = STEPS[direction].view(-1, 2, 1, 1).unbind(1)
    behind, beside = -(x * dx + y * dy), (y * dx - x * dy).abs()
    fading = (1 - behind / WAKE).clamp(0, 1) * (behind > 0)
    return fading * ((WIDTH - beside) * 8 + 0.5).clamp(0, 1)


def render(batch: int, frames: int, size: int, generator: torch.Generator) -> CaptionedScenes:
    """Draw `batch` random scenes of one or two objects.

    Args:
        batch: scenes.
        frames: T, video frames.
        size: S, pixels along a side.
        generator: the only source of randomness.

    Returns:
        Prompts and pixels, fp32.

    Source: ours.
    """

    def draw(low: float, high: float) -> Tensor:
        return low + (high - low) * torch.rand(batch, 1, 1, generator=generator)

    def pick(count: int) -> Tensor:
        return torch.randint(count, (batch,), generator=generator)

    ticks = (torch.arange(size) + 0.5) / size
    axes = ticks.view(1, 1, -1), ticks.view(1, -1, 1)
    background = pick(len(BACKGROUNDS))
    canvas = _texture(background, axes, draw).expand(-1, 3, -1, -1)
    video = canvas[:, :, None].repeat(1, 1, frames, 1, 1)
    phrases: list[list[str]] = [[] for _ in range(batch)]
    wakes, shapes = [], []
    colour = pick(len(COLOURS))
    for slot in range(2):
        turn = 1 + pick(len(COLOURS) - 1) if slot else 0
        colour = (colour + turn) % len(COLOURS)
        shape, direction = pick(len(SHAPES)), pick(len(DIRECTIONS))
        present = (pick(2) == 1) if slot else torch.ones(batch, dtype=torch.bool)
        radius, speed = draw(0.17, 0.23), draw(0.1, 0.13)
        travel = STEPS[direction].view(batch, 2, 1, 1) * (speed * (frames - 1))[:, None]
        margin = radius[:, None] + travel.abs() / 2
        middle = margin + (1 - 2 * margin) * torch.rand(batch, 2, 1, 1, generator=generator)
        for frame in range(frames):
            centre = middle + travel * (frame / max(frames - 1, 1) - 0.5)
            dx, dy = ((axis - c) / radius for axis, c in zip(axes, centre.unbind(1), strict=True))
            seen = present.view(-1, 1, 1, 1)
            inside = (0.5 - distance(shape, dx, dy) * radius * size).clamp(0, 1)
            shapes.append((frame, PALETTE[colour].view(-1, 3, 1, 1), inside[:, None] * seen))
            wakes.append((frame, torch.tensor(PALE), wake(direction, dx, dy)[:, None] * seen))
        for scene in range(batch):
            if present[scene]:
                phrases[scene].append(
                    f"{COLOURS[colour[scene]]} {SHAPES[shape[scene]]} "
                    f"moving {DIRECTIONS[direction[scene]]}"
                )
    for frame, paint, opacity in wakes + shapes:
        picture = video[:, :, frame]
        picture.lerp_(paint.expand_as(picture), opacity)
    for scene, words in enumerate(phrases):
        words.append(f"on {BACKGROUNDS[background[scene]]}")
    return CaptionedScenes(prompts=[", ".join(words) for words in phrases], video=video * 2 - 1)
