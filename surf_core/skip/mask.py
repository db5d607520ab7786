"""The mask of the tokens that are refined, and how it is chosen by score.

Dims: B batch, T, h, w tokens of a clip along time, rows and columns.
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from ..checks import check_range

SOURCES = ("oracle", "predictor", "pixel detail", "detail")
"""Where scores come from: the sharp clip, a trained network, the preview's own detail, of its
pixels or of its latent."""
HYSTERESIS = 0.7
"""A refined token stays refined in the next latent frame down to this share of tau."""
GREATEST = 255.0
"""Largest tau: the range of a pixel."""


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class Mask:
    """The tokens of a clip that are refined, in all samples of a batch."""

    tokens: Tensor
    """[T, h, w] bool, on the CPU: True is refined, False keeps the upsampled preview."""
    scores: Tensor
    """[T, h, w] fp32, on the CPU: the scores that it was chosen by."""
    source: str
    """Where the scores come from; one of SOURCES, or another word for a mask made elsewhere."""
    tau: float
    """Least score of a token that is refined."""

    def __post_init__(self) -> None:
        if self.tokens.ndim != 3 or self.tokens.dtype != torch.bool or not self.tokens.numel():
            raise ValueError(
                f"expected a mask [T, h, w] of bool, got {tuple(self.tokens.shape)} of "
                f"{self.tokens.dtype}; make it with oracle_mask or predict_mask."
            )
        if self.scores.shape != self.tokens.shape:
            raise ValueError(
                f"expected scores of the mask's grid {self.grid}, got "
                f"{tuple(self.scores.shape)}; make both from one clip."
            )
        check_scores(self.scores)
        check_tau(self.tau)

    @property
    def grid(self) -> tuple[int, int, int]:
        """Tokens along time, rows and columns."""
        depth, rows, columns = self.tokens.shape
        return depth, rows, columns

    @property
    def keep_ratio(self) -> float:
        """Share of the tokens that are refined."""
        return self.tokens.float().mean().item()

    @property
    def flip_rate(self) -> float:
        """Share of the tokens that change between kept and skipped from a frame to the next."""
        if len(self.tokens) == 1:
            return 0.0
        return (self.tokens[1:] != self.tokens[:-1]).float().mean().item()


def check_scores(scores: Tensor) -> None:
    """Raise for scores that are not finite, or negative."""
    if not torch.isfinite(scores).all() or scores.min() < 0:
        raise ValueError(
            "expected finite scores from 0, got NaN, infinity or a negative one; look at the "
            "latent that they were made from."
        )


def check_tau(tau: float) -> None:
    """Raise for a threshold outside the range of scores."""
    check_range(tau, "tau", 0.0, GREATEST, "use 3, or 0 to refine everything")


def check_keep(keep: Tensor, grid: tuple[int, int, int]) -> None:
    """Raise for a mask that does not fit a clip of this grid, or keeps no token.

    Args:
        keep: [T, h, w] bool.
        grid: tokens of the clip along time, rows and columns.

    Raises:
        ValueError: no bool mask, another length, another size, or nothing kept.
    """
    if keep.ndim != 3 or keep.dtype != torch.bool:
        raise ValueError(
            f"expected a mask [T, h, w] of bool, one for all samples, got {tuple(keep.shape)} of "
            f"{keep.dtype}; pass Mask.tokens."
        )
    if keep.shape[0] != grid[0]:
        raise ValueError(
            f"expected a mask of {grid[0]} latent frames, got {keep.shape[0]}; it belongs to a "
            "clip of another length, make it from this one."
        )
    if tuple(keep.shape[1:]) != tuple(grid[1:]):
        raise ValueError(
            f"expected a mask of {grid[1]}x{grid[2]} tokens, got {keep.shape[1]}x{keep.shape[2]}; "
            "it was made for another resolution, make it at the target size."
        )
    if not keep.any():
        raise ValueError(
            "expected a mask with something to refine, got one that skips the whole clip; lower "
            "tau, or take the enlarged preview as it is."
        )


def choose(
    scores: Tensor,
    *,
    source: str,
    tau: float | None = None,
    keep: float | None = None,
    hysteresis: float = HYSTERESIS,
    dilate: int = 0,
) -> Mask:
    """Choose the tokens to refine by score.

    A token is refined if its score is at least tau (so tau 0 refines all), or at least
    hysteresis * tau where it was refined in the latent frame before.

    Args:
        scores: [T, h, w], or [B, T, h, w], of which the maximum over the batch counts.
        source: see `Mask`.
        tau: 0..255, see `surf_core.skip.oracle` for the unit; this or keep.
        keep: least share of refined tokens, above 0 to 1: takes the largest tau that reaches it,
            after hysteresis and dilation; equal scores are kept together.
        hysteresis: 0..1, share of tau down to which a refined token stays refined in the next
            frame; 1 for a plain threshold.
        dilate: tokens to every side of a refined one that are refined too.

    Raises:
        ValueError: NaN scores, both or neither of tau and keep, or one out of range.

    Source: ours.
    """
    if (tau is None) == (keep is None):
        raise ValueError(f"expected either tau or keep, got {tau=}, {keep=}; give one of them.")
    check_range(hysteresis, "hysteresis", 0.0, 1.0, "use 0.7, or 1 for none")
    check_range(dilate, "dilate", 0, 64, "use 0 or 1")
    if scores.ndim not in (3, 4):
        raise ValueError(
            f"expected scores [T, h, w] or [B, T, h, w], got {tuple(scores.shape)}; pass one for "
            "each token."
        )
    check_scores(scores)
    scores = scores.detach().float().cpu()
    scores = scores.amax(dim=0) if scores.ndim == 4 else scores

    def tokens(tau: float) -> Tensor:
        return _dilated(_threshold(scores, tau, hysteresis), dilate)

    if tau is None:
        assert keep is not None
        check_range(keep, "keep", 1e-6, 1.0, "use 0.5 for half of the tokens")
        tau = _tau_for(keep, tokens, scores, hysteresis)
    check_tau(tau)
    return Mask(tokens=tokens(tau), scores=scores, source=source, tau=tau)


def _threshold(scores: Tensor, tau: float, hysteresis: float) -> Tensor:
    """Keep scores from tau on, and from hysteresis * tau on where the frame before was kept."""
    on, frames = torch.zeros_like(scores[0], dtype=torch.bool), []
    for frame in scores:
        on = (frame >= tau) | on & (frame >= hysteresis * tau)
        frames.append(on)
    return torch.stack(frames)


def _dilated(tokens: Tensor, by: int) -> Tensor:
    if not by:
        return tokens
    return F.max_pool2d(tokens[:, None].float(), 2 * by + 1, 1, by)[:, 0] > 0


def _tau_for(
    keep: float, tokens: Callable[[float], Tensor], scores: Tensor, hysteresis: float
) -> float:
    """Find the largest tau that keeps the share `keep`, by bisection over all that differ."""
    taus = scores.flatten().double()
    if hysteresis:
        taus = torch.cat([taus, taus / hysteresis])
    taus = torch.cat([taus.new_zeros(1), taus]).unique()
    taus = taus[taus <= GREATEST]
    low, high = 0, len(taus) - 1
    while low < high:
        middle = (low + high + 1) // 2
        if tokens(taus[middle].item()).double().mean() >= keep:
            low = middle
        else:
            high = middle - 1
    return taus[low].item()
