"""Resize conditioning that is bound to a resolution.

The host rebuilds most of it at each sampling call: masks, percentage areas, control hints, images
to concatenate. The rest is resized here, in copies.

Dims: B batch, C channels, T latent frames, H, W latent cells.
"""

from collections.abc import Callable
from typing import Any

from torch import Tensor
from torch.nn import functional as F

from ....surf_core.resample import resize
from ..node import NodeLog
from .areas import scale_area
from .grid import Conditioning, SizeChange, maps, tensors
from .guides import KEYFRAMES, move_guides, on_grid, resize_entries, resize_keyframes

log = NodeLog(__name__)

UNBOUND = frozenset(
    {"concat_latent_image", "concat_mask", "concat_image", "noise_mask", "denoise_mask", "mask"}
    | {"control", "hooks", "gligen", "ref_latent", "reference_latents", "reference_motion"}
    | {
        "context_latents",
        "face_video_pixels",
        "audio_embed",
        "clip_vision_output",
        "attention_mask",
        "minimax_refs",
    }
)
"""Not resized: the host does it, or it is no map of the picture's cells."""


def carry(
    conds: dict[str, Conditioning], change: SizeChange, remedy: str = ""
) -> dict[str, Conditioning]:
    """Fit conditioning to the size after a switch.

    Args:
        conds: e.g. {"positive": CONDITIONING, "negative": CONDITIONING}; not changed.
        change: sizes before and after.
        remedy: how to have pictures encoded at the new size, which is better than a resize; logged
            with the names of those that are resized, by the host or here.

    Returns:
        The same structure with new lists and dictionaries; tensors that need nothing are shared.
    """
    if change.source == change.target and not _off_grid(conds, change):
        return conds
    guesses: set[str] = set()
    out = {
        name: [[entry[0], _fit(entry[1], change, guesses), *entry[2:]] for entry in cond]
        for name, cond in conds.items()
    }
    if remedy:
        _log_resized(conds, change, remedy)
    if guesses:
        log.warning(
            "conditioning %s looks bound to the resolution and is unknown; it was resized as "
            "a picture. If the result looks wrong, leave it out.",
            ", ".join(repr(key) for key in sorted(guesses)),
        )
    return out


def _off_grid(conds: dict[str, Conditioning], change: SizeChange) -> bool:
    """Say whether a keyframe of MiniMax H3 was made at another size: the host's network fails."""
    return any(
        not on_grid(keyframe, change.target)
        for cond in conds.values() for entry in cond for keyframe in entry[1].get(KEYFRAMES) or ()
    )  # fmt: skip


def _log_resized(conds: dict[str, Conditioning], change: SizeChange, remedy: str) -> None:
    """Log once which maps are resized, although a node could have made them at the new size."""
    resized = {key: size for _, key, size in maps(conds, change.grid)
               if size != change.grid.size_of(key, change.target)}  # fmt: skip
    if resized:
        (rows, columns), cell = change.target, change.grid.cell
        log.info(
            "%s made at another size is resized for %d x %d pixels; %s.",
            ", ".join(sorted(resized)), columns * cell, rows * cell, remedy,
        )  # fmt: skip


def _fit(options: dict[str, Any], change: SizeChange, guesses: set[str]) -> dict[str, Any]:
    """Copy one entry's dictionary and resize what is bound to the resolution."""
    out = dict(options)
    for key, value in options.items():
        if _is_there(key, value, change):
            continue
        if key in BOUND:
            out[key] = BOUND[key](value, change)
        elif key == "reference_latents" and change.grid.bound_references:
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


def _is_there(key: str, value: Any, change: SizeChange) -> bool:
    """Say whether a map was made at the size after the change: it stays as it is."""
    size = change.grid.size_of(key, change.target)
    return size is not None and all(tuple(x.shape[-2:]) == size for x in tensors(value))


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
    for unit in (1, change.grid.cell):
        if tuple(x.shape[-2:]) == (change.source[0] * unit, change.source[1] * unit):
            planes = x if x.ndim < 6 else x.flatten(0, -5)
            size = (change.target[0] * unit, change.target[1] * unit)
            return resize(planes, size).reshape(*x.shape[:-2], *size)
    return x


def _pixels(value: Any, change: SizeChange) -> Any:
    """Resize maps in pixels: camera rays, which the model unshuffles by 8 itself."""
    rows, cols = change.target
    return _each(value, lambda x: resize(x, (rows * change.grid.cell, cols * change.grid.cell)))


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


BOUND: dict[str, Callable[[Any, SizeChange], Any]] = {
    "vace_frames": _latents,
    "vace_mask": _masks,
    "time_dim_concat": _latents,
    "pose_video_latent": _by_ratio,
    "driving_mask_28ch": _by_ratio,
    "ref_mask_28ch": _by_ratio,
    "control_video": _latents,
    "camera_conditions": _pixels,
    "area": scale_area,
    "minimax_keyframes": lambda value, change: resize_keyframes(value, change.target),
    "keyframe_idxs": lambda value, change: move_guides(
        value, change.source, change.target, change.grid.cell
    ),
    "guide_attention_entries": lambda value, change: resize_entries(value, change.target),
}
"""How to resize what the host does not, by key."""
