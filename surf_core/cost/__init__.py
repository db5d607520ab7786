"""Price a plan before it runs: tokens, floating point operations, bytes.

Bytes are the weights and activations of `surf_core.refiner`, and the activations of other networks
whose live tensors were counted; operations are known of any model whose sizes a `ModelShape` has.
Seconds follow from what one evaluation took on a machine.
"""

from .memory import FFN_ROWS, NORM_ROWS, activation_bytes, network_bytes, weight_bytes
from .operations import (
    Evaluations,
    Work,
    audio_tokens,
    forward_flops,
    forward_work,
    latent_frames,
    plan_flops,
    token_grid,
    tokens,
)
from .plan import PlanStage, Rate, StagePrice, fit, price
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
    "AudioShape", "Evaluations", "ModelShape", "PlanStage", "Rate", "StagePrice", "Work",
    "activation_bytes", "audio_tokens", "fit", "forward_flops", "forward_work", "latent_frames",
    "network_bytes", "plan_flops", "price", "token_grid", "tokens", "weight_bytes",
]  # fmt: skip
