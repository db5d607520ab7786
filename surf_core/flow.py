"""Straight paths between two latents: interpolation, Euler sampling, refining.

A velocity is the far end minus the clean end: noise - x0 for a flow model, z_lr - z_hr for the
flow map. Sigma and t run from 1 (noise, blurred) to 0 (clean, sharp).

Dims: B batch, C channels, T latent frames, H, W latent cells.
"""

from collections.abc import Callable
from itertools import pairwise
from typing import Protocol

import torch
from torch import Tensor

from .checks import check_choice, check_latent, check_range
from .schedule import check_sigmas, shift_sigma

TIMES = ("sigma", "t")
"""Parametrisations of a refiner: fed the noise level it predicts a flow model's velocity, fed the
position t along the flow map it predicts the flow map's; see `refine`."""

Velocity = Callable[[Tensor, float], Tensor]
"""(z [B, C, ...], level in 0..1: sigma, or t) -> velocity, shaped like z."""
OnStep = Callable[[int, Tensor, Tensor], None]
"""(step from 0, the latent that was evaluated, its clean estimate); may raise to cancel."""


class RefinerTimes(Protocol):
    """The part of a refiner's config that `refine_with` reads, see `RefinerConfig`."""

    @property
    def time(self) -> str: ...

    @property
    def sigma_start(self) -> float | None: ...

    @property
    def sigma_start_range(self) -> tuple[float, float] | None: ...


class Refiner(Protocol):
    """A network (z, timestep [B] in 0..1000, context, ...) -> velocity, with its config."""

    @property
    def config(self) -> RefinerTimes: ...

    @property
    def __call__(self) -> Callable[..., Tensor]: ...


def interpolate(z_hr: Tensor, z_lr: Tensor, t: float | Tensor) -> Tensor:
    """Interpolate from sharp (t = 0) to blurred (t = 1): (1 - t) * z_hr + t * z_lr.

    Args:
        z_hr, z_lr: one shape.
        t: 0..1, a float, or a tensor that broadcasts, e.g. [B, 1, 1, 1, 1].

    Source: SURF B.2.
    """
    return (1 - t) * z_hr + t * z_lr


def velocity_target(z_hr: Tensor, z_lr: Tensor) -> Tensor:
    """Return the refiner's training target, the same at every t: z_lr - z_hr. Source: SURF B.2."""
    return z_lr - z_hr


def euler(velocity: Velocity, z: Tensor, sigmas: Tensor, on_step: OnStep | None = None) -> Tensor:
    """Integrate dz = velocity dsigma down the schedule with Euler's method.

    One evaluation per interval; exact for a constant velocity. A schedule that ends in 0 ends in
    the clean estimate of its last evaluation.

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
    *,
    top: float = 1.0,
) -> Tensor:
    """Map an upsampled preview to a sharp latent with a refiner trained for it.

    Args:
        velocity: predicts z_lr - z_hr from z_t and t.
        z_lr: [B, C, (T,) H, W], already at the target size.
        steps: evaluations, 10 in the paper.
        shift: timestep shift of t, 1 in the paper.
        top: the level at t = 1; with another one than 1, levels are top * t, and the velocity is
            (z_lr - z_hr) / top.

    Returns:
        z_hr, shape and dtype of z_lr, a new tensor.

    Raises:
        ValueError: steps < 1, or a bad shift.

    Source: SURF 3.3, B.2, Tab. R6.
    """
    if steps < 1:
        raise ValueError(f"expected at least one step, got {steps=}; use 10.")
    t = shift_sigma(torch.linspace(1, 0, steps + 1, dtype=torch.float64), shift)
    return euler(velocity, z_lr, top * t, on_step)


def refine(
    velocity: Velocity,
    start: Tensor,
    sigma_start: float,
    steps: int,
    noise: Tensor | None,
    on_step: OnStep | None = None,
    *,
    time: str = "sigma",
    shift: float = 1.0,
) -> Tensor:
    """Sharpen an upsampled preview: noise it to s = sigma_start, then integrate down to clean.

    From z_lr = (1 - s) * start + s * noise to z_hr, in either of two times. In `t`, the paper's,
    the level goes from 1 to 0 and the velocity is z_lr - z_hr. In `sigma` the level is s * t, from
    s to 0, and the velocity (z_lr - z_hr) / s: without blur that is noise - z_hr, what any flow
    model predicts at sigma = s * t. So an untrained text-to-video model refines at any s, and one
    that is trained for s only has to learn that `start` is blurred.

    Args:
        velocity: called with z and the level.
        start: [B, C, (T,) H, W], clean, already at the target size.
        sigma_start: s, above 0 to 1, in `t` also 0; 0.65, lower keeps more.
        steps: evaluations, linear in the level for shift 1.
        noise: standard normal, shape of `start`; None where s is 0.
        time: "sigma" or "t".
        shift: timestep shift of t.

    Returns:
        A clean latent, shape and dtype of `start`, a new tensor.

    Raises:
        ValueError: sigma_start out of range, steps < 1, or noise of another shape.

    Source: SURF 3.3, B.2 in `t`; the sigma form is ours, its untrained case SDEdit (Meng et al.).
    """
    check_choice(time, "time", TIMES)
    check_range(sigma_start, "sigma_start", 1e-4 if time == "sigma" else 0.0, 1.0, "use 0.65")
    z_lr = start
    if sigma_start:
        if noise is None or noise.shape != start.shape:
            got = "none" if noise is None else tuple(noise.shape)
            raise ValueError(
                f"noise must be shaped like the latent, got {got} for {tuple(start.shape)}; "
                "draw it at the target size."
            )
        z_lr = interpolate(start, noise, sigma_start)
    top = sigma_start if time == "sigma" else 1.0
    return flow_map(velocity, z_lr, steps, shift, on_step, top=top)


def model_velocity(
    model: Callable[..., Tensor],
    context: Tensor,
    negative: Tensor | None = None,
    cfg: float = 1.0,
) -> Velocity:
    """Bind a text and guidance to a model: its velocity as a function of latent and level.

    Args:
        model: (z, timestep [B] in 0..1000, context) -> velocity, such as SurfRefinerDiT.
        context, negative: [B, L, text_dim]; negative + cfg * (context - negative) where both are
            given, one after the other: side by side they would need twice the memory.
    """

    def velocity(z: Tensor, level: float) -> Tensor:
        # Never in half precision: bfloat16 knows no whole numbers beyond 256.
        dtype = torch.promote_types(z.dtype, torch.float32)
        timestep = torch.full((len(z),), 1000 * level, dtype=dtype, device=z.device)
        with_text = model(z, timestep, context)
        if negative is None or cfg == 1.0:
            return with_text
        without = model(z, timestep, negative)
        return without + cfg * (with_text - without)

    return velocity


def refine_with(
    model: Refiner,
    start: Tensor,
    context: Tensor,
    *,
    steps: int = 10,
    noise: Tensor | None = None,
    sigma_start: float | None = None,
    negative: Tensor | None = None,
    cfg: float = 1.0,
    shift: float = 1.0,
    on_step: OnStep | None = None,
) -> Tensor:
    """Refine with the time and sigma_start of a model's config, trained or not; see `refine`.

    Args:
        model: as for `model_velocity`, with `config.time` and `config.sigma_start`.
        sigma_start: overrides that of the config; needed where the config has none.

    Raises:
        ValueError: no sigma_start in config or arguments, or one outside sigma_start_range.
    """
    config = model.config
    s = config.sigma_start if sigma_start is None else sigma_start
    if s is None:
        raise ValueError(
            "the model was not trained for a start, expected sigma_start, got None; use 0.65."
        )
    velocity = model_velocity(with_sigma_start(model, s), context, negative, cfg)
    return refine(velocity, start, s, steps, noise, on_step, time=config.time, shift=shift)


def with_sigma_start(model: Refiner, s: float) -> Callable[..., Tensor]:
    """Condition a model on sigma_start where it takes one; others are returned as they are."""
    if model.config.sigma_start_range is None:
        return model
    least, greatest = model.config.sigma_start_range
    check_range(s, "sigma_start", least, greatest, "this refiner was trained for these only")
    return lambda z, t, context: model(z, t, context, torch.full_like(t, s))
