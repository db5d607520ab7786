"""Refining the tokens of a mask alone: making the mask, applying it, reporting on it."""

from .make_mask import BUILT_IN, Choice, make_mask
from .report import picture, report
from .seedvr2 import skip_seedvr2
from .skip_mask import CHOICES, SkipMask
from .wrapper import cell_weight, check_mask, skipping

__all__ = [
    "BUILT_IN",
    "CHOICES",
    "Choice",
    "SkipMask",
    "cell_weight",
    "check_mask",
    "make_mask",
    "picture",
    "report",
    "skip_seedvr2",
    "skipping",
]
