"""Straight paths between two latents, and the Euler steps that follow them.

A velocity is the far end minus the clean end: noise - x0 for a flow model, z_lr - z_hr for the
flow map. Sigma and t run from 1 (noise, blurred) to 0 (clean, sharp).

Dims: B batch, C channels, T latent frames, H, W latent cells.
"""

from collections.abc import Callable
from itertools import pairwise

import torch
from torch import Tensor

from .checks import check_latent, check_range
from .schedule import check_sigmas, flow_sigmas

Velocity = Callable[[Tensor, float], Tensor]
"""(z [B, C, ...], sigma in 0..1) -> velocity, shaped like z."""
OnStep = Callable[[int, Tensor, Tensor], None]
"""(step from 0, the latent that the model saw, its clean estimate); may raise to cancel."""


def interpolate(z_hr: Tensor, z_lr: Tensor, t) -> Tensor:
    """Walk the share `t` of the way from sharp to blurred: (1 - t) * z_hr + t * z_lr.

    Args:
        z_hr, z_lr: one shape.
        t: a float, or a tensor that broadcasts, e.g. [B, 1, 1, 1, 1]; 0..1.

    Source: SURF B.2.
    """
    return (1 - t) * z_hr + t * z_lr


def velocity_target(z_hr: Tensor, z_lr: Tensor) -> Tensor:
    """What the refiner learns at every t: z_lr - z_hr. Source: SURF B.2."""
    return z_lr - z_hr


def euler(velocity: Velocity, z: Tensor, sigmas: Tensor, on_step: OnStep | None = None) -> Tensor:
    """Follow dz = velocity dsigma down the schedule, one evaluation per interval.

    Exact for a velocity that does not change along the way. A schedule that ends in 0 ends in the
    clean estimate of its last evaluation.

    Args:
        velocity: called with z and sigma as a float.
        z: [B, C, (T,) H, W] at sigmas[0]; not changed.
        sigmas: [N + 1], non-increasing.
        on_step: called after every evaluation.

    Returns:
        The latent at sigmas[-1], shape and dtype of z, a new tensor.

    Raises:
        ValueError: a bad latent or schedule.

    Source: SURF eq. 1.
    """
    check_latent(z, "the start latent")
    check_sigmas(sigmas)
    for step, (sigma, lower) in enumerate(pairwise(sigmas.tolist())):
        v = velocity(z, sigma)
        if on_step is not None:
            on_step(step, z, z - sigma * v)
        z = z + (lower - sigma) * v
    return z


def flow_map(
    velocity: Velocity,
    z_lr: Tensor,
    steps: int,
    shift: float = 1.0,
    on_step: OnStep | None = None,
) -> Tensor:
    """Map an upsampled preview to a sharp latent with a refiner trained for it.

    Args:
        velocity: predicts z_lr - z_hr from z_t and t.
        z_lr: [B, C, (T,) H, W], already at the target size.
        steps: evaluations, 10 in the paper.
        shift: timestep shift, 1 in the paper.

    Returns:
        z_hr, shape and dtype of z_lr, a new tensor.

    Source: SURF 3.3, B.2, Tab. R6.
    """
    return euler(velocity, z_lr, flow_sigmas(steps, shift), on_step)


def refine(
    velocity: Velocity,
    start: Tensor,
    sigma_start: float,
    steps: int,
    noise: Tensor,
    on_step: OnStep | None = None,
) -> Tensor:
    """Sharpen an upsampled preview with any flow model: noise it part of the way, then go down.

    Args:
        velocity: predicts noise - x0.
        start: [B, C, (T,) H, W], clean, already at the target size.
        sigma_start: how far to noise it, above 0 to 1; 0.65, lower keeps more.
        steps: evaluations, linear in sigma.
        noise: standard normal, shape of `start`.

    Returns:
        A clean latent, shape and dtype of `start`, a new tensor.

    Raises:
        ValueError: sigma_start out of range, steps < 1, or noise of another shape.

    Source: ours, after SDEdit; the paper trains a refiner instead.
    """
    check_range(sigma_start, "sigma_start", 1e-4, 1.0, "use 0.65")
    if steps < 1:
        raise ValueError(f"expected at least one step, got {steps=}; use 10.")
    if noise.shape != start.shape:
        raise ValueError(
            f"noise must be shaped like the latent, got {tuple(noise.shape)} for "
            f"{tuple(start.shape)}; draw it at the target size."
        )
    sigmas = torch.linspace(sigma_start, 0, steps + 1, dtype=torch.float64)
    return euler(velocity, interpolate(start, noise, sigma_start), sigmas, on_step)
