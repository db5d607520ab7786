"""Encode a caption of drawn clips: one token per phrase, the sum of its words' vectors.

Dims: B batch, L phrases.
"""

from functools import cache

import torch
from torch import Tensor

COLOURS = ("red", "green", "blue", "yellow")
SHAPES = ("circle", "square", "triangle")
DIRECTIONS = ("left", "right", "up", "down")
BACKGROUNDS = ("stripes", "checks", "clouds")
PHRASES = 3
"""Phrases of a prompt: up to two objects and a background."""
TEXT_DIM = 4096

_WORDS = (*COLOURS, *SHAPES, *DIRECTIONS, *BACKGROUNDS)
_FILLERS = {"a", "and", "moving", "on"}


@cache
def _vectors() -> Tensor:
    return torch.randn(len(_WORDS), TEXT_DIM, generator=torch.Generator().manual_seed(20251121))


def encode_prompt(text: str) -> Tensor:
    """Encode e.g. "red circle moving right, blue square moving up, on stripes".

    Args:
        text: up to three phrases, separated by commas; empty for the unconditional token.

    Returns:
        [1, 3, 4096] fp32; missing phrases are zeros.

    Raises:
        ValueError: an unknown word, or more than three phrases.

    Source: ours; word vectors are fixed random directions.
    """
    phrases = [phrase.lower().split() for phrase in text.split(",") if phrase.strip()]
    if len(phrases) > PHRASES:
        raise ValueError(
            f"expected at most {PHRASES} phrases, got {len(phrases)}; "
            "name one or two objects and a background."
        )
    tokens = torch.zeros(1, PHRASES, TEXT_DIM)
    for slot, words in enumerate(phrases):
        for word in words:
            if word in _FILLERS:
                continue
            if word not in _WORDS:
                raise ValueError(f"drawn clips know {', '.join(_WORDS)}; got {word[:40]!r}.")
            tokens[0, slot] += _vectors()[_WORDS.index(word)]
    return tokens
