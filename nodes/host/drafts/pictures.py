"""Make the frames of a draft to look at: through a VAE, or as the host previews its latents.

Dims: F frames, T latent frames.
"""

from typing import Any

import comfy.latent_formats
import comfy.model_management
import latent_preview
import torch
from torch import Tensor

from ..draft_record import FORMAT, record_of
from ..drawing import pixels_of
from ..nested import split
from ..vae import decode_latent

FRAMES_BESIDE = 4
"""Frames that a latent frame stands for, where the host does not say it: Wan, HunyuanVideo."""


def latent_format(draft: dict, model: Any) -> Any:
    """Find the host's description of a draft's latents: of the MODEL, or by the draft's record."""
    if model is not None:
        return model.get_model_object("latent_format")
    kind = getattr(comfy.latent_formats, str(record_of(draft).get(FORMAT)), None)
    known = isinstance(kind, type) and issubclass(kind, comfy.latent_formats.LatentFormat)
    return kind() if known else None


def decoded(draft: dict, vae: Any) -> Tensor:
    """Decode a draft: [F, height, width, 3] in 0..1."""
    return decode_latent(vae, draft, 0, 0, 0)[..., :3]


def previewed(draft: dict, kind: Any) -> Tensor | None:
    """Colour a draft as the host's previewer does: [T, height, width, 3] in 0..1.

    Args:
        kind: a latent format.

    Returns:
        None where the host has no colours for these latents.
    """
    video = split(draft["samples"], "drafts").video
    device = comfy.model_management.get_torch_device()
    previewer = _previewer(kind, device)
    if previewer is None or video.shape[1] != _channels(kind, video):
        return None
    clean = kind.process_in(video.float().to(device))
    frames = clean.split(1, 2) if clean.ndim == 5 else [clean]
    return torch.stack([pixels_of(previewer.decode_latent_to_preview(x)) for x in frames])


def frames_beside(kind: Any) -> int:
    """Return how many frames a latent frame stands for."""
    return max(1, getattr(kind, "temporal_downscale_ratio", FRAMES_BESIDE))


def _channels(kind: Any, video: Tensor) -> int:
    """Return the channels that a latent format has colours for."""
    factors = kind.latent_rgb_factors
    return video.shape[1] if factors is None else len(factors)


def _previewer(kind: Any, device: torch.device) -> Any:
    """Return the host's previewer; its quick one where previews are off or another pack's."""
    found = latent_preview.get_previewer(device, kind)
    if found is not None and type(found).__module__ == latent_preview.__name__:
        return found
    if kind.latent_rgb_factors is None:
        return None
    return latent_preview.Latent2RGBPreviewer(
        kind.latent_rgb_factors, kind.latent_rgb_factors_bias, kind.latent_rgb_factors_reshape
    )
