"""Degradations of pixels, frame by frame, and the noise on latents.

Dims: F pixel frames, 3 colours, H, W pixels; latents [B, C, T, H, W] in cells. Frames are 0..1 in
fp32; every operation returns a new tensor within 0..1, and a frame's result does not depend on the
number of frames. Random operations take a generator and draw on its device.
"""

from collections.abc import Callable
from math import cos, pi, sin

import torch
from torch import Tensor

from ..checks import check_choice
from ..flow import interpolate
from ..resample import resize as resample
from .record import METHODS, NOISES, SHAPES

PHOTONS = 256
"""Photons at white of the Poisson noise, as for 8-bit pictures in Real-ESRGAN."""
LUMA = (0.299, 0.587, 0.114)


def blur_kernel(
    shape: str, size: int, sigma: tuple[float, float], angle: float = 0.0, beta: float = 1.0
) -> Tensor:
    """Build a blur kernel over q, the squared distance in sigmas along rotated axes.

    gaussian: exp(-q / 2). generalised: exp(-q**beta / 2). plateau: 1 / (1 + q**beta).

    Args:
        shape: one of SHAPES.
        size: odd, pixels.
        sigma: pixels along x and y before the rotation by `angle` radians.
        beta: exponent; unused for gaussian.

    Returns:
        [size, size] in fp64, sums to 1.

    Source: Real-ESRGAN 3.2 and its code; gaussian at angle 0 is kornia's.
    """
    check_choice(shape, "shape", SHAPES)
    y, x = _grid(size)
    along = (cos(angle) * x + sin(angle) * y) / sigma[0]
    across = (cos(angle) * y - sin(angle) * x) / sigma[1]
    q = along.square() + across.square()
    if shape != "gaussian":
        q = q.pow(beta)
    kernel = 1 / (1 + q) if shape == "plateau" else torch.exp(-q / 2)
    return kernel / kernel.sum()


def sinc_kernel(size: int, cutoff: float) -> Tensor:
    """Build the circular low-pass filter that passes frequencies up to `cutoff` radians a pixel.

    Returns:
        [size, size] in fp64, sums to 1; some weights are negative.

    Source: Real-ESRGAN 3.4 and its code.
    """
    y, x = _grid(size)
    radius = (x.square() + y.square()).sqrt()
    kernel = cutoff * torch.special.bessel_j1(cutoff * radius) / (2 * pi * radius)
    kernel[size // 2, size // 2] = cutoff**2 / (4 * pi)
    return kernel / kernel.sum()


def blur(frames: Tensor, kernel: Tensor) -> Tensor:
    """Filter every frame and colour with one kernel [k, k].

    Borders are mirrored, or repeated where a side is no longer than half the kernel.
    """
    from kornia.filters import filter2d

    kernel = kernel.to(frames)[None]
    border = "reflect" if min(frames.shape[-2:]) > kernel.shape[-1] // 2 else "replicate"
    return _each(frames, lambda frame: filter2d(frame, kernel, border_type=border).clamp(0, 1))


def resize(frames: Tensor, size: tuple[int, int], method: str) -> Tensor:
    """Resize every frame; bilinear has no prefilter, so it aliases; bicubic has one.

    Args:
        size: (height, width).
        method: one of METHODS.
    """
    check_choice(method, "method", METHODS)
    if tuple(frames.shape[-2:]) == tuple(size):
        return frames.clone()
    return _each(frames, lambda frame: resample(frame, size, method).clamp(0, 1))


def noise(
    frames: Tensor, kind: str, level: float, gray: bool, generator: torch.Generator
) -> Tensor:
    """Add noise, new in every frame, with mean 0 except for the clamp.

    Args:
        kind: one of NOISES.
        level: gaussian, the standard deviation in 1/255; poisson, a factor on the noise of PHOTONS,
            whose standard deviation is sqrt(x / PHOTONS).
        gray: one draw for the three colours, for poisson at their luma.
        generator: advanced by every frame in turn.

    Source: Real-ESRGAN 3.2 and its code, with PHOTONS for its count of distinct values.
    """
    check_choice(kind, "kind", NOISES)
    draw = _gaussian if kind == "gaussian" else _poisson
    return _each(frames, lambda frame: (frame + level * draw(frame, gray, generator)).clamp(0, 1))


def _gaussian(frame: Tensor, gray: bool, generator: torch.Generator) -> Tensor:
    shape = (1, 1 if gray else 3, *frame.shape[-2:])
    eps = torch.randn(shape, generator=generator, device=generator.device)
    return eps.to(frame) / 255


def _poisson(frame: Tensor, gray: bool, generator: torch.Generator) -> Tensor:
    rate = frame.to(generator.device)
    if gray:
        rate = (rate * rate.new_tensor(LUMA)[:, None, None]).sum(1, keepdim=True)
    rate = rate * PHOTONS
    return ((torch.poisson(rate, generator=generator) - rate) / PHOTONS).to(frame)


def jpeg(frames: Tensor, quality: int) -> Tensor:
    """Quantise every frame as JPEG does, with halved chroma, without writing a file.

    kornia's rounding is differentiable: a coefficient halfway between two levels keeps a quarter
    of its remainder, so the blocks are slightly weaker than a file's.

    Args:
        quality: 1 to 100.
    """
    from kornia.enhance import jpeg_codec_differentiable

    level = torch.tensor([float(quality)], device=frames.device)
    return _each(frames, lambda frame: jpeg_codec_differentiable(frame, level).clamp(0, 1))


def add_latent_noise(z: Tensor, strength: float | Tensor, generator: torch.Generator) -> Tensor:
    """Noise a degraded latent: (1 - s) * z + s * eps.

    Args:
        z: [B, C, (T,) H, W], floating; not changed.
        strength: s in 0..1, a number or one per sample, [B]; see `draw_strength`.
        generator: of eps, which is drawn in fp32 on the generator's device.

    Returns:
        Shape, dtype and device of z.

    Raises:
        ValueError: z is not floating, or s is outside 0..1 or not one or B numbers.

    Source: SURF B.3 for the range [0.6, 0.9]; `flow.interpolate` for the formula.
    """
    if not isinstance(z, Tensor) or not z.is_floating_point() or z.ndim not in (4, 5):
        got = f"{tuple(z.shape)}, {z.dtype}" if isinstance(z, Tensor) else type(z).__name__
        raise ValueError(
            f"expected a floating point latent [B, C, (T,) H, W], got {got}; encode the frames."
        )
    s = torch.as_tensor(strength, dtype=torch.float32, device=z.device)
    if tuple(s.shape) not in ((), (z.shape[0],)) or not ((s >= 0) & (s <= 1)).all():
        raise ValueError(
            f"expected one noise strength within 0 to 1 or {z.shape[0]} of them, got {strength}; "
            "take it from draw_strength()."
        )
    eps = torch.randn(z.shape, generator=generator, device=generator.device).to(z.device)
    s = s.reshape(-1, *[1] * (z.ndim - 1))
    return interpolate(z.float(), eps, s).to(z.dtype)


def _grid(size: int) -> tuple[Tensor, Tensor]:
    """Return row and column offsets from the middle: [size, 1], [1, size]."""
    line = torch.arange(size, dtype=torch.float64) - size // 2
    return line[:, None], line[None]


def _each(frames: Tensor, change: Callable[[Tensor], Tensor]) -> Tensor:
    """Apply `change` frame by frame, so that bits and memory do not depend on the clip's length."""
    return torch.cat([change(frame[None]) for frame in frames])
