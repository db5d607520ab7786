"""Check areas of prompts, and place them in another size.

Dims: T latent frames, H, W latent cells.
"""

from collections.abc import Sequence
from numbers import Real
from typing import Any

from .grid import Conditioning, SizeChange


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


def scale_area(area: Any, change: SizeChange) -> Any:
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
