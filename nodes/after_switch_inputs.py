"""Inputs of what a switch changes after it, which the nodes of the preview share; all are off."""

from comfy_api.latest import io

from .host.node import declare


def lock_input() -> io.Input:
    """Declare how long what the switch has settled is held."""
    return declare(
        io.Float.Input,
        "low_band_lock",
        optional=True,
        default=0.0,
        min=0.0,
        max=1.0,
        step=0.05,
        advanced=True,
        tooltip="Share of the steps after the switch, the first ones, that keep the coarse part of "
        "the picture as it was at the switch. 0: off.",
    )


def after_switch_inputs() -> list[io.Input]:
    """Declare the lock, the noise level of the switch and the stretch of positions."""
    return [
        lock_input(),
        declare(
            io.Float.Input,
            "switch_sigma",
            optional=True,
            default=0.0,
            min=0.0,
            max=1.0,
            step=0.01,
            advanced=True,
            tooltip="Noise level at which the resolution drops: the steps before it are spread "
            "down to it, the rest below it. Lower settles more, with coarser steps. 0: that of the "
            "schedule.",
        ),
        declare(
            io.Float.Input,
            "rope_scale_low",
            optional=True,
            default=1.0,
            min=1.0,
            max=4.0,
            step=0.05,
            advanced=True,
            tooltip="Experimental, for Wan: stretches the positions of rows and columns after the "
            "switch by this factor, which falls to 1 at the last step. 1: off.",
        ),
    ]
