"""Surf Plan: what a run will take of time and memory, before it runs."""

from comfy_api.latest import io

from .host.drawing import saved_frames
from .host.latents import check_sides
from .host.node import ABSENT, checks_inputs, declare, names_errors, refusal
from .host.plan import PlanInputs, draw, make_plan, write
from .host.preview import check_low_sides, check_switch_step, take
from .host.refine import check_tile
from .preview_inputs import cfg_input, size_inputs, switch_step_input
from .refine_inputs import target_size_inputs


class SurfPlan(io.ComfyNode):
    """Count a plan, time two evaluations at each of its sizes, and warn of what will not fit."""

    @classmethod
    def define_schema(cls):
        return declare(
            io.Schema,
            node_id="SurfPlan",
            display_name="Surf Plan",
            category="SURF",
            description=(
                "Says what a preview and its refinement will take, before they run: operations, "
                "memory and, after two evaluations at each size on this machine, seconds; beside "
                "a plain run at the target. Warns of what will not fit."
            ),
            search_aliases=["time estimate", "how long", "vram", "memory", "cost", "surf"],
            inputs=_inputs(),
            outputs=[
                declare(
                    io.Model.Output, "model",
                    tooltip="The model as it came: connect it to the sampler, which then waits "
                    "for the plan.",
                ),
                declare(
                    io.String.Output, "report",
                    tooltip="The table of the stages, what will not fit, and which setting to "
                    "change first.",
                ),
            ],
            is_output_node=True,
        )  # fmt: skip

    @classmethod
    def validate_inputs(
        cls, steps=ABSENT, switch_step=ABSENT, low_resolution=ABSENT, low_width=ABSENT,
        low_height=ABSENT, resolution=ABSENT, width=ABSENT, height=ABSENT, tile=ABSENT,
    ):  # fmt: skip
        given = {"steps": steps, "switch_step": switch_step, "tile": tile}
        given |= {"low_resolution": low_resolution, "low_width": low_width}
        given |= {"low_height": low_height, "resolution": resolution}
        given |= {"width": width, "height": height}
        checks = check_switch_step, check_low_sides, check_sides, check_tile
        return refusal(cls, given, *checks)

    @classmethod
    @names_errors
    @checks_inputs
    def execute(cls, model, latent, calibrate=False, **given) -> io.NodeOutput:
        """Price the plan; the inputs stay as they are."""
        inputs = take(PlanInputs, given)
        plan = make_plan(model, latent, inputs, calibrate=calibrate, **given)
        text, shown = write(plan), saved_frames(draw(plan), "surf_plan", 1, lossless=True)
        return io.NodeOutput(model, text, ui={"images": shown.results, "text": (text,)})


def _inputs() -> list:
    """Declare the inputs, in the order of saved workflows."""
    return [
        declare(
            io.Model.Input, "model",
            tooltip="The model of the preview, with its LoRAs and patches. Of a Wan 2.2 pair, "
            "either: both cost the same.",
        ),
        declare(
            io.Latent.Input, "latent",
            tooltip="The latent that the preview starts from: it tells size and frames.",
        ),
        declare(
            io.Int.Input, "steps", default=40, min=1, max=10000,
            tooltip="As in Reshift KSampler: steps in all.",
        ),
        switch_step_input(),
        cfg_input("cfg", 7.5, "before"),
        cfg_input("cfg_low", 5.0, "after"),
        *size_inputs("low_", "low_resolution", "the low resolution"),
        declare(
            io.Int.Input, "refine_steps", default=10, min=0, max=1000,
            tooltip="Steps of Surf Refiner; 0 = no refinement.",
        ),
        *target_size_inputs(),
        declare(
            io.Float.Input, "refine_cfg", default=4.5, min=0.0, max=100.0, step=0.1,
            tooltip="The cfg of Surf Refiner; 1 runs the model once in each step, else twice.",
        ),
        declare(
            io.Int.Input, "window", default=4, min=0, max=1024,
            tooltip="The window of Surf Refiner, in latent frames; 0 = full attention. A refiner "
            "from Surf Refiner Loader brings its own.",
        ),
        declare(
            io.Float.Input, "keep", default=1.0, min=0.05, max=1.0, step=0.05,
            tooltip="Share of the tokens that a mask from Surf Skip Mask will refine; 1 = no mask.",
        ),
        declare(
            io.Boolean.Input, "calibrate", default=False,
            tooltip="Run the real models here, two evaluations at each size of the plan, and of "
            "the plain run where that at most doubles it, and tell seconds. Measured once for a "
            "model, size and device. Needs positive.",
        ),
        declare(
            io.Int.Input, "tile", default=0, min=0, max=16384, step=16, advanced=True,
            tooltip="The tile of Surf Refiner, in pixels; 0 = tiles only where they are needed.",
        ),
        declare(
            io.Int.Input, "chunk_frames", default=0, min=0, max=16384, advanced=True,
            tooltip="The chunk_frames of Surf Refiner; 0 = as many as the model was made for.",
        ),
        declare(
            io.Model.Input, "refiner", optional=True,
            tooltip="The model that refines; empty: the model of the preview.",
        ),
        declare(
            io.Vae.Input, "vae", optional=True,
            tooltip="The VAE that decodes the result: tells the pieces it will take.",
        ),
        declare(
            io.Conditioning.Input, "positive", optional=True,
            tooltip="The prompt: tells the text tokens, and is what calibrate runs with.",
        ),
        declare(
            io.Conditioning.Input, "negative", optional=True,
            tooltip="What to avoid; empty: positive stands for it.",
        ),
    ]  # fmt: skip
