"""The embedded text-to-video model: weights, prompts, noise and guidance.

Dims: B batch, T latent frames, H, W latent cells; one latent cell is 4x4 pixels.
"""

from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor

from .. import checkpoint
from ..refiner import SurfRefinerDiT
from .prompt import encode_prompt

WEIGHTS = Path(__file__).parent / "weights" / "tiny_t2v.safetensors"
REFINER = WEIGHTS.with_name("tiny_refiner.safetensors")
"""Its refiner, for previews of half its size, enlarged four times."""
MASK = WEIGHTS.with_name("tiny_mask.safetensors")
"""The mask predictor of this refiner."""
FRAMES = 4
"""Latent frames the model was trained on."""
CELLS = 16
"""Latent cells along a side the model was trained on: 64 pixels."""

Velocity = Callable[[Tensor, float], Tensor]
"""(noisy latent, sigma) -> noise minus clean."""


class Prompted:
    """A trained model with the prompts of a batch, which counts its evaluations.

    Args:
        prompts: one per video of the batch, see `encode_prompt`.
        weights: a file that `surf_core.checkpoint.save` wrote.
    """

    def __init__(self, prompts: list[str], weights: Path):
        self.model: SurfRefinerDiT = checkpoint.load(weights)
        self.context = torch.cat([encode_prompt(prompt) for prompt in prompts])
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
