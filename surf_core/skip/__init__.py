"""Refine only the tokens that need it: score them, choose a mask, pack, compose."""

from .compose import Skipping, compose, refine_skipping, weight
from .detail import detail, pixel_detail
from .mask import Mask, check_keep, choose
from .oracle import down_up, oracle_mask, scores
from .pack import Packing, pack, packing, unpack
from .predict import predict_mask, token_scores
from .predictor import MaskPredictor, PredictorConfig

__all__ = [
    "Mask",
    "MaskPredictor",
    "Packing",
    "PredictorConfig",
    "Skipping",
    "check_keep",
    "choose",
    "compose",
    "detail",
    "down_up",
    "oracle_mask",
    "pack",
    "packing",
    "pixel_detail",
    "predict_mask",
    "refine_skipping",
    "scores",
    "token_scores",
    "unpack",
    "weight",
]
