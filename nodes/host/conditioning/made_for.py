"""Find the size that conditioning was made for, which is often not the preview's.

One prompt serves the first sampler, at the high resolution, and the refiner. Areas in pixels and
maps beside the grid of the video are placed by that size. A LATENT of Surf Reshift KSampler carries
it; other nodes drop or keep the key as they like, so that an input comes first.

Dims: H, W latent cells.
"""

from math import ceil
from typing import Any

from torch import Tensor

from ..models import cell_side, patch_side
from ..node import NodeLog
from .grid import Conditioning, Grid, Size, maps

log = NodeLog(__name__)

KEY = "surf_made_for"
"""Key of a LATENT: (height, width) in pixels that its conditioning was made for."""
Pixels = tuple[int, int]
"""Height and width."""


def check_made_for(made_width: int, made_height: int) -> None:
    """Refuse one side of a size without the other."""
    if bool(made_width) != bool(made_height):
        raise ValueError(
            f"made_width and made_height belong together, got {made_width} x {made_height}; set "
            "both to the size that the prompt was made for, or both to 0."
        )


def with_made_for(latent: dict, pixels: Pixels) -> dict:
    """Return a copy of a LATENT with the size that its conditioning was made for."""
    return {**latent, KEY: tuple(map(int, pixels))}


def carried(latent: dict, samples: Tensor, patch: int = 2) -> Pixels | None:
    """Read the size that a LATENT carries, unless it is of another shape than its samples.

    Nodes that crop keep the key of the whole picture.

    Args:
        samples: [..., H, W], of the latent.
        patch: latent cells that a side has been rounded to multiples of.
    """
    pixels = latent.get(KEY)
    if pixels is None:
        return None
    rows, columns = samples.shape[-2:]
    sound = isinstance(pixels, list | tuple) and len(pixels) == 2 and all(
        isinstance(side, int) and side > 0 for side in pixels
    )  # fmt: skip
    if sound:
        height, width = pixels
        aspect = width / height
        if abs(rows * aspect - columns) <= patch / 2 * (1 + aspect) + 1e-6:
            return height, width
    log.warning(
        "the latent says that its prompt was made for %s (height, width) pixels, which is not "
        "the shape of its %d x %d cells; that is ignored. Set made_width and made_height.",
        pixels, rows, columns,
    )  # fmt: skip
    return None


def source_cells(
    model: Any, conds: dict[str, Conditioning], latent: dict, samples: Tensor, given: Pixels
) -> tuple[int, int]:
    """Find the rows and columns that conditioning was made for.

    The size that is given comes first, then that of maps in the conditioning, then what the latent
    carries; the preview's where nothing is placed by it.

    Args:
        model: the MODEL that refines; its cells count.
        latent, samples: the preview.
        given: zeros for nothing.

    Raises:
        ValueError: the size is not known, and an area is placed by it; one side is given; or maps
            were made for several sizes.
    """
    check_made_for(*reversed(given))
    cell = cell_side(model)
    beside = video_cells(conds, Grid.of(model))
    cells = None if all(given) else beside
    pixels = given if all(given) else carried(latent, samples, patch_side(model))
    if cells is None and pixels is not None:
        cells = tuple(ceil(side / cell) for side in pixels)
    if cells is None and _holds_area(conds):
        raise ValueError(
            "a prompt has an area in pixels of the size that it was made for, and nothing tells "
            "that size; set made_width and made_height to the pixels of the latent that the first "
            "sampler started from, or use Conditioning (Set Area with Percentage)."
        )
    return cells or tuple(samples.shape[-2:])


def video_cells(conds: dict[str, Conditioning], grid: Grid) -> Size | None:
    """Find the rows and columns of the video that maps in conditioning lie beside; None without.

    Raises:
        ValueError: they lie beside videos of several sizes: one of them would be out of place.
    """
    found = {(name, key): grid.video_of(key, size) for name, key, size in maps(conds, grid)}
    if len(set(found.values())) > 1:
        said = ", ".join(
            f"{key} of {name} for {columns * grid.cell} x {rows * grid.cell} pixels"
            for (name, key), (rows, columns) in found.items()
        )
        raise ValueError(
            f"expected conditioning that was made for one size, got {said}; make positive and "
            "negative with the same width and height."
        )
    return next(iter(found.values()), None)


def _holds_area(conds: dict[str, Conditioning]) -> bool:
    """Say whether an entry has an area in cells; a percentage needs no size."""
    areas = (entry[1].get("area") for cond in conds.values() for entry in cond)
    return any(area is not None and area[0] != "percentage" for area in areas)
