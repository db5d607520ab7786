"""The language of the embedded models: phrases for a large thing, a swarm of beads, a ground.

    "red ball moving right in the northwest, four blue beads moving up in the southeast, on sand"

Every thing has a colour of its own, so that a colour names one thing of a scene.

Dims: B batch, L phrases, V words.
"""

from dataclasses import dataclass
from functools import cache

import torch
from torch import Tensor

COLOURS = ("red", "yellow", "green", "blue", "purple")
SHAPES = ("ball", "cube", "pyramid", "ring")
COUNTS = ("one", "two", "three", "four")
DIRECTIONS = ("left", "right", "up", "down")
PLACES = ("northwest", "northeast", "southwest", "southeast")
"""Quarters of the frame: of the middle of a thing's way."""
GROUNDS = ("sand", "grass", "water", "stone")
BEADS = "beads"
WORDS = (*COLOURS, *SHAPES, *COUNTS, *DIRECTIONS, *GROUNDS, BEADS, *PLACES)
CHECKABLE = "a thing needs a colour, a shape or a count of beads, a direction and a place"
"""What a phrase must have, for a program to tell whether it is right."""
PHRASES = 3
"""Phrases of a prompt: a large thing, a swarm and a ground."""
TEXT_DIM = 4096
_FILLERS = {"a", "and", "in", "moving", "on", "small", "the"}


@dataclass(frozen=True, kw_only=True, slots=True)
class Thing:
    """What one phrase names; indices into the tuples above."""

    colour: int
    shape: int | None
    """Of a large thing; None for a swarm of beads."""
    count: int
    """How many there are; 1 of a large thing."""
    direction: int
    place: int

    @property
    def noun(self) -> str:
        """One word for it."""
        if self.shape is not None:
            return SHAPES[self.shape]
        return BEADS if self.count > 1 else BEADS.removesuffix("s")

    def phrase(self) -> str:
        """The words for it."""
        end = f"moving {DIRECTIONS[self.direction]} in the {PLACES[self.place]}"
        count = "" if self.shape is not None else f"{COUNTS[self.count - 1]} "
        return f"{count}{COLOURS[self.colour]} {self.noun} {end}"


def words_of(text: str) -> list[list[str]]:
    """Split a prompt into phrases of known words, fillers left out.

    Raises:
        ValueError: an unknown word, or too many phrases.
    """
    phrases = [
        [word for part in phrase.lower().split() if (word := part.strip(".;:!?"))]
        for phrase in text.split(",")
        if phrase.strip()
    ]
    if len(phrases) > PHRASES:
        raise ValueError(
            f"expected at most {PHRASES} phrases, got {len(phrases)}; name a large "
            "thing, a swarm of beads and a ground."
        )
    split = [
        [BEADS if word == "bead" else word for word in words if word not in _FILLERS]
        for words in phrases
    ]
    for word in (word for words in split for word in words):
        if word not in WORDS:
            raise ValueError(f"the tiny model knows {', '.join(WORDS)}; got {word[:40]!r}.")
    return split


def things_of(text: str) -> list[Thing]:
    """Read the things that a prompt names; phrases with a word missing name nothing to check.

    Raises:
        ValueError: as `words_of`; or two things in a phrase, or of a colour: a program could not
            tell them apart.
    """
    things: list[Thing] = []
    for words in words_of(text):
        for names in (COLOURS, SHAPES, COUNTS, DIRECTIONS, PLACES):
            several = [name for name in names if name in words]
            if len(several) > 1:
                raise ValueError(
                    f"expected one thing a phrase, got {' and '.join(several)}; put a comma "
                    "between things, and a ground last."
                )
        at = {
            name: next((names.index(word) for word in words if word in names), None)
            for name, names in (
                ("colour", COLOURS), ("shape", SHAPES),
                ("count", COUNTS), ("direction", DIRECTIONS), ("place", PLACES),
            )
        }  # fmt: skip
        swarm = BEADS in words and at["count"] is not None
        if (
            at["colour"] is None
            or at["direction"] is None
            or at["place"] is None
            or not (swarm or at["shape"] is not None)
        ):
            continue
        if any(at["colour"] == thing.colour for thing in things):
            raise ValueError(
                f"expected a colour of its own for each thing, got {COLOURS[at['colour']]} twice; "
                f"choose among {', '.join(COLOURS)}."
            )
        count = 1 + (at["count"] or 0) if swarm else 1
        shape = None if swarm else at["shape"]
        things.append(
            Thing(
                colour=at["colour"], shape=shape, count=count, direction=at["direction"],
                place=at["place"],
            )
        )  # fmt: skip
    return things


@cache
def vectors() -> Tensor:
    """A fixed random direction for every word: [V, TEXT_DIM] fp32."""
    generator = torch.Generator().manual_seed(20261128)
    return torch.randn(len(WORDS), TEXT_DIM, generator=generator)


def multi_hot(text: str) -> Tensor:
    """Which words each phrase has: [L, V] fp32 of 0 and 1; missing phrases are zeros."""
    marks = torch.zeros(PHRASES, len(WORDS))
    for slot, words in enumerate(words_of(text)):
        for word in words:
            marks[slot, WORDS.index(word)] = 1
    return marks


def encode_caption(text: str) -> Tensor:
    """Encode a prompt as one token a phrase, the sum of its words' vectors: [1, L, TEXT_DIM].

    Raises:
        ValueError: as `words_of`.

    Source: ours.
    """
    return (multi_hot(text) @ vectors())[None]
