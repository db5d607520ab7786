"""Load refiners of this project's training as a MODEL."""

from comfy_api.latest import io

from .host.node import checks_inputs, declare, names_errors
from .host.refiner import ATTENTIONS, WEIGHT_DTYPES, load_named, refiner_names


class SurfRefinerLoader(io.ComfyNode):
    """Load a file of ours through the host's own loader."""

    @classmethod
    def define_schema(cls):
        return declare(
            io.Schema,
            node_id="SurfRefinerLoader",
            display_name="Surf Refiner Loader",
            category="SURF",
            description=(
                "Load a refiner that this project's training made. For any other model, use the "
                "Load Diffusion Model node: Surf Refiner takes both."
            ),
            search_aliases=["surf", "load refiner", "video refiner", "video upscale model"],
            inputs=_inputs(),
            outputs=[
                declare(
                    io.Model.Output,
                    "model",
                    tooltip="The refiner, for Surf Refiner; LoRA, compile and cache nodes fit.",
                )
            ],
        )

    @classmethod
    @names_errors
    @checks_inputs
    def execute(cls, refiner_name, weight_dtype, attention) -> io.NodeOutput:
        return io.NodeOutput(load_named(refiner_name, weight_dtype, attention))


def _inputs() -> list:
    """Declare the inputs, in the order of saved workflows."""
    return [
        declare(
            io.Combo.Input, "refiner_name", options=refiner_names(),
            tooltip="A .safetensors file that this project's training made, in "
            "models/diffusion_models. Other files are refused.",
        ),
        declare(
            io.Combo.Input, "weight_dtype", options=list(WEIGHT_DTYPES), default="default",
            advanced=True,
            tooltip="default: as ComfyUI decides. fp8 halves the memory of the weights.",
        ),
        declare(
            io.Combo.Input, "attention", options=list(ATTENTIONS), default="host", advanced=True,
            tooltip="Kernel for the windows. host: the one that ComfyUI was started with. The "
            "others are for experts: one that cannot run here says why and stops.",
        ),
    ]  # fmt: skip
