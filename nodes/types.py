"""The sockets of our own, and what each carries."""

from comfy_api.latest import io

from .host.skip import SkipMask

SurfMask = io.Custom("SURF_MASK")
"""Carries a SkipMask: from Surf Skip Mask to Surf Refiner."""

__all__ = ["SkipMask", "SurfMask"]
