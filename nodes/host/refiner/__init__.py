"""Load our refiners, and the embedded models, as models of the host."""

from .loading import (
    ATTENTIONS,
    TRAITS_KEY,
    WEIGHT_DTYPES,
    RefinerTraits,
    load_named,
    load_refiner,
    named_file,
    refiner_names,
)
from .model import SIGMA_START_KEY, HostRefinerDiT, check_text
from .tiny import TinyFormat, tiny_conditioning, tiny_models

__all__ = [
    "ATTENTIONS",
    "HostRefinerDiT",
    "RefinerTraits",
    "SIGMA_START_KEY",
    "TRAITS_KEY",
    "TinyFormat",
    "WEIGHT_DTYPES",
    "check_text",
    "load_named",
    "load_refiner",
    "named_file",
    "refiner_names",
    "tiny_conditioning",
    "tiny_models",
]
