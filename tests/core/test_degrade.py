"""Every operation of the degradation and what it preserves: mean, range, shape, order of time."""

import sys
from math import cos, pi, sin
from random import randbytes

import pytest
import torch
from kornia.filters import get_gaussian_kernel2d
from surf.surf_core.degrade import add_latent_noise, draw_strength, ops
from surf.surf_core.degrade.codec import compress
from surf.surf_core.degrade.record import CODECS, METHODS, NOISES, SHAPES
from surf.surf_core.resample import resize
from surf.surf_core.training.tiny.scenes import render

KERNELS = {
    "isotropic": ops.blur_kernel("gaussian", 9, (1.5, 1.5)),
    "rotated": ops.blur_kernel("gaussian", 21, (3.0, 0.5), 0.7),
    "generalised": ops.blur_kernel("generalised", 13, (2.0, 1.0), -2.0, 0.5),
    "plateau": ops.blur_kernel("plateau", 7, (1.0, 1.0), 0.0, 2.0),
    "sinc": ops.sinc_kernel(15, pi / 3),
}
CHANGES = {
    **{name: lambda x, k=kernel: ops.blur(x, k) for name, kernel in KERNELS.items()},
    **{
        f"{method}{size}": lambda x, m=method, s=size: ops.resize(x, s, m)
        for method in METHODS
        for size in ((13, 17), (48, 40), (24, 32))
    },
    **{
        f"{kind}{gray}": lambda x, k=kind, g=gray: ops.noise(x, k, 2.0, g, generator())
        for kind in NOISES
        for gray in (False, True)
    },
    "jpeg": lambda x: ops.jpeg(x, 60),
    "libx264": lambda x: compress(x, "libx264", 26),
    "mpeg4": lambda x: compress(x, "mpeg4", 8),
}
STILL = [name for name in CHANGES if not name.startswith(NOISES)]


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def scene(frames=4, rows=24, columns=32, seed=0):
    """Soft coloured frames, all different, within 0.2 to 0.8."""
    coarse = torch.rand(frames, 3, 4, 5, generator=generator(seed))
    return 0.2 + 0.6 * resize(coarse, (rows, columns))


def brightness(frames):
    return frames.mean((1, 2, 3))


def steps_in_time(frames=12, rows=24, columns=32):
    """Frame i is a flat grey of brightness 0.1 + 0.6 * i / frames."""
    level = 0.1 + 0.6 * torch.arange(frames) / frames
    return level[:, None, None, None].expand(-1, 3, rows, columns).clone()


@pytest.mark.parametrize("name", CHANGES)
def test_every_operation_preserves_mean_range_count_and_its_input(name):
    frames = scene()
    before = frames.clone()
    out = CHANGES[name](frames)
    assert torch.equal(frames, before)
    assert out.shape[:2] == frames.shape[:2]
    assert out.dtype == frames.dtype
    assert out.amin() >= 0
    assert out.amax() <= 1
    assert (brightness(out) - brightness(frames)).abs().max() < 0.01
    assert not torch.equal(out, frames) or name.endswith("(24, 32)")


@pytest.mark.parametrize("name", CHANGES)
def test_every_operation_stays_in_range_on_hard_edges(name):
    edges = (torch.rand(2, 3, 24, 32, generator=generator()) > 0.5).float()
    out = CHANGES[name](edges)
    assert out.isfinite().all()
    assert out.amin() >= 0
    assert out.amax() <= 1


@pytest.mark.parametrize("name", STILL)
@pytest.mark.parametrize("level", [0.0, 0.35, 1.0])
def test_a_flat_picture_stays_flat(name, level):
    out = CHANGES[name](torch.full((2, 3, 24, 32), level))
    # What quantises may miss by a few parts in 255.
    allowed = {"jpeg": 0.006, "libx264": 0.006, "mpeg4": 0.013}.get(name, 1e-5)
    assert (out - level).abs().max() < allowed


@pytest.mark.parametrize("name", NOISES)
def test_noise_does_not_leave_a_flat_picture_flat(name):
    out = ops.noise(torch.full((2, 3, 24, 32), 0.4), name, 1.0, False, generator())
    assert out.std() > 0.003


@pytest.mark.parametrize("name", CHANGES)
def test_every_operation_preserves_the_order_of_time(name):
    frames = steps_in_time()
    out = brightness(CHANGES[name](frames))
    assert (out - brightness(frames)).abs().max() < 0.02
    assert (out.diff() > 0.03).all()
    assert not (brightness(CHANGES[name](frames.flip(0))).diff() > 0).any()


@pytest.mark.parametrize("name", [name for name in CHANGES if name not in CODECS])
def test_a_frame_does_not_depend_on_later_ones(name):
    frames = scene(5)
    assert torch.equal(CHANGES[name](frames)[:2], CHANGES[name](frames[:2]))


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize(("sigma", "angle"), [((2.0, 2.0), 0.0), ((3.0, 0.7), 1.1)])
def test_kernels_sum_to_one_and_are_symmetric(shape, sigma, angle):
    kernel = ops.blur_kernel(shape, 15, sigma, angle, 1.7)
    assert kernel.sum().item() == pytest.approx(1, abs=1e-12)
    assert (kernel >= 0).all()
    assert (kernel - kernel.flip(0, 1)).abs().max() < 1e-12
    turned = (kernel - kernel.T).abs().max()
    assert turned < 1e-12 if angle == 0 else turned > 1e-3


def test_gaussian_kernels_match_kornia(tolerance):
    sigma = (2.5, 0.8)
    expected = get_gaussian_kernel2d((11, 11), torch.tensor([sigma[::-1]], dtype=torch.float64))
    kernel = ops.blur_kernel("gaussian", 11, sigma)
    assert (kernel - expected[0]).abs().max() < tolerance[torch.float64]
    assert (kernel - ops.blur_kernel("gaussian", 11, sigma, 0.3)).abs().max() > 1e-3


def test_exponent_one_is_the_gaussian_and_a_large_one_is_a_disc():
    gaussian = ops.blur_kernel("gaussian", 15, (2.0, 2.0))
    assert torch.equal(ops.blur_kernel("generalised", 15, (2.0, 2.0), 0.0, 1.0), gaussian)
    disc = ops.blur_kernel("plateau", 15, (4.5, 4.5), 0.0, 10.0)
    assert disc[7, 7] == pytest.approx(disc[7, 10].item(), rel=1e-3)
    assert disc[7, 14] < 0.01 * disc[7, 7]
    assert gaussian[7, 10] < 0.5 * gaussian[7, 7]


def test_a_quarter_turn_swaps_the_axes(tolerance):
    turned = ops.blur_kernel("plateau", 13, (3.0, 1.0), pi / 2, 1.4)
    kernel = ops.blur_kernel("plateau", 13, (3.0, 1.0), 0.0, 1.4)
    assert (turned - kernel.T).abs().max() < tolerance[torch.float64]
    assert kernel[6, 9] > 2 * kernel[9, 6]


@pytest.mark.parametrize("angle", [0.0, 0.4, -1.3, 2.8])
def test_a_gaussian_has_the_moments_of_its_rotated_sigmas(angle):
    kernel = ops.blur_kernel("gaussian", 31, (3.0, 1.2), angle)
    line = torch.arange(31, dtype=torch.float64) - 15
    x, y = line[None], line[:, None]
    found = [(kernel * product).sum().item() for product in (x * x, x * y, y * y)]
    along, across = 9.0, 1.44
    c, s = cos(angle), sin(angle)
    expected = [c * c * along + s * s * across, c * s * (along - across)]
    expected.append(along + across - expected[0])
    assert found == pytest.approx(expected, abs=0.02)


def test_sinc_passes_below_its_cutoff_and_stops_above():
    columns = torch.arange(96.0)

    def kept(frequency, cutoff):
        wave = (0.5 + 0.4 * torch.cos(frequency * columns)).expand(1, 3, 48, -1)
        return (ops.blur(wave, ops.sinc_kernel(21, cutoff))[..., 24:72].std() / wave.std()).item()

    assert 0.85 < kept(pi / 8, pi / 2) < 1.15
    assert kept(7 * pi / 8, pi / 2) < 0.1
    assert kept(7 * pi / 8, pi) > 0.8
    assert ops.sinc_kernel(21, pi / 2).min() < 0


@pytest.mark.parametrize("size", [(1, 1), (2, 3), (7, 24)])
@pytest.mark.parametrize("name", [name for name in CHANGES if "(" not in name])
def test_tiny_frames_keep_their_size(name, size):
    assert CHANGES[name](scene(3, *size)).shape == (3, 3, *size)


@pytest.mark.parametrize("method", METHODS)
def test_resize_gives_the_size_and_the_same_size_is_a_copy(method):
    frames = scene()
    assert ops.resize(frames, (11, 50), method).shape == (4, 3, 11, 50)
    same = ops.resize(frames, (24, 32), method)
    assert torch.equal(same, frames)
    assert same.data_ptr() != frames.data_ptr()


@pytest.mark.parametrize("gray", [False, True])
@pytest.mark.parametrize("level", [4.0, 20.0])
def test_gaussian_noise_has_its_deviation_and_new_values_every_frame(gray, level):
    flat = torch.full((3, 3, 64, 64), 0.5)
    eps = ops.noise(flat, "gaussian", level, gray, generator()) - flat
    assert eps.std().item() * 255 == pytest.approx(level, rel=0.03)
    assert abs(eps.mean().item()) * 255 < 0.05 * level
    channels, frames = (
        torch.corrcoef(torch.stack([one.flatten(), two.flatten()]))[0, 1].item()
        for one, two in ((eps[:, 0], eps[:, 2]), (eps[0], eps[1]))
    )
    assert channels > 0.999 if gray else abs(channels) < 0.05
    assert abs(frames) < 0.05


@pytest.mark.parametrize("gray", [False, True])
def test_poisson_noise_grows_with_the_square_root_of_the_light(gray):
    dark, light = (torch.full((2, 3, 96, 96), level) for level in (0.1, 0.4))
    low, high = (
        (ops.noise(flat, "poisson", 1.5, gray, generator()) - flat).std() for flat in (dark, light)
    )
    assert (high / low).item() == pytest.approx(2, rel=0.05)
    assert low.item() == pytest.approx(1.5 * (0.1 / ops.PHOTONS) ** 0.5, rel=0.05)
    black = torch.zeros(1, 3, 8, 8)
    assert torch.equal(ops.noise(black, "poisson", 3.0, gray, generator()), black)


def test_jpeg_loses_more_at_lower_quality():
    frames = (scene(1) + 0.1 * torch.randn(1, 1, 24, 32, generator=generator())).clamp(0, 1)
    lost = [(ops.jpeg(frames, quality) - frames).square().mean() for quality in (95, 60, 30, 5)]
    assert all(more > 1.3 * less for less, more in zip(lost, lost[1:], strict=False))


@pytest.mark.parametrize("name", CODECS)
def test_codec_loses_more_at_higher_numbers_without_a_shift_of_colour(name):
    frames = scene(8, 48, 64)
    best, low, worst = (
        compress(frames, name, quality) - frames
        for quality in {1: (1, 8, 31), 0: (1, 28, 48)}[CODECS[name][0]]
    )
    errors = [error.square().mean().sqrt().item() for error in (best, low, worst)]
    assert errors[0] < 0.01 < errors[2]
    assert errors[0] < errors[1] < errors[2]
    # The encoder library's own conversion is one part in 255 darker.
    assert best.mean((0, 2, 3)).abs().max() < 0.001


@pytest.mark.parametrize("name", CODECS)
def test_codec_gives_the_same_bits_every_time(name):
    """Whatever lay in the memory before: an encoder may read what nobody has written."""
    quality = {"libx264": 32, "mpeg4": 10}[name]
    drawn = (render(1, 5, 128, generator()).video[0].movedim(1, 0) + 1) / 2
    frames = resize(drawn, (64, 64), "area")
    frames = (frames + 0.04 * torch.randn(frames.shape, generator=generator())).clamp(0, 1)
    first, litter = compress(frames, name, quality), []
    for turn in range(16):
        litter = [*litter[-4:], randbytes(1000 + 7919 * turn * turn)]
        assert torch.equal(compress(frames, name, quality), first)


@pytest.mark.parametrize("name", CODECS)
@pytest.mark.parametrize("count", [1, 2, 21])
def test_codec_returns_every_frame(name, count):
    frames = steps_in_time(count)
    out = compress(frames, name, 20)
    assert out.shape == frames.shape
    assert (brightness(out) - brightness(frames)).abs().max() < 0.02


def test_codec_without_pyav_says_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "av", None)
    with pytest.raises(ImportError, match="install the package `av`"):
        compress(scene(), "mpeg4", 8)


def test_codec_rejects_an_unknown_encoder_and_quality():
    with pytest.raises(ValueError, match="libx264, mpeg4"):
        compress(scene(), "libx999", 8)
    with pytest.raises(ValueError, match="1 to 31, got 40"):
        compress(scene(), "mpeg4", 40)


@pytest.mark.parametrize(
    "change",
    [
        lambda x: ops.resize(x, (4, 4), "nearest"),
        lambda x: ops.noise(x, "salt", 1.0, False, generator()),
        lambda x: ops.blur(x, ops.blur_kernel("box", 3, (1.0, 1.0))),
    ],
)
def test_operations_reject_unknown_kinds(change):
    with pytest.raises(ValueError, match="must be one of"):
        change(scene())


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_latent_noise_mixes_by_its_strength(dtype):
    z = torch.full((2, 4, 3, 32, 32), 2.0, dtype=dtype)
    out = add_latent_noise(z, 0.75, generator())
    assert out.dtype == dtype
    assert (z == 2).all()
    assert out.float().mean().item() == pytest.approx(0.5, abs=0.02)
    assert out.float().std().item() == pytest.approx(0.75, rel=0.02)
    assert torch.equal(out, add_latent_noise(z, 0.75, generator()))
    assert not torch.equal(out, add_latent_noise(z, 0.75, generator(1)))
    assert torch.equal(add_latent_noise(z, 0.0, generator()), z)


def test_latent_noise_takes_one_strength_a_sample():
    z = torch.ones(3, 4, 2, 16, 16)
    s = torch.tensor([0.0, 0.6, 1.0])
    out = add_latent_noise(z, s, generator())
    assert torch.equal(out[0], z[0])
    assert out.mean((1, 2, 3, 4)).tolist() == pytest.approx([1.0, 0.4, 0.0], abs=0.06)
    alone = add_latent_noise(z, 0.6, generator())
    assert torch.equal(out[1], alone[1])


@pytest.mark.parametrize(
    "strength", [-0.1, 1.1, float("nan"), torch.tensor([0.7, 0.7, 0.7]), torch.full((2, 1), 0.7)]
)
def test_latent_noise_rejects_a_bad_strength(strength):
    with pytest.raises(ValueError, match="strength within 0 to 1"):
        add_latent_noise(torch.ones(2, 4, 2, 8, 8), strength, generator())


@pytest.mark.parametrize("z", [torch.ones(2, 4, 8, 8, dtype=torch.long), torch.ones(8, 8), None])
def test_latent_noise_rejects_what_is_no_latent(z):
    with pytest.raises(ValueError, match="floating point latent"):
        add_latent_noise(z, 0.7, generator())


def test_drawn_strengths_fill_their_range():
    drawn = draw_strength(generator(), 2000)
    assert drawn.shape == (2000,)
    assert drawn.min() >= 0.6
    assert drawn.max() <= 0.9
    assert drawn.mean().item() == pytest.approx(0.75, abs=0.01)
    assert drawn.std().item() == pytest.approx(0.3 / 12**0.5, rel=0.05)
