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
    start: Tensor | None
    """[B, C, T, H, W], VAE space: the enlarged preview, so that it need not be made twice."""
    upsample: str
    """How start was made: "pixel" or "latent"."""
    samples: Tensor
    """The preview that it was made of; only for another one is start of no use."""
