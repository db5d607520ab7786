"""Conditioning of one picture for every size of a run."""

from .make import image_to_video
from .sizes import Sizes, check_length

__all__ = ["Sizes", "check_length", "image_to_video"]
