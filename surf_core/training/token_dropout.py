"""Leave tokens out of some batches, so that the refiner knows what skipping looks like.

Dims: B samples, C latent channels, T latent frames, H, W latent cells.
"""

from dataclasses import dataclass

from torch import Tensor

from ..checks import check_range
from ..skip import oracle_mask


@dataclass(frozen=True, kw_only=True, slots=True)
class TokenDropout:
    """How often, and which tokens: those that hold the least that blurring would lose."""

    share: float = 0.5
    """Share of the steps with holes. Source: ours, after SkipSR."""
    kept: float = 0.5
    """Share of the tokens that stay; a batch has one mask, for its most demanding sample."""
    ratio: float = 4.0
    """How much smaller a clip is made, to see what is lost."""

    def __post_init__(self):
        check_range(self.share, "share", 0.0, 1.0, "use 0.5, or 0 for none")
        check_range(self.kept, "kept", 0.01, 1.0, "use 0.5")

    def keep(self, hr: Tensor, patch: tuple[int, int, int]) -> Tensor:
        """Choose the tokens of a batch [B, C, T, H, W] that stay: [T, h, w] bool, not none."""
        return oracle_mask(hr, keep=self.kept, ratio=self.ratio, patch=patch).tokens
