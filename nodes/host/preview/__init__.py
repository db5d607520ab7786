"""Sample with a switch of resolution: its plan, a guider, a KSampler."""

from .any_guider import LADDER, Ladder, parse_ladder, reshift_any
from .guider import cfg_guider, reshift_guider
from .ksampler import SAME, sample_preview, samplers, schedule, schedulers
from .pictures import Pictures
from .plan import LOW_SIDES, Switch, check_low_sides, check_switch_sigma, check_switch_step
from .sides import Sides, check_expert_numbers, take

__all__ = [
    "LADDER",
    "LOW_SIDES",
    "SAME",
    "Ladder",
    "Pictures",
    "Sides",
    "Switch",
    "cfg_guider",
    "check_expert_numbers",
    "check_low_sides",
    "check_switch_sigma",
    "check_switch_step",
    "parse_ladder",
    "reshift_any",
    "reshift_guider",
    "sample_preview",
    "samplers",
    "schedule",
    "schedulers",
    "take",
]
