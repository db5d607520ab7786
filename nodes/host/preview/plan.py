"""Where and how the resolution drops, checked before anything is loaded."""

from dataclasses import dataclass, field
from typing import Any

from torch import Tensor

from ....surf_core.checks import check_choice, check_range
from ....surf_core.legs import Turn
from ....surf_core.reshift import DEFAULT_NOISE, DEFAULT_SIGMA, NOISE_POLICIES
from ....surf_core.schedule import HANDOVERS, SIGMA_POLICIES, reach_sigma
from .. import models
from ..conditioning import Conditioning
from ..latents import check_sides, low_size

Size = tuple[int, int]
"""Rows and columns in latent cells."""
LOW_SIDES = (416, 240)
"""Width and height in pixels of a low resolution "by size", where none are given."""


def check_switch_step(steps: int, switch_step: int) -> None:
    """Refuse a switch after the last step."""
    if switch_step > steps:
        raise ValueError(
            f"switch_step must be at most steps, {steps}, got {switch_step}; use about a quarter "
            "of the steps."
        )


def check_switch_sigma(steps: int, switch_step: int, switch_sigma: float) -> None:
    """Refuse a noise level of the switch where there are no steps on one side of it."""
    if switch_sigma and not 0 < switch_step < steps:
        raise ValueError(
            f"switch_sigma needs steps before and after the switch, got switch_step={switch_step} "
            f"of {steps}; set switch_sigma to 0, or switch after 1 to {max(1, steps - 1)} steps."
        )


def check_low_sides(low_resolution: str, low_width: int, low_height: int) -> None:
    """Refuse a low resolution in pixels that no model takes."""
    check_sides(low_resolution, low_width, low_height)


@dataclass(frozen=True, kw_only=True, slots=True)
class Policies:
    """How a leg takes over from one at another size; its fields are inputs of all nodes."""

    sigma_policy: str = DEFAULT_SIGMA
    """One of schedule.SIGMA_POLICIES."""
    noise_policy: str = DEFAULT_NOISE
    """One of reshift.NOISE_POLICIES."""
    handover: str = HANDOVERS[0]
    """One of schedule.HANDOVERS."""
    low_band_lock: float = 0.0
    """Share of the steps after a switch that hold the low band of its clean estimate."""
    rope_scale_low: float = 1.0
    """Factor of the positions after a switch, falling to 1 at the last step."""

    def __post_init__(self) -> None:
        check_range(self.low_band_lock, "low_band_lock", 0.0, 1.0, "use 0 for none, or 0.33")
        check_range(self.rope_scale_low, "rope_scale_low", 1.0, 4.0, "use 1 for none, or 2")
        check_choice(self.sigma_policy, "sigma_policy", SIGMA_POLICIES)
        check_choice(self.noise_policy, "noise_policy", NOISE_POLICIES)
        check_choice(self.handover, "handover", HANDOVERS)

    @property
    def inherits(self) -> bool:
        """Whether the noise after a switch is what is left of the noise before it."""
        return self.noise_policy == "inherited"

    def schedule(self, sigmas: Tensor) -> Tensor:
        """Return the schedule to cut: that of the sampling call."""
        return sigmas


@dataclass(frozen=True, kw_only=True, slots=True)
class Switch(Policies):
    """Where and how the resolution drops once; its fields are inputs of the nodes."""

    switch_step: int
    """High-resolution steps before the switch; 0 is all low, the number of steps all high."""
    low_resolution: str
    """"by scale", "by size" or a bucket."""
    low_scale: float
    """Factor per side for "by scale", at most 1."""
    low_width: int = LOW_SIDES[0]
    """Pixels for "by size"."""
    low_height: int = LOW_SIDES[1]
    """Pixels for "by size"."""
    steps_low: int = 0
    """Steps after the switch; 0 for the rest of the schedule."""
    switch_sigma: float = 0.0
    """Noise level of the switch, to which the steps before it are spread; 0 for the schedule's."""

    def schedule(self, sigmas: Tensor) -> Tensor:
        """Return the schedule to cut, which is at `switch_sigma` after `switch_step` steps."""
        if not self.switch_sigma:
            return sigmas
        check_switch_sigma(len(sigmas) - 1, self.switch_step, self.switch_sigma)
        return reach_sigma(sigmas, self.switch_step, self.switch_sigma)

    def sizes(self, model: Any, samples: Tensor) -> list[tuple[int, Size]]:
        """List the switches of a latent: (steps before it, size after it)."""
        size = low_size(
            samples,
            models.cell_side(model),
            models.side_multiple(model),
            resolution=self.low_resolution,
            scale=self.low_scale,
            width=self.low_width,
            height=self.low_height,
        )
        return [(self.switch_step, size)]


def turns(source: Size, sizes: list[tuple[int, Size]]) -> list[Turn]:
    """Give each switch the ratio of its size to the size before."""
    made, before = [], source
    for step, size in sizes:
        made.append(Turn(step=step, ratio=ratio(before, size)))
        before = size
    return made


def ratio(before: Size, after: Size) -> float:
    """Return the factor per side between two sizes, of their areas."""
    return ((before[0] * before[1]) / (after[0] * after[1])) ** 0.5


@dataclass(frozen=True, kw_only=True, slots=True)
class Stage:
    """What samples before, or after, the switch."""

    models: tuple[Any, ...]
    """One MODEL, or the high-noise and the low-noise expert."""
    cfg: float | None = None
    """Guidance scale; None keeps the guider's own."""
    cfg_low_noise: float = 0.0
    """Guidance scale of the low-noise expert; 0 for `cfg`."""
    conds: dict[str, Conditioning] = field(default_factory=dict)
    """Conditioning made for this size, by the guider's names; the rest is resized."""
    sampler: Any = None
    """The host's SAMPLER; None for that of the sampling call."""

    def cfg_of(self, expert: int) -> float | None:
        """Return the guidance scale of an expert."""
        return self.cfg_low_noise if expert and self.cfg_low_noise else self.cfg
