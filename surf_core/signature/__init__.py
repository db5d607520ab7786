"""Compare a video with its same-seed baseline: measures of agreement, distances, controls."""

from .agreement import bands, edges, fine, sharpness, structure
from .distances import colour_distance, detail, psnr
from .motion import flow, motion
from .named import named_iou, place_error
from .report import HEADLINE, SignatureReport, controls, report, scores

__all__ = [
    "HEADLINE",
    "SignatureReport",
    "bands",
    "colour_distance",
    "controls",
    "detail",
    "edges",
    "fine",
    "flow",
    "motion",
    "named_iou",
    "place_error",
    "psnr",
    "report",
    "scores",
    "sharpness",
    "structure",
]
