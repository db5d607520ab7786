"""Surf Tiny Models and their prompt: try the whole graph without a download."""

from comfy_api.latest import io

from ..surf_core.tiny.prompt import BACKGROUNDS, COLOURS, DIRECTIONS, SHAPES
from .host.node import ABSENT, checks_inputs, declare, names_errors, refusal
from .host.refiner import tiny_conditioning, tiny_models

CATEGORY = "SURF"
WORDS = (
    f"Colours: {', '.join(COLOURS)}. Shapes: {', '.join(SHAPES)}. "
    f"Directions: {', '.join(DIRECTIONS)}. Backgrounds: {', '.join(BACKGROUNDS)}."
)
EXAMPLE = "red circle moving right, blue square moving up, on stripes"


class SurfTinyModels(io.ComfyNode):
    """Load the embedded models, and the codec as a VAE."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return declare(
            io.Schema,
            node_id="SurfTinyModels",
            display_name="Surf Tiny Models",
            category=CATEGORY,
            description="The tiny models that come with this pack, to try every node in seconds, "
            "without a download and without a GPU. They draw simple shapes that move.",
            search_aliases=["demo", "example models", "test models", "surf", "try surf"],
            inputs=[],
            outputs=_models(),
        )

    @classmethod
    @names_errors
    @checks_inputs
    def execute(cls) -> io.NodeOutput:
        """Load them anew; the host keeps what this node gave until its graph changes."""
        return io.NodeOutput(*tiny_models())


def _models() -> list:
    """Declare the outputs, in the order of saved workflows."""
    return [
        declare(
            io.Model.Output, "model",
            tooltip="Text to video of 64 x 64 pixels and 4 frames, in the shape of Wan 2.1.",
        ),
        declare(
            io.Model.Output, "refiner",
            tooltip="Its refiner, for Surf Refiner: from 32 pixels a side to 128.",
        ),
        declare(
            io.Vae.Output, "vae",
            tooltip="Their VAE: a latent cell is 4 x 4 pixels, a latent frame is one frame.",
        ),
        declare(
            io.Latent.Output, "latent",
            tooltip="An empty latent of the size that the model was trained on.",
        ),
    ]  # fmt: skip


class SurfTinyPrompt(io.ComfyNode):
    """Encode a text in the vocabulary of the tiny models as conditioning."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return declare(
            io.Schema,
            node_id="SurfTinyPrompt",
            display_name="Surf Tiny Prompt",
            category=CATEGORY,
            description="A prompt for the tiny models: one or two objects and a background.",
            search_aliases=["text encode", "demo prompt", "try surf"],
            inputs=[
                declare(
                    io.String.Input,
                    "text",
                    multiline=True,
                    default=EXAMPLE,
                    tooltip=f"At most three phrases, with commas between them. {WORDS} Leave it "
                    "empty for the negative prompt.",
                )
            ],
            outputs=[
                declare(
                    io.Conditioning.Output,
                    "conditioning",
                    tooltip="For the model and the refiner of Surf Tiny Models, and no other.",
                )
            ],
        )

    @classmethod
    def validate_inputs(cls, text=ABSENT):
        return refusal(cls, {"text": text}, tiny_conditioning)

    @classmethod
    @names_errors
    @checks_inputs
    def execute(cls, text) -> io.NodeOutput:
        return io.NodeOutput(tiny_conditioning(text))
