"""Score tokens by the preview's own detail, without weights.

Dims: B batch, C latent channels, T latent frames, H, W latent cells; T, h, w tokens.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

from ..checks import check_latent, check_range
from .oracle import PATCH, UNIT

TEMPORAL = 0.03
"""Share of the detail over time. Of rendered scenes enlarged four times, detail in space alone
ranks best, and all of the detail over time mistakes motion of flat parts for texture."""


def detail(
    start: Tensor, patch: tuple[int, int, int] = PATCH, temporal: float = TEMPORAL
) -> Tensor:
    """Score tokens by the energy that a local mean removes.

    Squared differences of every latent cell to the mean of the 3x3 cells around it, plus `temporal`
    times those to the mean of the three frames around it; averaged over a token, square root.

    Args:
        start: [B, C, T, H, W], clean, at the target size.
        patch: latent cells of a token.
        temporal: 0..1.

    Returns:
        [B, T, h, w], >= 0, times `UNIT`. It ranks tokens; its scale is not that of the oracle, so
        choose by keep ratio, or find tau by trial.

    Raises:
        ValueError: a bad latent, or a size that tokens do not divide.

    Source: ours.
    """
    check_latent(start, "the start latent")
    check_range(temporal, "temporal", 0.0, 1.0, "use 0.03")
    if start.ndim != 5 or any(
        size % cells for size, cells in zip(start.shape[2:], patch, strict=True)
    ):
        raise ValueError(
            f"expected a latent [B, C, T, H, W] of whole tokens of {patch}, got "
            f"{tuple(start.shape)}; choose a size that fits."
        )
    x = start.to(torch.promote_types(start.dtype, torch.float32))
    energy = (x - _local_mean(x, (1, 3, 3))).square()
    if temporal:
        energy = energy + temporal * (x - _local_mean(x, (3, 1, 1))).square()
    return UNIT * F.avg_pool3d(energy.mean(dim=1), patch).sqrt()


def _local_mean(x: Tensor, size: tuple[int, int, int]) -> Tensor:
    """Average x [B, C, T, H, W] over the neighbourhood of each cell; edges repeat."""
    reach = [side // 2 for side in reversed(size) for _ in range(2)]
    return F.avg_pool3d(F.pad(x, reach, mode="replicate"), size, 1)
