"""One leg of a run, and the sampler and the progress that fit it.

Dims: H, W latent cells.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import comfy.samplers
from torch import Tensor

from ....surf_core.legs import START
from ..conditioning import Conditioning
from ..node import NodeLog

log = NodeLog(__name__)

OWN_GRID = ("dpm_fast", "dpm_adaptive")
"""Samplers that make steps of their own and cannot be cut at one."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Segment:
    """One leg: a plain sampling call at one size."""

    model: Any
    """The host's model patcher."""
    own_model: bool
    """Whether that is the guider's own model or a clone of ours of it."""
    cfg: float | None
    """Guidance scale; None keeps that of the guider."""
    conds: dict[str, Conditioning] | None
    """All conditioning for this size, by name; None keeps that of the guider."""
    size: tuple[int, int]
    """Rows and columns in latent cells."""
    sigmas: Tensor
    """[n + 1]; the samplers may write into it."""
    place: int
    """How many switches of resolution come before it."""
    sampler: Any
    """The host's SAMPLER."""
    begins: str = START
    """How it takes over from the leg before: see surf_core.legs."""
    estimates: bool = False
    """Whether it is one evaluation, for the clean part and the noise of a latent that holds both:
    without a noise mask, which would paste the noise."""
    switches: bool = False
    """Whether it is the last one before the first switch of resolution."""
    after: Any = None
    """An AfterSwitch; None before a switch, and where nothing is changed after it."""

    @property
    def evaluations(self) -> int:
        """Steps of the schedule."""
        return len(self.sigmas) - 1

    @property
    def stage(self) -> str:
        """What errors call it."""
        if self.estimates:
            return "of the noisy latent"
        return "after the switch" if self.place else "before the switch"


def check_sampler(sampler: Any) -> None:
    """Refuse samplers that choose their own steps."""
    name = getattr(getattr(sampler, "sampler_function", sampler), "__name__", "")
    for own in OWN_GRID:
        if own in name:
            raise ValueError(
                f"expected a sampler that takes the schedule's steps, got {own}, which "
                "chooses its own and cannot be cut at one; use euler, uni_pc or dpmpp_2m."
            )


def sampler_for(segment: Segment) -> Any:
    """Replace a sampler by euler: for an estimate, and uni_pc, which cannot take a single step."""
    sampler = segment.sampler
    name = getattr(getattr(sampler, "sampler_function", None), "__name__", "")
    if not segment.estimates:
        if segment.evaluations != 1 or "unipc" not in name:
            return sampler
        log.info(
            "uni_pc would return its input for a single step; euler takes it (%s).",
            segment.sigmas.tolist(),
        )
    return comfy.samplers.sampler_object("euler")


def one_bar(callback: Callable[..., None] | None, steps: list[int]) -> Callable[[int], Any]:
    """Number the steps of all legs consecutively, for one progress bar.

    Args:
        callback: the host's (step, x0, x, total); None stays None.
        steps: of each leg.

    Returns:
        A function from the index of a leg to its callback.
    """
    total = sum(steps)

    def callback_of(index: int) -> Callable[..., None] | None:
        base = sum(steps[:index])
        if callback is None:
            return None
        return lambda step, x0, x, _: callback(base + step, x0, x, total)

    return callback_of


def warn_of_mask(noisy: bool, last: float) -> None:
    """Warn where a noise mask and noise that is left in a latent meet.

    Args:
        noisy: whether the latent came with its noise.
        last: sigma at which the run ends.
    """
    if noisy:
        log.warning(
            "the latent holds noise, where the noise mask keeps it too; what is kept is the "
            "model's estimate. Sample masked latents in one run to keep them exactly."
        )
    if last > 0:
        log.warning(
            "a run with a noise mask ends at sigma %.3g: a sampler that goes on from there with "
            "the mask keeps the noise. Sample down to 0 here, or go on with a Surf Reshift Guider, "
            "which estimates the clean latent first.", last,
        )  # fmt: skip
