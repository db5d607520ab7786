"""Run a leg under a noise mask: what the mask keeps is not what the leg starts from.

At every evaluation the host blends the sampler's latent with the latent of the call, noised: what
the mask keeps must therefore stay the latent of the run, while the sampler goes on from where the
leg before stopped. Both are set between the host's sampler object and its function.

Dims: B batch, C channels, T latent frames, H, W latent cells.
"""

import copy
import functools
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from comfy.sampler_helpers import prepare_mask
from torch import Tensor

from .samples import packed

Evaluation = tuple[Tensor, Tensor, Tensor]
"""(x, sigma, x0) in the model's space."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Start:
    """What a leg starts from, where that is not the latent of its sampling call."""

    clean: Tensor
    """[B, C, (T,) H, W], VAE space; times 1 - sigma it is the part of x without `noise`."""
    noise: Tensor | None
    """[B, C, (T,) H, W]; None for the noise of the sampling call."""

    def x(self, base: Any, sigma: Tensor, noise: Tensor) -> Tensor:
        """Noise it to sigma in the model's space; `noise` is that of the sampling call."""
        drawn = noise if self.noise is None else packed(self.noise).to(noise)
        return base.model_sampling.noise_scaling(
            sigma, drawn, in_model_space(base, self.clean, noise)
        )


def in_model_space(base: Any, latent: Tensor, like: Tensor) -> Tensor:
    """Return a latent as the host gives it to a model: an empty one stays empty."""
    latent = packed(latent).to(like)
    return base.process_latent_in(latent) if torch.count_nonzero(latent) else latent


@dataclass(frozen=True, kw_only=True, slots=True)
class Hook:
    """What is set and read between a sampler object and its function."""

    schedule: Tensor
    """Sigmas of the whole run, for masks that change along it (Differential Diffusion)."""
    start: Start | None
    kept_noise: Tensor | None
    """Noise of what the mask keeps; None for that of the sampling call."""
    on_noise: Callable[[Tensor], None]
    """Called with the noise of what the mask keeps, before the first evaluation."""
    on_evaluation: Callable[[Tensor, Tensor, Tensor], None] | None
    """Called with (x, sigma, x0): x as the sampler has it, x0 with what the mask keeps."""


class _Evaluated:
    """A model as samplers call it, that tells of each call; all else is the model's."""

    def __init__(self, model: Any, tell: Callable[[Tensor, Tensor, Tensor], None]):
        self.__dict__.update(model=model, tell=tell)

    def __call__(self, x: Tensor, sigma: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        x0 = self.model(x, sigma, *args, **kwargs)
        self.tell(x, sigma, x0)
        return x0

    def __getattr__(self, name: str) -> Any:
        return getattr(self.model, name)

    def __setattr__(self, name: str, value: Any) -> None:
        setattr(self.model, name, value)


def can_hook(sampler: Any) -> bool:
    """Say whether a SAMPLER is the host's object round a function."""
    return callable(getattr(sampler, "sampler_function", None))


def hooked(sampler: Any, hook: Hook) -> Any:
    """Copy a SAMPLER for one leg; the sampler itself stays as it is."""
    inner, made = sampler.sampler_function, copy.copy(sampler)

    @functools.wraps(inner)
    def run(model: Any, x: Tensor, sigmas: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        if hook.kept_noise is not None:
            model.noise = packed(hook.kept_noise).to(x)
        hook.on_noise(model.noise)
        model.sigmas = hook.schedule.to(sigmas)
        if hook.start is not None:
            x = hook.start.x(model.inner_model.inner_model, sigmas[0], model.noise)
        if hook.on_evaluation is not None:
            model = _Evaluated(model, hook.on_evaluation)
        return inner(model, x, sigmas, *args, **kwargs)

    made.sampler_function = run
    return made


def offset_noise(model: Any, start: Start, latent: Tensor, noise: Tensor, sigma: float) -> Tensor:
    """Make noise with which `latent`, noised to sigma, is what a leg starts from.

    For samplers that are no object of the host's round a function. What a soft mask keeps gets it,
    too, which is exact for masks of 0 and 1 only.

    Args:
        model: MODEL of the leg.
        latent: of the sampling call, VAE space.
        noise: of the sampling call.
    """
    drawn = noise if start.noise is None else start.noise.to(noise)
    gap = (in_model_space(model.model, x, noise) for x in (start.clean, latent))
    return drawn + (1 - sigma) / sigma * (next(gap) - next(gap))


def unblended(
    evaluation: Evaluation, model: Any, mask: Tensor, latent: Tensor, noise: Tensor
) -> Evaluation:
    """Undo the host's blend in an evaluation that its guider saw: (x, sigma, x0) of the sampler.

    Args:
        latent: of the sampling call, VAE space.
        noise: of what the mask keeps.
    """
    blend, sigma, x0 = evaluation
    level, share = sigma.flatten()[0], prepare_mask(mask, blend.shape, blend.device).to(blend)
    kept = in_model_space(model.model, latent, blend)
    noised = (1 - level) * kept + level * noise.to(blend)
    x = torch.where(share > 0, (blend - (1 - share) * noised) / share.clamp_min(1e-6), noised)
    return x, sigma, x0 * share + kept * (1 - share)
