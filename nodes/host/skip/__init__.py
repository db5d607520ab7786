"""Make a mask of tokens to refine, report on it, and skip the others."""

from .cell_weights import CellWeights, cell_weights
from .make_mask import BUILT_IN, Choice, check_encoded, check_sees_frames, make_mask
from .report import flops_text, picture, report
from .seedvr2 import skip_seedvr2
from .shapes import hunyuan_shape, shape_of, wan_shape
from .skip_mask import CHOICES, SkipMask
from .wrapper import with_mask

__all__ = [
    "BUILT_IN",
    "CHOICES",
    "CellWeights",
    "Choice",
    "SkipMask",
    "cell_weights",
    "check_encoded",
    "check_sees_frames",
    "flops_text",
    "hunyuan_shape",
    "make_mask",
    "picture",
    "report",
    "shape_of",
    "skip_seedvr2",
    "wan_shape",
    "with_mask",
]
