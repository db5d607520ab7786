"""Sample with a switch of resolution: its plan, a guider, a KSampler."""

from .guider import ReshiftGuider
from .ksampler import sample_preview, samplers, schedulers
from .plan import Switch, check_low_sides, check_switch_step

__all__ = [
    "ReshiftGuider",
    "Switch",
    "check_low_sides",
    "check_switch_step",
    "sample_preview",
    "samplers",
    "schedulers",
]
