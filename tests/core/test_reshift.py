"""The change of resolution: noise level, noise that stays noise, and the whole preview."""

from itertools import product

import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from surf.surf_core.flow import euler
from surf.surf_core.lowband import low_band
from surf.surf_core.resample import resize
from surf.surf_core.reshift import (
    DEFAULT_NOISE,
    DEFAULT_SIGMA,
    LOCK_FACTOR,
    NOISE_POLICIES,
    hold_low_band,
    implied_noise,
    inherit_noise,
    preview,
    renoise,
    reshift,
    white_map,
)
from surf.surf_core.schedule import HANDOVERS, SIGMA_POLICIES, flow_sigmas, snr_equal_sigma

steady = settings(max_examples=50, deadline=None, derandomize=True)

RATIOS = [(2, 2), (3, 3), (1, 1), (1.714, 1.714), (1.5, 1.3), (2.25, 2.308), (4, 1)]


def noise(*shape, seed=0, dtype=torch.float32):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=dtype)


def one_picture(x0):
    """The exact velocity of a model that knows one picture per resolution."""

    def velocity(z, sigma):
        return (z - resize(x0, z.shape[-2:])) / sigma

    return velocity


def test_defaults_are_policies():
    assert DEFAULT_NOISE in NOISE_POLICIES
    assert DEFAULT_SIGMA in SIGMA_POLICIES


@pytest.mark.parametrize("shape", [(1, 4, 3, 5), (2, 16, 1, 7, 6), (1, 16, 5, 3, 4)])
def test_renoise_goes_from_clean_to_noise(shape):
    x0, eps = noise(*shape), noise(*shape, seed=1)
    assert torch.equal(renoise(x0, 0.0, eps), x0)
    assert torch.equal(renoise(x0, 1.0, eps), eps)


@steady
@given(st.floats(0.01, 1.0))
def test_implied_noise_undoes_renoise(sigma):
    x0 = noise(1, 4, 2, 5, 3, dtype=torch.float64)
    eps = noise(1, 4, 2, 5, 3, seed=1, dtype=torch.float64)
    assert torch.allclose(implied_noise(renoise(x0, sigma, eps), x0, sigma), eps, atol=1e-12)


def test_implied_noise_is_the_same_before_and_after_an_euler_step(tolerance):
    z, v = noise(1, 4, 3, 5, dtype=torch.float64), noise(1, 4, 3, 5, seed=1, dtype=torch.float64)
    x0 = z - 0.8 * v
    after = z + (0.7 - 0.8) * v
    first, second = implied_noise(z, x0, 0.8), implied_noise(after, x0, 0.7)
    assert torch.allclose(first, second, atol=tolerance[torch.float64])
    assert torch.allclose(first, x0 + v, atol=tolerance[torch.float64])


@pytest.mark.parametrize("sigma", [0.0, -0.1, float("nan")])
def test_implied_noise_rejects_a_clean_latent(sigma):
    with pytest.raises(ValueError, match="holds no noise"):
        implied_noise(noise(1, 4, 3, 5), noise(1, 4, 3, 5), sigma)


@pytest.mark.parametrize("ratio", RATIOS, ids=str)
def test_inherited_noise_has_unit_variance_in_every_cell(ratio):
    high, wide = 36, 60
    size = (round(high / ratio[0]), round(wide / ratio[1]))
    many = inherit_noise(noise(4, 500, high, wide), size)
    loose = 0.02 if size == (high, wide) else 1e-5
    assert torch.allclose(many.square().flatten(1).mean(dim=1), torch.ones(4), atol=loose)
    cells = many.flatten(0, 1).square().mean(dim=0)
    assert cells.min() > 0.85  # five standard errors of 2000 draws
    assert cells.max() < 1.17


@pytest.mark.parametrize("ratio", RATIOS, ids=str)
def test_inherited_noise_stays_white(ratio):
    size = (round(36 / ratio[0]), round(60 / ratio[1]))
    many = inherit_noise(noise(4, 500, 36, 60), size).flatten(0, 1)
    for a, b in ((many[:, 1:], many[:, :-1]), (many[..., 1:], many[..., :-1])):
        assert ((a * b).mean(dim=0).abs() < 0.13).all()
        assert (a * b).mean().abs() < 0.01


def test_inherited_noise_at_half_is_twice_the_mean_of_two_by_two():
    eps = noise(1, 4, 3, 6, 8)
    means = 2 * resize(eps, (3, 4))
    expected = means / means.square().mean().sqrt()
    assert torch.allclose(inherit_noise(eps, (3, 4)), expected, atol=1e-5)


def test_inherited_noise_is_identity_at_the_same_size():
    eps = noise(2, 4, 1, 7, 9)
    same = inherit_noise(2 * eps, (7, 9))
    assert torch.equal(same, 2 * eps)
    same.zero_()
    assert eps.abs().max() > 0


def test_inherited_noise_measures_each_sample_alone():
    eps = noise(2, 16, 3, 8, 8)
    loud = torch.cat([eps[:1], 5 * eps[1:]])
    assert torch.allclose(inherit_noise(loud, (4, 5)), inherit_noise(eps, (4, 5)), atol=1e-5)
    assert torch.allclose(inherit_noise(eps, (4, 5))[:1], inherit_noise(eps[:1], (4, 5)))


def test_inherited_noise_at_whole_ratios_is_the_scaled_block_mean():
    eps = noise(2, 4, 3, 12, 30)
    down = torch.eye(4).repeat_interleave(3, dim=1) / torch.tensor(3.0).sqrt()
    across = torch.eye(6).repeat_interleave(5, dim=1) / torch.tensor(5.0).sqrt()
    small = torch.einsum("hH,...HW,wW->...hw", down, eps, across)
    power = small.square().flatten(1).mean(dim=1).sqrt()
    torch.testing.assert_close(inherit_noise(eps, (4, 6)), small / power.view(2, 1, 1, 1, 1))


@pytest.mark.parametrize(("count", "parts"), [(64, 40), (9, 7), (65, 64), (60, 45), (3, 2)])
def test_inherited_noise_is_the_nearest_white_map_at_ratios_that_are_not_whole(count, parts):
    white = white_map(count, parts, torch.zeros(1, dtype=torch.float64))
    unit = torch.eye(count, dtype=torch.float64)[None, None]
    plain = resize(unit, (parts, count))[0, 0]
    identity = torch.eye(parts, dtype=torch.float64)
    torch.testing.assert_close(white @ white.T, identity, atol=1e-12, rtol=0)
    # The polar factor is the one whose product with the map is symmetric and positive.
    product = plain @ white.T
    torch.testing.assert_close(product, product.T, atol=1e-12, rtol=0)
    assert torch.linalg.eigvalsh(product).min() > 0
    assert (white * plain).sum() / (white.norm() * plain.norm()) > 0.96


@pytest.mark.parametrize("size", [(1, 1), (1, 5), (7, 5), (7, 1)])
def test_inherited_noise_at_whole_ratios_gives_every_value_to_one_cell_alone(size):
    ones = torch.eye(35).view(35, 1, 7, 5)
    owned = inherit_noise(ones, size) != 0
    assert (owned.flatten(1).sum(dim=1) == 1).all()
    assert owned.any(dim=0).all()


@steady
@given(st.integers(1, 24), st.integers(1, 24), st.data())
def test_inherited_noise_has_mean_square_one_at_any_smaller_size(high, wide, data):
    size = (data.draw(st.integers(1, high)), data.draw(st.integers(1, wide)))
    assume(size != (high, wide))
    out = inherit_noise(noise(2, 2, 1, high, wide), size)
    assert out.shape == (2, 2, 1, *size)
    assert torch.allclose(out.square().flatten(1).mean(dim=1), torch.ones(2), atol=1e-5)


def test_inherited_noise_does_not_mutate_or_alias_and_keeps_the_dtype():
    for dtype in (torch.float16, torch.bfloat16, torch.float32, torch.float64):
        eps = noise(1, 4, 1, 6, 7).to(dtype)
        before = eps.clone()
        out = inherit_noise(eps, (6, 7))
        assert out.dtype == dtype
        out.fill_(3)
        assert torch.equal(eps, before)


@pytest.mark.parametrize("size", [(9, 8), (8, 9), (0, 4), (-1, 4)])
def test_inherited_noise_rejects_a_larger_size(size):
    with pytest.raises(ValueError, match="can only shrink"):
        inherit_noise(noise(1, 4, 8, 8), size)


@pytest.mark.parametrize("size", [(4, 5), (3, 4), (8, 10), (5, 3)])
@pytest.mark.parametrize("frames", [1, 3])
def test_reshift_preserves_noise_level(size, frames):
    sigma, x0 = 0.75, torch.full((1, 400, frames, 8, 10), 2.0)
    out = reshift(x0, sigma, size, noise(1, 400, frames, *size))
    assert out.mean().item() == pytest.approx((1 - sigma) * 2, abs=0.03)
    assert out.std().item() == pytest.approx(sigma, rel=0.02)


def test_resizing_a_noisy_latent_would_lose_noise():
    z = renoise(torch.zeros(1, 16, 3, 32, 32), 0.75, noise(1, 16, 3, 32, 32))
    assert resize(z, (16, 16)).std().item() == pytest.approx(0.375, rel=0.02)


def test_reshift_at_sigma_zero_is_a_resize_and_does_not_mutate():
    x0, eps = noise(1, 4, 3, 6, 8), noise(1, 4, 3, 3, 4, seed=1)
    kept = x0.clone(), eps.clone()
    assert torch.equal(reshift(x0, 0.0, (3, 4), eps), resize(x0, (3, 4)))
    assert torch.equal(x0, kept[0])
    assert torch.equal(eps, kept[1])


def test_reshift_rejects_noise_of_another_size():
    with pytest.raises(ValueError, match="draw it for"):
        reshift(noise(1, 4, 3, 6, 8), 0.5, (3, 4), noise(1, 4, 3, 6, 8))


@pytest.mark.parametrize(
    ("shape", "size", "step"),
    [((1, 4, 9, 7), (5, 3), 1), ((2, 4, 1, 8, 10), (4, 5), 3), ((1, 4, 3, 5, 5), (2, 3), 6)],
)
def test_preview_ends_in_the_resized_picture(shape, size, step):
    x0 = noise(*shape, seed=3)
    for handover, sigma_policy, noise_policy in product(HANDOVERS, SIGMA_POLICIES, NOISE_POLICIES):
        out = preview(
            one_picture(x0), noise(*shape), flow_sigmas(7, 3.0), step, size,
            noise=torch.Generator().manual_seed(0), sigma_policy=sigma_policy,
            noise_policy=noise_policy, handover=handover,
        )  # fmt: skip
        assert torch.allclose(out, resize(x0, size), atol=1e-5)


@pytest.mark.parametrize(
    ("handover", "expected"),
    [("reuse", [1.0, 0.75, 0.5, 0.25]), ("evaluate", [1, 0.75, 0.5, 0.5, 0.25])],
)
def test_preview_evaluates_where_the_handover_says(handover, expected):
    seen = []

    def velocity(z, sigma):
        seen.append((sigma, tuple(z.shape[-2:])))
        return torch.zeros_like(z)

    sigmas = torch.linspace(1, 0, 5)
    preview(
        velocity, noise(1, 4, 3, 6, 8), sigmas, 2, (3, 4), noise=noise(1, 4, 3, 3, 4),
        handover=handover, sigma_policy="same", noise_policy="fresh",
    )  # fmt: skip
    assert [sigma for sigma, _ in seen] == expected
    assert [size for _, size in seen[-2:]] == [(3, 4)] * 2
    assert all(size == (6, 8) for _, size in seen[:-2])


def test_preview_starts_the_low_steps_at_the_policys_sigma():
    seen = []

    def low(z, sigma):
        seen.append(sigma)
        return torch.zeros_like(z)

    sigmas = flow_sigmas(8, 3.0)
    preview(
        lambda z, sigma: torch.zeros_like(z), noise(1, 4, 6, 8), sigmas, 3, (3, 4),
        noise=noise(1, 4, 3, 4), velocity_low=low, sigma_policy="snr_equal",
    )  # fmt: skip
    assert seen[0] == pytest.approx(snr_equal_sigma(sigmas[3].item(), 2.0), abs=1e-6)
    assert len(seen) == 5


@pytest.mark.parametrize("handover", HANDOVERS)
def test_inherited_preview_carries_the_noise_of_the_large_latent(handover):
    """With the true picture known, the noise that is left is the noise at the start."""
    x0, start = noise(1, 4, 3, 8, 8, seed=3), noise(1, 4, 3, 8, 8)
    seen = []

    def low(z, sigma):
        seen.append((z, sigma))
        return torch.zeros_like(z)

    preview(
        one_picture(x0), start, flow_sigmas(6, 3.0), 2, (4, 4), velocity_low=low,
        noise_policy="inherited", handover=handover,
    )  # fmt: skip
    z, sigma = seen[0]
    expected = renoise(resize(x0, (4, 4)), sigma, inherit_noise(start, (4, 4)))
    assert torch.allclose(z, expected, atol=1e-4)


def test_preview_at_the_last_step_is_the_plain_sampler():
    x0, z = noise(1, 4, 3, 6, 8, seed=3), noise(1, 4, 3, 6, 8)
    sigmas = flow_sigmas(5, 3.0)
    assert torch.equal(
        preview(one_picture(x0), z, sigmas, 5, (3, 4)), euler(one_picture(x0), z, sigmas)
    )


@pytest.mark.parametrize("noise_policy", NOISE_POLICIES)
def test_preview_at_step_zero_is_the_plain_sampler_at_low_resolution(noise_policy):
    x0, z, fresh = noise(1, 4, 3, 6, 8, seed=3), noise(1, 4, 3, 6, 8), noise(1, 4, 3, 3, 4)
    sigmas = flow_sigmas(5, 3.0)
    out = preview(one_picture(x0), z, sigmas, 0, (3, 4), noise=fresh, noise_policy=noise_policy)
    start = fresh if noise_policy == "fresh" else inherit_noise(z, (3, 4))
    assert torch.equal(out, euler(one_picture(x0), start, sigmas))


def test_preview_is_deterministic_by_generator_and_does_not_mutate():
    z, sigmas = noise(1, 4, 1, 6, 8), flow_sigmas(5, 3.0)
    kept = z.clone(), sigmas.clone()

    def velocity(z, sigma):
        return z * sigma

    first, again, other = (
        preview(
            velocity,
            z,
            sigmas,
            2,
            (3, 4),
            noise=torch.Generator().manual_seed(seed),
            noise_policy="fresh",
        )  # fmt: skip
        for seed in (1, 1, 2)
    )
    assert torch.equal(first, again)
    assert not torch.equal(first, other)
    assert torch.equal(z, kept[0])
    assert torch.equal(sigmas, kept[1])


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        ({"noise": None}, "needs noise, got None"),
        ({"noise": torch.zeros(1, 4, 6, 8)}, "draw it for"),
        ({"noise_policy": "pooled"}, "noise_policy must be one of"),
        ({"sigma_policy": "matched"}, "sigma_policy must be one of"),
        ({"step": 9}, "must lie within 0 to 5"),
        ({"size": (0, 4)}, "at least 1x1"),
        ({"sigmas": torch.linspace(0.8, 0, 6), "step": 0}, "cannot be resized"),
        ({"sigmas": torch.zeros(0)}, "the schedule is empty"),
        ({"z": torch.full((1, 4, 6, 8), torch.nan)}, "must be finite"),
    ],
    ids=lambda value: next(iter(value)) if isinstance(value, dict) else "",
)
def test_preview_rejects_bad_input(change, expected):
    given = {
        "z": noise(1, 4, 6, 8), "sigmas": flow_sigmas(5, 3.0), "step": 2, "size": (3, 4),
        "noise": noise(1, 4, 3, 4), "noise_policy": "fresh", **change,
    }  # fmt: skip
    with pytest.raises(ValueError, match=expected):
        preview(lambda z, sigma: z, **given)


def wandering(z, sigma):
    """A velocity whose clean estimate is elsewhere at every step."""
    return z * (1 - sigma) - torch.linspace(0, 3, z.shape[-1]) * sigma


def test_a_lock_of_nothing_changes_nothing():
    assert hold_low_band(wandering, noise(1, 4, 3, 4, 6), 0) is wandering
    given = dict(noise=noise(1, 4, 3, 4, 6, seed=1))
    z, sigmas = noise(1, 4, 3, 8, 12), flow_sigmas(8, 3.0)
    plain = preview(wandering, z, sigmas, 2, (4, 6), **given)
    assert torch.equal(preview(wandering, z, sigmas, 2, (4, 6), low_band_lock=0.0, **given), plain)
    locked = preview(wandering, z, sigmas, 2, (4, 6), low_band_lock=0.5, **given)
    assert not torch.allclose(locked, plain)


def test_a_lock_of_all_steps_ends_in_the_low_band_of_the_switch():
    z, sigmas, seen = noise(2, 4, 3, 8, 12), flow_sigmas(6, 3.0), []
    euler(wandering, z, sigmas[:3], lambda _, latent, clean: seen.append(clean))
    out = preview(wandering, z, sigmas, 2, (4, 6), low_band_lock=1.0)
    expected = low_band(resize(seen[-1], (4, 6)), LOCK_FACTOR)
    torch.testing.assert_close(low_band(out, LOCK_FACTOR), expected, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("steps", [1, 2])
def test_the_lock_holds_the_first_clean_estimates_and_their_high_band_is_their_own(steps):
    reference, z, sigmas = noise(1, 4, 1, 6, 8, seed=1), noise(1, 4, 1, 6, 8), flow_sigmas(4, 1.0)
    seen = []
    held = hold_low_band(wandering, reference, steps)
    euler(held, z, sigmas, lambda _, latent, clean: seen.append((latent, clean)))
    for index, (latent, clean) in enumerate(seen):
        sigma = sigmas[index].item()
        own = latent - sigma * wandering(latent, sigma)
        low = reference if index < steps else own
        expected = own - low_band(own, LOCK_FACTOR) + low_band(low, LOCK_FACTOR)
        torch.testing.assert_close(clean, expected, atol=1e-5, rtol=1e-5)


def test_the_share_of_the_lock_is_checked():
    with pytest.raises(ValueError, match="low_band_lock"):
        preview(wandering, noise(1, 4, 8, 8), flow_sigmas(4, 1.0), 2, (4, 4), low_band_lock=1.5)
