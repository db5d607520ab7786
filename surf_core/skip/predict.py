"""Which tokens need refining, told from the enlarged preview: by a network, or by its detail.

Dims: B batch, C latent channels, T latent frames, H, W latent cells; T, h, w tokens.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

from ..checks import check_latent, check_range
from .mask import Mask, choose
from .oracle import PATCH, UNIT
from .predictor import MaskPredictor

TEMPORAL = 0.03
"""Share of the detail over time. Of rendered scenes enlarged four times, detail in space alone
ranks best, and all of the detail over time mistakes motion of flat parts for texture."""


def detail(
    start: Tensor, patch: tuple[int, int, int] = PATCH, temporal: float = TEMPORAL
) -> Tensor:
    """Score tokens without weights: the energy that a local mean takes away.

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
        size % step for size, step in zip(start.shape[2:], patch, strict=True)
    ):
        raise ValueError(
            f"expected a latent [B, C, T, H, W] of whole tokens of {patch}, got "
            f"{tuple(start.shape)}; choose a size that fits."
        )
    x = start.to(torch.promote_types(start.dtype, torch.float32))
    energy = (x - _around(x, (1, 3, 3))).square()
    if temporal:
        energy = energy + temporal * (x - _around(x, (3, 1, 1))).square()
    return UNIT * F.avg_pool3d(energy.mean(dim=1), patch).sqrt()


def _around(x: Tensor, size: tuple[int, int, int]) -> Tensor:
    """Mean over the places around each of x [B, C, T, H, W]; edges repeat."""
    reach = [side // 2 for side in reversed(size) for _ in range(2)]
    return F.avg_pool3d(F.pad(x, reach, mode="replicate"), size, 1)


def predict_mask(
    start: Tensor,
    predictor: MaskPredictor | None = None,
    *,
    tau: float | None = None,
    keep: float | None = None,
    patch: tuple[int, int, int] = PATCH,
    **options,
) -> Mask:
    """Choose the tokens to refine, before anything is refined.

    Args:
        start: [B, C, T, H, W], the enlarged preview, clean, at the target size; samples of a batch
            share the mask of their maximum.
        predictor: a trained network; None scores by `detail`.
        tau: in the oracle's unit for a predictor, in its own for `detail`; this or keep.
        keep: wanted share of refined tokens.
        patch: latent cells of a token of the refiner.
        options: of `choose`.

    Raises:
        ValueError: a bad latent, a predictor of other tokens, or as `choose`.
    """
    if predictor is None:
        found, source = detail(start, patch), "detail"
    else:
        check_latent(start, "the start latent", channels=predictor.config.latent_channels)
        if tuple(predictor.config.patch) != tuple(patch):
            raise ValueError(
                f"expected a predictor of tokens of {patch}, got {predictor.config.patch}; use "
                "the one that was trained for this refiner."
            )
        found, source = predictor.scores(start), "predictor"
    return choose(found, source=source, tau=tau, keep=keep, **options)
