"""Degrade clips for training: drawn once per clip, recorded, replayed bit for bit."""

from .draw import MIX, draw, draw_strength
from .ops import add_latent_noise
from .pipeline import degrade, degraded_size
from .record import Blur, Codec, Degradation, Jpeg, Noise, Resize, Sinc

__all__ = [
    "MIX",
    "Blur",
    "Codec",
    "Degradation",
    "Jpeg",
    "Noise",
    "Resize",
    "Sinc",
    "add_latent_noise",
    "degrade",
    "degraded_size",
    "draw",
    "draw_strength",
]
