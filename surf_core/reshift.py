"""Change resolution mid-denoising: estimate the clean latent, resize it, renoise it.

A noisy latent is never resized: averaging takes variance out of its noise.

Dims: B batch, C channels, T latent frames, H, W latent cells before, h, w after.
"""

from itertools import count
from math import sqrt

import torch
from torch import Generator, Tensor

from .checks import check_choice, check_latent, check_range
from .flow import Velocity, euler, interpolate
from .lowband import lock_low_band
from .resample import resize
from .schedule import switch

NOISE_POLICIES = ("fresh", "inherited")
"""What noise the smaller latent gets: new (SURF), or what is left of the larger one's (ours)."""
DEFAULT_NOISE = "inherited"
"""Used where the caller does not choose."""
LOCK_FACTOR = 2.0
"""What half of the preview's sides can hold is held to the switch by `hold_low_band`."""
DEFAULT_SIGMA = "snr_equal"
"""Default of `sigma_policy`, see `surf_core.schedule.SIGMA_POLICIES`."""


def renoise(x0: Tensor, sigma: float, noise: Tensor) -> Tensor:
    """Noise a clean latent to sigma: (1 - sigma) * x0 + sigma * noise.

    Source: SURF eq. 2 in the form that flow models are trained on.
    """
    return interpolate(x0, noise, sigma)


def implied_noise(z: Tensor, x0: Tensor, sigma: float) -> Tensor:
    """Solve `renoise` for the noise: (z - (1 - sigma) * x0) / sigma.

    Euler steps on one velocity keep it: before and after the step it is x0 + velocity.

    Raises:
        ValueError: sigma is 0, where a latent holds no noise.
    """
    if not sigma > 0:
        raise ValueError(f"sigma must be above 0, got {sigma=}; a clean latent holds no noise.")
    return (z - (1 - sigma) * x0) / sigma


def inherit_noise(noise: Tensor, size: tuple[int, int]) -> Tensor:
    """Average noise down to a smaller grid, scaled so that it stays white with unit variance.

    At whole ratios every value belongs to one cell, and the mean of n of them times sqrt(n) has
    their variance. At others the map that resizes the clean estimate is replaced by the nearest
    one with orthonormal rows, which leaves noise white and its low band where it is. The deviation
    that remains is measured per sample and divided out. At its own size noise stays as it is.

    Args:
        noise: [B, C, H, W] or [B, C, T, H, W], about standard normal.
        size: (h, w), at most (H, W).

    Returns:
        [B, C, (T,) h, w], dtype of noise, a new tensor; mean square 1 per sample where it shrank.

    Raises:
        ValueError: a size larger than the noise, which would need noise that is not there.

    Source: ours.
    """
    check_latent(noise, "noise")
    (rows, columns), (high, wide) = size, noise.shape[-2:]
    if not (1 <= rows <= high and 1 <= columns <= wide):
        raise ValueError(
            f"inherited noise can only shrink, got {size=} from {(high, wide)}; "
            "choose a lower resolution or fresh noise."
        )
    if (rows, columns) == (high, wide):
        return noise.clone()
    wider = noise if noise.dtype == torch.float64 else noise.float()
    down, across = white_map(high, rows, wider), white_map(wide, columns, wider)
    small = torch.einsum("hH,...HW,wW->...hw", down, wider, across)
    power = small.square().flatten(1).mean(dim=1).clamp_min(1e-12)
    return (small / power.sqrt().view(-1, *[1] * (small.ndim - 1))).to(noise.dtype)


def white_map(count: int, parts: int, like: Tensor) -> Tensor:
    """Map `count` cells to `parts`, in order: [parts, count], orthonormal rows.

    (M M^T)^(-1/2) M for the map M that `resize` applies along an axis: the matrix of orthonormal
    rows nearest to it. By singular values, as M may be nearly singular.
    """
    if count % parts == 0:
        owner = torch.arange(count, device=like.device) * parts // count
        matrix = torch.nn.functional.one_hot(owner, parts).T.to(like)
        return matrix / matrix.sum(dim=1, keepdim=True).sqrt()
    plain = torch.eye(count, dtype=torch.float64)[None, None]
    left, _, right = torch.linalg.svd(resize(plain, (parts, count))[0, 0], full_matrices=False)
    return (left @ right).to(like)


def reshift(
    x0: Tensor, sigma: float, size: tuple[int, int], noise: Tensor, method: str = "auto"
) -> Tensor:
    """Resize a clean estimate and renoise it to the first sigma of the low-resolution leg.

    Args:
        x0: [B, C, H, W] or [B, C, T, H, W], clean estimate; not changed.
        sigma: 0..1, the first of the low-resolution leg.
        size: (h, w).
        noise: [B, C, (T,) h, w].
        method: see `surf_core.resample.resize`.

    Returns:
        [B, C, (T,) h, w], a new tensor.

    Raises:
        ValueError: noise of another shape than the resized estimate.

    Source: SURF 3.2, eq. 2.
    """
    check_range(sigma, "sigma", 0.0, 1.0, "pass a flow model's noise level")
    small = resize(x0, size, method)
    if noise.shape != small.shape:
        raise ValueError(
            f"noise must be drawn at the new size {tuple(small.shape)}, "
            f"got {tuple(noise.shape)}; draw it for {size=}."
        )
    return renoise(small, sigma, noise)


def preview(
    velocity: Velocity,
    z: Tensor,
    sigmas: Tensor,
    step: int,
    size: tuple[int, int],
    *,
    noise: Tensor | Generator | None = None,
    velocity_low: Velocity | None = None,
    sigma_policy: str = DEFAULT_SIGMA,
    noise_policy: str = DEFAULT_NOISE,
    handover: str = "reuse",
    low_band_lock: float = 0.0,
) -> Tensor:
    """Sample a preview: the first steps at the resolution of z, the rest at `size`.

    Args:
        velocity: noise - x0, called with (z, sigma).
        z: [B, C, H, W] or [B, C, T, H, W] at sigmas[0]; not changed.
        sigmas: [N + 1], non-increasing.
        step: evaluations before the switch, 0..N; N never leaves the resolution of z.
        size: (h, w) of the preview.
        noise: for "fresh": [B, C, (T,) h, w], or a generator to draw it from.
        velocity_low: the velocity below the switch, e.g. with less guidance; default `velocity`.
        sigma_policy, handover: see `surf_core.schedule.switch`.
        noise_policy: one of NOISE_POLICIES.
        low_band_lock: share of the steps at `size`, the first ones, that hold the low band of the
            clean estimate to that of the switch, see `hold_low_band`; 0 holds none.

    Returns:
        [B, C, (T,) h, w] at sigmas[-1], a new tensor.

    Raises:
        ValueError: bad sizes, schedule or policy; "fresh" without noise; or `step` 0 on a latent
            that is not pure noise, which cannot be resized.

    Source: SURF 3.2, eq. 1 and 2; the lock is ours.
    """
    check_range(low_band_lock, "low_band_lock", 0.0, 1.0, "use 0 for none, or 0.33")
    check_choice(noise_policy, "noise_policy", NOISE_POLICIES)
    ratio = sqrt(z.shape[-2] * z.shape[-1] / max(1, size[0] * size[1]))
    cut = switch(sigmas, step, ratio=ratio, sigma_policy=sigma_policy, handover=handover)
    if not len(cut.low):
        return euler(velocity, z, cut.high)
    if not len(cut.high):
        if cut.sigma < 1:
            raise ValueError(
                f"a latent at sigma {cut.sigma} cannot be resized, got {step=}; start from "
                "noise or take at least one step before the switch."
            )
        z_low = inherit_noise(z, size) if noise_policy == "inherited" else _draw(noise, z, size)
        return euler(velocity_low or velocity, z_low, cut.low)
    evaluated: list[Tensor] = []
    x0 = euler(velocity, z, cut.high, lambda _, latent, clean: evaluated.append(latent))
    if noise_policy == "inherited":
        noise = inherit_noise(implied_noise(evaluated[-1], x0, cut.high[-2].item()), size)
    z_low = reshift(x0, cut.sigma, size, _draw(noise, x0, size))
    locked = round(low_band_lock * (len(cut.low) - 1))
    low = hold_low_band(velocity_low or velocity, resize(x0, size), locked)
    return euler(low, z_low, cut.low)


def hold_low_band(
    velocity: Velocity, reference: Tensor, steps: int, factor: float = LOCK_FACTOR
) -> Velocity:
    """Hold the low band of the first clean estimates to that of the switch.

    The low-resolution steps redraw what the switch has handed over; while they are held, they add
    detail alone. It costs no evaluation.

    Args:
        velocity: noise - x0, called with (z, sigma), once a step.
        reference: the clean estimate at the switch, at the new size; not changed.
        steps: calls that are held; 0 returns `velocity` itself.
        factor: see `lowband.low_band`.

    Returns:
        A velocity that counts its calls, for one run.

    Source: ours.
    """
    if not steps:
        return velocity
    calls = count()

    def held(z: Tensor, sigma: float) -> Tensor:
        found = velocity(z, sigma)
        if next(calls) >= steps or not sigma > 0:
            return found
        clean = lock_low_band(z - sigma * found, reference.to(z), factor)
        return (z - clean) / sigma

    return held


def _draw(noise: Tensor | Generator | None, like: Tensor, size: tuple[int, int]) -> Tensor:
    if noise is None:
        raise ValueError(
            'noise_policy "fresh" needs noise, got None; pass a tensor at the new size or a '
            "generator."
        )
    if isinstance(noise, Generator):
        shape = (*like.shape[:-2], *size)
        noise = torch.randn(shape, generator=noise, device=noise.device)
    return noise.to(like)
