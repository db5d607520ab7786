"""Check areas of prompts, and place them in another size.

Dims: T latent frames, H, W latent cells.
"""

from collections.abc import Sequence
from numbers import Real
from typing import Any

from .grid import Conditioning, Grid, SizeChange, is_map

PLAIN = Grid()


def check_areas(conds: dict[str, Conditioning], sizes: tuple[int, ...], grid: Grid = PLAIN) -> None:
    """Refuse areas that the host or the model cannot place in a latent of `sizes`, ((T,) H, W).

    Args:
        grid: of the model that is called with a part of this latent.

    Raises:
        ValueError: no area; one that begins outside; shares of rows and columns on a video; one
            beside a map that the host does not cut; or one that a model cannot cut into patches.
    """
    for name, options in (
        (name, entry[1]) for name, cond in conds.items() for entry in cond if "area" in entry[1]
    ):
        area = options["area"]
        share = _is_share(area)
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
        cells = _cells(area, sizes)
        if cells != sizes[-len(cells) :]:
            _check_maps(name, options, grid)
            _check_patches(name, cells, grid)


def _is_share(area: Any) -> bool:
    return isinstance(area, list | tuple) and area[:1] in (["percentage"], ("percentage",))


def _cells(area: Any, sizes: tuple[int, ...]) -> tuple[int, ...]:
    """Return how many cells of the last axes the host takes for an area."""
    if _is_share(area):
        half = len(area) // 2
        pairs = zip(area[1 : half + 1], area[half + 1 :], sizes, strict=True)
        area = [*zip(*((max(1, round(a * n)), round(b * n)) for a, b, n in pairs), strict=True)]
        area = [*area[0], *area[1]]
    half = len(area) // 2
    ends = zip(area[:half], area[half:], sizes[-half:], strict=True)
    return tuple(min(size, end - start) for size, start, end in ends)


def _check_maps(name: str, options: dict[str, Any], grid: Grid) -> None:
    """Refuse an area beside a map: the host hands the model all of it with a part of the video."""
    keys = sorted(key for key in options if is_map(key, grid) and key != "concat_latent_image")
    if keys or grid.controlled:
        raise ValueError(
            f"an area in the {name} conditioning and {' and '.join(keys) or 'a VACE model'} do not "
            "go together: ComfyUI does not cut the control video to the area; confine the prompt "
            "with Conditioning (Set Mask), or leave the area out."
        )


def _check_patches(name: str, cells: tuple[int, ...], grid: Grid) -> None:
    """Refuse an area whose rows or columns are no whole patches, where the model does not pad."""
    rows, columns = cells[-2:]
    if rows % grid.patch or columns % grid.patch:
        raise ValueError(
            f"expected an area of multiples of {grid.patch * grid.cell} pixels in the {name} "
            f"conditioning for this model, got {columns * grid.cell} x {rows * grid.cell}; set it "
            "again with Conditioning (Set Area)."
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


def scale_area(area: Any, change: SizeChange) -> Any:
    """Scale an area, (sizes..., offsets...) in cells, to whole patches where a model needs them.

    Percentages are left to the host, but for such patches.
    """
    step, share = change.grid.patch, _is_share(area)
    if len(area) % 2 != share or (share and step == 1):
        return area
    out = list(area)
    half = len(area) // 2
    for axis in (-2, -1):
        size, start = len(area) - half + axis, len(area) + axis
        end = change.target[axis]
        factor = end if share else end / change.source[axis]
        unit = end if share else 1
        out[size] = max(step, _snap(area[size] * factor, step)) / unit
        out[start] = min(_snap(area[start] * factor, step), end - step) / unit
    return type(area)(out if share else map(int, out))


def _snap(cells: float, step: int) -> int:
    return round(cells / step) * step
