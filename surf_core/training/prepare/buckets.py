"""Bring clips of all shapes to a few sizes in units of 32 pixels, by cropping and shrinking.

Dims: T frames, H, W rows and columns in pixels.
"""

from dataclasses import dataclass
from functools import cache
from math import log, sqrt

import torch
from torch import Tensor

from ...resample import resize
from .decode import Rejected

UNIT = 32
"""Pixels that rows and columns are multiples of. Source: Bowtie-flow B.3."""
AREAS = {"720p": 720 * 1280, "1080p": 1080 * 1920}
"""Pixels of a frame, at most, for each resolution."""
ASPECTS = (1.0, 4 / 3, 3 / 2, 16 / 9, 2.0, 7 / 3)
"""Longer side through shorter side, landscape and portrait: few, so that buckets fill. Ours."""
GREATEST_LOSS = 0.3
"""Share of the source's area that may be cropped away. Ours."""


@dataclass(frozen=True, order=True, slots=True)
class Bucket:
    """A size of frames."""

    rows: int
    columns: int

    @property
    def name(self) -> str:
        """Stable name, as in "704x1280"."""
        return f"{self.rows}x{self.columns}"


FIXED = {"tiny": (Bucket(128, 128),)}
"""Sizes of the resolutions that come in a few shapes only: the embedded model's."""


@dataclass(frozen=True, kw_only=True, slots=True)
class CropPlan:
    """How a source becomes a bucket's size: crop, then resize."""

    bucket: Bucket
    """The size that results."""
    crop: tuple[int, int, int, int]
    """Top, left, rows, columns of what is kept, in pixels of the source."""
    lost: float
    """Share of the source's area that is cropped away."""


@cache
def buckets(resolution: str) -> tuple[Bucket, ...]:
    """Sizes of a resolution, sorted: each aspect at its full area, both sides cut to the unit.

    Sides are rounded down, so that a source of the resolution's own size fills its bucket. A
    resolution of FIXED has the sizes that stand there.
    """
    if resolution in FIXED:
        return FIXED[resolution]
    if resolution not in AREAS:
        raise ValueError(
            f"expected one of {(*AREAS, *FIXED)}, got {resolution=}; choose one of them."
        )
    sizes = set()
    for aspect in ASPECTS:
        short = sqrt(AREAS[resolution] / aspect)
        # Not a hair too small where the side is a whole number.
        sides = [int((side + 1e-6) // UNIT) * UNIT for side in (short, short * aspect)]
        sizes |= {Bucket(*sides), Bucket(*sides[::-1])}
    return tuple(sorted(sizes))


def plan(size: tuple[int, int], bucket: Bucket) -> CropPlan:
    """Crop the middle of a source (rows, columns) to a bucket's shape, keeping all that fits."""
    rows, columns = size
    scale = min(rows / bucket.rows, columns / bucket.columns)
    height = min(rows, round(bucket.rows * scale))
    width = min(columns, round(bucket.columns * scale))
    top, left = (rows - height) // 2, (columns - width) // 2
    lost = 1 - height * width / rows / columns
    return CropPlan(bucket=bucket, crop=(top, left, height, width), lost=lost)


def choose(
    size: tuple[int, int], resolutions: tuple[str, ...] = ("1080p", "720p")
) -> CropPlan | Rejected:
    """Choose the bucket of a source, without ever enlarging it.

    Of each resolution the bucket of the closest aspect (in its logarithm) counts, of equals the
    one that loses the least area; the first resolution whose bucket the source fills is taken.

    Args:
        size: rows and columns of the source, in pixels.
        resolutions: names in order of preference.

    Returns:
        The plan; or `Rejected`, "small" where the source fills no bucket, "aspect" where more than
        GREATEST_LOSS of it would be cropped away.

    Source: Bowtie-flow B.3 (two resolutions, unit 32); aspects and order are ours.
    """
    rows, columns = size
    if min(size) < 1:
        raise ValueError(f"expected a size of at least 1x1, got {size=}; pass rows and columns.")
    numbers: dict[str, float] = {"rows": rows, "columns": columns}

    def cost(candidate: CropPlan) -> tuple[float, float, Bucket]:
        bucket = candidate.bucket
        error = abs(log(bucket.columns / bucket.rows) - log(columns / rows))
        return round(error, 9), candidate.lost, bucket

    for resolution in resolutions:
        best = min((plan(size, bucket) for bucket in buckets(resolution)), key=cost)
        if best.lost > GREATEST_LOSS:
            return Rejected(reason="aspect", numbers=numbers | {"lost": best.lost})
        if best.bucket.rows <= rows and best.bucket.columns <= columns:
            return best
    return Rejected(reason="small", numbers=numbers)


def apply(planned: CropPlan, frames: Tensor) -> Tensor:
    """Crop and shrink [T, H, W, 3] uint8 to the bucket's size, frame by frame, bicubic."""
    top, left, rows, columns = planned.crop
    if frames.shape[1] < top + rows or frames.shape[2] < left + columns:
        raise ValueError(
            f"expected frames that hold the crop {planned.crop}, got {tuple(frames.shape)}; "
            "plan from the size of these frames."
        )
    size = planned.bucket.rows, planned.bucket.columns
    cropped = frames[:, top : top + rows, left : left + columns]
    shrunk = [
        resize(frame.movedim(-1, 0)[None].float(), size, "bicubic")[0].movedim(0, -1)
        for frame in cropped
    ]
    return torch.stack([frame.round().clamp(0, 255).to(torch.uint8) for frame in shrunk])
