"""The value of a SURF_MASK socket: which tokens of a preview to refine.

Dims: B batch, C latent channels, T latent frames, H, W latent cells.
"""

from dataclasses import dataclass

from torch import Tensor

from ....surf_core.skip import Mask

CHOICES = ("keep ratio", "tau")
"""Criteria for tokens to refine: a share of all, or the least score."""


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class SkipMask:
    """A mask, and the preview that it was made from."""

    mask: Mask
    """Tokens of the target size, on the CPU."""
    size: tuple[int, int]
    """Rows and columns of the target in latent cells, as the refiner will have them."""
    upsampled: Tensor | None
    """[B, C, T, H, W], VAE space: the upsampled preview, so that it need not be made twice."""
    upsample: str
    """How `upsampled` was made: "pixel" or "latent"."""
    samples: Tensor
    """The preview that `upsampled` was made of; for another one it is of no use."""
