"""The embedded models: weights, prompts, noise, guidance, and the way to pixels and back.

Dims: B batch, T latent frames, H, W latent cells, F pixel frames.
"""

from collections.abc import Callable
from functools import cache
from pathlib import Path

import torch
from torch import Tensor

from .. import checkpoint
from ..refiner import SurfRefinerDiT
from . import vae
from .caption import encode_caption

WEIGHTS = Path(__file__).parent / "weights" / "tiny_t2v.safetensors"
REFINER = WEIGHTS.with_name("tiny_refiner.safetensors")
"""Its refiner, for previews of half its size, enlarged four times."""
VAE = WEIGHTS.with_name("tiny_vae.safetensors")
"""The VAE of both, in Wan 2.1's format."""
CELLS, FRAMES = 16, 4
"""Latent cells along a side, and latent frames, of the videos that the model was trained on."""
PIXELS, CLIP = CELLS * vae.CELL, 1 + vae.PERIOD * (FRAMES - 1)
"""The same in pixels, 128, and in frames, 13."""

Velocity = Callable[[Tensor, float], Tensor]
"""(noisy latent, sigma) -> noise minus clean."""


@cache
def embedded_vae() -> vae.TinyVAE:
    """Load the VAE, once; nobody may change it."""
    return vae.load(VAE)


@torch.inference_mode()
def to_pixels(latent: Tensor) -> Tensor:
    """Decode [B, 16, T, H, W] to videos [B, 3, F, 8H, 8W] in 0..1."""
    return torch.cat([embedded_vae().decode(x) for x in latent.split(4)]).add(1).div(2).clamp(0, 1)


@torch.inference_mode()
def to_latent(video: Tensor) -> Tensor:
    """Encode videos [B, 3, F, 8H, 8W] in 0..1 to [B, 16, T, H, W]."""
    return torch.cat([embedded_vae().encode(x * 2 - 1) for x in video.split(4)])


class Prompted:
    """A trained model with the prompts of a batch, which counts its evaluations.

    Args:
        prompts: one per video of the batch, see `encode_caption`.
        weights: a file that `surf_core.checkpoint.save` wrote.
    """

    def __init__(self, prompts: list[str], weights: Path):
        self.model: SurfRefinerDiT = checkpoint.load(weights)
        self.context = torch.cat([encode_caption(prompt) for prompt in prompts])
        self.evaluations = 0

    def noise(self, seeds: list[int], cells: int = CELLS) -> Tensor:
        """Draw one noise per seed: [B, 16, T, cells, cells]."""
        shape = (self.model.config.latent_channels, FRAMES, cells, cells)
        return torch.stack(
            [torch.randn(shape, generator=torch.Generator().manual_seed(seed)) for seed in seeds]
        )


class TinyT2V(Prompted):
    """Text to video, at the size of its training and below."""

    def __init__(self, prompts: list[str], weights: Path = WEIGHTS):
        super().__init__(prompts, weights)

    def velocity(self, cfg: float, window: int = 0) -> Velocity:
        """Return the guided velocity as a function of latent and sigma.

        Args:
            cfg: guidance scale.
            window: latent frames of a self-attention window, 0 for all.
        """
        both = torch.cat([self.context, torch.zeros_like(self.context)])

        def evaluate(z: Tensor, sigma: float, context: Tensor) -> Tensor:
            return self.model(z, torch.full((len(z),), 1000 * float(sigma)), context)

        @torch.inference_mode()
        def guided(z: Tensor, sigma: float) -> Tensor:
            self.model.window = window
            self.evaluations += 1
            with_text, without = evaluate(torch.cat([z, z]), sigma, both).chunk(2)
            return without + cfg * (with_text - without)

        return guided
