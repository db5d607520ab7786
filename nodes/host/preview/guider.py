"""Run several sampling calls as one: the resolution changes between them, never inside one.

Each leg is a plain call of the host's guider, so conditioning, memory, masks, caches and previews
are built for its size. The clean estimate of the first leg is resized and noised again for the
second; a noisy latent is never resized.

Dims: B batch, C channels, T latent frames, H, W latent cells.
"""

import hashlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import comfy.sample
import comfy.samplers
import torch
from torch import Tensor

from ....surf_core.resample import resize
from ....surf_core.reshift import implied_noise, inherit_noise
from ....surf_core.schedule import SwitchedSchedule, check_sigmas, switch
from .. import models
from ..conditioning import Conditioning, SizeChange, carry
from ..latents import check_channels, check_plain, is_blank, to_intermediate
from ..node_name import NodeLog, reporting_as, running_node
from .plan import Switch

log = NodeLog(__name__)

OWN_GRID = ("dpm_fast", "dpm_adaptive")
"""Samplers that make steps of their own and cannot be cut at one."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Segment:
    """One leg: a plain sampling call at one size."""

    model: Any
    """The host's model patcher."""
    cfg: float
    """Guidance scale."""
    conds: dict[str, Conditioning] | None
    """"positive" and "negative" for this size; None keeps those of the guider."""
    size: tuple[int, int]
    """Rows and columns in latent cells."""
    sigmas: Tensor
    """[n + 1]; the samplers may write into it."""


def second_seed(seed: int) -> int:
    """Derive the seed of the leg after a switch: a hash, 0..2**63 - 1.

    The next integer would repeat the noise stream that stochastic samplers draw from on a CPU,
    and does not exist for 2**64 - 1.
    """
    digest = hashlib.sha256(b"surf reshift" + (seed % 2**64).to_bytes(8, "little")).digest()
    return int.from_bytes(digest[:8], "little") >> 1


def check_sampler(sampler: Any) -> None:
    """Refuse samplers that choose their own steps."""
    name = getattr(getattr(sampler, "sampler_function", sampler), "__name__", "")
    for own in OWN_GRID:
        if own in name:
            raise ValueError(
                f"expected a sampler that takes the schedule's steps, got {own}, which "
                "chooses its own and cannot be cut at one; use euler, uni_pc or dpmpp_2m."
            )


def sampler_for(sampler: Any, sigmas: Tensor) -> Any:
    """Replace uni_pc by euler on a single interval, where it would return its input unchanged."""
    name = getattr(getattr(sampler, "sampler_function", None), "__name__", "")
    if len(sigmas) != 2 or "unipc" not in name:
        return sampler
    log.info("uni_pc cannot take a single step; euler takes it (%s).", sigmas.tolist())
    return comfy.samplers.sampler_object("euler")


class ReshiftGuider(comfy.samplers.CFGGuider):
    """A guider whose sampling call changes the resolution on the way.

    Works wherever the host takes a GUIDER; the latent that comes out is smaller. A sampling call
    has no batch_index, so it is an argument here.
    """

    def __init__(
        self,
        model: Any,
        positive: Conditioning,
        negative: Conditioning,
        plan: Switch,
        *,
        model_low: Any = None,
        sigmas_low: Tensor | None = None,
        batch_index: list[int] | None = None,
        on_switch: Callable[[Tensor], None] | None = None,
    ):
        """Take a MODEL and conditioning for the high resolution.

        Args:
            model_low: MODEL after the switch; default `model`.
            sigmas_low: schedule after the switch; default that of the sampling call.
            batch_index: of the LATENT, so that an item of a batch can be made again alone.
            on_switch: called once with the clean high-resolution estimate, VAE space.

        Raises:
            ValueError: no flow model, or two models with different latents.
        """
        low = model if model_low is None else model_low
        for each in (model, low):
            models.check_flow(each)
        models.check_pair(model, low)
        super().__init__(model)
        self.set_conds(positive, negative)
        self.set_cfg(plan.cfg)
        self.plan, self.model_low, self.sigmas_low = plan, low, sigmas_low
        self.raw_conds = {"positive": positive, "negative": negative}
        self.batch_index, self.on_switch = batch_index, on_switch
        self.last_evaluation: tuple[Tensor, Tensor, Tensor] | None = None
        self.node = running_node()
        self.recording = False

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
            noise: of the size of `latent_image`, for the first leg.
            sigmas: the whole schedule; not changed.

        Returns:
            [B, C, (T,) h, w] at the low resolution (the high one when the switch is the last
            step), VAE space, on the device of the model.

        Raises:
            ValueError: before any evaluation, for anything that cannot work.
        """
        with reporting_as(self.node):
            segments = self.segments(latent_image, sampler, sigmas)
        callback_of = one_bar(callback, [len(s.sigmas) - 1 for s in segments])
        seed, x = seed or 0, latent_image
        try:
            for index, segment in enumerate(segments):
                if index or segment.size != tuple(x.shape[-2:]):
                    x = resize(to_intermediate(x), segment.size)
                    # The first leg keeps the plain seed, at whatever size.
                    seed = second_seed(seed) if index else seed
                    noise = self.noise_for(x, noise, seed)
                inherits = self.plan.noise_policy == "inherited"
                self.recording = inherits and index < len(segments) - 1
                leg_sampler = sampler_for(sampler, segment.sigmas)
                with self.using_segment(segment):
                    x = super().sample(
                        noise,
                        x,
                        leg_sampler,
                        segment.sigmas,
                        denoise_mask,
                        callback_of(index),
                        disable_pbar,
                        seed,
                    )
                if index == 0 and self.on_switch is not None:
                    self.on_switch(latent_image if self.plan.switch_step == 0 else x)
        finally:
            self.recording, self.last_evaluation = False, None
        return x

    def segments(self, samples: Tensor, sampler: Any, sigmas: Tensor) -> list[Segment]:
        """Cut a run into its legs, or refuse it: nothing is evaluated here."""
        plan = self.plan
        check_sampler(sampler)
        check_plain(samples, "latent_image")
        check_channels(self.model_patcher, samples, "latent_image")
        high = tuple(samples.shape[-2:])
        models.check_grid(self.model_patcher, *high)
        low = plan.size(self.model_patcher, samples)
        cut = self.cut(sigmas, high, low)
        legs = []
        if len(cut.high):
            alone = not len(cut.low)
            model = self.model_patcher if alone else models.without_step_caches(self.model_patcher)
            legs.append(Segment(model=model, cfg=self.cfg, conds=None, size=high, sigmas=cut.high))
        if len(cut.low):
            conds = carry(self.raw_conds, SizeChange.of(self.model_low, high, low))
            legs.append(
                Segment(
                    model=self.model_low, cfg=plan.cfg_low, conds=conds, size=low, sigmas=cut.low
                )
            )
        return legs

    def cut(self, sigmas: Tensor, high: tuple[int, int], low: tuple[int, int]) -> SwitchedSchedule:
        """Cut the schedule at the switch."""
        plan, ratio = self.plan, ((high[0] * high[1]) / (low[0] * low[1])) ** 0.5
        below = None if self.sigmas_low is None else self.sigmas_low.cpu()
        check_sigmas(sigmas)
        cut = switch(
            sigmas.cpu(),
            plan.switch_step,
            ratio=ratio,
            sigma_policy=plan.sigma_policy,
            handover=plan.handover,
            sigmas_low=below,
        )
        if (cut.low if len(cut.low) else cut.high)[-1] >= 1:
            raise ValueError(
                f"the schedule must end below sigma 1, got {sigmas.tolist()}; "
                "there is nothing to denoise, use the lower part of the schedule."
            )
        return cut

    def noise_for(self, x: Tensor, noise: Tensor, seed: int) -> Tensor:
        """Make the noise of a leg at a new size; zero noise stays zero.

        Args:
            x: the latent that the leg starts from, for shape and dtype.
            noise: of the leg before, or the argument of `sample`.
        """
        if self.last_evaluation is not None:
            z, sigma, x0 = self.last_evaluation
            noise = implied_noise(z, x0, sigma.flatten()[0].item())
            return inherit_noise(noise, tuple(x.shape[-2:]))
        if self.plan.switch_step == 0 and is_blank(noise):
            return torch.zeros_like(x)
        return comfy.sample.prepare_noise(x, seed, self.batch_index)

    def outer_predict_noise(self, *args: Any, **kwargs: Any) -> Tensor:
        """Evaluate the model; in a leg whose noise is inherited, record (x, sigma, x0)."""
        x0 = super().outer_predict_noise(*args, **kwargs)
        if self.recording:
            x, sigma = args[0], args[1]
            self.last_evaluation = (x.clone(), sigma, x0.clone())
        return x0

    @contextmanager
    def using_segment(self, segment: Segment) -> Iterator[None]:
        """Set the model, conditioning and cfg of one leg, and restore them afterwards."""
        before = self.model_patcher, self.model_options, self.original_conds, self.cfg
        try:
            if segment.model is not self.model_patcher:
                self.model_patcher = segment.model
                self.model_options = segment.model.model_options
            if segment.conds is not None:
                self.original_conds = {}
                self.set_conds(segment.conds["positive"], segment.conds["negative"])
            self.set_cfg(segment.cfg)
            yield
        finally:
            self.model_patcher, self.model_options, self.original_conds, self.cfg = before


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
