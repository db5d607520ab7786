"""Which tokens of a preview are worth refining: what a SURF_MASK carries.

Dims: B batch, C latent channels, T latent frames, H, W latent cells.
"""

from dataclasses import dataclass

from torch import Tensor

from ....surf_core.skip import Mask

CHOICES = ("keep ratio", "tau")
"""Ways to say how many tokens are refined: a share of all, or the least score."""


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class SkipMask:
    """What a SURF_MASK socket carries: a mask, and what it was made from."""

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
