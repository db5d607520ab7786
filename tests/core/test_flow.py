"""Straight paths and Euler steps."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from surf.surf_core.flow import (
    euler,
    flow_map,
    interpolate,
    model_velocity,
    refine,
    refine_with,
    velocity_target,
)
from surf.surf_core.refiner import RefinerConfig, SurfRefinerDiT
from surf.surf_core.schedule import flow_sigmas

steady = settings(max_examples=50, deadline=None, derandomize=True)

SHAPES = [(1, 4, 3, 5), (2, 16, 1, 7, 6), (1, 3, 5, 1, 9)]


def noise(*shape, seed=0, dtype=torch.float64):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=dtype)


@pytest.mark.parametrize("shape", SHAPES)
def test_interpolate_meets_both_ends(shape):
    a, b = noise(*shape), noise(*shape, seed=1)
    assert torch.equal(interpolate(a, b, 0.0), a)
    assert torch.equal(interpolate(a, b, 1.0), b)


def test_interpolate_takes_one_time_per_sample():
    a, b = noise(2, 3, 1, 4, 5), noise(2, 3, 1, 4, 5, seed=1)
    t = torch.tensor([0.0, 1.0], dtype=torch.float64).view(2, 1, 1, 1, 1)
    mixed = interpolate(a, b, t)
    assert torch.equal(mixed[0], a[0])
    assert torch.equal(mixed[1], b[1])


def test_velocity_target_is_the_derivative_of_the_path(tolerance):
    a, b = noise(1, 3, 4, 5), noise(1, 3, 4, 5, seed=1)
    slope = (interpolate(a, b, 0.75) - interpolate(a, b, 0.25)) / 0.5
    assert torch.allclose(slope, velocity_target(a, b), atol=tolerance[torch.float64])


@steady
@given(st.integers(1, 20), st.floats(0.5, 8.0))
def test_euler_is_exact_for_a_constant_velocity(steps, shift):
    z, v = noise(1, 2, 1, 3, 5), noise(1, 2, 1, 3, 5, seed=1)
    assert torch.allclose(euler(lambda *_: v, z, flow_sigmas(steps, shift)), z - v, atol=1e-12)


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("steps", [1, 3, 10])
def test_euler_finds_the_one_picture_a_model_knows(shape, steps, tolerance):
    x0, z = noise(*shape), noise(*shape, seed=1)
    out = euler(lambda z, sigma: (z - x0) / sigma, z, flow_sigmas(steps, 3.0))
    assert torch.allclose(out, x0, atol=tolerance[torch.float64])


def test_euler_converges_to_the_solution_of_a_linear_velocity():
    """dz = a z dsigma has z(0) = z(1) exp(-a); the error halves with the step."""
    z, a = noise(1, 2, 3, 5), 0.7
    exact = z * torch.tensor(-a).double().exp()
    errors = [
        (euler(lambda z, _: a * z, z, torch.linspace(1, 0, n + 1).double()) - exact).abs().max()
        for n in (20, 40, 80)
    ]
    assert errors[0] / errors[1] == pytest.approx(2, rel=0.05)
    assert errors[1] / errors[2] == pytest.approx(2, rel=0.05)
    product = z * (1 - a / 20) ** 20
    assert torch.allclose(
        euler(lambda z, _: a * z, z, torch.linspace(1, 0, 21, dtype=torch.float64)), product
    )


def test_euler_in_two_parts_is_euler_in_one():
    z, sigmas = noise(1, 2, 1, 3, 5), flow_sigmas(9, 3.0)

    def velocity(z, sigma):
        return z.tanh() * sigma

    halfway = euler(velocity, z, sigmas[:5])
    assert torch.equal(euler(velocity, halfway, sigmas[4:]), euler(velocity, z, sigmas))


def test_euler_tells_every_step_and_its_clean_estimate():
    z, x0 = noise(1, 2, 3, 5), noise(1, 2, 3, 5, seed=1)
    reported = []
    euler(
        lambda z, sigma: (z - x0) / sigma, z, flow_sigmas(4, 3.0),
        lambda step, seen, clean: reported.append((step, seen, clean)),
    )  # fmt: skip
    assert [step for step, _, _ in reported] == [0, 1, 2, 3]
    assert torch.equal(reported[0][1], z)
    assert all(torch.allclose(clean, x0) for _, _, clean in reported)


def test_euler_can_be_cancelled_between_steps():
    count = []

    def cancel(step, *_):
        count.append(step)
        if step == 1:
            raise InterruptedError

    with pytest.raises(InterruptedError):
        euler(lambda z, _: z, noise(1, 2, 3, 5), flow_sigmas(5, 1.0), cancel)
    assert count == [0, 1]


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_euler_keeps_the_dtype_and_does_not_mutate(dtype):
    z, sigmas = noise(1, 2, 1, 3, 5).to(dtype), flow_sigmas(3, 3.0)
    kept = z.clone(), sigmas.clone()
    out = euler(lambda z, _: z, z, sigmas)
    assert out.dtype == dtype
    out.fill_(0)
    assert torch.equal(z, kept[0])
    assert torch.equal(sigmas, kept[1])


def test_gradients_pass_through_euler():
    z = noise(1, 2, 3, 2).requires_grad_()
    assert torch.autograd.gradcheck(
        lambda z: euler(lambda z, sigma: z.sin() * sigma, z, flow_sigmas(3, 3.0)), z
    )


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("steps", [1, 10])
def test_flow_map_is_exact_with_the_true_velocity(shape, steps, tolerance):
    z_hr, z_lr = noise(*shape), noise(*shape, seed=1)
    out = flow_map(lambda *_: velocity_target(z_hr, z_lr), z_lr, steps)
    assert torch.allclose(out, z_hr, atol=tolerance[torch.float64])


def test_flow_map_visits_the_points_it_was_trained_on():
    z_hr, z_lr = noise(1, 2, 1, 3, 5), noise(1, 2, 1, 3, 5, seed=1)
    times = []

    def velocity(z, t):
        times.append(t)
        assert torch.allclose(z, interpolate(z_hr, z_lr, t))
        return velocity_target(z_hr, z_lr)

    flow_map(velocity, z_lr, 10, shift=3.0)
    assert times == pytest.approx(flow_sigmas(10, 3.0)[:-1].tolist(), abs=1e-7)


@pytest.mark.parametrize("shape", SHAPES)
def test_refine_is_identity_with_a_model_that_knows_the_start(shape, tolerance):
    start, eps = noise(*shape), noise(*shape, seed=1)
    out = refine(lambda *_: eps - start, start, 0.65, 10, eps)
    assert torch.allclose(out, start, atol=tolerance[torch.float64])


def test_refine_starts_at_sigma_start_and_goes_down_in_equal_steps():
    start, eps = noise(1, 2, 3, 5), noise(1, 2, 3, 5, seed=1)
    seen = []

    def velocity(z, sigma):
        seen.append((z, sigma))
        return torch.zeros_like(z)

    refine(velocity, start, 0.65, 5, eps)
    assert [sigma for _, sigma in seen] == pytest.approx([0.65, 0.52, 0.39, 0.26, 0.13])
    assert torch.allclose(seen[0][0], 0.35 * start + 0.65 * eps)


def test_refine_is_a_flow_map_in_sigma():
    """With z_lr = (1 - s) z + s noise and velocity s * v(z, s * t), both are the same run."""
    start, eps, s = noise(1, 2, 1, 3, 5), noise(1, 2, 1, 3, 5, seed=1), 0.65

    def velocity(z, sigma):
        return (z * (1 + sigma)).sin()

    refined = refine(velocity, start, s, 10, eps)
    z_lr = interpolate(start, eps, s)
    mapped = flow_map(lambda z, t: s * velocity(z, s * t), z_lr, 10)
    assert torch.allclose(refined, mapped, atol=1e-12)


class RandomRefiner(SurfRefinerDiT):
    """A refiner with random weights, the same for every config of its sizes."""

    def __init__(self, **more):
        sizes = {"dim": 24, "heads": 2, "layers": 2, "ffn_dim": 48, "latent_channels": 4}
        super().__init__(RefinerConfig(**sizes, text_dim=8, window=2, **more))
        generator = torch.Generator().manual_seed(0)
        for weight in self.parameters():
            weight.data.normal_(std=weight.shape[-1] ** -0.5, generator=generator)
        self.double()


class InT:
    """A network of sigma, fed and read as one of t: s * v(z, 1000 * s * t) at 1000 * t."""

    def __init__(self, model, s):
        self.model, self.s = model, s
        self.config = RefinerConfig.surf_1b(time="t", sigma_start=s)

    def __call__(self, z, timestep, context):
        return self.s * self.model(z, self.s * timestep, context)


CLIP, TEXT = (2, 4, 3, 4, 6), (2, 5, 8)


@pytest.mark.parametrize("block", ["wan", "scale"])
@pytest.mark.parametrize("s", [0.65, 1.0])
@pytest.mark.parametrize("shift", [1.0, 5.0])
@torch.no_grad()
def test_an_untrained_model_in_sigma_is_a_flow_map_in_t(block, s, shift):
    """Sampling from sigma = s to 0 IS the flow map from t = 1 to 0: one network, both times."""
    start, eps, context = noise(*CLIP), noise(*CLIP, seed=1), noise(*TEXT, seed=2)
    model = RandomRefiner(block=block)
    reported = {"sigma": [], "t": []}
    options = {"steps": 6, "noise": eps, "sigma_start": s, "shift": shift}
    in_sigma = refine_with(
        model, start, context, **options, on_step=lambda *step: reported["sigma"].append(step)
    )
    in_t = refine_with(
        InT(model, s), start, context, **options, on_step=lambda *step: reported["t"].append(step)
    )
    by_hand = flow_map(
        lambda z, t: s * model(z, torch.full((2,), 1000 * s * t, dtype=torch.float64), context),
        interpolate(start, eps, s), 6, shift,
    )  # fmt: skip
    assert (in_sigma - interpolate(start, eps, s)).abs().max() > 0.1
    assert (in_sigma - in_t).abs().max() < 1e-12
    assert (in_sigma - by_hand).abs().max() < 1e-12
    for one, other in zip(reported["sigma"], reported["t"], strict=True):
        assert one[0] == other[0]
        assert (one[1] - other[1]).abs().max() < 1e-12
        assert (one[2] - other[2]).abs().max() < 1e-12


@torch.no_grad()
def test_a_trained_model_starts_where_its_config_says():
    start, eps, context = noise(*CLIP), noise(*CLIP, seed=1), noise(*TEXT, seed=2)
    free, trained = RandomRefiner(), RandomRefiner(sigma_start=0.7)
    expected = refine_with(free, start, context, noise=eps, steps=3, sigma_start=0.7)
    assert torch.equal(refine_with(trained, start, context, noise=eps, steps=3), expected)
    with pytest.raises(ValueError, match="not trained for a start"):
        refine_with(free, start, context, noise=eps)


@torch.no_grad()
def test_in_t_a_start_without_noise_is_the_preview_itself():
    start, context = noise(*CLIP), noise(*TEXT, seed=2)
    model = RandomRefiner(time="t", sigma_start=0.0)
    seen = []
    out = refine_with(model, start, context, steps=2, on_step=lambda *step: seen.append(step))
    first = model(start, torch.full((2,), 1000.0), context)
    half = start - 0.5 * first
    second = model(half, torch.full((2,), 500.0), context)
    assert torch.equal(seen[0][1], start)
    assert torch.allclose(seen[0][2], start - first, atol=1e-12)
    assert torch.allclose(out, half - 0.5 * second, atol=1e-12)


@torch.no_grad()
def test_guidance_goes_from_the_negative_text_through_the_positive_one(tolerance):
    z, model = noise(*CLIP), RandomRefiner()
    yes, no = noise(*TEXT, seed=2), noise(*TEXT, seed=3)
    t = torch.full((2,), 600.0)
    guided = model_velocity(model, yes, no, 6.0)(z, 0.6)
    expected = -5 * model(z, t, no) + 6 * model(z, t, yes)
    assert torch.allclose(guided, expected, atol=tolerance[torch.float64])
    assert torch.equal(model_velocity(model, yes, no, 1.0)(z, 0.6), model(z, t, yes))


def test_timesteps_are_not_rounded_to_half_precision():
    seen = []

    def network(z, timestep, context):
        seen.append(timestep.double())
        return z

    model_velocity(network, noise(*TEXT))(noise(*CLIP).bfloat16(), 0.6543)
    assert seen[0].tolist() == pytest.approx([654.3, 654.3], abs=1e-4)


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        ({"sigma_start": 0.0}, "use 0.65"),
        ({"sigma_start": 1.5}, "use 0.65"),
        ({"steps": 0}, "at least one step"),
        ({"noise": torch.zeros(1, 2, 3, 4)}, "draw it at the target size"),
        ({"noise": None}, "got none"),
        ({"time": "t", "noise": None}, "got none"),
        ({"time": "t", "sigma_start": -0.1}, "use 0.65"),
        ({"time": "step"}, "one of sigma, t"),
        ({"start": torch.zeros(2, 3, 5)}, "draw it"),
    ],
    ids=lambda value: next(iter(value)) if isinstance(value, dict) else "",
)
def test_refine_rejects_bad_input(change, expected):
    given = {
        "start": noise(1, 2, 3, 5),
        "sigma_start": 0.65,
        "steps": 3,
        "noise": noise(1, 2, 3, 5),
    }
    with pytest.raises(ValueError, match=expected):
        refine(lambda z, _: z, **{**given, **change})


def test_euler_rejects_a_bad_latent_and_an_empty_schedule():
    with pytest.raises(ValueError, match="pass a latent"):
        euler(lambda z, _: z, noise(3, 4, 5), flow_sigmas(2, 1.0))
    with pytest.raises(ValueError, match="the schedule is empty"):
        euler(lambda z, _: z, noise(1, 3, 4, 5), torch.zeros(0))
