"""Surf VAE Decode and Surf Decode Video: the refined latent into frames, or into a file."""

from comfy_api.latest import InputImpl, io

from .host.node import ABSENT, checks_inputs, declare, names_errors, refusal
from .host.vae import check_even, check_piece, decode_latent, decode_to_file


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
                *_crop_inputs(),
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


class SurfDecodeVideo(io.ComfyNode):
    """Decode a few frames at a time into a video file, with its sound."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return declare(
            io.Schema,
            node_id="SurfDecodeVideo",
            display_name="Surf Decode Video",
            category="SURF",
            description="Decodes a video of any length straight into a file, with its sound: the "
            "frames are never all in memory. For Save Video, which copies it with the workflow.",
            search_aliases=["surf", "long video", "decode video", "low memory", "create video"],
            inputs=[
                declare(
                    io.Latent.Input, "samples",
                    tooltip="The latent to decode, usually Surf Refiner's. Of video and audio the "
                    "video is decoded.",
                ),
                declare(io.Vae.Input, "vae", tooltip="The VAE of the model that made the latent."),
                declare(
                    io.Float.Input, "fps", default=16.0, min=0.01, max=240.0, step=0.01,
                    tooltip="Frames a second: 16 for Wan, 24 for the others, or that of the video "
                    "that was refined: connect Get Video Components.",
                ),
                *_crop_inputs(),
                declare(
                    io.Audio.Input, "audio", optional=True,
                    tooltip="Optional: the sound, cut to the length of the frames.",
                ),
                declare(
                    io.Int.Input, "crf", default=23, min=0, max=51, advanced=True,
                    tooltip="Quality of H.264: 23 as Save Video's, lower is larger and better, 0 "
                    "loses nothing more.",
                ),
                declare(
                    io.Float.Input, "memory", default=1.5, min=0.1, max=1024.0, step=0.1,
                    advanced=True,
                    tooltip="Main memory for frames, in GB. More of it decodes faster: fewer "
                    "frames are decoded twice where two stretches of time overlap.",
                ),
                declare(
                    io.Int.Input, "piece", default=0, min=0, max=16384, step=16, advanced=True,
                    tooltip="Pixels along a side of a piece on the device, at most. 0 = the "
                    "largest that fit.",
                ),
            ],
            outputs=[
                declare(
                    io.Video.Output, "video",
                    tooltip="The video as a file, for Save Video.",
                )
            ],
        )  # fmt: skip

    @classmethod
    def validate_inputs(cls, width=ABSENT, height=ABSENT, piece=ABSENT):
        given = {"width": width, "height": height, "piece": piece}
        even = (
            lambda width: check_even("width", width),
            lambda height: check_even("height", height),
        )
        return refusal(cls, given, *even, check_piece)

    @classmethod
    @names_errors
    @checks_inputs
    def execute(
        cls, samples, vae, fps, width, height, crf, memory, piece, audio=None
    ) -> io.NodeOutput:
        """Decode and encode; the inputs stay as they are."""
        path = decode_to_file(
            vae, samples, width, height, fps=fps, audio=audio, crf=crf, side=piece,
            memory=memory * 2**30,
        )  # fmt: skip
        return io.NodeOutput(InputImpl.VideoFromFile(str(path)))


def _crop_inputs() -> list:
    """Declare what to keep of the frames."""
    return [
        declare(
            io.Int.Input, name, default=0, min=0, max=16384,
            tooltip=f"Pixels to keep, from the {edge}: connect Surf Refiner's {name}. 0 = all.",
        )
        for name, edge in (("width", "left"), ("height", "top"))
    ]  # fmt: skip
