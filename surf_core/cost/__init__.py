"""Price a plan before it runs: tokens, floating point operations, bytes.

Bytes are the weights and activations of `surf_core.refiner`; operations are known of any model
whose sizes a `ModelShape` has.
"""

from .memory import FFN_ROWS, NORM_ROWS, activation_bytes, weight_bytes
from .operations import (
    Evaluations,
    audio_tokens,
    forward_flops,
    latent_frames,
    plan_flops,
    tokens,
)
from .shapes import (
    HUNYUAN_VIDEO,
    HUNYUAN_VIDEO_15,
    LTX_2,
    MINIMAX_H3,
    SEEDVR2_3B,
    SEEDVR2_7B,
    SHAPES,
    SURF_1B,
    TINY,
    WAN_1_3B,
    WAN_5B,
    WAN_14B,
    AudioShape,
    ModelShape,
)

__all__ = [
    "FFN_ROWS", "HUNYUAN_VIDEO", "HUNYUAN_VIDEO_15", "LTX_2", "MINIMAX_H3", "NORM_ROWS",
    "SEEDVR2_3B", "SEEDVR2_7B", "SHAPES", "SURF_1B", "TINY", "WAN_14B", "WAN_1_3B", "WAN_5B",
    "AudioShape", "Evaluations", "ModelShape", "activation_bytes", "audio_tokens", "forward_flops",
    "latent_frames", "plan_flops", "tokens", "weight_bytes",
]  # fmt: skip
