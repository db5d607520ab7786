"""Refuse a prompt of another text encoder than a network was trained with, by its width."""

from typing import Any

from torch import nn

from ..models import uncompiled
from .grid import Conditioning


def check_text_width(model: Any, conds: dict[str, Conditioning]) -> None:
    """Refuse texts that the first linear map of a MODEL could not multiply.

    Networks whose width is not read here pass.

    Raises:
        ValueError: says both widths.
    """
    network = uncompiled(model.get_model_object("diffusion_model"))
    known = _widths(network)
    for name, cond in conds.items():
        for entry in cond:
            width = entry[0].shape[-1] if entry[0] is not None and entry[0].ndim > 2 else None
            if known and width is not None and width not in known:
                raise ValueError(
                    f"expected text {' or '.join(map(str, sorted(known)))} wide in the {name} "
                    f"conditioning for {type(model.model).__name__}, got {width}; connect the text "
                    "encoder of this model, loaded with its type."
                )


def _widths(network: Any) -> set[int]:
    """Return the widths of text that a network of the host takes; none where they are not known."""
    names = {kind.__name__ for kind in type(network).__mro__}
    if "WanModel" in names:
        found = {getattr(network, "text_dim", None)}
    elif "HunyuanVideo" in names:
        found = {getattr(getattr(network, "params", None), "context_in_dim", None)}
    elif "MiniMaxH3Model" in names:
        # Refined text has the width of the network itself.
        found = {network.condition_proj.in_features, network.hidden_size}
    elif "LTXAVModel" in names and isinstance(network.caption_projection, nn.Module):
        caption = network.caption_channels
        both = network.cross_attention_dim + network.audio_cross_attention_dim
        found = {caption, 2 * caption, both}
    else:
        found = set()
    return {width for width in found if isinstance(width, int)}
