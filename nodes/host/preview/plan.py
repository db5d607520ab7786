"""Where and how the resolution drops, checked before anything is loaded."""

from dataclasses import dataclass
from typing import Any

from torch import Tensor

from ....surf_core.checks import check_choice
from ....surf_core.reshift import NOISE_POLICIES
from ....surf_core.schedule import HANDOVERS, SIGMA_POLICIES
from .. import models
from ..latents import check_sides, low_size


def check_switch_step(steps: int, switch_step: int) -> None:
    """Refuse a switch after the last step."""
    if switch_step > steps:
        raise ValueError(
            f"switch_step must be at most steps, {steps}, got {switch_step}; use about a quarter "
            "of the steps."
        )


def check_low_sides(low_resolution: str, low_width: int, low_height: int) -> None:
    """Refuse a low resolution in pixels that no model takes."""
    check_sides(low_resolution, low_width, low_height)


@dataclass(frozen=True, kw_only=True, slots=True)
class Switch:
    """Where and how the resolution drops; its fields are inputs of both nodes."""

    switch_step: int
    """High-resolution steps before the switch; 0 is all low, the number of steps all high."""
    cfg: float
    """Guidance before the switch."""
    cfg_low: float
    """Guidance after the switch."""
    low_resolution: str
    """"by scale", "by size" or a bucket."""
    low_scale: float
    """Factor per side for "by scale", at most 1."""
    low_width: int
    """Pixels for "by size"."""
    low_height: int
    """Pixels for "by size"."""
    sigma_policy: str
    """One of schedule.SIGMA_POLICIES."""
    noise_policy: str
    """One of reshift.NOISE_POLICIES."""
    handover: str
    """One of schedule.HANDOVERS."""

    def __post_init__(self) -> None:
        check_choice(self.sigma_policy, "sigma_policy", SIGMA_POLICIES)
        check_choice(self.noise_policy, "noise_policy", NOISE_POLICIES)
        check_choice(self.handover, "handover", HANDOVERS)

    def evaluations(self, steps: int) -> int:
        """Count the evaluations of a schedule of `steps` steps, for one progress bar."""
        return steps + (self.handover == "evaluate" and 0 < self.switch_step < steps)

    def size(self, model: Any, samples: Tensor) -> tuple[int, int]:
        """Find the low resolution of a latent, (rows, cols) in cells."""
        return low_size(
            samples,
            models.cell_side(model),
            models.side_multiple(model),
            resolution=self.low_resolution,
            scale=self.low_scale,
            width=self.low_width,
            height=self.low_height,
        )
