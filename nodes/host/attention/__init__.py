"""Where a model keeps its video tokens, and self-attention in windows over them."""

from .host_attention import HostDense
from .token_layout import KEEP_KEY, ModelCall, kept_tokens, read_call
from .windows import with_windows

__all__ = ["HostDense", "KEEP_KEY", "ModelCall", "kept_tokens", "read_call", "with_windows"]
