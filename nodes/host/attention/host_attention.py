"""Use the host's attention as the `Dense` of surf_core.window: no mask, any head width.

Whatever the user chose for the host (--use-sage-attention, flash, xformers, an override that
another node installed) serves our refiner too.

Dims: n sequences, L queries, M keys, H heads, K channels of a head.
"""

import importlib.metadata
from functools import cache

import comfy.ldm.modules.attention
import comfy.model_management
from torch import Tensor
from torch.nn import functional as F

from ..node import NodeLog

log = NodeLog(__name__)

OVERRIDE = "optimized_attention_override"
SAGE_1_WIDTHS = (64, 96, 128)
"""Head widths that SageAttention 1.x takes; it asserts on any other."""


class HostAttention:
    """Attend with the host's kernel: q [n, L, H, K], k, v [n, M, H, K] -> [n, L, H, K].

    The channels of a token's heads must lie side by side; then nothing is copied on the way in.
    """

    def __init__(self, options: dict | None = None):
        self.options = options or {}
        """transformer_options of the model call in progress, with any attention override."""

    def __call__(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        heads, width = q.shape[-2:]
        padded_width = _padded_width(width, OVERRIDE in self.options)
        if padded_width != width:
            q, k, v = pad_heads(q, k, v, padded_width)
        # By attribute: some packs replace the function after the host has started.
        out = comfy.ldm.modules.attention.optimized_attention(
            *(x.flatten(-2) for x in (q, k, v)), heads=heads, transformer_options=self.options
        )
        return out.unflatten(-1, (heads, -1))[..., :width]


def pad_heads(q: Tensor, k: Tensor, v: Tensor, width: int) -> tuple[Tensor, Tensor, Tensor]:
    """Pad heads with zeros so that their first channels attend as before.

    A kernel takes its scale from the width it sees, width ** -0.5: the queries carry the rest.

    Returns:
        New tensors, K = `width`. SageAttention 1.x subtracts the mean of the keys in place.
    """
    extra = width - q.shape[-1]
    scaled = q * (width / q.shape[-1]) ** 0.5
    return tuple(F.pad(x, (0, extra)) for x in (scaled, k, v))


def _padded_width(width: int, overridden: bool) -> int:
    """Return the head width to call the host with: wider only where SageAttention 1.x would fail.

    An override may be any kernel; where SageAttention 1.x is installed it likely is that.
    """
    fits = [each for each in SAGE_1_WIDTHS if each >= width]
    if width in fits or not fits:
        return width
    if not (overridden or comfy.model_management.sage_attention_enabled()):
        return width
    if not _sage_is_1():
        return width
    _log_padding(width, fits[0])
    return fits[0]


@cache
def _sage_is_1() -> bool:
    """Say whether SageAttention is installed and older than 2, which pads heads by itself."""
    try:
        return int(importlib.metadata.version("sageattention").split(".")[0]) < 2
    except importlib.metadata.PackageNotFoundError:
        return False


@cache
def _log_padding(width: int, padded_width: int) -> None:
    log.info(
        "SageAttention 1.x takes heads of %s channels, this model has %d: padded to %d. "
        "Version 2 needs no padding.",
        ", ".join(map(str, SAGE_1_WIDTHS)), width, padded_width,
    )  # fmt: skip
