"""Refine a preview to its target size, whole or in tiles."""

from .run import refine
from .traits import RefineSettings

__all__ = ["RefineSettings", "refine"]
