"""A fixed linear codec: a 4x4 cosine transform per frame, 16 channels per latent cell.

Eight luma and four plus four chroma coefficients are kept, so one latent cell is 4x4 pixels and
one latent frame is one pixel frame.

Dims: B batch, T frames, H, W latent cells.
"""

from functools import cache
from math import cos, pi, sqrt

import torch
from einops import rearrange
from torch import Tensor

CELL = 4
"""Pixels along one side of a latent cell."""

_KEPT = (8, 4, 4)
# The square root of each coefficient's deviation over rendered scenes: coarse coefficients stay
# the loudest, fine ones are not drowned by unit noise.
_SCALE = (
    1.2,
    0.53,
    0.53,
    0.29,
    0.3,
    0.29,
    0.19,
    0.19,
    1.1,
    0.52,
    0.52,
    0.34,
    0.9,
    0.43,
    0.43,
    0.27,
)


@cache
def _basis() -> Tensor:
    """Rows are the kept coefficients: [16, 3*4*4], orthonormal."""
    wave = torch.tensor(
        [[cos((2 * x + 1) * u * pi / (2 * CELL)) for x in range(CELL)] for u in range(CELL)]
    ) * sqrt(2 / CELL)
    wave[0] /= sqrt(2)
    zigzag = sorted(((u, v) for u in range(CELL) for v in range(CELL)), key=lambda p: (sum(p), p))
    colour = torch.tensor([[1.0, 1, 1], [-1, -1, 2], [1, -1, 0]])
    colour = colour / colour.norm(dim=1, keepdim=True)
    rows = [
        torch.einsum("c,y,x->cyx", axis, wave[u], wave[v]).flatten()
        for axis, kept in zip(colour, _KEPT, strict=True)
        for u, v in zigzag[:kept]
    ]
    return torch.stack(rows)


def encode(video: Tensor) -> Tensor:
    """Map pixels [B, 3, T, 4H, 4W] in -1..1 to a latent [B, 16, T, H, W]."""
    cells = rearrange(video, "b c t (h y) (w x) -> b t h w (c y x)", y=CELL, x=CELL)
    scale = torch.tensor(_SCALE, dtype=video.dtype, device=video.device)
    return rearrange((cells @ _basis().to(video).T) / scale, "b t h w k -> b k t h w")


def decode(latent: Tensor) -> Tensor:
    """Map a latent [B, 16, T, H, W] to pixels [B, 3, T, 4H, 4W], not clamped."""
    scale = torch.tensor(_SCALE, dtype=latent.dtype, device=latent.device)
    cells = (rearrange(latent, "b k t h w -> b t h w k") * scale) @ _basis().to(latent)
    return rearrange(cells, "b t h w (c y x) -> b c t (h y) (w x)", c=3, y=CELL, x=CELL)
