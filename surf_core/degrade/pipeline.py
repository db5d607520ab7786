"""Do to a clip what its record says.

Dims: F pixel frames, 3 colours, H, W pixels.
"""

import torch
from torch import Tensor

from . import ops
from .codec import compress
from .draw import seeded
from .record import Blur, Codec, Degradation, Jpeg, Noise, Resize, Sinc, Step


def degrade(frames: Tensor, degradation: Degradation) -> Tensor:
    """Make the low-resolution clip of a record; the same clip and record give the same bits.

    Real-ESRGAN sharpens its pictures before; this does not, a clip is taken as it is.

    Args:
        frames: [F, 3, H, W] in 0..1, floating, any device; not changed. Computed in fp32.
        degradation: see `draw` and `Degradation.from_json`.

    Returns:
        [F, 3, h, w] of `degraded_size`, rounded to multiples of 1/255, dtype and device of
        `frames`; a new tensor, frames in the same order.

    Raises:
        ValueError: no clip, values outside 0..1, or sides that do not divide by the scale.
        ImportError, RuntimeError: see `codec.compress`, for records with a video encoder.

    Source: Real-ESRGAN 3, RealBasicVSR for video.
    """
    _check(frames)
    high = (frames.shape[-2], frames.shape[-1])
    low = degraded_size(high, degradation)
    out = frames.detach().float()
    for index, step in enumerate(degradation.steps):
        # A stream for each step: its noise does not depend on how much an earlier step drew.
        out = _apply(step, out, high, low, seeded(degradation.noise_seed, index))
    return ((out * 255).round() / 255).to(frames.dtype)


def degraded_size(size: tuple[int, int], degradation: Degradation) -> tuple[int, int]:
    """(height, width) that a clip of `size` has after `degrade`.

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
    step: Step,
    frames: Tensor,
    high: tuple[int, int],
    low: tuple[int, int],
    generator: torch.Generator,
) -> Tensor:
    match step:
        case Blur():
            kernel = ops.blur_kernel(step.shape, step.size, step.sigma, step.angle, step.beta)
            return ops.blur(frames, kernel)
        case Sinc():
            return ops.blur(frames, ops.sinc_kernel(step.size, step.cutoff))
        case Resize():
            rows, columns = high if step.of == "high" else low
            size = max(1, round(rows * step.factor)), max(1, round(columns * step.factor))
            return ops.resize(frames, size, step.method)
        case Noise():
            return ops.noise(frames, step.kind, step.level, step.gray, generator)
        case Jpeg():
            return ops.jpeg(frames, step.quality)
        case Codec():
            return compress(frames, step.name, step.quality)
    raise AssertionError(f"no operation for {step!r}")


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
