"""Apply a recorded degradation to a clip.

Dims: F pixel frames, 3 colours, H, W pixels.
"""

import torch
from torch import Tensor

from . import ops
from .codec import compress
from .draw import seeded
from .record import Blur, Codec, Degradation, Jpeg, Noise, Operation, Resize, Sinc


def degrade(frames: Tensor, degradation: Degradation) -> Tensor:
    """Degrade a clip by its record; the same clip and record give the same bits.

    Real-ESRGAN sharpens the sharp pictures before it degrades them (unsharp mask, USM). That is
    left out: the target of the training is the clip as it is, so that a refiner learns no halos.

    Args:
        frames: [F, 3, H, W] in 0..1, floating, any device; not changed. Computed in fp32.
        degradation: see `draw` and `Degradation.from_json`.

    Returns:
        [F, 3, h, w] of `degraded_size`, rounded to multiples of 1/255, dtype and device of
        `frames`; a new tensor, frames in the same order.

    Raises:
        ValueError: no clip, values outside 0..1, or sides that do not divide by the scale.
        ImportError, RuntimeError: see `codec.compress`, for records with a video encoder.

    Source: Real-ESRGAN 3 without its USM, RealBasicVSR for video.
    """
    _check(frames)
    high = (frames.shape[-2], frames.shape[-1])
    low = degraded_size(high, degradation)
    out = frames.detach().float()
    for index, operation in enumerate(degradation.operations):
        # A generator for each, so that noise does not depend on how much was drawn before.
        out = _apply(operation, out, high, low, seeded(degradation.noise_seed, index))
    return ((out * 255).round() / 255).to(frames.dtype)


def degraded_size(size: tuple[int, int], degradation: Degradation) -> tuple[int, int]:
    """Return the (height, width) of a clip of `size` after `degrade`.

    Raises:
        ValueError: the record names no size, and a side does not divide by its scale.
    """
    if degradation.size is not None:
        return degradation.size
    scale = degradation.scale
    sides = [side / scale for side in size]
    if any(abs(side - round(side)) > 1e-6 or round(side) < 1 for side in sides):
        raise ValueError(
            f"expected sides that are whole after division by {scale}, got {size}; crop the clip, "
            "or give draw() the size of the degraded clip."
        )
    return round(sides[0]), round(sides[1])


def _apply(
    operation: Operation,
    frames: Tensor,
    high: tuple[int, int],
    low: tuple[int, int],
    generator: torch.Generator,
) -> Tensor:
    match operation:
        case Blur(shape=shape, size=width, sigma=sigma, angle=angle, beta=beta):
            return ops.blur(frames, ops.blur_kernel(shape, width, sigma, angle, beta))
        case Sinc(size=width, cutoff=cutoff):
            return ops.blur(frames, ops.sinc_kernel(width, cutoff))
        case Resize(factor=factor, of=of, method=method):
            rows, columns = high if of == "high" else low
            size = max(1, round(rows * factor)), max(1, round(columns * factor))
            return ops.resize(frames, size, method)
        case Noise(kind=kind, level=level, gray=gray):
            return ops.noise(frames, kind, level, gray, generator)
        case Jpeg(quality=quality):
            return ops.jpeg(frames, quality)
        case Codec(name=name, quality=quality):
            return compress(frames, name, quality)


def _check(frames: Tensor) -> None:
    got = type(frames).__name__
    if isinstance(frames, Tensor):
        got = f"{tuple(frames.shape)}, {frames.dtype}"
        clip = frames.ndim == 4 and frames.shape[1] == 3 and frames.is_floating_point()
        if clip and frames.numel():
            low, high = frames.amin().item(), frames.amax().item()
            if low >= 0 and high <= 1:
                return
            got = f"values from {low} to {high}"
    raise ValueError(
        f"expected floating point frames [F, 3, H, W] within 0 to 1, got {got}; divide bytes by "
        "255, put colours second, and cut the clip before degrading it."
    )
