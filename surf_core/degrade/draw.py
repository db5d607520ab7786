"""Draw the degradation of a clip from a seed and the clip's key alone."""

import hashlib
import json
from bisect import bisect_right
from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import accumulate
from math import isfinite, pi
from typing import TypeVar

import torch
from torch import Tensor

from .record import (
    LEVELS,
    METHODS,
    NOISES,
    Blur,
    Codec,
    Degradation,
    Jpeg,
    Noise,
    Operation,
    Resize,
    Sinc,
)

Option = TypeVar("Option")
MIX = (0.5, 0.4, 0.1)
"""Shares of weak, medium and full. A text-to-video preview is soft, without a sensor's noise, so
most clips are only made smaller. Source: ours."""
STRENGTH = (0.6, 0.9)
"""Range of the noise on the degraded latent. Source: SURF B.3."""
JPEG = (30, 95)
CODEC = {"libx264": (23, 40), "mpeg4": (6, 22)}
"""Ranges of quality. Bit rates, which RealBasicVSR draws, would have to grow with the size."""
SOFTEST = 0.6
"""Weak: least share of the degraded size that a clip is shrunk to; 3 times smaller becomes 5."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Ranges:
    """Ranges and probabilities that a pass is drawn from."""

    blur: float
    """Probability of a blur."""
    sigma: tuple[float, float]
    """Widths of the kernel in pixels."""
    resize: tuple[float, float, float]
    """Probabilities of up, down, keep."""
    factor: tuple[float, float]
    """Smallest and largest factor."""
    gaussian: tuple[float, float]
    """Standard deviation in 1/255."""
    poisson: tuple[float, float]
    """Factor on Poisson noise."""


FIRST = Ranges(
    blur=1.0,
    sigma=(0.2, 3.0),
    resize=(0.2, 0.7, 0.1),
    factor=(0.15, 1.5),
    gaussian=(1.0, 30.0),
    poisson=(0.05, 3.0),
)
"""Source: Real-ESRGAN's training options."""
SECOND = Ranges(
    blur=0.8,
    sigma=(0.2, 1.5),
    resize=(0.3, 0.4, 0.3),
    factor=(0.3, 1.2),
    gaussian=(1.0, 25.0),
    poisson=(0.05, 2.5),
)
"""Source: Real-ESRGAN's training options."""
_NOISE = {"medium": 0.5, "full": 1.0}  # Share of the noise, by level.
_SHAPES = {
    ("gaussian", True): 0.45,
    ("gaussian", False): 0.25,
    ("generalised", True): 0.12,
    ("generalised", False): 0.03,
    ("plateau", True): 0.12,
    ("plateau", False): 0.03,
}
_BETA = {"gaussian": (1.0, 1.0), "generalised": (0.5, 4.0), "plateau": (1.0, 2.0)}


def draw(
    seed: int,
    key: str,
    *,
    scale: float,
    size: tuple[int, int] | None = None,
    mix: Sequence[float] = MIX,
) -> Degradation:
    """Draw the degradation of one clip, a function of the arguments on every machine.

    weak: a soft resize. full: Real-ESRGAN's two passes, then JPEG and a video encoder, before or
    after the exact resize and a sinc filter. medium: full with a third to half of the noise.
    Parameters hold for the whole clip, so that only the noise flickers.

    Args:
        seed: any integer.
        key: name of the clip, e.g. its content hash.
        scale: sides of the clip over those of the degraded clip, at least 1.
        size: (height, width) of the degraded clip where the sides do not divide by the scale.
        mix: weights of weak, medium and full.

    Raises:
        ValueError: a seed, key, scale, size or mix of another type or out of range.

    Source: Real-ESRGAN 3; the encoder and the order at the end RealBasicVSR; the mix ours.
    """
    mix = tuple(mix)
    if len(mix) != 3 or not all(isfinite(w) and w >= 0 for w in mix) or not sum(mix) > 0:
        raise ValueError(
            f"mix must be three weights, none negative, not all 0, got {mix}; e.g. {MIX}."
        )
    dice = _Dice(seeded(seed, key))
    level = dice.pick(LEVELS, mix)
    return Degradation(
        noise_seed=dice.integer(0, 2**53 - 1),
        scale=scale,
        size=size,
        level=level,
        operations=_weak(dice) if level == "weak" else _two_passes(dice, _NOISE[level]),
        strength=dice.uniform(*STRENGTH),
    )


def draw_strength(
    generator: torch.Generator, count: int, bounds: tuple[float, float] = STRENGTH
) -> Tensor:
    """Draw the latent noise strength of `count` samples, uniform in `bounds`: [count] in fp32."""
    low, high = bounds
    return low + (high - low) * torch.rand(count, generator=generator, device=generator.device)


def seeded(seed: int, *keys: str | int) -> torch.Generator:
    """Return a CPU generator seeded by (seed, keys), equal in every process.

    Raises:
        ValueError: the seed is not an integer, or a key neither text nor integer.
    """
    if not all([type(seed) is int, *(type(key) in (str, int) for key in keys)]):
        raise ValueError(
            f"expected an integer seed and the clip's key as text, got {seed!r} and {keys}; "
            "e.g. draw(0, 'clip-000')."
        )
    digest = hashlib.sha256(json.dumps([seed, *keys]).encode()).digest()
    return torch.Generator().manual_seed(int.from_bytes(digest[:8], "big") >> 1)


class _Dice:
    """Draw plain Python values from one generator."""

    def __init__(self, generator: torch.Generator):
        self.generator = generator

    def uniform(self, low: float, high: float) -> float:
        share = torch.rand((), generator=self.generator, dtype=torch.float64).item()
        return low + (high - low) * share

    def integer(self, low: int, high: int) -> int:
        """Both ends included."""
        return low + int(self.uniform(0, high - low + 1))

    def chance(self, probability: float) -> bool:
        return self.uniform(0, 1) < probability

    def pick(self, options: Sequence[Option], weights: Sequence[float] | None = None) -> Option:
        edges = list(accumulate(weights or [1.0] * len(options)))
        return options[bisect_right(edges, self.uniform(0, edges[-1]), hi=len(options) - 1)]


def _weak(dice: _Dice) -> tuple[Operation, ...]:
    # Methods with prefilters only, since previews do not alias. Area upwards would be blocks.
    down = Resize(factor=dice.uniform(SOFTEST, 1), of="low", method=dice.pick(("area", "bicubic")))
    return down, Resize(factor=1.0, of="low", method=dice.pick(("bilinear", "bicubic")))


def _two_passes(dice: _Dice, share: float) -> tuple[Operation, ...]:
    first, second = (_with_less_noise(ranges, share) for ranges in (FIRST, SECOND))
    passes = _pass(dice, first, "high")
    passes += [_jpeg(dice)]
    passes += _pass(dice, second, "low")
    compression: list[Operation] = [_jpeg(dice), _codec(dice)]
    sizing: list[Operation] = [Resize(factor=1.0, of="low", method=dice.pick(METHODS))]
    if dice.chance(0.8):
        sizing.append(Sinc(size=_kernel_size(dice), cutoff=dice.uniform(pi / 3, pi)))
    if dice.chance(0.5):
        return (*passes, *sizing, *compression)
    return (*passes, *compression, *sizing)


def _with_less_noise(ranges: Ranges, share: float) -> Ranges:
    """Scale Poisson noise by the share, and limit Gaussian noise to 10 / 255."""
    if share == 1:
        return ranges
    low, high = ranges.poisson
    return replace(ranges, gaussian=(ranges.gaussian[0], 10.0), poisson=(low, high * share))


def _pass(dice: _Dice, ranges: Ranges, of: str) -> list[Operation]:
    operations: list[Operation] = []
    if dice.chance(ranges.blur):
        operations.append(_blur(dice, ranges.sigma))
    low, high = ranges.factor
    direction = dice.pick(("up", "down", "keep"), ranges.resize)
    factor = {"up": (1.0, high), "down": (low, 1.0), "keep": (1.0, 1.0)}[direction]
    operations.append(Resize(factor=dice.uniform(*factor), of=of, method=dice.pick(METHODS)))
    kind = dice.pick(NOISES)
    level = dice.uniform(*getattr(ranges, kind))
    return [*operations, Noise(kind=kind, level=level, gray=dice.chance(0.4))]


def _blur(dice: _Dice, sigma: tuple[float, float]) -> Blur | Sinc:
    size = _kernel_size(dice)
    if dice.chance(0.1):
        return Sinc(size=size, cutoff=dice.uniform(pi / 3 if size < 13 else pi / 5, pi))
    shape, isotropic = dice.pick(tuple(_SHAPES), tuple(_SHAPES.values()))
    first = dice.uniform(*sigma)
    low, high = _BETA[shape]
    return Blur(
        shape=shape,
        size=size,
        sigma=(first, first if isotropic else dice.uniform(*sigma)),
        angle=0.0 if isotropic else dice.uniform(-pi, pi),
        # Half of them below 1, half above, whatever the widths of the two ranges.
        beta=dice.uniform(low, 1) if dice.chance(0.5) else dice.uniform(1, high),
    )


def _kernel_size(dice: _Dice) -> int:
    return 2 * dice.integer(3, 10) + 1


def _jpeg(dice: _Dice) -> Jpeg:
    return Jpeg(quality=dice.integer(*JPEG))


def _codec(dice: _Dice) -> Codec:
    name = dice.pick(tuple(CODEC))
    return Codec(name=name, quality=dice.integer(*CODEC[name]))
