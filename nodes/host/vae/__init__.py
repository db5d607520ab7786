"""Decode, upsample and colour-match frames, in pieces that fit the memory."""

from .colour_match import match_images
from .decode import check_piece, decode_latent
from .out_of_memory import MEMORY_ERRORS, is_out_of_memory
from .upsample import (
    UPSAMPLE_METHODS,
    check_has_vae,
    check_vae,
    decode_frames,
    encode_frames,
    upsample_latent,
)

__all__ = [
    "MEMORY_ERRORS",
    "UPSAMPLE_METHODS",
    "check_has_vae",
    "check_piece",
    "check_vae",
    "decode_frames",
    "decode_latent",
    "encode_frames",
    "is_out_of_memory",
    "match_images",
    "upsample_latent",
]
