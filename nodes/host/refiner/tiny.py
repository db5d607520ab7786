"""Load the embedded models as objects of the host: two MODELs, a VAE round the codec, a prompt.

To the host they are Wan models. Whatever leaves its sampler has been scaled by the statistics of
Wan 2.1's latents, and what enters is scaled back; the VAE here does the same on its side, so that
the models see the codec's own units. What differs from Wan is the size of a cell, and that the
format below says.

Dims: B batch, T frames (latent and pixel frames are one), H, W latent cells.
"""

from collections.abc import Callable
from typing import Any

import comfy.latent_formats
import comfy.model_management
import comfy.sd
import torch
from torch import Tensor, nn

from ....surf_core.tiny import codec
from ....surf_core.tiny.model import CELLS, FRAMES, REFINER, WEIGHTS
from ....surf_core.tiny.prompt import encode_prompt
from .loading import load_refiner

CHANNELS = 16
FLOATS_OF_A_CELL = 2 * (CHANNELS + 3 * codec.CELL**2)
"""Floats of the codec at a time: latent and pixels, each before and after scaling."""


class TinyFormat(comfy.latent_formats.Wan21):
    """Wan 2.1's statistics, the codec's cells, and its colours for pictures of a running job."""

    spacial_downscale_ratio = codec.CELL
    temporal_downscale_ratio = 1

    def __init__(self):
        super().__init__()
        # A cell's mean colour is linear in the latent; no other decoder knows this codec.
        cells = codec.decode(torch.eye(CHANNELS)[..., None, None, None])
        self.latent_rgb_factors = cells.mean((2, 3, 4)).tolist()
        self.latent_rgb_factors_bias = self.taesd_decoder_name = None


class CodecModule(nn.Module):
    """The codec with the calls of the host's autoencoders; it has no weights."""

    def __init__(self):
        super().__init__()
        self.format = TinyFormat()

    def encode(self, video: Tensor) -> Tensor:
        """Map pixels [B, 3, T, 4H, 4W] in -1..1 to what a LATENT holds, [B, 16, T, H, W]."""
        return self.format.process_out(codec.encode(video))

    def decode(self, latent: Tensor) -> Tensor:
        """Map what a LATENT holds, [B, 16, T, H, W], to pixels [B, 3, T, 4H, 4W], not clamped."""
        return codec.decode(self.format.process_in(latent))


def tiny_models() -> tuple[Any, Any, Any, dict]:
    """Load everything: MODEL, the refiner's MODEL, VAE, and an empty LATENT [1, 16, T, H, W]."""
    samples = torch.zeros(
        (1, CHANNELS, FRAMES, CELLS, CELLS), device=comfy.model_management.intermediate_device()
    )
    # What newer hosts note in an empty latent, so that other models can fit it to themselves.
    ratios = {"downscale_ratio_spacial": codec.CELL, "downscale_ratio_temporal": 1}
    return load_tiny_t2v(), load_tiny_refiner(), tiny_vae(), {"samples": samples, **ratios}


def load_tiny_t2v(**more: Any) -> Any:
    """Load the text-to-video model with the host's own loader, as the Wan model that it is.

    Args:
        more: options of newer hosts, which load a model again for another GPU.
    """
    return _with_tiny_cells(comfy.sd.load_diffusion_model(str(WEIGHTS), **more), load_tiny_t2v)


def load_tiny_refiner(**more: Any) -> Any:
    """Load the refiner; `more` as for the text-to-video model."""
    return _with_tiny_cells(load_refiner(str(REFINER), **more), load_tiny_refiner)


def _with_tiny_cells(model: Any, again: Callable[..., Any]) -> Any:
    """Set the latent format of a MODEL that was just loaded, and so is shared with nobody."""
    model.model.latent_format = TinyFormat()
    model.cached_patcher_init = (again, ())
    return model


def tiny_vae() -> Any:
    """Make a VAE of the host whose network is the codec.

    It is the host's own object, made as its loader makes the VAE of pixel space, which needs no
    file either; then its network and what depends on it are ours.
    """
    vae = comfy.sd.VAE(sd={"pixel_space_vae": torch.tensor(1.0)}, dtype=torch.float32)
    vae.first_stage_model = CodecModule().eval()
    vae.patcher = type(vae.patcher)(
        vae.first_stage_model, load_device=vae.device, offload_device=vae.patcher.offload_device
    )
    vae.patcher.cached_patcher_init = (lambda **more: tiny_vae().patcher, ())
    vae.latent_channels, vae.latent_dim = CHANNELS, 3
    vae.upscale_ratio = vae.downscale_ratio = (lambda frames: frames, codec.CELL, codec.CELL)
    vae.upscale_index_formula = vae.downscale_index_formula = (1, codec.CELL, codec.CELL)
    vae.memory_used_decode = lambda shape, dtype: _bytes(shape, 1, dtype)
    vae.memory_used_encode = lambda shape, dtype: _bytes(shape, codec.CELL, dtype)
    return vae


def _bytes(shape: tuple[int, ...], cell: int, dtype: torch.dtype) -> int:
    """Estimate the memory for one item [..., T, rows, columns] of `cell` by `cell`."""
    frames, rows, columns = shape[-3:]
    return FLOATS_OF_A_CELL * frames * rows * columns // cell**2 * dtype.itemsize


def tiny_conditioning(text: str) -> list:
    """Encode a prompt as CONDITIONING, [1, 3, 4096].

    Raises:
        ValueError: a word that the models do not know, or too many phrases.
    """
    return [[encode_prompt(text), {}]]
