"""Inputs and outputs that the nodes of the preview share."""

from comfy_api.latest import io

from ..surf_core.reshift import DEFAULT_NOISE, DEFAULT_SIGMA, NOISE_POLICIES
from ..surf_core.schedule import HANDOVERS, SIGMA_POLICIES
from .host.node import declare
from .host.preview import LOW_SIDES, SAME, samplers, schedulers

SEARCH_WORDS = ["surf", "preview", "faster wan", "speed up", "drafts", "low resolution"]
"""What people type who look for a preview."""
LOW_RESOLUTIONS = ["by scale", "240p", "480p", "720p", "by size"]


def size_inputs(
    prefix: str, resolution: str, what: str, *, advanced: bool = True
) -> list[io.Input]:
    """Declare the four inputs that name a smaller size."""
    sides = side_inputs(prefix, advanced=advanced)
    return [*scale_inputs(prefix, resolution, what), *sides]


def scale_inputs(prefix: str, resolution: str, what: str) -> list[io.Input]:
    """Declare how a smaller size is chosen, and its factor."""
    return [
        declare(
            io.Combo.Input,
            resolution,
            options=LOW_RESOLUTIONS,
            default="by scale",
            tooltip=f"How to choose {what}: a factor per side, a named size of the same aspect "
            "ratio, or width and height.",
        ),
        declare(
            io.Float.Input,
            f"{prefix}scale",
            default=0.5,
            min=0.1,
            max=1.0,
            step=0.05,
            tooltip='Factor per side, for "by scale"; rounded to what the model can take.',
        ),
    ]


def side_inputs(prefix: str, *, advanced: bool = True, optional: bool = False) -> list[io.Input]:
    """Declare width and height of a smaller size."""
    return [
        declare(
            io.Int.Input,
            f"{prefix}width",
            optional=optional,
            default=LOW_SIDES[0],
            min=16,
            max=8192,
            step=16,
            advanced=advanced,
            tooltip='Width in pixels, for "by size".',
        ),
        declare(
            io.Int.Input,
            f"{prefix}height",
            optional=optional,
            default=LOW_SIDES[1],
            min=16,
            max=8192,
            step=16,
            advanced=advanced,
            tooltip='Height in pixels, for "by size".',
        ),
    ]


def policy_inputs() -> list[io.Input]:
    """Declare the three policies of the switch."""
    return [
        declare(
            io.Combo.Input,
            "sigma_policy",
            optional=True,
            options=list(SIGMA_POLICIES),
            default=DEFAULT_SIGMA,
            advanced=True,
            tooltip="Noise level after the switch: the same number (the paper), or the one at "
            "which the smaller picture is as noisy as the larger one was.",
        ),
        declare(
            io.Combo.Input,
            "noise_policy",
            optional=True,
            options=list(NOISE_POLICIES),
            default=DEFAULT_NOISE,
            advanced=True,
            tooltip="Noise after the switch: fresh (the paper), or inherited from the large "
            "latent, averaged down.",
        ),
        declare(
            io.Combo.Input,
            "handover",
            optional=True,
            options=list(HANDOVERS),
            default=HANDOVERS[0],
            advanced=True,
            tooltip="Clean estimate that crosses the switch: reuse the one of the last large "
            "step, or evaluate once more at the switch (one evaluation more in all).",
        ),
    ]


def switch_step_input() -> io.Input:
    """Declare where the resolution drops."""
    return declare(
        io.Int.Input,
        "switch_step",
        default=10,
        min=0,
        max=10000,
        tooltip="Steps at high resolution before the switch. 0: all low; as many as there are "
        "steps: all high.",
    )


def cfg_input(name: str, default: float, when: str) -> io.Input:
    """Declare a guidance scale."""
    return declare(
        io.Float.Input,
        name,
        default=default,
        min=0.0,
        max=100.0,
        step=0.1,
        round=0.01,
        tooltip=f"Guidance {when} the switch. 1 for distilled models such as HunyuanVideo.",
    )


def optional_cfg_input(name: str, tooltip: str, *, advanced: bool = False) -> io.Input:
    """Declare a guidance scale that 0 leaves to another one."""
    return declare(
        io.Float.Input,
        name,
        optional=True,
        default=0.0,
        min=0.0,
        max=100.0,
        step=0.1,
        round=0.01,
        advanced=advanced,
        tooltip=tooltip,
    )


def shift_input(name: str, when: str) -> io.Input:
    """Declare a timestep shift."""
    return declare(
        io.Float.Input,
        name,
        default=3.0,
        min=0.0,
        max=100.0,
        step=0.01,
        tooltip=f"Timestep shift {when} the switch. 0 leaves the model's own.",
    )


def model_inputs() -> list[io.Input]:
    """Declare the model and its conditioning."""
    return [
        declare(
            io.Model.Input,
            "model",
            tooltip="A flow video model, such as Wan or HunyuanVideo, with any patches.",
        ),
        declare(
            io.Conditioning.Input,
            "positive",
            tooltip="What the video should show, made for the high resolution.",
        ),
        declare(
            io.Conditioning.Input,
            "negative",
            tooltip="What the video should not show, made for the high resolution.",
        ),
    ]


def model_low_input() -> io.Input:
    """Declare the model after the switch."""
    return declare(
        io.Model.Input,
        "model_low",
        optional=True,
        tooltip="Another model with the same latents for the steps after the switch, such as a "
        "lighter one. Empty: the same model.",
    )


def expert_inputs() -> list[io.Input]:
    """Declare the second expert of a pair, and where it takes over."""
    return [
        declare(
            io.Model.Input,
            "model_low_noise",
            optional=True,
            tooltip="The low-noise expert of a pair such as Wan 2.2 A14B; model is then the "
            "high-noise one. Each runs at both resolutions, on its side of expert_boundary.",
        ),
        declare(
            io.Float.Input,
            "expert_boundary",
            optional=True,
            default=0.0,
            min=0.0,
            max=1.0,
            step=0.005,
            tooltip="Noise level below which model_low_noise takes over: 0.9 for Wan 2.2 I2V, "
            "0.875 for T2V. 0: off, one model.",
        ),
    ]


def cfg_low_noise_input() -> io.Input:
    """Declare the guidance of the second expert."""
    return optional_cfg_input(
        "cfg_low_noise",
        "Guidance of model_low_noise at both resolutions. 0: cfg before and cfg_low after the "
        "switch.",
        advanced=True,
    )


def steps_low_input(rest: str) -> io.Input:
    """Declare how many steps come after the switch."""
    return declare(
        io.Int.Input,
        "steps_low",
        optional=True,
        default=0,
        min=0,
        max=10000,
        tooltip="Steps after the switch, spread over the noise that is left; 4 for a 4-step LoRA "
        f"on model_low. 0: {rest}.",
    )


def low_sampler_inputs() -> list[io.Input]:
    """Declare sampler and scheduler after the switch."""
    listed = (("sampler_low", samplers(), "Sampler"), ("scheduler_low", schedulers(), "Scheduler"))
    return [
        declare(
            io.Combo.Input,
            name,
            optional=True,
            options=[SAME, *options],
            default=SAME,
            advanced=True,
            tooltip=f"{what} after the switch; same: that before it.",
        )
        for name, options, what in listed
    ]


def low_cond_inputs(*names: str) -> list[io.Input]:
    """Declare conditioning for the size after the switch, by the names of that before it."""
    return [
        declare(
            io.Conditioning.Input,
            f"{name}_low",
            optional=True,
            tooltip=f"The {name} prompt made for the low resolution, for instance by a node for "
            "image to video with the low width and height. Empty: what is bound to a size is "
            "resized.",
        )
        for name in names
    ]


def picture_inputs() -> list[io.Input]:
    """Declare pictures at the ends of a video of MiniMax H3, encoded anew after the switch."""
    listed = (("first_frame", "begins"), ("last_frame", "ends"))
    return [
        *(
            declare(
                io.Image.Input,
                name,
                optional=True,
                tooltip=f"The picture that a video of MiniMax H3 {does} with, as in Image to "
                "Video: encoded for the low resolution. Empty: its latent is resized.",
            )
            for name, does in listed
        ),
        declare(
            io.Vae.Input,
            "vae",
            optional=True,
            tooltip="The video VAE of MiniMax H3; needed with first_frame or last_frame.",
        ),
    ]


def guider_output() -> io.Output:
    """Declare the guider that comes out."""
    return declare(io.Guider.Output, "guider", tooltip="Connect to SamplerCustomAdvanced.")
