"""Run several sampling calls as one: the resolution changes between them, never inside one.

Each leg is a plain call of the host's guider, so conditioning, memory, masks, caches and previews
are built for its size. The clean estimate of the first leg is resized and noised again for the
second; a noisy latent is never resized.

Dims: B batch, C channels, T latent frames, H, W latent cells.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import comfy.samplers
import torch
from torch import Tensor

from ....surf_core.checks import check_range
from ....surf_core.resample import resize
from ....surf_core.schedule import SwitchedSchedule, check_sigmas, switch
from .. import models
from ..bound_patches import check_bound
from ..conditioning import Conditioning, SizeChange, carry, check_areas
from ..finite import MODEL_CAUSES, NonFiniteGuard, check_conditioning, check_finite
from ..latents import check_channels, check_noise_mask, check_plain, is_blank, to_intermediate
from ..leftover_noise import warn_of_noise
from ..node import reporting_as, running_node
from .leg import Segment, check_sampler, one_bar, sampler_for, warn_of_mask
from .noise import fresh_noise, inherited_noise, item_seed, noise_of, sampler_seed, second_seed
from .plan import Switch


class ReshiftGuider(comfy.samplers.CFGGuider):
    """A guider whose sampling call changes the resolution on the way.

    Works wherever the host takes a GUIDER; the latent that comes out is smaller.
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
        on_switch: Callable[[Tensor], None] | None = None,
    ):
        """Take a MODEL and conditioning for the high resolution.

        Args:
            model_low: MODEL after the switch; default `model`.
            sigmas_low: schedule after the switch; default that of the sampling call.
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
        self.on_switch = on_switch
        self.last_evaluation: tuple[Tensor, Tensor, Tensor] | None = None
        self.node = running_node()
        self.recording, self.guard = False, NonFiniteGuard("")

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
        with reporting_as(self.node):
            check_range(seed or 0, "seed", 0, 2**64 - 1, "use 0")
            segments = self.segments(latent_image, noise, sampler, sigmas, denoise_mask)
        callback_of = one_bar(callback, [len(s.sigmas) - 1 for s in segments])
        seed, x, earlier = seed or 0, latent_image, None
        # Before the first leg, since the host's context windows write into its noise.
        seeds = [] if self.inherits or is_blank(noise) else [item_seed(seed, n) for n in noise]
        try:
            for index, segment in enumerate(segments):
                if earlier or segment.size != tuple(x.shape[-2:]):
                    x = resize(to_intermediate(x), segment.size)
                    noise = self.noise_for(x, noise, seeds)
                if earlier and not earlier.estimates:
                    seed = second_seed(seed)
                last = index == len(segments) - 1
                self.recording = not last and (self.inherits or segment.estimates)
                self.last_evaluation, self.guard = None, NonFiniteGuard(segment.stage)
                with self.using_segment(segment):
                    x = super().sample(
                        noise,
                        x,
                        sampler_for(sampler, segment),
                        segment.sigmas,
                        None if segment.estimates else denoise_mask,
                        callback_of(index),
                        disable_pbar,
                        sampler_seed(seed, segment.model.load_device),
                    )
                with reporting_as(self.node):
                    self.guard.finish()
                    check_finite(x, f"what the sampler made {segment.stage}", MODEL_CAUSES)
                if index == 0 and self.on_switch is not None:
                    self.on_switch(latent_image if self.plan.switch_step == 0 else x)
                earlier = segment
        finally:
            self.recording, self.last_evaluation = False, None
        return x

    @property
    def inherits(self) -> bool:
        """Whether the noise after the switch is what is left of the noise before it."""
        return self.plan.noise_policy == "inherited"

    def segments(
        self,
        samples: Tensor,
        noise: Tensor,
        sampler: Any,
        sigmas: Tensor,
        denoise_mask: Tensor | None = None,
    ) -> list[Segment]:
        """Cut a run into its legs, or refuse it: nothing is evaluated here."""
        plan, model = self.plan, self.model_patcher
        check_sampler(sampler)
        check_plain(samples, "latent_image")
        check_channels(model, samples, "latent_image")
        check_noise_mask(denoise_mask, "latent_image")
        check_sigmas(sigmas)
        check_finite(noise, "the noise", "look at the node that made it")
        check_conditioning(self.raw_conds)
        check_areas(self.raw_conds, tuple(samples.shape[2:]))
        high = tuple(samples.shape[-2:])
        models.check_grid(model, *high)
        low = plan.size(model, samples)
        # Zeros for noise: what noise there is lies in the latent.
        noisy = is_blank(noise) and not is_blank(samples) and sigmas[0].item() < 1
        if not noisy and not is_blank(samples):
            warn_of_noise(samples, "latent_image")
        cut = self.cut(sigmas, high, low, noisy)
        if len(cut.low) and is_blank(noise) and (noisy or len(cut.high)) and not self.inherits:
            raise ValueError(
                "fresh noise after the switch follows from the noise before it, got none "
                "(DisableNoise); set noise_policy to inherited, or connect Random Noise where the "
                "latent is clean."
            )
        estimates = noisy and (denoise_mask is not None or not len(cut.high))
        legs = self.high_legs(high, cut, sigmas[0].item() if estimates else None)
        if len(cut.low):
            check_bound(self.model_low, (*samples.shape[:-2], *low), {high})
            conds = carry(self.raw_conds, SizeChange.of(self.model_low, high, low))
            model = self.model_low
            if legs and self.inherits:
                model = models.without_noise_shuffle(model)
            legs.append(
                Segment(
                    model=model,
                    cfg=plan.cfg_low,
                    conds=conds,
                    size=low,
                    sigmas=cut.low,
                    stage="after the switch",
                )
            )
        if denoise_mask is not None:
            warn_of_mask(noisy, sigmas[-1].item())
        return legs

    def high_legs(
        self, size: tuple[int, int], cut: SwitchedSchedule, estimate_at: float | None
    ) -> list[Segment]:
        """Build the legs before the switch.

        Args:
            estimate_at: sigma of a latent that is to be parted into picture and noise first; None
                where it is not.
        """
        shared = {"cfg": self.cfg, "conds": None, "size": size}
        model = models.without_step_caches(self.model_patcher)
        legs = []
        if estimate_at is not None:
            sigmas = torch.tensor([estimate_at, 0.0])
            stage = "of the noisy latent"
            legs.append(Segment(model=model, sigmas=sigmas, estimates=True, stage=stage, **shared))
        if len(cut.high):
            model = model if len(cut.low) else self.model_patcher
            model = models.without_noise_shuffle(model) if legs else model
            legs.append(Segment(model=model, sigmas=cut.high, stage="before the switch", **shared))
        return legs

    def cut(
        self, sigmas: Tensor, high: tuple[int, int], low: tuple[int, int], noisy: bool
    ) -> SwitchedSchedule:
        """Cut the schedule at the switch."""
        plan, ratio = self.plan, ((high[0] * high[1]) / (low[0] * low[1])) ** 0.5
        below = None if self.sigmas_low is None else self.sigmas_low.cpu()
        cut = switch(
            sigmas.cpu(),
            plan.switch_step,
            ratio=ratio,
            sigma_policy=plan.sigma_policy,
            handover=plan.handover,
            sigmas_low=below,
            estimated=noisy,
        )
        if (cut.low if len(cut.low) else cut.high)[-1] >= 1:
            raise ValueError(
                f"the schedule must end below sigma 1, got {sigmas.tolist()}; "
                "there is nothing to denoise, use the lower part of the schedule."
            )
        return cut

    def noise_for(self, x: Tensor, noise: Tensor, seeds: list[int]) -> Tensor:
        """Make the noise of a leg that follows another or has a new size; zero noise stays zero.

        Args:
            x: the latent that the leg starts from, for shape and dtype.
            noise: of the leg before, or the argument of `sample`.
            seeds: of the items, for fresh noise; empty where it is inherited or zero.
        """
        size = tuple(x.shape[-2:])
        if self.last_evaluation is not None:
            return inherited_noise(noise_of(self.last_evaluation), size)
        if seeds:
            return fresh_noise(x, seeds)
        return torch.zeros_like(x) if is_blank(noise) else inherited_noise(noise, size)

    def outer_predict_noise(self, *args: Any, **kwargs: Any) -> Tensor:
        """Evaluate the model; in a leg whose noise the next one inherits, record (x, sigma, x0)."""
        x0 = super().outer_predict_noise(*args, **kwargs)
        x, sigma = args[0], args[1]
        with reporting_as(self.node):
            self.guard.see(x0, sigma)
        if self.recording:
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
