"""A video DiT with shifted temporal windows, in Wan 2.1's shape or in the paper's."""

from .config import RefinerConfig
from .fused import kitchen
from .model import SurfRefinerDiT, outline

__all__ = ["RefinerConfig", "SurfRefinerDiT", "kitchen", "outline"]
