"""Load the embedded models as objects of the host: two MODELs, their VAE, a prompt.

To the host they are a Wan 2.1 and its VAE, small ones: cells of 8 x 8 pixels, latent frames of 4,
and latents with the statistics of Wan's. Its own loaders read their files, so what works with Wan
works with them. Only the colours of a latent's channels are others: those are in the format below.

Dims: T latent frames, H, W latent cells.
"""

from collections.abc import Callable
from typing import Any

import comfy.latent_formats
import comfy.model_management
import comfy.sd
import comfy.utils
import torch

from ....surf_core.tiny.caption import encode_caption
from ....surf_core.tiny.model import CELLS, FRAMES, REFINER, VAE, WEIGHTS
from ....surf_core.tiny.vae import CELL, LATENT, PERIOD
from .loading import load_as_wan, load_refiner


class TinyFormat(comfy.latent_formats.Wan21):
    """Wan 2.1's statistics, and the colours of our VAE for pictures of a running job.

    The factors are those of least squares from latent to mean colour, over 32 painted scenes of 128
    pixels and 32 of 64. On others .05 to .09 of the range is left, root mean square.
    """

    latent_rgb_factors = [
        [-0.2325, 0.0916, -0.0688],
        [-0.0020, 0.1408, -0.1234],
        [-0.0194, -0.0123, -0.1044],
        [0.0895, -0.0561, 0.0974],
        [-0.0485, 0.0290, -0.2108],
        [0.0340, 0.0723, 0.1591],
        [0.0446, 0.0061, 0.0338],
        [-0.0099, 0.2395, 0.0332],
        [0.0108, -0.0786, 0.0923],
        [0.0886, -0.0231, -0.1780],
        [-0.1269, -0.0197, -0.2387],
        [0.0964, -0.1550, 0.2354],
        [-0.0571, -0.0850, 0.0691],
        [0.0400, 0.0951, 0.1005],
        [-0.1339, 0.1757, -0.2024],
        [-0.0642, -0.0922, -0.0754],
    ]
    latent_rgb_factors_bias = [0.0159, 0.0198, -0.0129]

    def __init__(self):
        super().__init__()
        # The host's small decoder for Wan knows the latents of Wan alone.
        self.taesd_decoder_name = None


def tiny_models() -> tuple[Any, Any, Any, dict]:
    """Load everything: MODEL, the refiner's MODEL, VAE, and an empty LATENT [1, 16, T, H, W]."""
    samples = torch.zeros(
        (1, LATENT, FRAMES, CELLS, CELLS), device=comfy.model_management.intermediate_device()
    )
    # What newer hosts note in an empty latent, so that other models can fit it to themselves.
    ratios = {"downscale_ratio_spacial": CELL, "downscale_ratio_temporal": PERIOD}
    return load_tiny_t2v(), load_tiny_refiner(), tiny_vae(), {"samples": samples, **ratios}


def load_tiny_t2v(**more: Any) -> Any:
    """Load the text-to-video model as the host's own Wan.

    Args:
        more: options of newer hosts, which load a model again for another GPU.
    """
    return _with_tiny_latents(load_as_wan(str(WEIGHTS), **more), load_tiny_t2v)


def load_tiny_refiner(**more: Any) -> Any:
    """Load the refiner; `more` as for the text-to-video model."""
    return _with_tiny_latents(load_refiner(str(REFINER), **more), load_tiny_refiner)


def _with_tiny_latents(model: Any, again: Callable[..., Any]) -> Any:
    """Set the latent format of a MODEL that was just loaded, and so is shared with nobody."""
    model.model.latent_format = TinyFormat()
    model.cached_patcher_init = (again, ())
    return model


def tiny_vae() -> Any:
    """Load the VAE with the host's own loader, in fp32 on every device: it is small."""
    vae = comfy.sd.VAE(sd=comfy.utils.load_torch_file(str(VAE)), dtype=torch.float32)
    vae.patcher.cached_patcher_init = (lambda **more: tiny_vae().patcher, ())
    return vae


def tiny_conditioning(text: str) -> list:
    """Encode a prompt as CONDITIONING, [1, 3, 4096].

    Raises:
        ValueError: a word that the models do not know, or too many phrases.
    """
    return [[encode_caption(text), {}]]
