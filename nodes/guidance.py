"""Guidance at little more than half its price, for any sampler."""

from comfy_api.latest import io

from ..surf_core.guidance import HOLD_EVERY
from .host.guidance import holding
from .host.schema import declare


class SurfHoldGuidance(io.ComfyNode):
    """Clone a model so that most guided evaluations run without the negative prompt."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return declare(
            io.Schema,
            node_id="SurfHoldGuidance",
            display_name="Hold Guidance",
            category="SURF",
            description="Runs the negative prompt on every n-th evaluation only and holds the "
            "difference in between: with 3, guidance costs a third on top instead of twice. "
            "The model itself stays as it is.",
            search_aliases=["cfg", "cfg cache", "skip cfg", "faster guidance", "surf"],
            is_experimental=True,
            inputs=[
                declare(
                    io.Model.Input,
                    "model",
                    tooltip="A flow video model such as Wan, or a Surf refiner; idle at cfg 1.",
                ),
                declare(
                    io.Int.Input,
                    "every",
                    default=HOLD_EVERY,
                    min=1,
                    max=100,
                    tooltip="Evaluations that one run of the negative prompt serves. 1 is plain "
                    "guidance; 2 or 3 change little over 30 steps or more. With few steps take 1.",
                ),
            ],
            outputs=[
                declare(
                    io.Model.Output,
                    "model",
                    tooltip="A clone that holds its guidance; weights are shared.",
                )
            ],
        )

    @classmethod
    def execute(cls, model, every) -> io.NodeOutput:
        """Clone; each sampling call begins with a plain guided evaluation."""
        return io.NodeOutput(holding(model, every, "Hold Guidance"))
