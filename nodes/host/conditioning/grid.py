"""Find the maps in conditioning that lie on the grid of a video, and how a model lays them there.

Dims: T latent frames, H, W latent cells.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from ..models import cell_side, uncompiled, unpadded_patch

Conditioning = list[list[Any]]
Size = tuple[int, int]
"""Rows and columns in latent cells."""
MAPS = frozenset(
    {"concat_latent_image", "vace_frames", "vace_mask", "time_dim_concat", "control_video"}
    | {"pose_video_latent", "driving_mask_28ch", "ref_mask_28ch", "camera_conditions"}
)
"""Keys of conditioning with a value for each cell of the video, or each pixel of camera rays."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Grid:
    """How a model lays conditioning beside its video."""

    cell: int = 8
    """Pixels per side of a latent cell."""
    bound_references: bool = False
    """True where reference latents lie on the grid of the video."""
    half_poses: bool = False
    """True where a pose latent has half of the rows and columns: SCAIL."""
    controlled: bool = False
    """True where a control video lies beside the latent even if the prompt has none: VACE."""
    patch: int = 1
    """Cells that rows and columns of a part must be multiples of; 1 where the model pads."""

    @classmethod
    def of(cls, model: Any) -> "Grid":
        """Read it from a MODEL."""
        return cls(
            cell=cell_side(model),
            bound_references=references_are_bound(model),
            half_poses=is_scail(model),
            controlled=hasattr(uncompiled(model.model.diffusion_model), "vace_patch_embedding"),
            patch=unpadded_patch(model),
        )

    def size_of(self, key: str, video: Size) -> Size | None:
        """Return the rows and columns of the map `key` beside a video; None where it is no map."""
        factor = self._factor(key)
        return None if factor is None else tuple(max(1, round(side * factor)) for side in video)

    def video_of(self, key: str, size: Size) -> Size | None:
        """Return the rows and columns of the video that the map `key` lies beside; the reverse."""
        factor = self._factor(key)
        return None if factor is None else tuple(max(1, round(side / factor)) for side in size)

    def _factor(self, key: str) -> float | None:
        if key == "camera_conditions":
            return self.cell
        if key == "reference_latents":
            return 1 if self.bound_references else None
        if key == "driving_mask_28ch" or (key == "pose_video_latent" and self.half_poses):
            return 0.5
        return 1 if key in MAPS else None


@dataclass(frozen=True, kw_only=True, slots=True)
class SizeChange:
    """A change of resolution."""

    source: Size
    """Rows and columns before, in latent cells."""
    target: Size
    """Rows and columns after, in latent cells."""
    grid: Grid = Grid()
    """Of the model that runs after it."""

    @classmethod
    def of(cls, model: Any, source: Size, target: Size) -> "SizeChange":
        """Build the change for the cells and reference latents of a MODEL."""
        return cls(source=source, target=target, grid=Grid.of(model))

    @property
    def keeps_aspect(self) -> bool:
        """Say whether the host's centre crop would cut nothing."""
        (rows, cols), (new_rows, new_cols) = self.source, self.target
        return rows * new_cols == cols * new_rows


def references_are_bound(model: Any) -> bool:
    """Say whether the model puts reference latents on the grid of the video.

    HunyuanVideo and others give them tokens and positions of their own; a `ref_conv` (Wan 2.2 Fun)
    and SCAIL put them beside the frames.
    """
    network = uncompiled(model.model.diffusion_model)
    return getattr(network, "ref_conv", None) is not None or is_scail(model)


def is_scail(model: Any) -> bool:
    """Say whether the model is SCAIL: its pose latent and pose masks have half the cells a side."""
    return "SCAIL" in type(uncompiled(model.model.diffusion_model)).__name__


def maps(conds: dict[str, Conditioning], grid: Grid) -> Iterator[tuple[str, str, Size]]:
    """Yield (name, key, rows and columns) of each map that lies beside the video."""
    for name, cond in conds.items():
        for options in (entry[1] for entry in cond):
            for key, value in options.items():
                if is_map(key, grid):
                    for each in tensors(value):
                        yield name, key, tuple(each.shape[-2:])


def is_map(key: str, grid: Grid) -> bool:
    """Say whether a key of conditioning holds a map that lies beside the video."""
    return grid.size_of(key, (1, 1)) is not None


def tensors(value: Any) -> list[Tensor]:
    """Return a tensor, or those of a list of tensors; none of anything else."""
    values = value if isinstance(value, list | tuple) else [value]
    return [each for each in values if isinstance(each, Tensor)]
