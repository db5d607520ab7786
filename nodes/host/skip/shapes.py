"""Read from a host's network the sizes that the operations of a masked evaluation depend on."""

from dataclasses import replace
from math import prod
from typing import Any

from ....surf_core import cost
from ..models import patch_of, uncompiled
from ..refiner import HostRefinerDiT, TinyFormat

WANS = ("WanModel", "VaceWanModel", "CameraWanModel")
CELLS = {"cell_pixels": 1, "cell_frames": 1}
"""Sizes are given in latent cells."""


def shape_of(model: Any) -> cost.ModelShape | None:
    """Return the shape of a MODEL for `surf_core.cost`, in latent cells; None for unknown networks.

    Known are our refiners, and Wan and HunyuanVideo with the text tokens of their family.
    """
    network = uncompiled(model.get_model_object("diffusion_model"))
    if isinstance(network, HostRefinerDiT):
        return cost.ModelShape.of(network.config, text_tokens=_text_tokens(model), **CELLS)
    if type(network).__name__ in WANS:
        shape = wan_shape(network)
        return None if shape is None else replace(shape, text_tokens=_text_tokens(model))
    return hunyuan_shape(network) if type(network).__name__ == "HunyuanVideo" else None


def _text_tokens(model: Any) -> int:
    tiny = isinstance(model.get_model_object("latent_format"), TinyFormat)
    return cost.TINY.text_tokens if tiny else cost.WAN_14B.text_tokens


def wan_shape(network: Any) -> cost.ModelShape | None:
    """Return the shape of a Wan; None for one whose reference adds tokens.

    VACE runs its control blocks beside the others; both cost the same.
    """
    if getattr(network, "ref_conv", None) is not None:
        return None
    control = getattr(network, "vace_layers", 0) or 0
    return cost.ModelShape(
        name="Wan", dim=network.dim, layers=network.num_layers + control, heads=network.num_heads,
        ffn_dim=network.ffn_dim, text_tokens=cost.WAN_14B.text_tokens,
        patch=tuple(network.patch_size), **CELLS,
    )  # fmt: skip


def hunyuan_shape(network: Any) -> cost.ModelShape | None:
    """Return the shape of a HunyuanVideo, without what a picture adds to its text; None for an
    image model."""
    made, patch = network.params, tuple(patch_of(network))
    if len(patch) != 3:
        return None
    known = cost.HUNYUAN_VIDEO_15 if prod(patch) == 1 else cost.HUNYUAN_VIDEO
    dim = made.hidden_size
    return replace(
        known, name="HunyuanVideo", dim=dim, layers=made.depth + made.depth_single_blocks,
        heads=made.num_heads, ffn_dim=int(made.mlp_ratio * dim), patch=patch, **CELLS,
    )  # fmt: skip
