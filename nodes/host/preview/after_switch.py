"""Change what is predicted after a switch: hold what it has settled, or stretch the positions.

Both sit in a wrapper round the prediction of the guider, outside of guidance and of what other
nodes put there, so that they work for guiders of any class.

Dims: N steps at one size.
"""

import inspect
from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import groupby
from typing import Any

import torch
from torch import Tensor

from ....surf_core.legs import ESTIMATE
from ....surf_core.lowband import lock_low_band
from ....surf_core.reshift import LOCK_FACTOR
from .. import models
from ..nested import Parts, unpack
from .leg import Segment
from .plan import Policies

ROPE = "rope_options"
"""Key of transformer_options from which the host's Wan stretches its positions."""
READER = "WanModel"
"""Class of the host's networks that read it; those that find positions their own way do not."""


@dataclass(frozen=True, kw_only=True, slots=True)
class AfterSwitch:
    """What changes the predictions of one size."""

    held_to: float = 2.0
    """Sigma down to which the low band of the clean estimate is held; above 1 for none."""
    rope_scale: float = 1.0
    """Factor of the positions at the first step; falls evenly to 1 at the last."""
    sigmas: tuple[float, ...] = ()
    """[N + 1], of all steps at this size."""

    @property
    def changes(self) -> bool:
        """Whether anything is changed."""
        return self.held_to <= 1 or self.rope_scale != 1

    def rope_at(self, sigma: float) -> float:
        """Return the factor of the positions at a noise level, also between two steps."""
        steps = len(self.sigmas) - 1
        if steps < 2:
            return self.rope_scale
        place = 0.0
        for index in range(steps):
            first, last = self.sigmas[index], self.sigmas[index + 1]
            if sigma >= first:
                break
            place = index + min(1.0, (first - sigma) / (first - last)) if first > last else index
        return 1 + (self.rope_scale - 1) * max(0.0, 1 - place / (steps - 1))

    def stretched(self, options: dict[str, Any], sigma: float) -> dict[str, Any]:
        """Copy model options with stretched rows and columns; a stretch of other nodes stays."""
        factor = self.rope_at(sigma)
        inner = options.get("transformer_options", {})
        own = inner.get(ROPE) or {}
        scaled = {key: own.get(key, 1.0) * factor for key in ("scale_y", "scale_x")}
        return {**options, "transformer_options": {**inner, ROPE: {**own, **scaled}}}


class Holder:
    """Holds the low band of clean estimates to that of the switch, in one leg."""

    def __init__(self, segment: Segment, reference: Parts):
        """Take a leg and the clean estimate that crossed the switch, VAE space, at its size."""
        self.after, self.model, self.reference = segment.after, segment.model, reference
        self.ready: dict[torch.device, Tensor] = {}

    def __call__(self, x0: Tensor, sigma: Tensor) -> Tensor:
        """Return the estimate of an evaluation, plain or a pack: sound stays as it is."""
        if float(sigma.max()) < self.after.held_to:
            return x0
        if x0.device not in self.ready:
            video = self.reference.video.to(device=x0.device, dtype=torch.float32)
            self.ready[x0.device] = self.model.model.process_latent_in(video)
        shapes = self.reference.shapes
        parts = unpack(x0, shapes if len(shapes) > 1 else None)
        held = self.ready[x0.device].to(parts.video.dtype)
        return parts.with_video(lock_low_band(parts.video, held, LOCK_FACTOR)).packed()


def with_changes(made: Sequence[Segment], plan: Policies) -> list[Segment]:
    """Tell every leg after a switch what it changes, or refuse a plan that cannot.

    Raises:
        ValueError: no clean estimate crosses a switch, or a model whose positions do not stretch.
    """
    if not plan.low_band_lock and plan.rope_scale_low == 1:
        return list(made)
    out: list[Segment] = []
    for place, group in groupby(made, lambda segment: segment.place):
        legs = list(group)
        if place:
            _check(legs, plan)
            after = _after([s for leg in legs for s in leg.sigmas[:-1].tolist()], legs[-1], plan)
            legs = [replace(leg, after=after) for leg in legs]
        out += legs
    return out


def _after(sigmas: list[float], last: Segment, plan: Policies) -> AfterSwitch:
    """Find where the lock of one size ends: between two steps, or below all of them."""
    steps, ends = len(sigmas), last.sigmas[-1].item()
    locked, held_to = round(plan.low_band_lock * steps), 2.0
    if locked:
        # Half way, so that rounding in the sampler's sigma cannot move a step across.
        held_to = -1.0 if locked == steps else (sigmas[locked - 1] + sigmas[locked]) / 2
    return AfterSwitch(held_to=held_to, rope_scale=plan.rope_scale_low, sigmas=(*sigmas, ends))


def _check(legs: list[Segment], plan: Policies) -> None:
    """Refuse what the legs of one size cannot do."""
    if plan.low_band_lock and legs[0].begins != ESTIMATE:
        raise ValueError(
            "low_band_lock holds the low band of the clean estimate that crosses a switch of "
            f"resolution, got low_band_lock={plan.low_band_lock} where none does; switch after at "
            "least one step and to a smaller size, or set it to 0."
        )
    if plan.rope_scale_low != 1:
        for leg in legs:
            check_stretches(leg.model)


def check_stretches(model: Any) -> None:
    """Refuse a MODEL whose network does not read the host's stretch of positions."""
    network = models.uncompiled(model.get_model_object("diffusion_model"))
    found = {_owner(type(network), name) for name in ("rope_encode", "_forward")}
    encode = getattr(network, "rope_encode", None)
    reads = found == {READER} and "transformer_options" in inspect.signature(encode).parameters
    if not reads:
        raise ValueError(
            "rope_scale_low stretches the positions of Wan, got a "
            f"{type(model.model).__name__} with a network ({type(network).__name__}) that does not "
            "read ComfyUI's rope_options; set it to 1."
        )
    if models.ignores_options(model):
        raise ValueError(
            "rope_scale_low changes from step to step, got a model from TorchCompileModel, which "
            "does not notice; set it to 1, or use Surf Compile in place of that node."
        )


def _owner(kind: type, name: str) -> str:
    """Return the name of the class that a method comes from."""
    return next((each.__name__ for each in kind.__mro__ if name in vars(each)), "")
