"""The sizes of video DiTs that their cost depends on, and those of the models people run.

Dims: D width, L text tokens.
"""

from dataclasses import dataclass, fields
from typing import Any


@dataclass(frozen=True, kw_only=True, slots=True)
class AudioShape:
    """The sizes of the sound that a DiT draws beside its video."""

    latents_per_second: float
    """Audio latents in a second."""
    frames_per_second: float
    """Pixel frames in a second, from which the length of the sound follows."""
    latent_tokens: int = 1
    """Tokens of one audio latent; two for stereo in rows of their own."""
    dim: int = 0
    """Width of the audio's own stream, which exchanges with the video's by cross-attention in both
    directions; 0: its tokens join the video's sequence."""
    ffn_dim: int = 0
    """Hidden width of the feed-forward network of its own stream."""


@dataclass(frozen=True, kw_only=True, slots=True)
class ModelShape:
    """The sizes of a video DiT that its cost depends on."""

    name: str
    """As people call it."""
    dim: int
    """Width D of the residual stream."""
    layers: int
    """Transformer blocks."""
    heads: int
    """Attention heads; the cost does not depend on it."""
    ffn_dim: int
    """Hidden width of the feed-forward network."""
    text_tokens: int
    """Text tokens L of one forward."""
    cell_pixels: int = 8
    """Pixels along a side of a latent cell."""
    cell_frames: int = 4
    """Pixel frames of a latent frame; the first latent frame holds one."""
    patch: tuple[int, int, int] = (1, 2, 2)
    """Latent cells in one token: frames, rows, columns."""
    joint_text: bool = False
    """True: text tokens pass through the same blocks; False: cross-attention looks at them."""
    attention_dim: int = 0
    """Width of all attention heads together; 0: `dim`."""
    gated_ffn: bool = False
    """True: the feed-forward network has a gate (SwiGLU), a third matrix of its size."""
    frame_cycle: int = 0
    """Latent frames after which another one holds a single pixel frame; 0: only the first does."""
    boxes: tuple[int, int, int] | None = None
    """Parts of a 720p clip along time, rows and columns: self-attention runs in boxes of that size,
    see `cost.boxes`; None: over the whole clip, or in windows along time."""
    audio: AudioShape | None = None
    """Sound that is drawn in the same forward; None: none."""
    latent_channels: int = 16
    """Channels of the latent, in and out."""
    text_dim: int = 4096
    """Width of a text token before the model."""
    freq_dim: int = 256
    """Width of the timestep's features."""
    live: float = 0.0
    """Vectors of `dim` a token that the network of a host holds at once, at most; 0: not known."""
    block: str = "wan"
    """The block, see `surf_core.refiner.RefinerConfig`; the operations do not depend on it."""

    @classmethod
    def of(
        cls, config: object, name: str = "refiner", text_tokens: int = 512, **more: Any
    ) -> "ModelShape":
        """Read the shape of a `RefinerConfig`; `more` has fields that a config lacks (cells)."""
        shared = [field.name for field in fields(cls) if hasattr(config, field.name)]
        known = {field: getattr(config, field) for field in shared}
        return cls(name=name, text_tokens=text_tokens, **known | more)


WAN_14B = ModelShape(
    name="Wan 2.1 14B", dim=5120, layers=40, heads=40, ffn_dim=13824, text_tokens=512
)
"""Also either expert of Wan 2.2 A14B."""
WAN_1_3B = ModelShape(
    name="Wan 2.1 1.3B", dim=1536, layers=30, heads=12, ffn_dim=8960, text_tokens=512
)
WAN_5B = ModelShape(
    name="Wan 2.2 5B", dim=3072, layers=30, heads=24, ffn_dim=14336, text_tokens=512,
    cell_pixels=16, latent_channels=48,
)  # fmt: skip
HUNYUAN_VIDEO = ModelShape(
    name="HunyuanVideo", dim=3072, layers=60, heads=24, ffn_dim=12288, text_tokens=256,
    joint_text=True,
)  # fmt: skip
"""20 two-stream and 40 one-stream blocks; both cost the same per token."""
HUNYUAN_VIDEO_15 = ModelShape(
    name="HunyuanVideo 1.5", dim=2048, layers=54, heads=16, ffn_dim=8192, text_tokens=256,
    joint_text=True, cell_pixels=16, patch=(1, 1, 1), latent_channels=32, text_dim=3584,
)  # fmt: skip
"""Two-stream blocks only; an image adds 729 tokens of its vision encoder to the text."""
MINIMAX_H3 = ModelShape(
    name="MiniMax H3", dim=5376, layers=50, heads=56, ffn_dim=14336, text_tokens=600,
    joint_text=True, cell_pixels=16, attention_dim=7168, gated_ffn=True, frame_cycle=5,
    audio=AudioShape(latents_per_second=40, frames_per_second=24, latent_tokens=2),
    latent_channels=24, text_dim=5120,
)  # fmt: skip
"""600 text tokens: a prompt, and one image of 864x480 among them."""
LTX_2 = ModelShape(
    name="LTX-2.3", dim=4096, layers=48, heads=32, ffn_dim=16384, text_tokens=1024,
    cell_pixels=32, cell_frames=8, patch=(1, 1, 1), latent_channels=128,
    audio=AudioShape(latents_per_second=25, frames_per_second=25, dim=2048, ffn_dim=8192),
)  # fmt: skip
"""Also LTX-2.5, whose layers have the same sizes."""
SEEDVR2_3B = ModelShape(
    name="SeedVR2 3B", dim=2560, layers=32, heads=20, ffn_dim=6912, text_tokens=58,
    joint_text=True, gated_ffn=True, boxes=(4, 3, 3), text_dim=5120,
)  # fmt: skip
"""Restores a video in one evaluation; its text is a constant of the file."""
SEEDVR2_7B = ModelShape(
    name="SeedVR2 7B", dim=3072, layers=36, heads=24, ffn_dim=12288, text_tokens=58,
    joint_text=True, boxes=(4, 3, 3), text_dim=5120,
)  # fmt: skip
"""The file with a gated feed-forward network, 8192 wide, costs the same."""
SURF_1B = ModelShape(
    name="SURF refiner 1B", dim=1152, layers=40, heads=16, ffn_dim=4608, text_tokens=512,
    block="scale",
)  # fmt: skip
"""Width and heads of SURF Tab. R6; depth and feed-forward are ours, to reach 1 B."""
TINY = ModelShape(
    name="tiny", dim=128, layers=6, heads=4, ffn_dim=512, text_tokens=3,
)  # fmt: skip
"""The embedded text-to-video model of `surf_core.tiny`; its refiner has 2 of the layers."""
SHAPES = (
    WAN_14B, WAN_1_3B, WAN_5B, HUNYUAN_VIDEO, HUNYUAN_VIDEO_15, MINIMAX_H3, LTX_2, SEEDVR2_3B,
    SEEDVR2_7B, SURF_1B, TINY,
)  # fmt: skip
