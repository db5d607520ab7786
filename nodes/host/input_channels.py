"""Tell how many channels a Wan takes: of the latent, and of pictures that are put beside it.

A LoRA can widen the patch embedding when the host loads the model; until then only its pending
patches say so.
"""

from typing import Any

import comfy.model_base

from .models import uncompiled

WEIGHT = "diffusion_model.patch_embedding.weight"


def joins_picture(model: Any) -> bool:
    """Say whether a MODEL puts the picture's channels beside the latent's, as Wan does for I2V."""
    return (input_channels(model) or 0) > _latent_channels(model)


def takes_control(model: Any) -> bool:
    """Say whether a MODEL takes one more latent beside the one that it samples, and no mask."""
    return input_channels(model) == 2 * _latent_channels(model)


def input_channels(model: Any) -> int | None:
    """Count the channels of the patch embedding of a Wan as it will be sampled; else None."""
    joined = getattr(type(model.model), "concat_cond", None)
    if joined is None or joined is not getattr(comfy.model_base.WAN21, "concat_cond", None):
        return None
    embedding = getattr(uncompiled(model.model.diffusion_model), "patch_embedding", None)
    weight = getattr(embedding, "weight", None)
    if weight is None:
        return None
    # Another clone's patches may be in the weight; the host keeps what it was before.
    kept = getattr(model, "backup", {}).get(WEIGHT)
    shape = tuple(weight.shape if kept is None else kept.weight.shape)
    for _, patch, *_ in getattr(model, "patches", {}).get(WEIGHT, ()):
        shape = _widened(patch) or shape
    return shape[1]


def _widened(patch: Any) -> tuple[int, ...] | None:
    """Read the shape that a pending patch gives to a weight; None where it leaves it."""
    if isinstance(patch, tuple) and len(patch) == 2 and patch[0] in ("diff", "set"):
        kind, (value, *options) = patch
        padded = bool(options) and options[0].get("pad_weight", False)
        return tuple(value.shape) if kind == "set" or padded else None
    weights = getattr(patch, "weights", None)
    # A LoRA of the host: up, down, alpha, mid, dora_scale, reshape.
    is_lora = getattr(patch, "name", "") == "lora" and len(weights or ()) == 6
    return tuple(weights[5]) if is_lora and weights[5] is not None else None


def _latent_channels(model: Any) -> int:
    return model.get_model_object("latent_format").latent_channels
