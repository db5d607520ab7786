"""Resize conditioning that is bound to a resolution.

The host rebuilds most of it at each sampling call: masks, percentage areas, control hints, images
to concatenate. The rest is resized here, in copies.

Dims: B batch, C channels, T latent frames, H, W latent cells.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from numbers import Real
from typing import Any

from torch import Tensor
from torch.nn import functional as F

from ...surf_core.resample import resize
from .models import cell_side, uncompiled
from .node import NodeLog

log = NodeLog(__name__)

Conditioning = list[list[Any]]

UNBOUND = frozenset(
    {"concat_latent_image", "concat_mask", "concat_image", "noise_mask", "denoise_mask", "mask"}
    | {"control", "hooks", "gligen", "ref_latent", "reference_latents", "reference_motion"}
    | {
        "context_latents",
        "face_video_pixels",
        "audio_embed",
        "clip_vision_output",
        "attention_mask",
    }
)
"""Not resized: the host does it, or it is no map of the picture's cells."""


@dataclass(frozen=True, kw_only=True, slots=True)
class SizeChange:
    """A change of resolution."""

    source: tuple[int, int]
    """Rows and columns before, in latent cells."""
    target: tuple[int, int]
    """Rows and columns after, in latent cells."""
    cell: int = 8
    """Pixels per side of a latent cell."""
    bound_references: bool = False
    """True where the model lays reference latents on the grid of the video."""

    @classmethod
    def of(cls, model: Any, source: tuple[int, int], target: tuple[int, int]) -> "SizeChange":
        """Build the change for the cells and reference latents of a MODEL."""
        return cls(
            source=source,
            target=target,
            cell=cell_side(model),
            bound_references=references_are_bound(model),
        )

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


def check_areas(conds: dict[str, Conditioning], sizes: tuple[int, ...]) -> None:
    """Refuse areas that the host cannot place in a latent of `sizes`, ((T,) H, W).

    Raises:
        ValueError: no area, one that begins outside, or shares of rows and columns on a video.
    """
    for name, area in (
        (name, entry[1]["area"])
        for name, cond in conds.items() for entry in cond if "area" in entry[1]
    ):  # fmt: skip
        share = isinstance(area, list | tuple) and area[:1] in (["percentage"], ("percentage",))
        whole = [1.0] * len(sizes) if share else sizes
        numbers = area[1:] if share else area
        if share and len(numbers) == 4 and len(sizes) == 3:
            raise ValueError(
                f"expected shares of 3 axes as the area of the {name} conditioning of a video, got "
                f"{area}; use ConditioningSetAreaPercentageVideo, or Conditioning (Set Area)."
            )
        if not _is_placed(numbers, whole) or (share and len(numbers) != 2 * len(sizes)):
            raise ValueError(
                f"expected an area within {sizes} in the {name} conditioning, sizes and then "
                f"where it begins, got {area!r:.99}; set it again with Conditioning (Set Area)."
            )


def _is_placed(area: Any, whole: Sequence[float]) -> bool:
    """Tell whether an area, sizes and starts of the last axes, begins inside of the whole."""
    if not isinstance(area, list | tuple) or len(area) not in range(2, 2 * len(whole) + 1, 2):
        return False
    half = len(area) // 2
    return all(
        isinstance(size, Real) and isinstance(start, Real) and size > 0 and 0 <= start < end
        for size, start, end in zip(area[:half], area[half:], whole[-half:], strict=True)
    )


def carry(conds: dict[str, Conditioning], change: SizeChange) -> dict[str, Conditioning]:
    """Fit conditioning to the size after a switch.

    Args:
        conds: e.g. {"positive": CONDITIONING, "negative": CONDITIONING}; not changed.
        change: sizes before and after.

    Returns:
        The same structure with new lists and dictionaries; tensors that need nothing are shared.
    """
    if change.source == change.target:
        return conds
    guesses: set[str] = set()
    out = {
        name: [[entry[0], _fit(entry[1], change, guesses), *entry[2:]] for entry in cond]
        for name, cond in conds.items()
    }
    if guesses:
        log.warning(
            "conditioning %s looks bound to the resolution and is unknown; it was resized as "
            "a picture. If the result looks wrong, leave it out.",
            ", ".join(repr(key) for key in sorted(guesses)),
        )
    return out


def _fit(options: dict[str, Any], change: SizeChange, guesses: set[str]) -> dict[str, Any]:
    """Copy one entry's dictionary and resize what is bound to the resolution."""
    out = dict(options)
    for key, value in options.items():
        if key in BOUND:
            out[key] = BOUND[key](value, change)
        elif key == "reference_latents" and change.bound_references:
            out[key] = _latents(value, change)
        elif key.startswith("concat_") and not change.keeps_aspect:
            # The host would crop these about the centre, while the latent is stretched.
            out[key] = _each(value, lambda x: _at_source(x, change))
        elif key not in UNBOUND:
            resized = _each(value, lambda x: _at_source(x, change))
            if resized is not value:
                out[key] = resized
                guesses.add(key)
    return out


def _each(value: Any, edit: Callable[[Tensor], Tensor]) -> Any:
    """Change a tensor, or every tensor of a list; `value` itself when nothing changes."""
    if isinstance(value, Tensor):
        return edit(value)
    if isinstance(value, (list, tuple)) and value and all(isinstance(v, Tensor) for v in value):
        new = [edit(v) for v in value]
        return value if all(a is b for a, b in zip(new, value, strict=True)) else type(value)(new)
    return value


def _latents(value: Any, change: SizeChange) -> Any:
    return _each(value, lambda x: resize(x, change.target))


def _by_ratio(value: Any, change: SizeChange) -> Any:
    """Resize maps by as much as the picture, whatever part of its cells they have."""
    ratios = [new / old for old, new in zip(change.source, change.target, strict=True)]

    def one(x: Tensor) -> Tensor:
        rows, columns = (
            max(1, round(side * by)) for side, by in zip(x.shape[-2:], ratios, strict=True)
        )
        return resize(x, (rows, columns))

    return _each(value, one)


def _at_source(x: Tensor, change: SizeChange) -> Tensor:
    """Resize a map of the source's cells or pixels; anything else comes back as it is."""
    if x.ndim < 4 or not x.is_floating_point():
        return x
    for unit in (1, change.cell):
        if tuple(x.shape[-2:]) == (change.source[0] * unit, change.source[1] * unit):
            planes = x if x.ndim < 6 else x.flatten(0, -5)
            size = (change.target[0] * unit, change.target[1] * unit)
            return resize(planes, size).reshape(*x.shape[:-2], *size)
    return x


def _pixels(value: Any, change: SizeChange) -> Any:
    """Resize maps in pixels: camera rays, which the model unshuffles by 8 itself."""
    rows, cols = change.target
    return _each(value, lambda x: resize(x, (rows * change.cell, cols * change.cell)))


def _mask_cells(mask: Tensor, change: SizeChange) -> Tensor:
    """Resize a pixel mask that is folded into channels: [B, P*P, T, H, W], P pixels per cell.

    Nearest on the unfolded pixels keeps a hard mask hard.
    """
    side = round(mask.shape[1] ** 0.5)
    if side * side != mask.shape[1]:
        return resize(mask, change.target)
    frames = mask.transpose(1, 2).flatten(0, 1)
    size = (change.target[0] * side, change.target[1] * side)
    pixels = F.interpolate(F.pixel_shuffle(frames, side), size, mode="nearest-exact")
    cells = F.pixel_unshuffle(pixels, side)
    return cells.unflatten(0, (mask.shape[0], mask.shape[2])).transpose(1, 2).contiguous()


def _masks(value: Any, change: SizeChange) -> Any:
    return _each(value, lambda x: _mask_cells(x, change))


def _area(area: Any, change: SizeChange) -> Any:
    """Scale an absolute area, (sizes..., offsets...) in cells; percentages are left to the host."""
    if area[0] == "percentage" or len(area) % 2:
        return area
    half, out = len(area) // 2, list(area)
    for axis in (-2, -1):
        size, start = half + axis, 2 * half + axis
        factor = change.target[axis] / change.source[axis]
        out[size] = max(1, round(area[size] * factor))
        out[start] = min(round(area[start] * factor), change.target[axis] - 1)
    return type(area)(out)


BOUND: dict[str, Callable[[Any, SizeChange], Any]] = {
    "vace_frames": _latents,
    "vace_mask": _masks,
    "time_dim_concat": _latents,
    "pose_video_latent": _by_ratio,
    "driving_mask_28ch": _by_ratio,
    "ref_mask_28ch": _by_ratio,
    "control_video": _latents,
    "camera_conditions": _pixels,
    "area": _area,
}
"""How to resize what the host does not, by key."""
