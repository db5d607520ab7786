"""Sample with a switch of resolution: its plan, a guider, a KSampler."""

from .guider import ReshiftGuider
from .ksampler import SAMPLERS, SCHEDULERS, sample_preview
from .plan import Switch

__all__ = ["ReshiftGuider", "SAMPLERS", "SCHEDULERS", "Switch", "sample_preview"]
