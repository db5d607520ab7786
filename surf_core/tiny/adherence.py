"""Check from pixels alone which of the things that a prompt names are there, and right.

A thing is right if everything that its phrase says is: colour, direction and place, of a large
thing its shape, of beads their count. No other video is looked at, and every video is
brought to one size first, so that a preview is read as its large version is.

Dims: B videos, T frames, G cells along a side of the grid that is read.
"""

from math import pi

import torch
from torch import Tensor

from ..checks import check_range
from ..resample import resize
from .caption import SHAPES, Thing

GRID = 64
"""Cells along a side that videos are averaged to."""
HUES = (0.0, 47.0, 132.0, 226.0, 280.0)
"""Hue of each of COLOURS, in degrees."""
_WIDTHS = (24.0, 18.0, 40.0, 30.0, 26.0)
"""Degrees to both sides that still count as the colour."""
FAULTS = ("not always", "direction", "place", "shape", "count")
"""What can be wrong with a thing, in the order in which it is looked at: it is not always there, or
its direction is wrong, and so on."""
_CHROMA, _SATURATION = 0.16, 0.50
_BEAD = 34.8
"""Cells that a bead fills."""
_STEPS = ((-1.0, 0.0), (1.0, 0.0), (0.0, -1.0), (0.0, 1.0))
_SLACK = 0.03 * GRID
"""Cells that the middle of a thing's way may lie beyond its quarter of the frame."""
_TRAVEL = 0.18 * GRID
"""Cells that a thing goes in a clip, in the mean."""


def colour_mask(video: Tensor, colour: Tensor) -> Tensor:
    """Find the cells of a colour: [N, T, G, G] of 0 and 1.

    Args:
        video: [N, 3, T, G, G] in 0..1.
        colour: [N], index into COLOURS.
    """
    high, low = video.amax(dim=1), video.amin(dim=1)
    chroma = high - low
    red, green, blue = video.unbind(dim=1)
    angle = torch.atan2(3**0.5 * (green - blue), 2 * red - green - blue) * (180 / pi)
    hue = torch.tensor(HUES, device=video.device)[colour].view(-1, 1, 1, 1)
    width = torch.tensor(_WIDTHS, device=video.device)[colour].view(-1, 1, 1, 1)
    off = ((angle - hue + 180) % 360 - 180).abs()
    strong = (chroma > _CHROMA) & (chroma > _SATURATION * high)
    return (strong & (off < width)).float()


def read(video: Tensor, things: list[list[Thing]]) -> list[list[bool]]:
    """Say of every named thing whether it is there, and right.

    Args:
        video: [B, 3, T, H, W] in 0..1, at least 5 frames; H and W at least GRID.
        things: what each prompt names, see `surf_core.tiny.caption.things_of`.

    Returns:
        One answer for each thing, in its order.

    Raises:
        ValueError: another number of prompts, too few frames or pixels.

    Source: ours.
    """
    return [[not fault for fault in named] for named in faults(video, things)]


def faults(video: Tensor, things: list[list[Thing]]) -> list[list[str]]:
    """Say of every named thing what is wrong first, as one of FAULTS; "" where it is right.

    Args, errors: see `read`.
    """
    if video.ndim != 5 or len(video) != len(things):
        raise ValueError(
            f"expected a video [B, 3, T, H, W] for each of {len(things)} prompts, got "
            f"{tuple(video.shape)}."
        )
    check_range(video.shape[2], "frames", 5, 10_000, "a direction needs some")
    check_range(min(video.shape[3:]), "height and width", GRID, 100_000, "beads are small")
    where = [i for i, named in enumerate(things) for _ in named]
    flat = [thing for named in things for thing in named]
    if not flat:
        return [[] for _ in things]
    small = resize(video.float(), (GRID, GRID), "area")
    colour = torch.tensor([thing.colour for thing in flat], device=video.device)
    mask = colour_mask(small[torch.tensor(where, device=video.device)], colour)
    direction = torch.tensor([thing.direction for thing in flat], device=video.device)
    place = torch.tensor([thing.place for thing in flat], device=video.device)
    large = torch.tensor([thing.shape or 0 for thing in flat], device=video.device)
    count = torch.tensor([thing.count for thing in flat], device=video.device)
    is_large = torch.tensor([thing.shape is not None for thing in flat], device=video.device)
    holds = (
        _is_seen(mask), _moves(mask, direction), _lies_in(mask, place),
        _shape_is(mask, large) | ~is_large, _count_is(mask, count) | is_large,
    )  # fmt: skip
    broken = (~torch.stack(holds, dim=1)).tolist()
    first = iter(
        next((name for name, off in zip(FAULTS, row, strict=True) if off), "") for row in broken
    )
    return [[next(first) for _ in named] for named in things]


def _axes(mask: Tensor) -> tuple[Tensor, Tensor]:
    ticks = torch.arange(mask.shape[-1], device=mask.device) + 0.5
    return ticks.view(1, 1, 1, -1), ticks.view(1, 1, -1, 1)


def _centres(mask: Tensor) -> tuple[Tensor, Tensor]:
    """Area [N, T] and centre [N, T, 2] in cells."""
    area = mask.sum(dim=(2, 3))
    x, y = _axes(mask)
    centre = torch.stack([(mask * x).sum(dim=(2, 3)), (mask * y).sum(dim=(2, 3))], dim=-1)
    return area, centre / area.clamp(min=1e-3)[..., None]


def _moves(mask: Tensor, direction: Tensor) -> Tensor:
    """Whether the colour goes the right way, over most of the way that it should: [N] bool."""
    area, centre = _centres(mask)
    frames = mask.shape[1]
    third = max(1, frames // 3)
    seen = (area > 4).float()

    def mean(part: slice) -> Tensor:
        weight = seen[:, part, None]
        return (centre[:, part] * weight).sum(dim=1) / weight.sum(dim=1).clamp(min=1e-3)

    way = mean(slice(frames - third, frames)) - mean(slice(0, third))
    step = torch.tensor(_STEPS, device=mask.device)[direction]
    along = (way * step).sum(dim=1)
    across = (way - along[:, None] * step).norm(dim=1)
    whole = _TRAVEL * (frames - third) / max(frames - 1, 1)
    return (along > 0.45 * whole) & (across < 0.6 * along)


def _is_seen(mask: Tensor) -> Tensor:
    """Whether the colour is there in most frames: [N] bool."""
    return (mask.sum(dim=(2, 3)) > 4).float().mean(dim=1) > 0.7


def _lies_in(mask: Tensor, place: Tensor) -> Tensor:
    """Whether the middle of the colour's way is in the right quarter of the frame: [N] bool."""
    area, centre = _centres(mask)
    seen = (area > 4).float()[..., None]
    middle = (centre * seen).sum(dim=1) / seen.sum(dim=1).clamp(min=1)
    beyond = middle - GRID / 2
    side = torch.stack([2 * (place % 2) - 1, 2 * (place // 2) - 1], dim=-1)
    return (beyond * side > -_SLACK).all(dim=1)


def _shape_is(mask: Tensor, shape: Tensor) -> Tensor:
    """Whether one large thing of this shape is what the colour shows, in most frames: [N]."""
    area, centre = _centres(mask)
    overlaps = []
    for kind in range(len(SHAPES)):
        filled, low, high = _FILL[kind]
        radius = (area / filled).sqrt().clamp(min=1)
        x, y = _axes(mask)
        cx, cy = (c[:, :, None, None] for c in centre.unbind(dim=-1))
        r = radius[:, :, None, None]
        drawn = (_outline(kind, (x - cx) / r, (y - cy) / r) < 0).float()
        both = (drawn * mask).sum(dim=(2, 3))
        overlap = both / (drawn + mask - drawn * mask).sum(dim=(2, 3)).clamp(min=1)
        fits = (radius > low) & (radius < high)
        overlaps.append(overlap * fits)
    matches = torch.stack(overlaps, dim=-1)
    best = matches.mean(dim=1)
    mine = best.gather(1, shape[:, None])[:, 0]
    good = (matches.gather(2, shape.view(-1, 1, 1).expand(-1, matches.shape[1], 1)) > 0.62).float()
    return (best.argmax(dim=1) == shape) & (mine > 0.66) & (good.mean(dim=1)[:, 0] > 0.6)


_FILL = (
    (pi, 7.5, 14.5),
    (3.05, 7.5, 14.5),
    (1.72, 7.0, 14.5),
    (2.10, 7.0, 15.0),
)
"""Of each of SHAPES: its area in squared radii, and the least and greatest radius in cells."""


def _outline(kind: int, dx: Tensor, dy: Tensor) -> Tensor:
    """Signed distance to the outline of a shape about its centre of mass; negative inside."""
    if kind == 0:
        return dx**2 + dy**2 - 1
    if kind == 1:
        return torch.maximum(dx.abs(), dy.abs()) - 0.88
    if kind == 2:
        return torch.maximum(0.866 * dx.abs() - 0.5 * dy - 0.575, dy - 0.575)
    return ((dx**2 + dy**2).sqrt() - 0.76).abs() - 0.22


def _count_is(mask: Tensor, count: Tensor) -> Tensor:
    """Whether so many beads are what the colour shows, by the median frame: [N] bool."""
    frames = mask.shape[1]
    soft = torch.nn.functional.avg_pool2d(mask, 5, 1, 2)
    # Ties within a plateau are broken by place, so that a bead has one peak.
    x, y = _axes(mask)
    soft = soft + 1e-4 * torch.sin(12.9898 * x + 78.233 * y)
    peak = (soft == torch.nn.functional.max_pool2d(soft, 9, 1, 4)) & (soft > 0.4)
    beads = peak.sum(dim=(2, 3))
    share = (beads == count[:, None]).float().mean(dim=1)
    area = mask.sum(dim=(2, 3)).median(dim=1).values / count
    typical = beads.median(dim=1).values
    sized = (area > 0.35 * _BEAD) & (area < 1.9 * _BEAD)
    return (typical == count) & (share > 0.5 - 0.5 / frames) & sized


def score(video: Tensor, things: list[list[Thing]]) -> Tensor:
    """Right answers over named things: [answers] of 0 and 1, all videos one after the other."""
    return torch.tensor([a for answers in read(video, things) for a in answers]).float()
