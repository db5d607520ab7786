"""Choose the tokens to refine from the upsampled preview, by a network or by its detail.

Scores are made a few latent frames at a time, so that memory does not grow with the length.

Dims: B batch, C latent channels, T latent frames, H, W latent cells; T, h, w tokens.
"""

from collections.abc import Callable
from math import ceil
from typing import Any

import torch
from torch import Tensor

from ..checks import check_latent
from .detail import detail
from .mask import Mask, choose
from .oracle import PATCH
from .predictor import MaskPredictor

STRETCH = 16
"""Latent frames that are scored at a time."""
REACH = 1
"""Latent frames to either side that a score depends on: `detail`'s mean and the predictor's
convolution over time each see three."""


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
    scores = token_scores(start, predictor, patch)
    source = "detail" if predictor is None else "predictor"
    return choose(scores, source=source, tau=tau, keep=keep, **options)


def token_scores(
    start: Tensor,
    predictor: MaskPredictor | None = None,
    patch: tuple[int, int, int] = PATCH,
    prepare: Callable[[Tensor], Tensor] = lambda part: part,
) -> Tensor:
    """Score the tokens of an upsampled preview, a stretch of its frames after the other.

    A stretch is scored with the frames beside it, as far as scores depend on them, so that the
    result is that of all frames at once, bit for bit.

    Args:
        start, predictor, patch: as in `predict_mask`.
        prepare: makes of a stretch of `start` what is scored, frame by frame.

    Returns:
        [B, T, h, w], in the unit of the predictor, or of `detail`.
    """
    if predictor is not None:
        _check_fits(predictor, patch)
    depth, frames = patch[0], start.shape[2] if start.ndim == 5 else 1
    step, beside = depth * max(1, STRETCH // depth), depth * ceil(REACH / depth)
    kept = []
    for first in range(0, frames, step):
        before = max(0, first - beside)
        part = prepare(start[:, :, before : first + step + beside])
        scores = _scores(part, predictor, patch)
        kept.append(scores[:, (first - before) // depth :][:, : step // depth])
    return torch.cat(kept, dim=1)


def _scores(start: Tensor, predictor: MaskPredictor | None, patch: tuple[int, int, int]) -> Tensor:
    if predictor is None:
        return detail(start, patch)
    check_latent(start, "the start latent", channels=predictor.config.latent_channels)
    return predictor.scores(start)


def _check_fits(predictor: MaskPredictor, patch: tuple[int, int, int]) -> None:
    if tuple(predictor.config.patch) != tuple(patch):
        raise ValueError(
            f"expected a predictor of tokens of {patch}, got {predictor.config.patch}; use "
            "the one that was trained for this refiner."
        )
