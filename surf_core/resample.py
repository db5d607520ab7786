"""Resize in space, never in time, and choose sizes that a model can take.

Dims: B batch, C channels, T frames, H, W rows and columns (latent cells or pixels).
"""

from math import isfinite, log, sqrt

import torch
import torch.nn.functional as F
from torch import Tensor

from .checks import check_choice

BUCKETS = {
    "2160p": ((2880, 2880), (2160, 3840)),
    "1440p": ((1920, 1920), (1440, 2560)),
    "1080p": ((1440, 1440), (1080, 1920)),
    "720p": ((960, 960), (720, 1280)),
    "480p": ((576, 576), (480, 832)),
    "240p": ((336, 336), (240, 416)),
}
"""Pixel sizes (height, width), 1:1 and 16:9; portrait is the transpose. Source: SURF Tab. R7; above
1080p ours, of the same area in both shapes as there. 2160p is also called 4K."""
RESOLUTIONS = ("by scale", "240p", "480p", "720p", "1080p", "by size")
"""Ways to name the size of a preview, see `target_size`; larger buckets are a refiner's targets."""
METHODS = ("auto", "bilinear", "area", "bicubic")
"""Ways to resize, see `resize`."""

_CELL_PIXELS = {3: 1, 4: 8, 12: 8, 16: 8, 24: 16, 32: 16, 48: 16}
_CELL_PIXELS_BY_KIND = {("image", 64): 32, ("image", 128): 16, ("video", 128): 32}
_SAME_ASPECT = 0.04


def resize(x: Tensor, size: tuple[int, int], method: str = "auto") -> Tensor:
    """Resize every frame on its own.

    "auto" copies at the same size, takes the mean of 2x2 cells at exactly half (bilinear without
    a prefilter is just that), the block mean at other whole ratios, and otherwise bilinear with a
    prefilter as wide as the ratio, since without one a third of the size would be every third
    cell. Upscales are bilinear too, as in the paper: bicubic overshoots, and a latent has no
    bounds to clamp it to.

    Args:
        x: [B, C, H, W] or [B, C, T, H, W], floating; half precision is computed in fp32.
        size: target (rows, columns), >= 1, in the unit of H, W.
        method: "bilinear" has no prefilter, as the host's latent nodes; "area" is the mean over
            the cells that a target cell touches; "bicubic" has a prefilter.

    Returns:
        [B, C, (T,) *size], dtype of x; always a new tensor.

    Raises:
        ValueError: x is not 4-D or 5-D, a size below 1, or an unknown method.

    Source: SURF 3.2 (linear downscale), 3.3 (linear upsample); the prefilter is ours.
    """
    check_choice(method, "method", METHODS)
    if x.ndim not in (4, 5) or not x.is_floating_point():
        raise ValueError(
            f"expected floating point [B, C, H, W] or [B, C, T, H, W], got {tuple(x.shape)}, "
            f"{x.dtype}; pass a latent or frames."
        )
    rows, columns = (int(side) for side in size)
    if rows < 1 or columns < 1:
        raise ValueError(f"expected a size of at least 1x1, got {size=}; choose a larger scale.")
    if method == "auto" and x.shape[-2:] == (rows, columns):
        return x.clone(memory_format=torch.contiguous_format)
    planes = x.flatten(1, -3)
    planes = planes if planes.dtype == torch.float64 else planes.float()
    out = _interpolate(planes, (rows, columns), method)
    return out.reshape(*x.shape[:-2], rows, columns).to(x.dtype)


def resize_part(
    x: Tensor, size: tuple[int, int], box: tuple[slice, slice], method: str = "bicubic"
) -> Tensor:
    """Compute one box of what `resize` would return, from the cells that it depends on alone.

    Args:
        x: [..., H, W], floating; half precision is computed in fp32.
        size: rows and columns of the whole result.
        box: rows and columns of the part.
        method: any but "auto".

    Returns:
        [..., rows, columns] of the box, dtype of x; equal to `resize` but for rounding.

    Raises:
        ValueError: an unknown method, or a box that reaches beyond `size`.

    Source: ours; these resizes are separable and linear.
    """
    check_choice(method, "method", METHODS[1:])
    if any(not 0 <= part.start < part.stop <= side for part, side in zip(box, size, strict=True)):
        raise ValueError(f"expected a part within {size}, got {box}; cut it out of the result.")
    exact = torch.float64 if x.dtype == torch.float64 else torch.float32
    (rows, down), (columns, across) = (
        _weights(length, new, part, method, exact)
        for length, new, part in zip(x.shape[-2:], size, box, strict=True)
    )
    needed = x[..., rows, columns].to(exact)
    out = torch.einsum("or,...rc,pc->...op", down.to(x.device), needed, across.to(x.device))
    return out.to(x.dtype)


def _weights(
    length: int, new: int, part: slice, method: str, dtype: torch.dtype
) -> tuple[slice, Tensor]:
    """Return which cells of an axis `part` depends on, and their weights [part, cells]."""
    unit = torch.eye(length, dtype=dtype)[None, None]
    matrix = _interpolate(unit, (new, length), method)[0, 0, part]
    used = matrix.any(dim=0).nonzero()
    cells = slice(int(used[0]), int(used[-1]) + 1)
    return cells, matrix[:, cells]


def _interpolate(planes: Tensor, size: tuple[int, int], method: str) -> Tensor:
    if method == "auto":
        source = tuple(planes.shape[-2:])
        half = source == (2 * size[0], 2 * size[1])
        whole = all(big % small == 0 for big, small in zip(source, size, strict=True))
        if whole and not half:
            return F.interpolate(planes, size, mode="area")
        return F.interpolate(planes, size, mode="bilinear", antialias=not half)
    if method == "area":
        return F.interpolate(planes, size, mode="area")
    return F.interpolate(planes, size, mode=method, antialias=method == "bicubic")


def cell_pixels(channels: int, *, video: bool = True) -> int | None:
    """Return the pixels along a side of a latent cell, by the latent's channels.

    16 is Wan 2.1, HunyuanVideo and most others: 8. 48 is Wan 2.2 5B, 32 HunyuanVideo 1.5: 16.
    128 is LTX-Video: 32, of an image Flux 2: 16; 64 of an image HunyuanImage 2.1: 32. 3 is a model
    of pixels.

    Args:
        video: whether the latent has an axis of frames.

    Returns:
        None where channels do not tell.
    """
    kind = "video" if video else "image"
    return _CELL_PIXELS.get(channels) or _CELL_PIXELS_BY_KIND.get((kind, channels))


def snap(pixels: tuple[float, float], multiple: int) -> tuple[int, int]:
    """Round (height, width) to the nearest multiples, up from the middle, at least one."""
    height, width = (max(1, int(side / multiple + 0.5)) * multiple for side in pixels)
    return height, width


def target_size(
    source: tuple[int, int],
    *,
    resolution: str,
    scale: float = 1.0,
    width: int = 0,
    height: int = 0,
    multiple: int = 16,
    exact: bool = False,
) -> tuple[int, int]:
    """Return the size in pixels that a resolution, a scale or a width and height stand for.

    Rounding to multiples stretches the picture a little; nothing is cropped.

    Args:
        source: (height, width) in pixels.
        resolution: "by scale" takes source * scale; a bucket name takes the bucket of the
            source's shape when that is within 4 % of 1:1, 16:9 or 9:16, else the source's own
            shape at the bucket's area; "by size" takes (height, width).
        scale: factor per side, > 0.
        width, height: pixels, for "by size".
        multiple: pixels that height and width must be multiples of: 16, or 32 for Wan 2.2 5B.
        exact: do not round a bucket in its own shapes (1080 stays 1080), for callers that pad and
            crop.

    Returns:
        (height, width) in pixels, multiples of `multiple` but for `exact`.

    Raises:
        ValueError: an unknown resolution, a scale that is not positive, or for "by size" a side
            that is no multiple; the message names the nearest that are.

    Source: SURF Tab. R7; other shapes are ours.
    """
    check_choice(resolution, "resolution", ("by scale", *reversed(BUCKETS), "by size"))
    if resolution == "by size":
        for name, side in (("width", width), ("height", height)):
            if side < 1 or side % multiple:
                below = side // multiple * multiple
                sides = [str(fit) for fit in (below, below + multiple) if fit > 0]
                raise ValueError(
                    f"{name} {side} is not a multiple of {multiple}; use {' or '.join(sides)}."
                )
        return height, width
    if resolution == "by scale":
        if not isfinite(scale) or scale <= 0:
            raise ValueError(f"scale must be above 0, got {scale=}; use 0.5 for half of each side.")
        return snap((source[0] * scale, source[1] * scale), multiple)
    aspect = source[1] / source[0]
    bucket = _nearest_shape(aspect, resolution)
    if abs(aspect * bucket[0] / bucket[1] - 1) <= _SAME_ASPECT:
        return bucket if exact else snap(bucket, multiple)
    area = bucket[0] * bucket[1]
    return snap((sqrt(area / aspect), sqrt(area * aspect)), multiple)


def _nearest_shape(aspect: float, resolution: str) -> tuple[int, int]:
    """Return (height, width) of the bucket's shape that is nearest to width / height = aspect."""
    square, (height, width) = BUCKETS[resolution]
    shapes = (square, (height, width), (width, height))
    return min(shapes, key=lambda shape: abs(log(aspect * shape[0] / shape[1])))
