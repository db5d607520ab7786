"""Refine a preview to its target size, whole or in tiles."""

from .frames import check_image_vae, check_preview
from .run import refine
from .tile_plan import check_tile, reserved
from .tiling import plan_tiles, with_tiles
from .timeline import Timeline
from .traits import RefineSettings

__all__ = [
    "RefineSettings",
    "Timeline",
    "check_image_vae",
    "check_preview",
    "check_tile",
    "plan_tiles",
    "refine",
    "reserved",
    "with_tiles",
]
