"""Draw the embedded models' scenes: a large thing, a swarm of beads in formation, a ground.

All lengths are fractions of the frame, so that a scene is the same at any size; times run from
-0.5 to 0.5 of the clip. Scene i is a function of (seed, i) alone, on every device.

Dims: B scenes, M members of a swarm, K candidate pairs of places.
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
    PLACES,
    SHAPES,
    WORDS,
    Thing,
)  # fmt: skip
from .chance import Chance

STEPS = ((-1.0, 0.0), (1.0, 0.0), (0.0, -1.0), (0.0, 1.0))
"""Unit step (x, y) of each of DIRECTIONS; y points down."""
LARGE, SWARMS, MEMBERS = 1, 1, len(COUNTS)
"""Large things of a scene, swarms, and most beads of a swarm."""
RADII = (0.155, 0.19)
"""Least and greatest radius of large things."""
BEAD = 0.052
"""Radius of a bead."""
TRAVEL = (0.15, 0.21)
"""Least and greatest distance that a thing moves in a clip."""
FORMATIONS = (
    ((0.0, 0.0),),
    ((0.0, -0.12), (0.0, 0.12)),
    ((0.10, 0.0), (-0.07, -0.14), (-0.07, 0.14)),
    ((0.15, 0.0), (0.0, -0.15), (0.0, 0.15), (-0.15, 0.0)),
)
"""Of each of COUNTS, where its beads fly, forward and to the right of the swarm's centre: abreast,
as a wedge, as a diamond. No bead flies in the tail of another."""
_JITTER = 0.012
"""Greatest distance of a bead from its place in the formation, along each axis."""
_SPREAD = 0.45
"""Share of the room along an axis that a place has: less than half, so that it is clear."""
_TRIES = 32
"""K: pairs of places that are tried for the large thing and the swarm."""
_EDGE, _ROOM = 0.02, 0.03
"""Distances that things keep from the frame's edge, and beads from the large thing."""
_CLOCK = (-0.5, -0.25, 0.0, 0.25, 0.5)
"""Times at which distances between things are measured."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Scenes:
    """A batch of scenes."""

    ground: Tensor
    """[B] index into GROUNDS."""
    look: Tensor
    """[B, 8] in 0..1: 0 is for the direction of the light, 1 and 2 for the place of the ground's
    texture, 4 for its brightness, see `paint`; the others are free."""
    pan: Tensor
    """[B, 2] distance (x, y) that the ground moves in a clip, as the camera pans."""
    colour: Tensor
    """[B, 2] index into COLOURS: the large thing, the swarm; not alike."""
    direction: Tensor
    """[B, 2] index into DIRECTIONS."""
    place: Tensor
    """[B, 2] index into PLACES; not alike."""
    shape: Tensor
    """[B, 1] index into SHAPES."""
    count: Tensor
    """[B, 1] beads of the swarm, from 1."""
    radius: Tensor
    """[B, 1] of the large thing."""
    middle: Tensor
    """[B, 1, 2] place (x, y) of the large thing at time 0."""
    travel: Tensor
    """[B, 2, 2] distance (x, y) that each thing moves in a clip."""
    beads: Tensor
    """[B, 1, M, 2] place (x, y) of every bead at time 0; those beyond the count lie far outside."""

    def __len__(self) -> int:
        return len(self.ground)

    def things(self) -> list[list[Thing]]:
        """List what each scene holds, in the order of its phrases."""
        kinds = (self.colour, self.direction, self.place, self.shape, self.count)
        rows = zip(*(kind.tolist() for kind in kinds), strict=True)
        return [
            [
                Thing(
                    colour=colour[slot],
                    direction=direction[slot],
                    place=place[slot],
                    shape=shape[slot] if slot < LARGE else None,
                    count=1 if slot < LARGE else count[slot - LARGE],
                )
                for slot in range(LARGE + SWARMS)
            ]
            for colour, direction, place, shape, count in rows
        ]

    def prompts(self) -> list[str]:
        """A prompt for each scene."""
        return [
            ", ".join([*(thing.phrase() for thing in things), f"on {GROUNDS[ground]}"])
            for things, ground in zip(self.things(), self.ground.tolist(), strict=True)
        ]

    def words(self) -> Tensor:
        """Which words each phrase has: [B, L, V] fp32."""
        marks = torch.zeros(len(self), PHRASES, len(WORDS), device=self.ground.device)

        def mark(slot: int, names: tuple[str, ...], index: Tensor) -> None:
            marks[:, slot].scatter_(1, (index + WORDS.index(names[0]))[:, None], 1.0)

        for slot in range(LARGE + SWARMS):
            mark(slot, COLOURS, self.colour[:, slot])
            mark(slot, DIRECTIONS, self.direction[:, slot])
            mark(slot, PLACES, self.place[:, slot])
            if slot < LARGE:
                mark(slot, SHAPES, self.shape[:, slot])
            else:
                mark(slot, COUNTS, self.count[:, slot - LARGE] - 1)
                marks[:, slot, WORDS.index(BEADS)] = 1
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
    direction = chance.pick(len(DIRECTIONS), slots)
    radius = chance.uniform(*RADII, LARGE)
    steps = torch.tensor(STEPS, device=index.device)[direction]
    travel = steps * chance.uniform(*TRAVEL, slots, 1)
    count = 1 + chance.pick(len(COUNTS), SWARMS)
    offsets = _offsets(chance, count[:, 0], steps[:, LARGE])
    place = chance.order(len(PLACES))[:, :slots]
    # Large swarms need the room of the opposite quarter.
    place[:, 1] = torch.where(count[:, 0] > 2, len(PLACES) - 1 - place[:, 0], place[:, 1])
    middle, centre = _apart(chance, place, radius, travel, offsets)
    beads = (centre[:, None] + offsets).masked_fill(_absent(count[:, 0]), 9.0)
    return Scenes(
        ground=chance.pick(len(GROUNDS)),
        look=chance.uniform(0, 1, 8),
        pan=chance.uniform(-0.12, 0.12, 2),
        colour=chance.order(len(COLOURS))[:, :slots],
        direction=direction,
        place=place,
        shape=chance.pick(len(SHAPES), LARGE),
        count=count,
        radius=radius,
        middle=middle[:, None],
        travel=travel,
        beads=beads[:, None],
    )


def _absent(count: Tensor) -> Tensor:
    """Tell which of M beads are beyond the count [B]: [B, M, 1] bool."""
    return (torch.arange(MEMBERS, device=count.device) >= count[:, None])[..., None]


def _offsets(chance: Chance, count: Tensor, step: Tensor) -> Tensor:
    """Place beads about the centre of their swarm: [B, M, 2]; zeros beyond the count.

    Args:
        count: [B], from 1.
        step: [B, 2] unit step of the swarm.
    """
    table = torch.zeros(len(COUNTS), MEMBERS, 2, device=count.device)
    for row, formation in zip(table, FORMATIONS, strict=True):
        row[: len(formation)] = torch.tensor(formation, device=count.device)
    ahead, aside = table[count - 1].unbind(dim=-1)
    right = torch.stack([-step[:, 1], step[:, 0]], dim=-1)
    places = ahead[..., None] * step[:, None] + aside[..., None] * right[:, None]
    places = places + chance.uniform(-_JITTER, _JITTER, MEMBERS, 2)
    return places.masked_fill(_absent(count), 0.0)


def _apart(
    chance: Chance, place: Tensor, radius: Tensor, travel: Tensor, offsets: Tensor
) -> tuple[Tensor, Tensor]:
    """Choose places of large thing and swarm that keep apart and in the frame: [B, 2] each.

    Args:
        place: [B, 2] index into PLACES, of both.
        radius: [B, 1] of the large thing.
        travel: [B, 2, 2] of both.
        offsets: [B, M, 2] of the beads from the centre of their swarm.
    """
    east_south = torch.stack([place % 2, place // 2], dim=-1)
    unit = _SPREAD * chance.uniform(0, 1, _TRIES, LARGE + SWARMS, 2)
    unit = unit + (1 - _SPREAD) * east_south[:, None]
    around = radius + _EDGE + travel[:, 0].abs() / 2
    middle = around[:, None] + (1 - 2 * around[:, None]) * unit[:, :, 0]
    ends = torch.stack([offsets - travel[:, 1:] / 2, offsets + travel[:, 1:] / 2])
    rim = BEAD + 2 * _EDGE
    low = rim - ends.amin(dim=(0, 2))
    high = 1 - rim - ends.amax(dim=(0, 2))
    centre = low[:, None] + (high - low)[:, None] * unit[:, :, 1]
    clock = torch.tensor(_CLOCK, device=travel.device).view(-1, 1, 1)
    # [B, K, times, M, 2]
    between = (centre - middle)[:, :, None, None] + offsets[:, None, None]
    between = between + clock * (travel[:, 1] - travel[:, 0])[:, None, None, None]
    gap = between.norm(dim=-1).amin(dim=(2, 3)) - radius
    # The first that is far enough, else the farthest: always the farthest would mean corners.
    best = torch.where(gap > BEAD + _ROOM, 2.0, gap).argmax(dim=1)
    rows = torch.arange(len(best), device=best.device)
    return middle[rows, best], centre[rows, best]
