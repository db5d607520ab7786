"""Sampling with a switch of resolution: the plan, the guider, the k-sampler."""

from .guider import ReshiftGuider
from .ksampler import SAMPLERS, SCHEDULERS, sample_preview
from .plan import Switch

__all__ = ["ReshiftGuider", "SAMPLERS", "SCHEDULERS", "Switch", "sample_preview"]
