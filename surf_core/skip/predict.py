"""Choose the tokens to refine from the upsampled preview, by a network or by its detail.

Dims: B batch, C latent channels, T latent frames, H, W latent cells; T, h, w tokens.
"""

from typing import Any

from torch import Tensor

from ..checks import check_latent
from .detail import detail
from .mask import Mask, choose
from .oracle import PATCH
from .predictor import MaskPredictor


def predict_mask(
    start: Tensor,
    predictor: MaskPredictor | None = None,
    *,
    tau: float | None = None,
    keep: float | None = None,
    patch: tuple[int, int, int] = PATCH,
    **options: Any,
) -> Mask:
    """Choose the tokens to refine.

    Args:
        start: [B, C, T, H, W], the upsampled preview, clean, at the target size; samples of a
            batch share the mask of their maximum.
        predictor: a trained network; None scores by `detail`.
        tau: in the oracle's unit for a predictor, in its own for `detail`; this or keep.
        keep: share of tokens to refine.
        patch: latent cells of a token of the refiner.
        options: of `choose`.

    Raises:
        ValueError: a bad latent, a predictor of other tokens, or as `choose`.
    """
    if predictor is None:
        scores, source = detail(start, patch), "detail"
    else:
        check_latent(start, "the start latent", channels=predictor.config.latent_channels)
        if tuple(predictor.config.patch) != tuple(patch):
            raise ValueError(
                f"expected a predictor of tokens of {patch}, got {predictor.config.patch}; use "
                "the one that was trained for this refiner."
            )
        scores, source = predictor.scores(start), "predictor"
    return choose(scores, source=source, tau=tau, keep=keep, **options)
