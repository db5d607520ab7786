"""Decode, upsample and colour-match frames, in pieces that fit the memory."""

from .colour_match import match_images
from .decode import ADVICE, DecodePlan, check_piece, decode_latent, plan_decode
from .frame_count import frames_of, latent_frames_for, with_frame_count
from .memory import most_main_memory
from .out_of_memory import MEMORY_ERRORS, is_out_of_memory
from .pictures import (
    check_one_picture,
    check_picture,
    check_values,
    encode_pictures,
    fit_picture,
    latent_frames,
)
from .upsample import (
    UPSAMPLE_METHODS,
    check_has_vae,
    check_vae,
    decode_frames,
    encode_frames,
    upsample_latent,
)
from .video_file import check_even, decode_to_file

__all__ = [
    "ADVICE",
    "DecodePlan",
    "MEMORY_ERRORS",
    "UPSAMPLE_METHODS",
    "check_even",
    "check_has_vae",
    "check_one_picture",
    "check_picture",
    "check_piece",
    "check_vae",
    "check_values",
    "decode_frames",
    "decode_latent",
    "decode_to_file",
    "encode_frames",
    "encode_pictures",
    "fit_picture",
    "frames_of",
    "is_out_of_memory",
    "latent_frames",
    "latent_frames_for",
    "match_images",
    "most_main_memory",
    "plan_decode",
    "upsample_latent",
    "with_frame_count",
]
