"""Find the video tokens of a model, and window its self-attention over them."""

from .host_attention import HostAttention
from .model_call import ModelCall
from .token_layout import KEEP_KEY, check_tokens_known, kept_tokens, number_blocks, read_call
from .windows import check_window, with_windows

__all__ = [
    "HostAttention",
    "KEEP_KEY",
    "ModelCall",
    "check_tokens_known",
    "check_window",
    "kept_tokens",
    "number_blocks",
    "read_call",
    "with_windows",
]
