"""A GUIDER whose sampling call changes resolution and expert on the way.

Dims: B batch, C channels, T latent frames, H, W latent cells.
"""

from collections.abc import Callable
from typing import Any

import comfy.samplers
from torch import Tensor

from ....surf_core.checks import check_range
from ..conditioning import Conditioning
from ..node import reporting_as, running_node
from .leg import Segment
from .legs import Call, Course, segments
from .plan import Switch
from .run import Run
from .sides import Sides


class ReshiftGuider(comfy.samplers.CFGGuider):
    """Runs another guider in legs.

    Works wherever the host takes a GUIDER; the latent that comes out is smaller.
    """

    def __init__(
        self, guider: Any, course: Course, on_switch: Callable[[Tensor], None] | None = None
    ):
        """Take a GUIDER, which stays as it is, with conditioning for the high resolution.

        Args:
            course: where the resolution drops, and what samples on each side of it.
            on_switch: called once with the clean high-resolution estimate, VAE space.
        """
        super().__init__(guider.model_patcher)
        self.model_options, self.cfg = guider.model_options, guider.cfg
        self.original_conds = guider.original_conds
        self.guider, self.course, self.on_switch = guider, course, on_switch
        self.node = running_node()

    def sample(
        self,
        noise: Tensor,
        latent_image: Tensor,
        sampler: Any,
        sigmas: Tensor,
        denoise_mask: Tensor | None = None,
        callback: Callable[..., None] | None = None,
        disable_pbar: bool = False,
        seed: int | None = None,
    ) -> Tensor:
        """Sample before and after the switch; same arguments as the host's guiders.

        Args:
            noise: of the size of `latent_image`; zeros where that holds noise already.
            sigmas: the whole schedule; not changed.

        Returns:
            [B, C, (T,) h, w] at the low resolution (the high one when the switch is the last
            step), VAE space, on the device of the model.

        Raises:
            ValueError: before any evaluation, for anything that cannot work.
        """
        call = Call(
            noise=noise, samples=latent_image, sampler=sampler, sigmas=sigmas, mask=denoise_mask
        )
        with reporting_as(self.node):
            check_range(seed or 0, "seed", 0, 2**64 - 1, "use 0")
        return self.run(self.legs(call), call, callback, disable_pbar, seed or 0)

    def legs(self, call: Call) -> list[Segment]:
        """Cut a run into its legs, or refuse it: nothing is evaluated here."""
        with reporting_as(self.node):
            return segments(self.guider, self.course, call)

    def run(
        self,
        legs: list[Segment],
        call: Call,
        callback: Callable[..., None] | None,
        disable_pbar: bool,
        seed: int,
    ) -> Tensor:
        """Run the legs of a call."""
        run = Run(
            self.guider,
            legs,
            call,
            inherits=self.course.plan.inherits,
            node=self.node,
            on_switch=self.on_switch,
        )
        return run.sample(callback, disable_pbar, seed)


def cfg_guider(model: Any, positive: Conditioning, negative: Conditioning, cfg: float) -> Any:
    """Build the host's guider of one model with a positive and a negative prompt."""
    guider = comfy.samplers.CFGGuider(model)
    guider.set_conds(positive, negative)
    guider.set_cfg(cfg)
    return guider


def reshift_guider(
    model: Any, positive: Conditioning, negative: Conditioning, plan: Switch, sides: Sides
) -> ReshiftGuider:
    """Build the switch round a MODEL with its conditioning, for any schedule and sampler."""
    high, low = sides.stages(model)
    course = Course(plan=plan, high=high, low=low, boundary=sides.expert_boundary)
    return ReshiftGuider(cfg_guider(model, positive, negative, sides.cfg), course)
