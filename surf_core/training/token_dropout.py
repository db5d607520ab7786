"""Drop tokens in some batches, so that the refiner is trained for skipped tokens.

Dims: B samples, C latent channels, T latent frames, H, W latent cells.
"""

from dataclasses import dataclass

from torch import Tensor

from ..checks import check_range
from ..skip import oracle_mask


@dataclass(frozen=True, kw_only=True, slots=True)
class TokenDropout:
    """Drops the tokens with the lowest oracle scores in a share of the steps."""

    share: float = 0.5
    """Share of the steps that drop tokens. Source: ours, after SkipSR."""
    kept: float = 0.5
    """Share of the tokens that are kept; a batch has one mask, by its highest scores."""
    ratio: float = 4.0
    """Downscale per side of the oracle."""

    def __post_init__(self) -> None:
        check_range(self.share, "share", 0.0, 1.0, "use 0.5, or 0 for none")
        check_range(self.kept, "kept", 0.01, 1.0, "use 0.5")

    def keep(self, hr: Tensor, patch: tuple[int, int, int]) -> Tensor:
        """Choose the tokens of a batch [B, C, T, H, W] to keep: [T, h, w] bool, at least one."""
        return oracle_mask(hr, keep=self.kept, ratio=self.ratio, patch=patch).tokens
