"""Compare a video with its same-seed baseline: measures of agreement, distances, controls."""

from .agreement import bands, edges, fine, sharpness, structure
from .distances import colour_distance, detail, psnr
from .motion import flow, motion
from .named import named_iou, place_error
from .report import HEADLINE, SignatureReport, controls, report, scores
from .survival import SignaturePart, Survival, flicker, survival

__all__ = [
    "HEADLINE",
    "SignaturePart",
    "SignatureReport",
    "Survival",
    "bands",
    "colour_distance",
    "controls",
    "detail",
    "edges",
    "fine",
    "flicker",
    "flow",
    "motion",
    "named_iou",
    "place_error",
    "psnr",
    "report",
    "scores",
    "sharpness",
    "structure",
    "survival",
]
