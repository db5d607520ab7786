"""Draw the second model's scenes: a few large things, swarms of beads, a ground.

All lengths are fractions of the frame, so that a scene is the same at any size; times run from
-0.5 to 0.5 of the clip. Scene i is a function of (seed, i) alone, on every device.

Dims: B scenes, M members of a swarm, K candidate places.
"""

from dataclasses import dataclass, fields

import torch
from torch import Tensor

from ...tiny.caption import (
    BEADS,
    COLOURS,
    COUNTS,
    DIRECTIONS,
    GROUNDS,
    PHRASES,
    SHAPES,
    WORDS,
    Thing,
)  # fmt: skip
from .chance import Chance

STEPS = ((-1.0, 0.0), (1.0, 0.0), (0.0, -1.0), (0.0, 1.0))
"""Unit step (x, y) of each of DIRECTIONS; y points down."""
LARGE, SWARMS, MEMBERS = 2, 2, len(COUNTS)
"""Most large things of a scene, most swarms, and most beads of a swarm."""
RADII = (0.155, 0.19)
"""Least and greatest radius of large things."""
BEAD = 0.052
"""Radius of a bead."""
TRAVEL = (0.15, 0.21)
"""Least and greatest distance that a thing moves in a clip."""
_TRIES = 24
"""K: places that are tried for a thing."""
_WITHIN, _ACROSS = 0.19, 0.12
"""Least distance between the centres of two beads of a swarm, and of two swarms."""
_EDGE = 0.02
"""Distance that large things keep from the frame's edge."""
_CLOCK = (-0.5, -0.25, 0.0, 0.25, 0.5)
"""Times at which distances between things are measured."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Scenes:
    """A batch of scenes."""

    ground: Tensor
    """[B] index into GROUNDS."""
    look: Tensor
    """[B, 8] in 0..1: direction of the light, place, angle and brightness of the ground's texture,
    see `paint`."""
    pan: Tensor
    """[B, 2] distance (x, y) that the ground moves in a clip, as the camera pans."""
    colour: Tensor
    """[B, 4] index into COLOURS: two large things, two swarms; no two alike."""
    direction: Tensor
    """[B, 4] index into DIRECTIONS."""
    present: Tensor
    """[B, 4] bool: which of the four are in the scene."""
    shape: Tensor
    """[B, 2] index into SHAPES."""
    count: Tensor
    """[B, 2] beads of each swarm, from 1."""
    radius: Tensor
    """[B, 2] of the large things."""
    middle: Tensor
    """[B, 2, 2] place (x, y) of the large things at time 0."""
    travel: Tensor
    """[B, 4, 2] distance (x, y) that each thing moves in a clip."""
    beads: Tensor
    """[B, 2, M, 2] place (x, y) of every bead at time 0; those beyond the count lie far outside."""

    def __len__(self) -> int:
        return len(self.ground)

    def things(self) -> list[list[Thing]]:
        """List what each scene holds, in the order of its phrases."""
        kinds = [x.tolist() for x in (self.present, self.colour, self.direction)]
        rows = zip(*kinds, self.shape.tolist(), self.count.tolist(), strict=True)
        return [
            [
                Thing(
                    colour=colour[slot],
                    direction=direction[slot],
                    shape=shape[slot] if slot < LARGE else None,
                    count=1 if slot < LARGE else count[slot - LARGE],
                )
                for slot in range(LARGE + SWARMS)
                if present[slot]
            ]
            for present, colour, direction, shape, count in rows
        ]

    def prompts(self) -> list[str]:
        """A prompt for each scene."""
        return [
            ", ".join([*(thing.phrase() for thing in things), f"on {GROUNDS[ground]}"])
            for things, ground in zip(self.things(), self.ground.tolist(), strict=True)
        ]

    def words(self) -> Tensor:
        """Which words each phrase has: [B, L, V] fp32; phrases stand where their things do.

        The model attends to phrases without regard to their place, so absent ones may be zeros
        anywhere.
        """
        marks = torch.zeros(len(self), PHRASES, len(WORDS), device=self.ground.device)

        def mark(slot: int, names: tuple[str, ...], index: Tensor) -> None:
            marks[:, slot].scatter_(1, (index + WORDS.index(names[0]))[:, None], 1.0)

        for slot in range(LARGE + SWARMS):
            mark(slot, COLOURS, self.colour[:, slot])
            mark(slot, DIRECTIONS, self.direction[:, slot])
            if slot < LARGE:
                mark(slot, SHAPES, self.shape[:, slot])
            else:
                mark(slot, COUNTS, self.count[:, slot - LARGE] - 1)
                marks[:, slot, WORDS.index(BEADS)] = 1
        marks[:, : LARGE + SWARMS] *= self.present[..., None]
        mark(PHRASES - 1, GROUNDS, self.ground)
        return marks

    def part(self, start: int, stop: int) -> "Scenes":
        """Some of the scenes; views."""
        return Scenes(**{f.name: getattr(self, f.name)[start:stop] for f in fields(self)})


def draw(seed: int, index: Tensor) -> Scenes:
    """Draw the scenes of these numbers.

    Args:
        seed: other seeds give other scenes.
        index: [B] int64, on the device that they are to be on.

    Source: ours.
    """
    chance = Chance(seed, index)
    slots = LARGE + SWARMS
    colour = chance.order(len(COLOURS))[:, :slots]
    direction = chance.pick(len(DIRECTIONS), slots)
    share = torch.tensor([1.0, 0.25, 1.0, 0.5], device=index.device)
    present = chance.uniform(0, 1, slots) < share
    radius = chance.uniform(*RADII, LARGE)
    steps = torch.tensor(STEPS, device=index.device)[direction]
    travel = steps * chance.uniform(*TRAVEL, slots, 1)
    count = 1 + chance.pick(len(COUNTS), SWARMS)
    middle = _apart(chance, radius, travel[:, :LARGE])
    # Where a large thing is absent, beads may be.
    kept = radius.masked_fill(~present[:, :LARGE], -1.0)
    beads = _scattered(chance, travel, middle, kept)
    member = torch.arange(MEMBERS, device=index.device)
    absent = member >= count[..., None]
    beads = beads.masked_fill(absent[..., None], 9.0)
    return Scenes(
        ground=chance.pick(len(GROUNDS)),
        look=chance.uniform(0, 1, 8),
        pan=chance.uniform(-0.12, 0.12, 2),
        colour=colour,
        direction=direction,
        present=present,
        shape=chance.pick(len(SHAPES), LARGE),
        count=count,
        radius=radius,
        middle=middle,
        travel=travel,
        beads=beads,
    )


def _inside(unit: Tensor, radius: Tensor | float, travel: Tensor) -> Tensor:
    """Map 0..1 to places at time 0 from which a thing stays within the frame."""
    margin = radius + _EDGE + travel.abs() / 2
    return margin + (1 - 2 * margin) * unit


def _apart(chance: Chance, radius: Tensor, travel: Tensor) -> Tensor:
    """Choose places of two large things that keep their distance: [B, 2, 2].

    Args:
        radius: [B, 2].
        travel: [B, 2, 2].
    """
    unit = chance.uniform(0, 1, _TRIES, LARGE, 2)
    places = _inside(unit, radius[:, None, :, None], travel[:, None])
    clock = torch.tensor(_CLOCK, device=travel.device).view(-1, 1)
    between = (places[:, :, 0] - places[:, :, 1])[:, :, None]
    between = between + clock * (travel[:, 0] - travel[:, 1])[:, None, None]
    gap = between.norm(dim=-1).amin(dim=2)
    # The first that is far enough, else the farthest: always the farthest would mean corners.
    score = gap.clamp(max=0.0) + torch.where(gap > 0.40, 2.0, gap)
    best = score.argmax(dim=1)
    return places[torch.arange(len(places), device=best.device), best]


def _gap(places: Tensor, travel: Tensor, other: Tensor, its_travel: Tensor) -> Tensor:
    """Measure how near candidate places [B, K, 2] come to another thing [B, 2] in a clip: [B, K].

    Args:
        travel, its_travel: [B, 2] the distance that each moves in a clip.
    """
    clock = torch.tensor(_CLOCK, device=travel.device).view(1, -1, 1, 1)
    between = (places - other[:, None])[:, None]
    return (between + clock * (travel - its_travel)[:, None, None]).norm(dim=-1).amin(dim=1)


def _scattered(chance: Chance, travel: Tensor, middle: Tensor, radius: Tensor) -> Tensor:
    """Choose places of beads, none touching another of its swarm: [B, SWARMS, M, 2].

    Beads seldom cross those of the other swarm, or a large thing.

    Args:
        travel: [B, LARGE + SWARMS, 2] of all things.
        middle: [B, LARGE, 2] of the large things.
        radius: [B, LARGE] of the large things; negative of those that beads need not avoid.
    """
    chosen: list[list[Tensor]] = []
    rows = torch.arange(len(travel), device=travel.device)
    for swarm in range(SWARMS):
        mine = travel[:, LARGE + swarm]
        unit = chance.uniform(0, 1, MEMBERS, _TRIES, 2)
        places = _inside(unit, 2 * BEAD, mine[:, None, None])
        swarm_places: list[Tensor] = []
        for member in range(MEMBERS):
            tries = places[:, member]
            gap = torch.full(tries.shape[:2], 1.0, device=tries.device)
            for other in swarm_places:
                gap = torch.minimum(gap, (tries - other[:, None]).norm(dim=-1) / _WITHIN)
            for other in chosen[0] if swarm else ():
                near = _gap(tries, mine, other, travel[:, LARGE])
                gap = torch.minimum(gap, near / _ACROSS)
            for slot in range(LARGE):
                near = _gap(tries, mine, middle[:, slot], travel[:, slot])
                room = (radius[:, slot] + BEAD).clamp(min=1e-3)
                gap = torch.minimum(gap, near / room[:, None])
            best = torch.where(gap >= 1, 2.0, gap).argmax(dim=1)
            swarm_places.append(tries[rows, best])
        chosen.append(swarm_places)
    return torch.stack([torch.stack(places, dim=1) for places in chosen], dim=1)
