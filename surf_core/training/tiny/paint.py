"""Paint the second model's scenes: shaded things with soft shadows over a textured ground.

Everything is a function of the place, so that any part can be painted at any size; edges are
antialiased over a pixel.

Dims: B scenes, T frames, H, W pixels of the painted part, S pixels along a whole side.
"""

from math import pi

import torch
from torch import Tensor

from .world import BEAD, LARGE, STEPS, SWARMS, Scenes

PALETTE = (
    (0.93, 0.13, 0.12), (0.98, 0.80, 0.08), (0.10, 0.72, 0.22), (0.10, 0.32, 0.95),
    (0.66, 0.16, 0.86),
)  # fmt: skip
"""Red, green and blue of each of COLOURS, 0..1."""
EARTH = ((0.80, 0.72, 0.60), (0.47, 0.53, 0.40), (0.44, 0.52, 0.58), (0.56, 0.555, 0.55))
"""Red, green and blue of each of GROUNDS: pale, so that no ground is taken for a thing."""
_LIFT = 0.62
"""z of the unit vector towards the light; z points at the viewer."""


def paint(
    scenes: Scenes,
    times: Tensor,
    size: int | Tensor,
    part: tuple[Tensor, Tensor, int] | None = None,
) -> Tensor:
    """Paint scenes, or a square part of each.

    Args:
        scenes: B of them.
        times: [T], -0.5..0.5.
        size: S, or [B] one for each scene, if only parts of one side are painted.
        part: first row [B] and column [B] of the part, and its side, all in pixels; None for all.

    Returns:
        [B, 3, T, H, W] in -1..1, fp32, on the device of the scenes.

    Source: ours.
    """
    device = scenes.ground.device
    top, left, side = part or (torch.zeros(1, device=device),) * 2 + (size,)
    size = torch.as_tensor(size, device=device).expand(len(scenes))
    ticks = torch.arange(int(side), device=device) + 0.5
    x = ((ticks + left[:, None]) / size[:, None])[:, None, None, :]
    y = ((ticks + top[:, None]) / size[:, None])[:, None, :, None]
    size = _wide(size)
    clock = times.to(device).view(1, -1, 1, 1)
    angle = pi * (1.25 + 0.5 * scenes.look[:, 0])
    light = torch.stack([angle.cos(), angle.sin()], dim=1) * (1 - _LIFT**2) ** 0.5
    canvas = _ground(scenes, x, y, clock) * _falloff(light, x, y)
    for slot in range(LARGE):
        canvas = canvas * _trail(scenes, slot, x, y, clock)
    for slot in range(LARGE):
        canvas = _large(canvas, scenes, slot, light, (x, y, clock), size)
    for slot in range(SWARMS):
        canvas = _swarm(canvas, scenes, slot, light, (x, y, clock), size)
    return canvas.clamp(0, 1) * 2 - 1


def _wide(value: Tensor) -> Tensor:
    """Reshape [B] to [B, 1, 1, 1]."""
    return value.view(-1, 1, 1, 1)


def _ramp(low: float, high: float, value: Tensor) -> Tensor:
    """Rise smoothly from 0 at low to 1 at high."""
    t = ((value - low) / (high - low)).clamp(0, 1)
    return t * t * (3 - 2 * t)


def _falloff(light: Tensor, x: Tensor, y: Tensor) -> Tensor:
    """Brighten towards the light, darken the corners: a factor [B, 1, 1, H, W].

    Args:
        light: [B, 2] x and y of the unit vector towards the light.
        x, y: [B, 1, 1, W] and [B, 1, H, 1], 0..1 across the frame.
    """
    near = _wide(light[:, 0]) * (x - 0.5) + _wide(light[:, 1]) * (y - 0.5)
    corner = (x - 0.5) ** 2 + (y - 0.5) ** 2
    return (1 + 0.28 * near - 0.35 * corner)[:, None]


def _ground(scenes: Scenes, x: Tensor, y: Tensor, clock: Tensor) -> Tensor:
    """Paint the textures that the camera pans over: [B, 3, T, H, W] in 0..1."""
    look = scenes.look
    u = x + _wide(scenes.pan[:, 0]) * clock + 4 * _wide(look[:, 1])
    v = y + _wide(scenes.pan[:, 1]) * clock + 4 * _wide(look[:, 2])
    tau = 2 * pi
    slow = ((tau * (1.1 * u + 0.6 * v)).sin() + (tau * (1.7 * v - 0.9 * u) + 1.3).sin()) / 2
    warp = 0.9 * (tau * (1.6 * v + 0.7 * u)).sin()
    sand = 0.035 * (tau * (4 * v + 0.8 * u) + warp).sin()
    grass = 0.045 * (tau * (3 * u + 2 * v)).sin() * (tau * (3 * v - 2 * u)).sin()
    swell = (tau * 2 * u + warp).sin() + (tau * (2.5 * v - u) - warp).sin()
    water = 0.10 * (1 - swell.abs() / 2) ** 3 - 0.02
    joint = torch.minimum((3 * u - (3 * u).round()).abs(), (3 * v - (3 * v).round()).abs())
    stone = 0.01 - 0.06 * (1 - _ramp(0.04, 0.13, joint))
    kinds = torch.stack(torch.broadcast_tensors(sand, grass, water, stone))
    pattern = kinds[scenes.ground, torch.arange(len(scenes), device=x.device)]
    earth = torch.tensor(EARTH, device=x.device)[scenes.ground]
    earth = earth * (0.92 + 0.16 * look[:, 4:5])
    return earth[:, :, None, None, None] * (1 + pattern + 0.04 * slow)[:, None]


def _local(
    middle: Tensor, travel: Tensor, radius: Tensor | float, axes: tuple[Tensor, Tensor, Tensor]
) -> tuple[Tensor, Tensor]:
    """Measure places from the centre of a thing, in its radii: dx [B, T, 1, W], dy [B, T, H, 1].

    Args:
        middle: [B, 2] its centre at time 0.
        travel: [B, 2] the distance that it moves in a clip.
        radius: [B], or one for all.
        axes: x [B, 1, 1, W], y [B, 1, H, 1] and clock [1, T, 1, 1].
    """
    x, y, clock = axes
    radius = _wide(radius) if isinstance(radius, Tensor) else radius
    dx = (x - _wide(middle[:, 0]) - _wide(travel[:, 0]) * clock) / radius
    dy = (y - _wide(middle[:, 1]) - _wide(travel[:, 1]) * clock) / radius
    return dx, dy


def _by_shape(kinds: tuple[Tensor, ...], shape: Tensor) -> Tensor:
    """Select for each scene the values of its shape [B]: [B, T, H, W]."""
    stacked = torch.stack(torch.broadcast_tensors(*kinds))
    return stacked[shape, torch.arange(len(shape), device=shape.device)]


def distance(shape: Tensor, dx: Tensor, dy: Tensor) -> Tensor:
    """Measure the signed distance, in radii, to the outline of a shape: [B, T, H, W].

    Negative inside. Args as `_local` returns them; shape [B], index into SHAPES.
    """
    r = (dx**2 + dy**2).sqrt()
    ax, ay = dx.abs(), dy.abs()
    square = torch.maximum(ax, ay) - 0.88
    corner = ((ax - 0.70).clamp(min=0) ** 2 + (ay - 0.70).clamp(min=0) ** 2).sqrt() - 0.18
    cube = torch.where((ax > 0.70) & (ay > 0.70), corner, square)
    pyramid = torch.maximum(0.866 * ax - 0.5 * (dy + 0.12) - 0.56, dy + 0.12 - 0.74)
    ring = (r - 0.76).abs() - 0.22
    return _by_shape((r - 1, cube, pyramid, ring), shape)


def _slope(shape: Tensor, dx: Tensor, dy: Tensor) -> tuple[Tensor, Tensor]:
    """Return x and y of the unit normal of a thing's surface: two [B, T, H, W]."""
    r = (dx**2 + dy**2).sqrt().clamp(min=1e-3)
    ax, ay = dx.abs(), dy.abs()
    side = ax > ay
    bevel = 0.8 * _ramp(0.52, 0.86, torch.maximum(ax, ay))
    cube = (
        torch.where(side, dx.sign(), 0 * dx) * bevel,
        torch.where(side, 0 * dy, dy.sign()) * bevel,
    )
    base = dy + 0.12 - 0.74 > 0.866 * ax - 0.5 * (dy + 0.12) - 0.56
    pyramid = (torch.where(base, 0 * dx, 0.62 * dx.sign()), torch.where(base, 0.72, -0.36 + 0 * dy))
    around = ((r - 0.76) / 0.24).clamp(-0.97, 0.97)
    ball = r.clamp(max=0.98)
    x = _by_shape((dx / r * ball, cube[0], pyramid[0], dx / r * around), shape)
    y = _by_shape((dy / r * ball, cube[1], pyramid[1], dy / r * around), shape)
    return x, y


def _shaded(colour: Tensor, nx: Tensor, ny: Tensor, light: Tensor) -> Tensor:
    """Shade a surface, diffuse and with a highlight: [B, 3, T, H, W].

    Args:
        colour: [B, 3].
        nx, ny: [B, T, H, W] of its unit normal.
        light: [B, 2] x and y of the unit vector towards the light.
    """
    nz = (1 - nx**2 - ny**2).clamp(min=0).sqrt()
    lx, ly = _wide(light[:, 0]), _wide(light[:, 1])
    facing = (nx * lx + ny * ly + nz * _LIFT).clamp(min=0)
    # Blinn's half vector, for a viewer straight above.
    long = (2 + 2 * _LIFT) ** 0.5
    gloss = ((nx * lx + ny * ly + nz * (_LIFT + 1)) / long).clamp(min=0) ** 40
    lit = (0.42 + 0.72 * facing)[:, None] * colour[:, :, None, None, None]
    return lit + 0.5 * gloss[:, None]


def _paint_over(canvas: Tensor, colour: Tensor, opacity: Tensor) -> Tensor:
    """Blend a colour [B, 3, T, H, W] over the canvas by an opacity [B, T, H, W] in 0..1."""
    return torch.lerp(canvas, colour, opacity[:, None])


def _trail(scenes: Scenes, slot: int, x: Tensor, y: Tensor, clock: Tensor) -> Tensor:
    """Darken the groove that a large thing leaves in the ground: a factor [B, 1, T, H, W]."""
    radius = scenes.radius[:, slot]
    dx, dy = _local(scenes.middle[:, slot], scenes.travel[:, slot], radius, (x, y, clock))
    step = torch.tensor(STEPS, device=x.device)[scenes.direction[:, slot]]
    sx, sy = _wide(step[:, 0]), _wide(step[:, 1])
    behind, beside = -(sx * dx + sy * dy), (sy * dx - sx * dy)
    fade = (1 - behind / 3.0).clamp(0, 1) * (behind > 0)
    groove = 0.34 * (1 - _ramp(0.35, 0.62, beside.abs())) - 0.10 * _ramp(0.3, 0.6, beside.abs()) * (
        1 - _ramp(0.6, 0.85, beside.abs())
    )
    return (1 + groove * fade)[:, None]


def _large(
    canvas: Tensor, scenes: Scenes, slot: int, light: Tensor,
    axes: tuple[Tensor, Tensor, Tensor], size: Tensor,
) -> Tensor:  # fmt: skip
    """Paint a large thing and its shadow over the canvas [B, 3, T, H, W]."""
    radius, shape = scenes.radius[:, slot], scenes.shape[:, slot]
    dx, dy = _local(scenes.middle[:, slot], scenes.travel[:, slot], radius, axes)
    away = distance(shape, dx + 0.42 * _wide(light[:, 0]), dy + 0.42 * _wide(light[:, 1]))
    canvas = canvas * (1 - 0.55 * (1 - _ramp(-0.25, 0.3, away)))[:, None]
    inside = (0.5 - distance(shape, dx, dy) * _wide(radius) * size).clamp(0, 1)
    colour = torch.tensor(PALETTE, device=canvas.device)[scenes.colour[:, slot]]
    return _paint_over(canvas, _shaded(colour, *_slope(shape, dx, dy), light), inside)


def _swarm(
    canvas: Tensor, scenes: Scenes, slot: int, light: Tensor,
    axes: tuple[Tensor, Tensor, Tensor], size: Tensor,
) -> Tensor:  # fmt: skip
    """Paint a swarm over the canvas: glossy beads above the ground, each with a bright tail."""
    travel = scenes.travel[:, LARGE + slot]
    step = torch.tensor(STEPS, device=canvas.device)[scenes.direction[:, LARGE + slot]]
    sx, sy = _wide(step[:, 0]), _wide(step[:, 1])
    lx, ly = 0.9 * _wide(light[:, 0]), 0.9 * _wide(light[:, 1])
    far = shade = glow = nx = ny = torch.empty(0)
    for member in range(scenes.beads.shape[2]):
        dx, dy = _local(scenes.beads[:, slot, member], travel, BEAD, axes)
        square, shadow = dx**2 + dy**2, (dx + lx) ** 2 + (dy + ly) ** 2
        behind, beside = -(sx * dx + sy * dy), (sy * dx - sx * dy).abs()
        left = (1 - behind / 4.2).clamp(0, 1) * (behind > 0)
        tail = left**1.5 * (1.2 * left - beside + 0.15).clamp(0, 0.3) / 0.3
        if member == 0:
            far, shade, glow = square, shadow, tail
            nx, ny = dx.expand_as(square), dy.expand_as(square)
            continue
        nearer = square < far
        nx, ny = torch.where(nearer, dx, nx), torch.where(nearer, dy, ny)
        far, shade, glow = (
            torch.minimum(far, square), torch.minimum(shade, shadow), torch.maximum(glow, tail),
        )  # fmt: skip
    canvas = canvas * (1 - 0.45 * (1 - _ramp(0.5, 1.5, shade.sqrt())))[:, None]
    colour = torch.tensor(PALETTE, device=canvas.device)[scenes.colour[:, LARGE + slot]]
    pale = (0.55 + 0.45 * colour)[:, :, None, None, None]
    canvas = _paint_over(canvas, pale, 0.6 * glow)
    r = far.sqrt()
    inside = (0.5 - (r - 1) * BEAD * size).clamp(0, 1)
    scale = 0.94 / r.clamp(min=1)
    lit = _shaded(1.08 * colour, nx * scale, ny * scale, light)
    return _paint_over(canvas, lit, inside)
