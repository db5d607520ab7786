"""Check inputs and raise one grammar of error: expected, got, what to do.

Dims: B batch, C channels, T latent frames, H, W latent cells.
"""

from math import isfinite

import torch
from torch import Tensor

FLOATS = (torch.float16, torch.bfloat16, torch.float32, torch.float64)
"""What torch computes with; float8 is for weights alone."""


def check_latent(x: Tensor, name: str, *, channels: int | None = None) -> None:
    """Raise for a tensor that is no usable latent.

    Args:
        x: [B, C, H, W] or [B, C, T, H, W], one of FLOATS.
        name: what the caller calls it, e.g. "Surf Refiner: latent".
        channels: expected C; None takes any.

    Raises:
        ValueError: no tensor, other dimensions, not floating, empty, other channels, NaN or
            infinity.
    """
    if not isinstance(x, Tensor):
        raise ValueError(
            f"{name} must be one tensor, got {type(x).__name__}; "
            "split a joint audio and video latent and pass the video part."
        )
    shape = tuple(x.shape)
    if x.ndim not in (4, 5):
        raise ValueError(
            f"{name} must be [B, C, H, W] or [B, C, T, H, W], got {shape=}; pass a latent."
        )
    if x.dtype not in FLOATS:
        raise ValueError(
            f"{name} must hold floating point values of at least 16 bits, got {x.dtype}; "
            "convert it."
        )
    if not x.numel():
        raise ValueError(f"{name} must hold at least one cell, got {shape=}; check its size.")
    if channels is not None and x.shape[1] != channels:
        raise ValueError(
            f"{name} must have {channels} channels, got {x.shape[1]} in {shape=}; "
            "use a latent of the same model family."
        )
    if not torch.isfinite(x).all():
        raise ValueError(
            f"{name} must be finite, got NaN or infinity in {shape=}; "
            "look at the node that made it, often a VAE or a sampler in half precision."
        )


def check_range(value: float, name: str, low: float, high: float, advice: str) -> None:
    """Raise for a number outside [low, high], or one that is not finite.

    Args:
        advice: what to do, a clause without a full stop.

    Raises:
        ValueError: value < low, value > high, NaN or infinite.
    """
    if not low <= value <= high or not isfinite(value):
        raise ValueError(f"{name} must lie within {low} to {high}, got {value}; {advice}.")


def check_choice(value: str, name: str, choices: tuple[str, ...]) -> None:
    """Raise for a word that is not among the choices."""
    if value not in choices:
        raise ValueError(f"{name} must be one of {', '.join(choices)}, got {value!r}; choose one.")
