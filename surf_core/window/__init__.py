"""Attention in temporal windows that shift from layer to layer."""

from .attention import Dense, Packed, grouped, sdpa, window_attention
from .backends import (
    BACKENDS,
    backend,
    why_not,
    why_not_flash_varlen,
    why_not_torch_varlen,
    why_not_triton,
)
from .geometry import Bounds, StridedRanges, segments, strided_ranges, token_bounds

__all__ = [
    "BACKENDS",
    "Bounds",
    "Dense",
    "Packed",
    "StridedRanges",
    "backend",
    "grouped",
    "strided_ranges",
    "sdpa",
    "segments",
    "token_bounds",
    "why_not",
    "why_not_flash_varlen",
    "why_not_torch_varlen",
    "why_not_triton",
    "window_attention",
]
