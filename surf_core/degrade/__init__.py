"""The low-resolution clip that a refiner learns from: drawn once a clip, recorded, replayed."""

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
