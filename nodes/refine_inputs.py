"""Inputs for the sizes of a preview and its upsampling, shared by nodes."""

from comfy_api.latest import io

from .host.models import TARGETS
from .host.node import declare
from .host.vae import UPSAMPLE_METHODS


def target_inputs() -> list[io.Input]:
    """Declare resolution, scale, width, height and upsample."""
    return [
        *target_size_inputs(),
        declare(
            io.Combo.Input, "upsample", options=list(UPSAMPLE_METHODS), default="pixel",
            tooltip="pixel: decode, resize the frames, encode; needs the VAE. "
            "latent: linear in the latent, free; take a sigma_start of 0.7 or more.",
        ),
    ]  # fmt: skip


def target_size_inputs(prefix: str = "") -> list[io.Input]:
    """Declare resolution, scale, width and height, with a prefix to their names."""
    return [
        declare(
            io.Combo.Input, f"{prefix}resolution", options=list(TARGETS), default="1080p",
            tooltip="Target size: a named one in the preview's aspect ratio, a multiple of its "
            "sides, or width and height. Some models make a little more: crop the frames to the "
            "width and height that Surf Refiner gives.",
        ),
        declare(
            io.Float.Input, f"{prefix}scale", default=2.0, min=1.0, max=8.0, step=0.05,
            tooltip="Factor per side, for 'by scale'.",
        ),
        declare(
            io.Int.Input, f"{prefix}width", default=1920, min=16, max=16384, step=8,
            advanced=True,
            tooltip="Pixels, for 'by size': a multiple of 16, of 32 for Wan 2.2 5B; of 8 for Wan "
            "2.1 and refiners of this project.",
        ),
        declare(
            io.Int.Input, f"{prefix}height", default=1088, min=16, max=16384, step=8,
            advanced=True,
            tooltip="Pixels, for 'by size': as width.",
        ),
    ]  # fmt: skip


def made_for_inputs() -> list[io.Input]:
    """Declare made_width and made_height."""
    return [
        declare(
            io.Int.Input, f"made_{side}", optional=True, default=0, min=0, max=16384, step=8,
            advanced=True,
            tooltip=f"{side.capitalize()} in pixels that the prompt was made for: that of the "
            "latent that the first sampler started from. 0 = as Surf Reshift KSampler wrote it "
            "into the latent. Areas and poses are placed by it.",
        )
        for side in ("width", "height")
    ]  # fmt: skip
