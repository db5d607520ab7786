"""The three sizes of a run, found without a MODEL: from the VAE's latents.

Dims: H, W latent cells.
"""

from dataclasses import dataclass
from typing import Any

import torch

from ..latents import low_size
from ..models import target_grid

Size = tuple[int, int]
"""Rows and columns in latent cells."""


@dataclass(frozen=True, kw_only=True, slots=True)
class VideoFamily:
    """How a family of models takes a start image."""

    name: str
    """What errors call it."""
    cell: int
    """Pixels per side of a latent cell."""
    patch: int
    """Pixels along the side of a patch."""
    unit: int
    """Pixels that a side of the target must be a multiple of."""


WAN = VideoFamily(name="Wan 2.1 and the 14B models of Wan 2.2", cell=8, patch=16, unit=8)
WAN_5B = VideoFamily(name="Wan 2.2 5B", cell=16, patch=32, unit=32)
HUNYUAN = VideoFamily(name="HunyuanVideo 1.5", cell=16, patch=16, unit=16)
FAMILIES = {16: WAN, 48: WAN_5B, 32: HUNYUAN}
"""Channels of the latent -> who uses it."""


def family_of(vae: Any) -> VideoFamily:
    """Tell from a VAE which models use its latents.

    Raises:
        ValueError: not one of FAMILIES.
    """
    channels = getattr(vae, "latent_channels", None)
    family = FAMILIES.get(channels) if getattr(vae, "latent_dim", 2) == 3 else None
    if family is None or family.cell != vae.spacial_compression_encode():
        known = ", ".join(each.name for each in FAMILIES.values())
        raise ValueError(
            f"expected the VAE of {known}, got one of {channels} channels; for other models run "
            "their own image-to-video node once for each size."
        )
    return family


def check_length(length: int) -> None:
    """Refuse a number of frames that makes no whole latent frames."""
    if length % 4 != 1:
        near = max(1, round((length - 1) / 4) * 4 + 1)
        raise ValueError(f"expected 4n + 1 frames, got length={length}; use {near}.")


@dataclass(frozen=True, kw_only=True, slots=True)
class Sizes:
    """What the user asked for; its fields are inputs of the node."""

    width: int
    height: int
    low_resolution: str
    low_scale: float
    low_width: int
    low_height: int
    target_resolution: str
    target_scale: float
    target_width: int
    target_height: int

    def cells(self, family: VideoFamily) -> tuple[Size, Size, Size]:
        """Find the high, the low and the target size, as the sampler and the refiner do."""
        step = family.patch
        if self.width % step or self.height % step:
            near = (max(step, round(side / step) * step) for side in (self.width, self.height))
            raise ValueError(
                f"expected width and height in multiples of {step} for {family.name}, got "
                f"{self.width} x {self.height}; use {' x '.join(map(str, near))}."
            )
        high = self.height // family.cell, self.width // family.cell
        low = low_size(
            torch.empty(1, 1, *high, device="meta"), family.cell, step,
            resolution=self.low_resolution, scale=self.low_scale, width=self.low_width,
            height=self.low_height,
        )  # fmt: skip
        pixels = low[0] * family.cell, low[1] * family.cell
        target, _ = target_grid(
            pixels, family.cell, family.unit, step, resolution=self.target_resolution,
            scale=self.target_scale, width=self.target_width, height=self.target_height,
        )  # fmt: skip
        return high, low, target
