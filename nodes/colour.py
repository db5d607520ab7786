"""Surf Colour Match: give the final video the colours of its preview."""

from comfy_api.latest import io

from ..surf_core.colour import METHODS
from .host.node import checks_inputs, declare, names_errors
from .host.vae import match_images


class SurfColourMatch(io.ComfyNode):
    """Match the low frequencies of colour to the decoded preview; detail stays."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return declare(
            io.Schema,
            node_id="SurfColourMatch",
            display_name="Surf Colour Match",
            category="SURF",
            description="For refined frames that came out tinted, paler or darker than the "
            "preview: gives them its colours without its blur, since only what changes slowly over "
            "the picture is taken over.",
            search_aliases=["color match", "color transfer", "color correction", "grading", "surf"],
            is_experimental=True,
            inputs=[
                declare(
                    io.Image.Input,
                    "image",
                    tooltip="The frames to correct: the decoded final video.",
                ),
                declare(
                    io.Image.Input,
                    "reference",
                    tooltip="The decoded preview, of the same number of frames; it may be smaller.",
                ),
                declare(
                    io.Combo.Input,
                    "method",
                    options=list(METHODS),
                    default="wavelet",
                    tooltip="wavelet: the slow part of every colour channel becomes the "
                    "preview's. lab: lightness likewise; saturation and tint are set once for "
                    "the whole clip.",
                ),
                declare(
                    io.Float.Input,
                    "strength",
                    default=1.0,
                    min=0.0,
                    max=1.0,
                    step=0.05,
                    tooltip="1 is the full match, 0 leaves the frames as they are.",
                ),
            ],
            outputs=[
                declare(
                    io.Image.Output,
                    "image",
                    tooltip="The corrected frames, of the size of the input.",
                )
            ],
        )

    @classmethod
    @names_errors
    @checks_inputs
    def execute(cls, image, reference, method, strength) -> io.NodeOutput:
        """Match; the inputs stay as they are."""
        return io.NodeOutput(match_images(image, reference, method, strength))
