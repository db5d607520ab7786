"""Surf Windowed Attention: temporal attention windows in a model, for any sampler."""

from comfy_api.latest import io

from .host.attention import check_window, with_windows
from .host.node import ABSENT, checks_inputs, declare, names_errors, refusal


class SurfWindowedAttention(io.ComfyNode):
    """Clone a model so that a frame attends to frames of its window only."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return declare(
            io.Schema,
            node_id="SurfWindowedAttention",
            display_name="Surf Windowed Attention",
            category="SURF",
            description="Keeps the self-attention of a Wan, HunyuanVideo, MiniMax H3 or LTX-2 "
            "model inside temporal windows that shift by half on every second block: a long or "
            "large video costs less. The model itself stays as it is.",
            search_aliases=[
                "surf",
                "sparse attention",
                "temporal window",
                "sliding window",
                "speed up",
            ],
            inputs=[
                declare(
                    io.Model.Input,
                    "model",
                    tooltip="Wan 2.1 or 2.2 (T2V, I2V, VACE, camera), HunyuanVideo, MiniMax H3 or "
                    "LTX-2, with or without LoRAs and another attention kernel.",
                ),
                declare(
                    io.Int.Input,
                    "window",
                    default=4,
                    min=0,
                    max=1024,
                    tooltip="Latent frames that attend to each other; one latent frame is four "
                    "frames of the video. 0 leaves the model as it is; as many as the clip has "
                    "is full attention.",
                ),
            ],
            outputs=[
                declare(
                    io.Model.Output,
                    "model",
                    tooltip="A clone with windows; weights are shared.",
                )
            ],
        )

    @classmethod
    def validate_inputs(cls, window=ABSENT):
        return refusal(cls, {"window": window}, check_window)

    @classmethod
    @names_errors
    @checks_inputs
    def execute(cls, model, window) -> io.NodeOutput:
        """Clone; the windows are cut when the model runs, from the size of its latent then."""
        return io.NodeOutput(with_windows(model, window))
