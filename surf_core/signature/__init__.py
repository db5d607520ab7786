"""Compare a video with its same-seed baseline: measures of agreement, older distances, controls."""

from .agreement import bands, edges, fine, sharpness, structure
from .distances import (
    Signature,
    colour_distance,
    compare,
    detail,
    layout_distance,
    motion_distance,
    psnr,
)
from .motion import flow, motion
from .named import named_iou, place_error
from .report import HEADLINE, SignatureReport, controls, report, scores

__all__ = [
    "HEADLINE",
    "SignatureReport",
    "Signature",
    "bands",
    "colour_distance",
    "compare",
    "controls",
    "detail",
    "edges",
    "fine",
    "flow",
    "layout_distance",
    "motion",
    "motion_distance",
    "named_iou",
    "place_error",
    "psnr",
    "report",
    "scores",
    "sharpness",
    "structure",
]
