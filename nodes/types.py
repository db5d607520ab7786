"""Socket types of our own, and the value of each."""

from comfy_api.latest import io

from .host.skip import SkipMask

SurfMask = io.Custom("SURF_MASK")
"""Carries a SkipMask: from Surf Skip Mask to Surf Refiner."""

__all__ = ["SkipMask", "SurfMask"]
