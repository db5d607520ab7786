"""A video DiT with shifted temporal windows, in the shape and with the key names of Wan 2.1."""

from .config import RefinerConfig
from .model import SurfRefinerDiT

__all__ = ["RefinerConfig", "SurfRefinerDiT"]
