"""Ways to switch the resolution, and the previews that they draw on the embedded model.

Cells are latent cells along a side; sigma is 1 for noise and 0 for a clean latent.
"""

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from itertools import combinations
from pathlib import Path

import torch
from torch import Tensor

from benchmarks.quality.held_out import FRESH, LOW, OTHER, prompts, seeds, things
from surf_core.flow import Velocity, euler
from surf_core.refiner import SurfRefinerDiT
from surf_core.refiner.rope import split_axes
from surf_core.resample import resize
from surf_core.reshift import hold_low_band, implied_noise, inherit_noise, reshift
from surf_core.schedule import SwitchedSchedule, flow_sigmas, reach_sigma, switch
from surf_core.tiny.caption import Thing
from surf_core.tiny.demo import Settings
from surf_core.tiny.model import TinyT2V

HALF = (LOW, LOW)


@dataclass(frozen=True, kw_only=True, slots=True)
class Way:
    """One way to draw a preview; the defaults are the nodes' with the paper's steps."""

    k: int = 10
    """Steps at full resolution."""
    below: int = 30
    """Steps at half of it."""
    bare: bool = False
    """Draw no step at half of it: average the clean estimate at the switch down."""
    sigma: str = "snr_equal"
    noise: str = "inherited"
    """Policies, see `surf_core.reshift`."""
    ratio: float = 2.0
    """Ratio that the low leg begins as low for, 2 being that of the sizes."""
    lock: float = 0.0
    """Share of the low steps that hold the low band."""
    reach: float | None = None
    """Sigma that the steps before the switch go down to; None: the schedule's."""
    stretch: float = 1.0
    """Factor of the positions at the first low step, which falls to 1."""
    more_cfg: tuple[float, float] = (0.0, 0.0)
    """Added to the guidance before and after the switch."""
    guided_low: bool = True
    """False: guidance 1 after the switch, one run of the network a step."""

    def cut(self) -> SwitchedSchedule:
        """Cut the schedule where the resolution drops."""
        sigmas = flow_sigmas(self.k + self.below, Settings().shift)
        if self.reach is not None:
            sigmas = reach_sigma(sigmas, self.k, self.reach)
        return switch(sigmas, self.k, ratio=self.ratio, sigma_policy=self.sigma)


@dataclass(frozen=True, kw_only=True, slots=True)
class Section:
    """A table of the page: previews that are compared with each other."""

    title: str
    ways: dict[str, Way]
    less: dict[str, list[str]]
    """Name of a preview -> rows that it is compared with, besides as many operations at full
    resolution."""


PAPER, OURS, BARE = "the paper's rule", "the nodes' defaults", "no low steps"
RULES = {PAPER: Way(sigma="same", noise="fresh"), OURS: Way()}
VARIANTS: dict[str, dict[str, float]] = {
    "A": {"ratio": 4.0}, "B": {"lock": 1 / 3}, "C": {"stretch": 2.0}, "D": {"reach": 0.75},
}  # fmt: skip
SPLITS = ((5, 35), (10, 30), (20, 20), (30, 10))
"""Steps before and after the switch in the paper's Tab. 4, which ends in 40 and none."""
SWITCHES = (2, 5, 10, 20)
HALVED = "5 + 15, "


def mixed() -> dict[str, Way]:
    """Combine the four variants in every way."""
    chosen = [names for size in range(1, 5) for names in combinations(VARIANTS, size)]
    return {
        " + ".join(names): replace(
            Way(), **{what: value for name in names for what, value in VARIANTS[name].items()}
        )
        for names in chosen
    }


def by_split(splits: dict[str, tuple[int, int]], direct: str) -> tuple[dict, dict]:
    """Draw each split by both rules, and without low steps."""
    ways, less = {}, {}
    for label, (k, below) in splits.items():
        bare, paper, ours = (f"{label}, {each}" for each in (BARE, PAPER, OURS))
        ways[bare] = Way(k=k, below=below, bare=True)
        ways[paper] = replace(RULES[PAPER], k=k, below=below)
        ways[ours] = Way(k=k, below=below)
        less |= {paper: [bare, direct], ours: [paper, bare, direct]}
    return ways, less


def sections(steps: int, direct: str) -> list[Section]:
    """List all previews.

    Args:
        steps: those of the baseline, of which k are drawn before the switch in the last section.
        direct: row of half the resolution alone.
    """
    ways = {BARE: Way(bare=True), **RULES, **mixed(), "B over all low steps": Way(lock=1.0),
            "the paper's rule with B": replace(RULES[PAPER], lock=1 / 3)}  # fmt: skip
    first = Section(
        title="Variants and their combinations, 10 + 30 steps", ways=ways,
        less={name: [each for each in (PAPER, OURS, BARE) if each != name]
              for name in ways if name != BARE},
    )  # fmt: skip
    few = {PAPER: RULES[PAPER]} | {OURS: Way()} | mixed()
    few = {name: few[name] for name in (PAPER, OURS, "B", "D", "B + D")}
    few = {HALVED + name: replace(way, k=5, below=15) for name, way in few.items()}
    guided = {
        f"guidance {where} the switch {how} by 1": Way(more_cfg=more)
        for where, how, more in (
            ("before", "higher", (1.0, 0.0)), ("before", "lower", (-1.0, 0.0)),
            ("after", "higher", (0.0, 1.0)), ("after", "lower", (0.0, -1.0)),
        )
    } | {"no guidance after the switch": Way(guided_low=False)}  # fmt: skip
    tab_4, less_4 = by_split({f"{k} - {below}": (k, below) for k, below in SPLITS}, direct)
    by_k, less_k = by_split({f"k = {k} of {steps}": (k, steps - k) for k in SWITCHES}, direct)
    halved = {name: [PAPER] + [HALVED + PAPER] * (name != HALVED + PAPER) for name in few}
    return [
        first,
        Section(title="Half of the operations, 5 + 15 steps", ways=few, less=halved),
        Section(title="Guidance of each leg, 10 + 30 steps", ways=guided,
                less={name: [OURS] for name in guided}),
        Section(title="The splits of the paper's Tab. 4", ways=tab_4, less=less_4),
        Section(title=f"The switch after k of {steps} steps", ways=by_k, less=less_k),
    ]  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class Embedded:
    """Held-out prompts of a batch, their noise, and the model."""

    model: SurfRefinerDiT
    velocity: Callable[[float], Velocity]
    """Guidance -> velocity."""
    noise: Tensor
    other: Tensor
    """Noise of another seed."""
    fresh: Tensor
    """Noise at half the resolution."""
    things: list[list[Thing]]
    """What the prompts name."""
    known: dict[tuple[float, ...], list[tuple[Tensor, Tensor]]] = field(default_factory=dict)
    """Guidance and sigmas of the steps at full resolution -> latent and clean estimate of each."""


def embedded(numbers: list[int], weights: Path) -> Embedded:
    """Take the embedded model with the prompts and the noise of held-out scenes."""
    tiny = TinyT2V(prompts(numbers), weights)
    return Embedded(
        model=tiny.model, velocity=tiny.velocity, noise=tiny.noise(seeds(numbers)),
        other=tiny.noise(seeds(numbers, OTHER)), fresh=tiny.noise(seeds(numbers, FRESH), LOW),
        things=things(numbers),
    )  # fmt: skip


def stretched(velocity: Velocity, model: SurfRefinerDiT, steps: int, factor: float) -> Velocity:
    """Stretch the positions of rows and columns in the calls of one run, evenly less to none."""
    if factor == 1:
        return velocity
    calls = iter(torch.linspace(factor, 1.0, steps).tolist())
    plain = model._table

    def stretching(z: Tensor, sigma: float) -> Tensor:
        scale = next(calls)
        model._table = lambda grid, _: table_of(grid, model.config.head_dim, scale)  # type: ignore[method-assign]
        try:
            return velocity(z, sigma)
        finally:
            model._table = plain  # type: ignore[method-assign]

    return stretching


def table_of(grid: tuple[int, int, int], head_dim: int, scale: float) -> Tensor:
    """Build `surf_core.refiner.rope.rotary_table` with rows and columns `scale` times as far."""
    parts = []
    for axis, (size, width) in enumerate(zip(grid, split_axes(head_dim), strict=True)):
        rates = 10000.0 ** -(torch.arange(0, width, 2, dtype=torch.float64) / width)
        angle = torch.arange(size)[:, None] * (scale if axis else 1.0) * rates
        turn = torch.stack([angle.cos(), -angle.sin(), angle.sin(), angle.cos()], dim=-1)
        shape = [size if other == axis else 1 for other in range(3)]
        parts.append(turn.float().view(*shape, width // 2, 2, 2).expand(*grid, width // 2, 2, 2))
    return torch.cat(parts, dim=3).flatten(0, 2)[None, :, None]


def full(toy: Embedded, cfg: float, sigmas: Tensor) -> Tensor:
    """Draw at full resolution alone, and keep every step for the switches of that schedule."""
    steps: list[tuple[Tensor, Tensor]] = []
    latent = euler(toy.velocity(cfg), toy.noise, sigmas, lambda _, z, x0: steps.append((z, x0)))
    toy.known[(cfg, *sigmas[:-1].tolist())] = steps
    return latent


def before_switch(toy: Embedded, way: Way, cfg: float) -> tuple[Tensor, Tensor]:
    """Return what the last evaluation before the switch saw, and its clean estimate."""
    high = way.cut().high
    wanted = (cfg, *high[:-1].tolist())
    for run, steps in toy.known.items():
        if run[: len(wanted)] == wanted:
            return steps[way.k - 1]
    full(toy, cfg, high)
    return toy.known[wanted][-1]


def switched(toy: Embedded, way: Way, cfg: float, cfg_low: float) -> Tensor:
    """Draw a preview: latents at half the resolution."""
    more, more_low = way.more_cfg
    evaluated, x0 = before_switch(toy, way, cfg + more)
    if way.bare:
        return resize(x0, HALF, "area")
    cut, noise = way.cut(), toy.fresh
    if way.noise == "inherited":
        noise = inherit_noise(implied_noise(evaluated, x0, cut.high[-2].item()), HALF)
    guidance = cfg_low + more_low if way.guided_low else 1.0
    low = stretched(toy.velocity(guidance), toy.model, way.below, way.stretch)
    held = hold_low_band(low, resize(x0, HALF), round(way.lock * way.below))
    return euler(held, reshift(x0, cut.sigma, HALF, noise), cut.low)
