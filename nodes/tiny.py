"""Surf Tiny Models and their prompt: try the whole graph without a download."""

from comfy_api.latest import io

from ..surf_core.tiny.caption import COLOURS, COUNTS, DIRECTIONS, GROUNDS, PLACES, SHAPES
from .host.node import ABSENT, checks_inputs, declare, names_errors, refusal
from .host.refiner import tiny_conditioning, tiny_models

CATEGORY = "SURF"
WORDS = (
    f"Colours: {', '.join(COLOURS)}. Shapes: {', '.join(SHAPES)}. "
    f"Counts of beads: {', '.join(COUNTS)}. Directions: {', '.join(DIRECTIONS)}. "
    f"Places: {', '.join(PLACES)}. Grounds: {', '.join(GROUNDS)}."
)
EXAMPLE = (
    "red ball moving right in the northwest, four blue beads moving up in the southeast, on sand"
)


class SurfTinyModels(io.ComfyNode):
    """Load the embedded models and their VAE."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return declare(
            io.Schema,
            node_id="SurfTinyModels",
            display_name="Surf Tiny Models",
            category=CATEGORY,
            description="The tiny models that come with this pack, to try every node in seconds, "
            "without a download or a GPU. They draw simple things that move over a ground.",
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
            tooltip="Text to video of 128 x 128 pixels and 13 frames, in the shape of Wan 2.1.",
        ),
        declare(
            io.Model.Output, "refiner",
            tooltip="Its refiner, for Surf Refiner: from 64 pixels a side to 256.",
        ),
        declare(
            io.Vae.Output, "vae",
            tooltip="Their VAE, in Wan 2.1's format: 8 x 8 pixels a cell, 4 frames a latent frame.",
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
            description="A prompt for the tiny models: a large thing, some beads and a ground.",
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
