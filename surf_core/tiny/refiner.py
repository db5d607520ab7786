"""The embedded refiner: refines a preview of 64 pixels a side to a video of 256.

Dims: B batch, T latent frames, H, W latent cells.
"""

from collections.abc import Callable
from functools import partial
from pathlib import Path

import torch
from torch import Tensor

from ..cost import TINY, ModelShape
from ..flow import refine_with
from ..resample import resize
from ..skip import Mask, refine_skipping
from . import vae
from .model import CELLS, REFINER, Prompted, to_latent, to_pixels

LARGE = 2 * CELLS
"""Latent cells along a side of the refiner's training videos: 256 pixels."""


def enlarge(latent: Tensor, cells: int = LARGE) -> Tensor:
    """Upsample a latent through pixels: decode, bicubic, encode."""
    size = (cells * vae.CELL, cells * vae.CELL)
    return to_latent(resize(to_pixels(latent), size, "bicubic"))


def shape_of(model: Prompted) -> ModelShape:
    """Return what the operations of a model of this family are counted by."""
    return ModelShape.of(model.model.config, TINY.name, TINY.text_tokens)


class TinyRefiner(Prompted):
    """A trained refiner with its prompts; with the weights of `TinyT2V`, a training-free one."""

    def __init__(self, prompts: list[str], weights: Path = REFINER):
        super().__init__(prompts, weights)

    @torch.inference_mode()
    def __call__(
        self,
        latent: Tensor,
        seeds: list[int],
        *,
        cells: int = LARGE,
        steps: int = 10,
        sigma_start: float | None = None,
        cfg: float = 1.0,
        window: int | None = None,
        mask: Mask | None = None,
        seam: int = 0,
    ) -> Tensor:
        """Enlarge a preview and refine it.

        Args:
            latent: [B, 16, T, H, W], clean previews, one for each prompt.
            seeds: one per video, for the noise.
            cells: H and W of the result.
            steps: evaluations.
            sigma_start: noise on the upsampled preview; None for the file's.
            cfg: guidance scale; 1 runs the model once per step, without a negative prompt.
            window: latent frames of a self-attention window, 0 for all; None for the file's.
            mask: tokens to refine, one for all videos; the others are the enlarged preview.
            seam: see `surf_core.skip.refine_skipping`.

        Returns:
            [B, 16, T, cells, cells].

        Raises:
            ValueError: a noise that the file was not trained for, or a mask of another clip.
        """
        start = enlarge(latent, cells)
        self.model.window = self.model.config.window if window is None else window
        run: Callable[..., Tensor] = refine_with
        if mask is not None:
            run = partial(refine_skipping, mask=mask, seam=seam)
        return run(
            self.model, start, self.context, steps=steps, noise=self.noise(seeds, cells),
            sigma_start=sigma_start, negative=torch.zeros_like(self.context), cfg=cfg,
            on_step=self._count,
        )  # fmt: skip

    def _count(self, step: int, latent: Tensor, clean: Tensor) -> None:
        self.evaluations += 1
