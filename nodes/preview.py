"""Sample a preview: first steps at high resolution, the rest at low; and downscale a latent."""

from comfy_api.latest import io

from ..surf_core.resample import METHODS
from .after_switch_inputs import after_switch_inputs
from .host.conditioning import check_made_for, with_made_for
from .host.latents import check_sides, downscale_latent
from .host.node import ABSENT, checks_inputs, declare, names_errors, refusal
from .host.preview import (
    Sides,
    Switch,
    check_expert_numbers,
    check_low_sides,
    check_switch_sigma,
    check_switch_step,
    reshift_guider,
    sample_preview,
    samplers,
    schedulers,
    take,
)
from .preview_inputs import (
    SEARCH_WORDS,
    cfg_input,
    cfg_low_noise_input,
    expert_inputs,
    guider_output,
    low_cond_inputs,
    low_sampler_inputs,
    model_inputs,
    model_low_input,
    policy_inputs,
    scale_inputs,
    shift_input,
    side_inputs,
    size_inputs,
    steps_low_input,
    switch_step_input,
)
from .refine_inputs import made_for_inputs

CATEGORY = "SURF"


class SurfReshiftKSampler(io.ComfyNode):
    """Sample like a KSampler, with a switch of resolution on the way."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        combos = (("sampler_name", samplers(), "euler"), ("scheduler", schedulers(), "simple"))
        tooltips = {
            "sampler_name": "The sampler; it starts anew after the switch. dpm_fast and "
            "dpm_adaptive choose their own steps and are not among them.",
            "scheduler": "How the noise levels are spaced.",
        }
        return declare(
            io.Schema,
            node_id="SurfReshiftKSampler",
            display_name="Surf Reshift KSampler",
            category=CATEGORY,
            description="Samples a preview: the first steps at the size of the latent lay out "
            "the scene, the rest run at a fraction of the cost at low resolution.",
            search_aliases=SEARCH_WORDS,
            inputs=[
                *model_inputs(),
                declare(
                    io.Latent.Input,
                    "latent_image",
                    tooltip="The latent to start from, at the high resolution.",
                ),
                declare(
                    io.Int.Input,
                    "seed",
                    default=0,
                    min=0,
                    max=2**64 - 1,
                    control_after_generate=True,
                    tooltip="Seed of the noise; the noise after the switch follows from it.",
                ),
                declare(
                    io.Int.Input,
                    "steps",
                    default=40,
                    min=1,
                    max=10000,
                    tooltip="Steps in all, at both resolutions together.",
                ),
                switch_step_input(),
                cfg_input("cfg", 7.5, "before"),
                cfg_input("cfg_low", 5.0, "after"),
                shift_input("shift", "before"),
                shift_input("shift_low", "after"),
                *(
                    declare(
                        io.Combo.Input,
                        name,
                        options=list(options),
                        default=default,
                        tooltip=tooltips[name],
                    )
                    for name, options, default in combos
                ),
                *scale_inputs("low_", "low_resolution", "the low resolution"),
                model_low_input(),
                *expert_inputs(),
                steps_low_input("the rest of `steps`"),
                *side_inputs("low_", optional=True),
                declare(
                    io.Float.Input,
                    "denoise",
                    optional=True,
                    default=1.0,
                    min=0.01,
                    max=1.0,
                    step=0.01,
                    advanced=True,
                    tooltip="Share of the noise that the latent gets: 1 starts from noise alone, "
                    "less keeps more of the latent.",
                ),
                *policy_inputs(),
                cfg_low_noise_input(),
                *low_sampler_inputs(),
                *low_cond_inputs("positive", "negative"),
                *after_switch_inputs(),
            ],
            outputs=[
                declare(
                    io.Latent.Output,
                    "preview",
                    tooltip="The finished preview, at the low resolution.",
                ),
                declare(
                    io.Latent.Output,
                    "switch_x0",
                    tooltip="The clean estimate at the switch, at the high resolution.",
                ),
            ],
        )

    @classmethod
    def validate_inputs(
        cls, steps=ABSENT, switch_step=ABSENT, low_resolution=ABSENT, low_width=ABSENT,
        low_height=ABSENT, expert_boundary=ABSENT, cfg_low_noise=ABSENT, switch_sigma=ABSENT,
    ):  # fmt: skip
        given = {"steps": steps, "switch_step": switch_step, "switch_sigma": switch_sigma}
        given |= {"low_resolution": low_resolution, "low_width": low_width}
        given |= {"low_height": low_height}
        given |= {"expert_boundary": expert_boundary, "cfg_low_noise": cfg_low_noise}
        checks = check_switch_step, check_switch_sigma, check_low_sides, check_expert_numbers
        return refusal(cls, given, *checks)

    @classmethod
    @names_errors
    @checks_inputs
    def execute(cls, model, positive, negative, latent_image, **given) -> io.NodeOutput:
        """Run all legs under one progress bar."""
        plan, sides = take(Switch, given), take(Sides, given)
        out = sample_preview(model, positive, negative, latent_image, plan, sides, **given)
        return io.NodeOutput(*out)


class SurfReshiftGuider(io.ComfyNode):
    """Build a guider with the switch for SamplerCustomAdvanced."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return declare(
            io.Schema,
            node_id="SurfReshiftGuider",
            display_name="Surf Reshift Guider",
            category=CATEGORY,
            description="A guider for SamplerCustomAdvanced that drops the resolution at a step "
            "of the schedule. The latent that comes out is smaller.",
            search_aliases=SEARCH_WORDS,
            inputs=[
                *model_inputs(),
                switch_step_input(),
                cfg_input("cfg", 7.5, "before"),
                cfg_input("cfg_low", 5.0, "after"),
                *scale_inputs("low_", "low_resolution", "the low resolution"),
                model_low_input(),
                *expert_inputs(),
                steps_low_input("the rest of the sigmas"),
                *side_inputs("low_", optional=True),
                *policy_inputs(),
                cfg_low_noise_input(),
                *low_cond_inputs("positive", "negative"),
                *after_switch_inputs(),
            ],
            outputs=[guider_output()],
        )

    @classmethod
    def validate_inputs(
        cls, low_resolution=ABSENT, low_width=ABSENT, low_height=ABSENT, expert_boundary=ABSENT,
        cfg_low_noise=ABSENT,
    ):  # fmt: skip
        given = {"low_resolution": low_resolution, "low_width": low_width}
        given |= {"low_height": low_height}
        given |= {"expert_boundary": expert_boundary, "cfg_low_noise": cfg_low_noise}
        return refusal(cls, given, check_low_sides, check_expert_numbers)

    @classmethod
    @names_errors
    @checks_inputs
    def execute(cls, model, positive, negative, **given) -> io.NodeOutput:
        """Build the guider; nothing is sampled here."""
        plan, sides = take(Switch, given), take(Sides, given)
        return io.NodeOutput(reshift_guider(model, positive, negative, plan, sides))


class SurfLatentDownscale(io.ComfyNode):
    """Resize a latent to a smaller one in space, with its noise mask."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return declare(
            io.Schema,
            node_id="SurfLatentDownscale",
            display_name="Surf Latent Downscale",
            category=CATEGORY,
            description="Makes a video or image latent smaller in space, never in time, and "
            "never crops.",
            search_aliases=["resize latent", "surf"],
            inputs=[
                declare(
                    io.Latent.Input, "samples", tooltip="A clean latent; noise would lose variance."
                ),
                *size_inputs("", "resolution", "the new size", advanced=False),
                declare(
                    io.Combo.Input,
                    "method",
                    options=list(METHODS),
                    default="auto",
                    advanced=True,
                    tooltip="How cells are averaged; auto takes the exact mean at half size.",
                ),
                *made_for_inputs(),
                declare(
                    io.Vae.Input,
                    "vae",
                    optional=True,
                    tooltip="The VAE of the latent; tells its pixels per cell, for a bucket or "
                    "width and height, where the latent itself does not.",
                ),
            ],
            outputs=[
                declare(
                    io.Latent.Output,
                    "latent",
                    tooltip="The smaller latent, noise mask and batch index along.",
                )
            ],
        )

    @classmethod
    def validate_inputs(
        cls, resolution=ABSENT, width=ABSENT, height=ABSENT, made_width=ABSENT, made_height=ABSENT
    ):
        given = {"resolution": resolution, "width": width, "height": height}
        given |= {"made_width": made_width, "made_height": made_height}
        return refusal(cls, given, check_sides, check_made_for)

    @classmethod
    @names_errors
    @checks_inputs
    def execute(
        cls, samples, resolution, scale, width, height, method, made_width=0, made_height=0,
        vae=None,
    ) -> io.NodeOutput:  # fmt: skip
        """Resize; the input stays as it is."""
        check_made_for(made_width, made_height)
        out = downscale_latent(samples, resolution, scale, width, height, method, vae)
        return io.NodeOutput(with_made_for(out, (made_height, made_width)) if made_width else out)
