"""The coarse part of a latent, kept or swapped."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from surf.surf_core.lowband import lock_low_band, low_band, wavelet_match

steady = settings(max_examples=50, deadline=None, derandomize=True)

SHAPES = [(1, 4, 9, 14), (2, 3, 1, 7, 5), (1, 2, 5, 12, 30), (1, 1, 1, 1, 1)]


def noise(*shape, seed=0, dtype=torch.float64):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=dtype)


@steady
@given(st.integers(1, 20), st.integers(1, 20), st.floats(1.0, 30.0))
def test_low_band_is_a_projection(rows, columns, factor):
    x = noise(1, 2, rows, columns)
    once = low_band(x, factor)
    assert torch.allclose(low_band(once, factor), once, atol=1e-12)
    assert once.square().sum() <= x.square().sum() + 1e-9


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("factor", [1.0, 2.0, 4.5, 100.0])
def test_low_band_keeps_the_mean_of_every_frame(shape, factor, tolerance):
    x = noise(*shape)
    means = low_band(x, factor).mean(dim=(-2, -1)) - x.mean(dim=(-2, -1))
    assert means.abs().max() < tolerance[torch.float64]


@pytest.mark.parametrize("shape", SHAPES)
def test_low_band_is_identity_at_factor_one_and_the_mean_at_a_huge_one(shape, tolerance):
    x = noise(*shape)
    assert torch.allclose(low_band(x, 1.0), x, atol=tolerance[torch.float64])
    mean = x.mean(dim=(-2, -1), keepdim=True).expand_as(x)
    assert torch.allclose(low_band(x, 1000.0), mean, atol=tolerance[torch.float64])


@pytest.mark.parametrize("count", [1, 9, 45, 68, 135])
def test_low_band_holds_as_many_waves_as_the_smaller_picture_has_cells(count):
    """Also where count / (count / small) lies a rounding below `small`."""
    every = torch.eye(count, dtype=torch.float64)[:, :, None]
    for small in range(1, count + 1):
        rank = low_band(every, count / small)[:, :, 0].diagonal().sum()
        assert rank.item() == pytest.approx(small)


def test_low_band_keeps_a_slow_wave_and_drops_a_fast_one(tolerance):
    place = (torch.arange(24, dtype=torch.float64) + 0.5) / 24 * torch.pi
    slow, fast = (torch.cos(count * place).expand(1, 1, 24, 24) for count in (3, 20))
    assert torch.allclose(low_band(slow + fast, 2.0), slow, atol=tolerance[torch.float64])


@pytest.mark.parametrize("shape", SHAPES)
def test_locking_to_itself_is_identity(shape):
    x = noise(*shape)
    assert torch.equal(lock_low_band(x, x, 2.0), x)
    assert torch.equal(wavelet_match(x, x, 3), x)


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("factor", [1.0, 1.7, 3.0])
def test_lock_takes_the_low_band_and_leaves_the_high_one(shape, factor, tolerance):
    x, reference = noise(*shape), noise(*shape, seed=1)
    locked = lock_low_band(x, reference, factor)
    atol = tolerance[torch.float64]
    assert torch.allclose(low_band(locked, factor), low_band(reference, factor), atol=atol)
    assert torch.allclose(locked - low_band(locked, factor), x - low_band(x, factor), atol=atol)
    assert torch.allclose(lock_low_band(locked, reference, factor), locked, atol=atol)


@pytest.mark.parametrize("levels", [1, 3, 5, 7])
@pytest.mark.parametrize("shape", SHAPES)
def test_wavelet_match_takes_over_a_tint(shape, levels, tolerance):
    x = noise(*shape)
    assert torch.allclose(wavelet_match(x, x + 0.3, levels), x + 0.3, atol=tolerance[torch.float64])


def test_wavelet_match_ignores_detail_of_the_reference():
    x = noise(1, 4, 1, 32, 48)
    checks = (torch.arange(32)[:, None] + torch.arange(48)) % 2 * 2.0 - 1
    out = wavelet_match(x, x + checks, 2)
    assert (out - x)[..., 4:-4, 4:-4].abs().max() < 1e-12


def test_wavelet_match_matches_a_convolution():
    x, reference = noise(1, 1, 20, 20), noise(1, 1, 20, 20, seed=1)
    taps = torch.tensor([1.0, 2, 1], dtype=torch.float64) / 4
    kernel = (taps[:, None] * taps)[None, None]
    smooth = reference - x
    for apart in (1, 2, 4):
        wide = torch.nn.functional.pad(smooth, (apart,) * 4, mode="replicate")
        smooth = torch.nn.functional.conv2d(wide, kernel, dilation=apart)
    assert torch.allclose(wavelet_match(x, reference, 3), x + smooth, atol=1e-12)


@pytest.mark.parametrize("change", [lambda x, y: lock_low_band(x, y, 2.0), wavelet_match])
def test_frames_stay_apart_and_inputs_are_not_mutated(change):
    x, reference = noise(1, 2, 3, 6, 8), noise(1, 2, 3, 6, 8, seed=1)
    kept = x.clone(), reference.clone()
    together = change(x, reference)
    alone = change(x[:, :, 1], reference[:, :, 1])
    assert torch.allclose(together[:, :, 1], alone)
    assert torch.equal(x, kept[0])
    assert torch.equal(reference, kept[1])


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
def test_results_keep_the_dtype(dtype, tolerance):
    x, reference = noise(1, 2, 3, 6, 8), noise(1, 2, 3, 6, 8, seed=1)
    for change in (lambda x, y: lock_low_band(x, y, 2.0), wavelet_match):
        out = change(x.to(dtype), reference.to(dtype))
        assert out.dtype == dtype
        expected = change(x.to(dtype).double(), reference.to(dtype).double())
        assert torch.allclose(out.double(), expected, atol=4 * tolerance[dtype])


def test_gradients_pass_through_both():
    x, reference = noise(1, 1, 4, 5).requires_grad_(), noise(1, 1, 4, 5, seed=1).requires_grad_()
    assert torch.autograd.gradcheck(lambda a, b: lock_low_band(a, b, 2.0), (x, reference))
    assert torch.autograd.gradcheck(lambda a, b: wavelet_match(a, b, 2), (x, reference))


def test_bad_input_is_rejected_with_advice():
    x = noise(1, 2, 6, 8)
    with pytest.raises(ValueError, match="factor must lie"):
        low_band(x, 0.5)
    with pytest.raises(ValueError, match="upsample the preview first"):
        lock_low_band(x, noise(1, 2, 3, 4), 2.0)
    with pytest.raises(ValueError, match="upsample the preview first"):
        wavelet_match(x, noise(1, 2, 3, 4))
    with pytest.raises(ValueError, match="levels must lie"):
        wavelet_match(x, x, 0)
