"""Conditioning after a switch: what its own node made at the low size, checked; the rest resized.

A picture that is encoded at the low size is not the resize of its latent at the high one.

Dims: T latent frames, H, W latent cells.
"""

from ..finite import check_conditioning
from .areas import check_areas
from .grid import Conditioning, Grid, Size, SizeChange, is_map, maps, tensors
from .resize import carry

MADE_AT_LOW = (
    "connect positive_low and negative_low, which its node makes at that size, to have it encoded "
    "there"
)


def low_conds(
    conds: dict[str, Conditioning],
    made: dict[str, Conditioning],
    change: SizeChange,
    frames: tuple[int, ...] = (),
) -> dict[str, Conditioning]:
    """Choose the conditioning of a leg after a switch, before anything is sampled.

    Args:
        conds: name -> CONDITIONING before the switch, not changed.
        made: name -> CONDITIONING that was made at the size after it; empty, or without names that
            have no map beside the video.
        change: of the size.
        frames: (T,) of the latent, () of an image.

    Returns:
        What was made, and the rest resized.

    Raises:
        ValueError: what was made has other maps, channels, frames or text widths than before the
            switch, or another size than after it.
    """
    if not made:
        return carry(conds, change, MADE_AT_LOW)
    named = {f"{name}_low": cond for name, cond in made.items()}
    check_conditioning(named)
    for name, cond in conds.items():
        if name in made:
            _check_same_text(name, cond, made[name])
        elif any(maps({name: cond}, change.grid)):
            raise ValueError(
                f"expected {name}_low beside {' and '.join(f'{each}_low' for each in made)}, got "
                f"none; connect the {name} that its node makes at the low size."
            )
        _check_same_maps(name, cond, made.get(name, cond), change.grid)
    check_sizes(named, change.grid, change.target)
    check_areas(named, (*frames, *change.target), change.grid)
    return {**carry(conds, change), **{name: made[name] for name in conds if name in made}}


def check_sizes(conds: dict[str, Conditioning], grid: Grid, video: Size) -> None:
    """Refuse maps that were made for a video of another size than `video`, in cells."""
    for name, key, size in maps(conds, grid):
        if size != grid.size_of(key, video):
            (rows, columns), cell = grid.video_of(key, size), grid.cell
            high, wide = (side * cell for side in video)
            raise ValueError(
                f"expected {key} of {name} for the low size, {wide} x {high} pixels, got one for "
                f"{columns * cell} x {rows * cell}; set the node that makes it to width {wide} and "
                f"height {high}."
            )


def _check_same_text(name: str, cond: Conditioning, made: Conditioning) -> None:
    """Refuse text of another encoder."""
    first, second = (
        {entry[0].shape[-1] for entry in each if entry[0] is not None} for each in (cond, made)
    )
    if first and second and first != second:
        raise ValueError(
            f"expected {name}_low from the text encoder of {name}, {sorted(first)} wide, got "
            f"{sorted(second)}; encode both prompts with the same one."
        )


def _check_same_maps(name: str, cond: Conditioning, made: Conditioning, grid: Grid) -> None:
    """Refuse other keys, counts, channels or frames than before the switch."""
    first, second = (_shapes(each, grid) for each in (cond, made))
    for key in sorted(first.keys() | second.keys()):
        if first.get(key) != second.get(key):
            raise ValueError(
                f"expected {key} of {name}_low as that of {name}, {_said(first.get(key))}, got "
                f"{_said(second.get(key))}; make both with the same node, length and VAE, "
                f"{name}_low at the low size."
            )


def _shapes(cond: Conditioning, grid: Grid) -> dict[str, list[tuple[int, ...]]]:
    """List the shapes before rows and columns, batch left out, of all that is bound to a length."""
    out: dict[str, list[tuple[int, ...]]] = {}
    for options in (entry[1] for entry in cond):
        for key, value in options.items():
            if is_map(key, grid) or key == "concat_mask":
                out[key] = [tuple(each.shape[1:-2]) for each in tensors(value)]
    return out


def _said(shapes: list[tuple[int, ...]] | None) -> str:
    if shapes is None:
        return "none"
    return ", ".join(f"[B, {', '.join(map(str, lead))}, rows, columns]" for lead in shapes)
