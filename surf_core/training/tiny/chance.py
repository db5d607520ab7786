"""Random numbers that are a function of (seed, scene, draw): alike on every device and batch.

Dims: B scenes.
"""

from math import prod

import torch
from torch import Tensor

_FACTORS = (0x2545F4914F6CDD1D, 0x369DEA0F31A53F85, 0x27BB2EE687B0B0FD)
_TOP = (1 << 24) - 1


def _mixed(x: Tensor) -> Tensor:
    """Hash int64 [..], elementwise."""
    for factor in _FACTORS[:2]:
        x = (x ^ ((x >> 31) & 0x1FFFFFFFF)) * factor
    return x ^ ((x >> 29) & 0x7FFFFFFFF)


class Chance:
    """Draw random numbers for scenes; each scene's depend on its number and their order alone.

    Args:
        seed: shared by all scenes.
        index: [B] int64, numbers of the scenes.
    """

    def __init__(self, seed: int, index: Tensor):
        self.base = _mixed(_mixed(index.long() + 1) + (seed + 1) * _FACTORS[2] % (1 << 62))
        self.drawn = 0

    def uniform(self, low: float, high: float, *shape: int) -> Tensor:
        """Draw floats [B, *shape] in low..high."""
        count = prod(shape)
        slots = torch.arange(self.drawn, self.drawn + count, device=self.base.device)
        self.drawn += count
        bits = _mixed(self.base[:, None] + (slots + 1) * _FACTORS[2])
        unit = ((bits >> 35) & _TOP).float() / (_TOP + 1)
        return low + (high - low) * unit.view(-1, *shape)

    def pick(self, count: int, *shape: int) -> Tensor:
        """Draw whole numbers [B, *shape] in 0..count-1."""
        return self.uniform(0, count, *shape).long().clamp(max=count - 1)

    def order(self, count: int) -> Tensor:
        """Draw a permutation of 0..count-1 for each scene: [B, count]."""
        return self.uniform(0, 1, count).argsort(dim=1)
