"""Surf VAE Decode: decode the refined latent into frames."""

from comfy_api.latest import io

from .host.node import ABSENT, checks_inputs, declare, names_errors, refusal
from .host.vae import check_piece, decode_latent


class SurfVAEDecode(io.ComfyNode):
    """Decode whole where it fits, else in the cheapest pieces, and crop."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return declare(
            io.Schema,
            node_id="SurfVAEDecode",
            display_name="Surf VAE Decode",
            category="SURF",
            description="Decode a video in one piece where the VAE fits the memory, else in as few "
            "large, blended pieces as it can hold, with all frames at a time; and crop it.",
            search_aliases=["surf", "vae decode tiled", "decode video", "1080p", "4k"],
            inputs=[
                declare(
                    io.Latent.Input, "samples",
                    tooltip="The latent to decode, usually Surf Refiner's.",
                ),
                declare(io.Vae.Input, "vae", tooltip="The VAE of the model that made the latent."),
                declare(
                    io.Int.Input, "width", default=0, min=0, max=16384,
                    tooltip="Pixels to keep, from the left: connect Surf Refiner's width. 0 = all.",
                ),
                declare(
                    io.Int.Input, "height", default=0, min=0, max=16384,
                    tooltip="Pixels to keep, from the top: connect Surf Refiner's height. 0 = all.",
                ),
                declare(
                    io.Int.Input, "piece", default=0, min=0, max=16384, step=16, advanced=True,
                    tooltip="Pixels along a side of a piece, at most. 0 = one piece where it fits "
                    "the memory, else the pieces with the fewest pixels in all that do.",
                ),
            ],
            outputs=[
                declare(
                    io.Image.Output, "image",
                    tooltip="The frames; several videos follow one another.",
                )
            ],
        )  # fmt: skip

    @classmethod
    def validate_inputs(cls, piece=ABSENT):
        return refusal(cls, {"piece": piece}, check_piece)

    @classmethod
    @names_errors
    @checks_inputs
    def execute(cls, samples, vae, width, height, piece) -> io.NodeOutput:
        """Decode; the inputs stay as they are."""
        return io.NodeOutput(decode_latent(vae, samples, width, height, piece))
