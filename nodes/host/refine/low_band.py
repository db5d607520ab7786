"""Keep the low band of the preview during the first steps of a refinement.

Dims: B batch, C latent channels, T latent frames, H, W latent cells.
"""

from typing import Any

import torch
from torch import Tensor

from ....surf_core.lowband import lock_low_band
from ..nested import Parts, unpack
from .traits import RefineSettings


def check_lock(settings: RefineSettings, samples: Tensor, size: tuple[int, int]) -> None:
    """Refuse a lock on a preview of the target's size: it would keep all of it, as it is.

    Args:
        samples: [..., h, w], the preview.
        size: rows and columns of the target.
    """
    if settings.low_band_lock and tuple(samples.shape[-2:]) == size:
        raise ValueError(
            "low_band_lock keeps what a smaller preview shows, got "
            f"low_band_lock={settings.low_band_lock} with a preview of the target's size; set it "
            "to 0, or connect the latent of the smaller preview as well."
        )


def with_low_band_lock(model: Any, samples: Tensor, clean: Parts, settings: RefineSettings) -> Any:
    """Return a clone whose first clean estimates keep the low band of the upsampled preview.

    Runs after the guidance and after the functions that other nodes put there.

    Args:
        samples: [B, C, T, h, w], the preview; only its size counts.
        clean: what will be sampled; its video [B, C, T, H, W] is the upsampled preview, VAE space.

    Returns:
        `model` itself where no step is locked.
    """
    steps = round(settings.low_band_lock * settings.steps)
    if not steps:
        return model
    ratio, shapes = _ratio(samples, clean.video), clean.shapes
    # Between two steps, so that rounding in the sampler's sigma cannot move a step across.
    last = float(settings.sigmas()[steps - 1 : steps + 1].mean())
    references: dict[torch.device, Tensor] = {}

    def lock(args: dict) -> Tensor:
        x0 = args["denoised"]
        if float(args["sigma"].max()) < last:
            return x0
        if x0.device not in references:
            preview = clean.video.to(device=x0.device, dtype=torch.float32)
            references[x0.device] = args["model"].process_latent_in(preview)
        parts = unpack(x0, shapes)
        locked = lock_low_band(parts.video, references[x0.device].to(x0.dtype), ratio)
        return parts.with_video(locked).packed()

    clone = model.clone()
    clone.set_model_sampler_post_cfg_function(lock)
    return clone


def _ratio(samples: Tensor, upsampled: Tensor) -> float:
    """Return the target cells per cell of the preview along a side, the mean of both sides."""
    low, high = samples.shape[-2:], upsampled.shape[-2:]
    return (high[0] * high[1] / (low[0] * low[1])) ** 0.5
