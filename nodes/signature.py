"""Surf Signature: what of a preview, or of the full-resolution video, survived."""

import json

from comfy_api.latest import io

from .host.drawing import saved_frames
from .host.node import checks_inputs, declare, names_errors
from .host.signature import compare, draw_signature


class SurfSignature(io.ComfyNode):
    """Compare two videos part by part: layout, colour, motion, flicker, detail."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return declare(
            io.Schema,
            node_id="SurfSignature",
            display_name="Surf Signature",
            category="SURF",
            description="Says what of one video survived in another: a refined video and its "
            "preview, or a preview and the same seed at full resolution. Layout, colour, motion, "
            "flicker and detail, each between what another seed has and a faithful copy.",
            search_aliases=["surf", "compare videos", "metrics", "similarity", "quality", "ssim"],
            inputs=[
                declare(io.Image.Input, "image", tooltip="The frames of the video to judge."),
                declare(
                    io.Image.Input, "reference",
                    tooltip="The frames that it should keep: its preview, or the same seed in "
                    "full. Another size will do, another aspect ratio not.",
                ),
                declare(
                    io.Image.Input, "other", optional=True,
                    tooltip="Optional: the reference of another seed. It is the floor: as unlike "
                    "as two videos of one prompt are. Empty: a grey picture is.",
                ),
                declare(
                    io.Int.Input, "rows", default=480, min=0, max=16384, advanced=True,
                    tooltip="Pixels of the shorter side at which they are compared, at most. 0 = "
                    "all of the smaller video.",
                ),
            ],
            outputs=[
                declare(
                    io.Image.Output, "picture", tooltip="Frames of both, and a bar for each part."
                ),
                declare(io.String.Output, "report", tooltip="The numbers as JSON."),
            ],
            is_output_node=True,
        )  # fmt: skip

    @classmethod
    @names_errors
    @checks_inputs
    def execute(cls, image, reference, rows, other=None) -> io.NodeOutput:
        """Compare; the inputs stay as they are."""
        found = compare(image, reference, other, rows)
        picture, text = draw_signature(found, image, reference), found.text()
        shown = saved_frames(picture, "surf_signature", 1, lossless=True)
        report = json.dumps(found.as_dict(), indent=2)
        return io.NodeOutput(picture, report, ui={"images": shown.results, "text": (text,)})
