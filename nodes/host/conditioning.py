"""Conditioning that is bound to a resolution, carried over to another one.

The host rebuilds most of it at each sampling call: masks, percentage areas, control hints, images
to concatenate. What it takes as it is, is resized here, in copies.

Dims: B batch, C channels, T latent frames, H, W latent cells.
"""

import logging
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from torch import Tensor
from torch.nn import functional as F

from ...surf_core.resample import resize

log = logging.getLogger(__name__)

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
"""Left alone: the host resizes it, or it is no map of the picture's cells."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Step:
    """A change of resolution, as conditioning sees it."""

    source: tuple[int, int]
    """Rows and columns before, in latent cells."""
    target: tuple[int, int]
    """Rows and columns after, in latent cells."""
    cell: int = 8
    """Pixels per side of a latent cell."""
    bound_references: bool = False
    """True where the model lays reference latents on the grid of the video."""

    @property
    def keeps_aspect(self) -> bool:
        """Whether the host's centre crop would cut nothing."""
        (rows, cols), (new_rows, new_cols) = self.source, self.target
        return rows * new_cols == cols * new_rows


def references_are_bound(model: Any) -> bool:
    """Say whether the model puts reference latents on the grid of the video.

    HunyuanVideo and others give them tokens and positions of their own; a `ref_conv` (Wan 2.2 Fun)
    and SCAIL put them beside the frames.
    """
    network = model.model.diffusion_model
    return getattr(network, "ref_conv", None) is not None or "SCAIL" in type(network).__name__


def carry(conds: dict[str, Conditioning], step: Step) -> dict[str, Conditioning]:
    """Fit conditioning to the size after a switch.

    Args:
        conds: e.g. {"positive": CONDITIONING, "negative": CONDITIONING}; not changed.
        step: sizes before and after.

    Returns:
        The same structure with new lists and dictionaries; tensors that need nothing are shared.
    """
    if step.source == step.target:
        return conds
    guessed: set[str] = set()
    out = {
        name: [[entry[0], _fit(entry[1], step, guessed), *entry[2:]] for entry in cond]
        for name, cond in conds.items()
    }
    if guessed:
        log.warning(
            "SURF: conditioning %s looks bound to the resolution and is unknown; it was resized as "
            "a picture. If the result looks wrong, leave it out.",
            ", ".join(repr(key) for key in sorted(guessed)),
        )
    return out


def _fit(options: dict[str, Any], step: Step, guessed: set[str]) -> dict[str, Any]:
    """Copy one entry's dictionary with what is bound to the resolution resized."""
    out = dict(options)
    for key, value in options.items():
        if key in BOUND:
            out[key] = BOUND[key](value, step)
        elif key == "reference_latents" and step.bound_references:
            out[key] = _latents(value, step)
        elif key.startswith("concat_") and not step.keeps_aspect:
            # The host would crop these about the centre, while the latent is stretched.
            out[key] = _each(value, lambda x: _at_source(x, step))
        elif key not in UNBOUND:
            fitted = _each(value, lambda x: _at_source(x, step))
            if fitted is not value:
                out[key] = fitted
                guessed.add(key)
    return out


def _each(value: Any, change: Callable[[Tensor], Tensor]) -> Any:
    """Change a tensor, or every tensor of a list; `value` itself when nothing changes."""
    if isinstance(value, Tensor):
        return change(value)
    if isinstance(value, (list, tuple)) and value and all(isinstance(v, Tensor) for v in value):
        new = [change(v) for v in value]
        return value if all(a is b for a, b in zip(new, value, strict=True)) else type(value)(new)
    return value


def _latents(value: Any, step: Step) -> Any:
    return _each(value, lambda x: resize(x, step.target))


def _at_source(x: Tensor, step: Step) -> Tensor:
    """Resize a map of the source's cells or pixels; anything else comes back as it is."""
    if x.ndim < 4 or not x.is_floating_point():
        return x
    for unit in (1, step.cell):
        if tuple(x.shape[-2:]) == (step.source[0] * unit, step.source[1] * unit):
            planes = x if x.ndim < 6 else x.flatten(0, -5)
            size = (step.target[0] * unit, step.target[1] * unit)
            return resize(planes, size).reshape(*x.shape[:-2], *size)
    return x


def _pixels(value: Any, step: Step) -> Any:
    """Resize maps in pixels: camera rays, which the model unshuffles by 8 itself."""
    rows, cols = step.target
    return _each(value, lambda x: resize(x, (rows * step.cell, cols * step.cell)))


def _mask_cells(mask: Tensor, step: Step) -> Tensor:
    """Resize a pixel mask that is folded into channels: [B, P*P, T, H, W], P pixels per cell.

    Nearest on the unfolded pixels keeps a hard mask hard.
    """
    side = round(mask.shape[1] ** 0.5)
    if side * side != mask.shape[1]:
        return resize(mask, step.target)
    frames = mask.transpose(1, 2).flatten(0, 1)
    size = (step.target[0] * side, step.target[1] * side)
    pixels = F.interpolate(F.pixel_shuffle(frames, side), size, mode="nearest-exact")
    cells = F.pixel_unshuffle(pixels, side)
    return cells.unflatten(0, (mask.shape[0], mask.shape[2])).transpose(1, 2).contiguous()


def _masks(value: Any, step: Step) -> Any:
    return _each(value, lambda x: _mask_cells(x, step))


def _area(area: Any, step: Step) -> Any:
    """Scale an absolute area, (sizes..., offsets...) in cells; percentages are left to the host."""
    if area[0] == "percentage" or len(area) % 2:
        return area
    half, scaled = len(area) // 2, list(area)
    for axis in (-2, -1):
        size, start = half + axis, 2 * half + axis
        factor = step.target[axis] / step.source[axis]
        scaled[size] = max(1, round(area[size] * factor))
        scaled[start] = min(round(area[start] * factor), step.target[axis] - 1)
    return type(area)(scaled)


BOUND: dict[str, Callable[[Any, Step], Any]] = {
    "vace_frames": _latents,
    "vace_mask": _masks,
    "time_dim_concat": _latents,
    "pose_video_latent": _latents,
    "control_video": _latents,
    "camera_conditions": _pixels,
    "area": _area,
}
"""What the host takes as it is, by key."""
