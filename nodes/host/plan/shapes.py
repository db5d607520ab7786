"""Read from a host's network the sizes that its cost depends on.

Dims: B batch, T latent frames, H, W latent cells, N latents of sound, L text tokens.
"""

from collections.abc import Callable, Sequence
from dataclasses import replace
from math import prod
from typing import Any

from ....surf_core import cost
from ....surf_core.cost import AudioShape, ModelShape
from ....surf_core.refiner import SurfRefinerDiT
from ..conditioning import KEYFRAMES, Conditioning
from ..models import patch_of, uncompiled
from ..nested import Shapes
from ..skip import hunyuan_shape, wan_shape
from ..skip import shape_of as video_shape

KNOWN = "Wan (T2V, I2V, VACE, camera), HunyuanVideo, MiniMax H3, LTX-2 and refiners of this project"
EXTRA_TOKENS = ("time_dim_concat", "context_latents", "ref_latent", "reference_latents",
                "minimax_refs")  # fmt: skip
"""Keys of conditioning that may add tokens whose number is not read here."""
SCALED_LIVE, GATED_LIVE, TWO_STREAM_LIVE, ONE_STREAM_LIVE = 14.0, 12.1, 11.0, 13.1
CONTROL_LIVE = 3.05
"""Vectors a token that live at once: in LTX-2, MiniMax H3, HunyuanVideo without and with one-stream
blocks; and what VACE's control adds."""


def shape_of(model: Any, shapes: Shapes, text: Conditioning | None) -> ModelShape | None:
    """Return the shape of a MODEL in latent cells, for a latent; None where it is not known.

    Args:
        shapes: of the latent's parts, [B, C, T, H, W] and the sound's.
        text: CONDITIONING that tells the text tokens; None takes those of the family.
    """
    network = uncompiled(model.get_model_object("diffusion_model"))
    if isinstance(network, SurfRefinerDiT):
        return _with_text(video_shape(model), text, 0)
    read = READERS.get(type(network).__name__)
    options = [entry[1] for entry in text or ()]
    if read is None or any(each.get(key) is not None for each in options for key in EXTRA_TOKENS):
        return None
    return read(network, shapes, text)


def vectors(dim: int, head_dim: int, most: float) -> float:
    """Add to the vectors of a layer the rotary table of half precision: four fp32 values for two
    of a head, one table for all heads.
    """
    return most + 4 * head_dim / dim


def _with_text(shape: ModelShape | None, text: Conditioning | None, more: int) -> ModelShape | None:
    if shape is None or not text or text[0][0] is None:
        return shape
    return replace(shape, text_tokens=text[0][0].shape[1] + more)


def _seen(text: Conditioning | None, hidden: str) -> int:
    """Count the tokens of a picture that CLIP vision saw."""
    seen = text[0][1].get("clip_vision_output") if text else None
    states = getattr(seen, hidden, None)
    return 0 if states is None else states.shape[1]


def _wan(network: Any, shapes: Shapes, text: Conditioning | None) -> ModelShape | None:
    shape = wan_shape(network)
    if shape is None:
        return None
    picture = getattr(network, "img_emb", None) is not None
    control = getattr(network, "vace_layers", 0) or 0
    most = max(7.05, 3.55 + 2 * shape.ffn_dim / shape.dim) + CONTROL_LIVE * (control > 0)
    shape = replace(shape, live=vectors(shape.dim, shape.dim // shape.heads, most))
    return _with_text(shape, text, picture * _seen(text, "penultimate_hidden_states"))


def _hunyuan(network: Any, shapes: Shapes, text: Conditioning | None) -> ModelShape | None:
    shape = hunyuan_shape(network)
    if shape is None:
        return None
    most = ONE_STREAM_LIVE if network.params.depth_single_blocks else TWO_STREAM_LIVE
    shape = replace(shape, live=vectors(shape.dim, shape.dim // shape.heads, most))
    glyphs = text[0][1].get("conditioning_byt5small") if text else None
    more = 0 if glyphs is None else glyphs.shape[1]
    return _with_text(shape, text, more + _seen(text, "last_hidden_state"))


def _h3(network: Any, shapes: Shapes, text: Conditioning | None) -> ModelShape | None:
    """Keyframes of a latent frame each stand in the sequence beside the text."""
    block, patch = network.blocks[0], tuple(network.patch_size)
    dim, heads = network.hidden_size, block.attn.heads
    shape = ModelShape(
        name="MiniMax H3", dim=dim, layers=len(network.blocks), heads=heads,
        ffn_dim=block.mlp.fc2.in_features, text_tokens=cost.MINIMAX_H3.text_tokens, patch=patch,
        joint_text=True, attention_dim=heads * block.attn.head_dim, gated_ffn=True,
        live=GATED_LIVE, cell_pixels=1, cell_frames=1, audio=_audio(shapes, rows=2),
    )  # fmt: skip
    per_frame = prod(
        -(-side // cells) for side, cells in zip(shapes[0][-2:], patch[1:], strict=True)
    )
    keyframes = text[0][1].get(KEYFRAMES) or () if text else ()
    latents = [each["latent"] for each in keyframes if each.get("latent") is not None]
    return _with_text(shape, text, per_frame * sum(each.shape[2] for each in latents))


def _ltx(network: Any, shapes: Shapes, text: Conditioning | None) -> ModelShape | None:
    dim, patch = network.inner_dim, patch_of(network)
    patch = (1, patch, patch) if isinstance(patch, int) else tuple(patch)
    width = network.audio_inner_dim
    shape = ModelShape(
        name="LTX-2", dim=dim, layers=len(network.transformer_blocks),
        heads=network.num_attention_heads, ffn_dim=4 * dim, patch=patch,
        text_tokens=cost.LTX_2.text_tokens, live=SCALED_LIVE, cell_pixels=1, cell_frames=1,
        audio=_audio(shapes, dim=width, ffn_dim=4 * width),
    )  # fmt: skip
    return _with_text(shape, text, 0)


def _audio(shapes: Shapes, rows: int = 1, **widths: int) -> AudioShape | None:
    """Return sound of as many tokens as a latent has, whatever lasts how long."""
    if len(shapes) < 2:
        return None
    frames = shapes[0][2]
    count = shapes[1][-1] if rows > 1 else shapes[1][2]
    return AudioShape(
        latents_per_second=count, frames_per_second=frames, latent_tokens=rows, **widths
    )


READERS: dict[str, Callable[[Any, Shapes, Conditioning | None], ModelShape | None]] = {
    "WanModel": _wan, "VaceWanModel": _wan, "CameraWanModel": _wan, "HunyuanVideo": _hunyuan,
    "MiniMaxH3Model": _h3, "LTXAVModel": _ltx,
}  # fmt: skip
"""Networks of the host whose sizes are read, by the names of their classes."""


def needed(
    model: Any, shape: ModelShape | None, clip: Sequence[int], window: int, batch: int
) -> int | None:
    """Estimate the bytes of activations of a forward; None where only the host has an estimate.

    Args:
        clip: latent frames, rows and columns.
        window: of a refiner of ours; other networks hold all tokens at once.
        batch: samples, both guidances counted where they run at once.
    """
    if shape is None:
        return None
    base = model.model
    dtype = getattr(base, "manual_cast_dtype", None) or base.get_dtype()
    network = uncompiled(model.get_model_object("diffusion_model"))
    if isinstance(network, SurfRefinerDiT):
        return cost.activation_bytes(shape, *clip, window, itemsize=dtype.itemsize, batch=batch)
    return cost.network_bytes(shape, *clip, itemsize=dtype.itemsize, batch=batch)
