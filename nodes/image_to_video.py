"""Surf Image To Video: one picture for every size of a run."""

from comfy_api.latest import io

from .host.image_to_video import Sizes, check_length, image_to_video
from .host.node import ABSENT, checks_inputs, declare, names_errors, refusal
from .preview_inputs import size_inputs
from .refine_inputs import target_size_inputs

WHEN = {"": "before the switch", "_low": "after the switch", "_target": "in Surf Refiner"}


class SurfImageToVideo(io.ComfyNode):
    """Encode a picture for the high, the low and the target size."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return declare(
            io.Schema,
            node_id="SurfImageToVideo",
            display_name="Surf Image To Video",
            category="SURF",
            description="Encodes a start image, and an end image, for each size of a run: before "
            "the switch, after it, in Surf Refiner. For Wan 2.1, Wan 2.2 and HunyuanVideo 1.5.",
            search_aliases=[
                "surf",
                "i2v",
                "image to video",
                "start image",
                "first last frame",
                "wan i2v",
            ],
            inputs=_inputs(),
            outputs=[
                *(
                    declare(
                        io.Conditioning.Output,
                        f"{name}{suffix}",
                        tooltip=f"The {name} prompt with the picture, for the size {when}.",
                    )
                    for suffix, when in WHEN.items()
                    for name in ("positive", "negative")
                ),
                declare(
                    io.Latent.Output,
                    "latent",
                    tooltip="The latent to start from, at width x height. Wan 2.2 5B has the "
                    "picture in it.",
                ),
            ],
        )

    @classmethod
    def validate_inputs(cls, length=ABSENT):
        return refusal(cls, {"length": length}, check_length)

    @classmethod
    @names_errors
    @checks_inputs
    def execute(
        cls, vae, positive, negative, start_image, length, end_image=None,
        clip_vision_output=None, clip_vision_end=None, **sizes,
    ) -> io.NodeOutput:  # fmt: skip
        """Encode; the inputs stay as they are."""
        pairs, latent = image_to_video(
            (positive, negative), vae, start_image, length, Sizes(**sizes), end_image=end_image,
            vision=clip_vision_output, vision_end=clip_vision_end,
        )  # fmt: skip
        return io.NodeOutput(*(cond for pair in pairs for cond in pair), latent)


def _inputs() -> list[io.Input]:
    """Declare the inputs, in the order of saved workflows."""
    return [
        declare(io.Vae.Input, "vae", tooltip="The VAE of the model."),
        declare(
            io.Conditioning.Input, "positive", tooltip="What the video should show."
        ),
        declare(io.Conditioning.Input, "negative", tooltip="What it should not show."),
        declare(
            io.Image.Input, "start_image",
            tooltip="The picture that the video starts from; its middle, in the video's shape.",
        ),
        declare(
            io.Int.Input, "width", default=832, min=16, max=16384, step=16,
            tooltip="Width of the first size in pixels; a multiple of 32 for Wan 2.2 5B.",
        ),
        declare(
            io.Int.Input, "height", default=480, min=16, max=16384, step=16,
            tooltip="Height of the first size in pixels, as width.",
        ),
        declare(
            io.Int.Input, "length", default=81, min=1, max=16384, step=4,
            tooltip="Frames of the video: 4n + 1.",
        ),
        *size_inputs("low_", "low_resolution", "the low resolution, as in Surf Reshift KSampler"),
        *target_size_inputs("target_"),
        declare(
            io.Image.Input, "end_image", optional=True,
            tooltip="The picture that the video ends with, for Wan's first-last-frame models.",
        ),
        declare(
            io.ClipVisionOutput.Input, "clip_vision_output", optional=True,
            tooltip="CLIP vision of the start image, for Wan 2.1 and HunyuanVideo 1.5.",
        ),
        declare(
            io.ClipVisionOutput.Input, "clip_vision_end", optional=True,
            tooltip="CLIP vision of the end image, for Wan 2.1's first-last-frame model.",
        ),
    ]  # fmt: skip
