"""Held-out scenes, prompts and noise, and the stages made of them.

Dims: B batch, T frames, S pixels along a side.
"""

from collections.abc import Iterator

import torch
from torch import Tensor

from surf_core.flow import euler
from surf_core.reshift import (
    DEFAULT_NOISE,
    DEFAULT_SIGMA,
    implied_noise,
    inherit_noise,
    preview,
    reshift,
)
from surf_core.schedule import flow_sigmas, switch
from surf_core.tiny.caption import Thing
from surf_core.tiny.demo import Settings
from surf_core.tiny.model import CELLS, CLIP, TinyT2V
from surf_core.training.tiny import paint, world

SCENES = 90_003
"""Seed of the scenes: that of no training, and of no table that a setting was chosen by."""
PALETTE = torch.tensor(paint.PALETTE)
"""Red, green and blue of each colour, 0..1."""
NOISE = 3_500_000_000
"""Seed of the first video's noise; fresh and other noise follow at OTHER and FRESH beyond it."""
OTHER, FRESH, REFINE = 10_000_000, 20_000_000, 30_000_000
LOW = CELLS // 2
"""Latent cells along a side of a preview."""


def drawn(numbers: list[int]) -> world.Scenes:
    """Draw held-out scenes; each depends on its number alone."""
    return world.draw(SCENES, torch.tensor(numbers))


def prompts(numbers: list[int]) -> list[str]:
    """Return the prompts of held-out scenes."""
    return drawn(numbers).prompts()


def things(numbers: list[int]) -> list[list[Thing]]:
    """List what they name: a large thing and a swarm of beads each."""
    return drawn(numbers).things()


def painted(numbers: list[int], size: int) -> Tensor:
    """Paint held-out scenes: [B, 3, T, S, S] in 0..1."""
    times = torch.linspace(-0.5, 0.5, CLIP)
    return paint.paint(drawn(numbers), times, size).add(1).div(2).clamp(0, 1)


def batches(numbers: list[int], size: int) -> Iterator[list[int]]:
    """Cut into runs of `size` at most."""
    for start in range(0, len(numbers), size):
        yield numbers[start : start + size]


def seeds(numbers: list[int], of: int = 0) -> list[int]:
    """Return the seeds of noise of held-out videos; `of` is 0, OTHER, FRESH or REFINE."""
    return [NOISE + of + number for number in numbers]


def schedule(steps: int = Settings().steps) -> Tensor:
    """Return the sigmas of the tiny model: [steps + 1]."""
    return flow_sigmas(steps, Settings().shift)


def shown(tiny: TinyT2V, numbers: list[int], k: int = Settings().switch_step) -> Tensor:
    """Make SURF previews, latents [B, 16, T, LOW, LOW], the way the demo does."""
    s = Settings()
    return preview(
        tiny.velocity(s.cfg), tiny.noise(seeds(numbers)), schedule(), k, (LOW, LOW),
        noise=tiny.noise(seeds(numbers, FRESH), LOW), velocity_low=tiny.velocity(s.cfg_low),
        sigma_policy=DEFAULT_SIGMA, noise_policy=DEFAULT_NOISE,
    )  # fmt: skip


class Switched:
    """One baseline of some pairs, whose first k steps are those of every preview."""

    def __init__(self, tiny: TinyT2V, numbers: list[int]):
        s = Settings()
        self.high, self.low = tiny.velocity(s.cfg), tiny.velocity(s.cfg_low)
        self.noise, self.sigmas = tiny.noise(seeds(numbers)), schedule()
        self.fresh = tiny.noise(seeds(numbers, FRESH), LOW)
        self.other = tiny.noise(seeds(numbers, OTHER))
        self.evaluated: list[Tensor] = []
        self.clean: list[Tensor] = []
        self.baseline = euler(self.high, self.noise, self.sigmas, self._keep)

    def _keep(self, _: int, z: Tensor, clean: Tensor) -> None:
        self.evaluated.append(z)
        self.clean.append(clean)

    def preview(self, k: int, noise: str, sigma: str) -> Tensor:
        """Return what `surf_core.reshift.preview` returns, from the baseline's own first steps."""
        cut = switch(self.sigmas, k, ratio=2.0, sigma_policy=sigma)
        x0, drawn = self.clean[k - 1], self.fresh
        if noise == "inherited":
            implied = implied_noise(self.evaluated[k - 1], x0, self.sigmas[k - 1].item())
            drawn = inherit_noise(implied, (LOW, LOW))
        return euler(self.low, reshift(x0, cut.sigma, (LOW, LOW), drawn), cut.low)
