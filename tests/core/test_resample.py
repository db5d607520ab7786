"""Resizing in space, and sizes that fit."""

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from surf.surf_core.resample import (
    BUCKETS,
    METHODS,
    RESOLUTIONS,
    cell_pixels,
    resize,
    resize_part,
    snap,
    target_size,
)

steady = settings(max_examples=50, deadline=None, derandomize=True)


def noise(*shape, dtype=torch.float32):
    return torch.randn(shape, generator=torch.Generator().manual_seed(0), dtype=dtype)


@pytest.mark.parametrize("shape", [(2, 4, 6, 10), (1, 16, 1, 14, 6), (2, 3, 5, 2, 4)])
@pytest.mark.parametrize("method", ["auto", "bilinear", "area"])
def test_half_is_the_mean_of_two_by_two(shape, method, tolerance):
    x = noise(*shape, dtype=torch.float64)
    half = (shape[-2] // 2, shape[-1] // 2)
    blocks = x.unflatten(-1, (half[1], 2)).unflatten(-3, (half[0], 2)).mean(dim=(-3, -1))
    assert torch.allclose(resize(x, half, method), blocks, atol=tolerance[torch.float64])


def test_auto_at_half_is_bit_equal_to_plain_bilinear():
    x = noise(1, 16, 3, 60, 104)
    frames = x.movedim(2, 1).flatten(0, 1)
    plain = F.interpolate(frames, (30, 52), mode="bilinear")
    assert torch.equal(resize(x, (30, 52)), plain.unflatten(0, (1, 3)).movedim(1, 2))


@pytest.mark.parametrize("whole", [(3, 3), (4, 2), (1, 5), (7, 1)])
def test_auto_is_the_block_mean_at_whole_ratios(whole, tolerance):
    size = (3, 5)
    x = noise(2, 3, 2, size[0] * whole[0], size[1] * whole[1], dtype=torch.float64)
    blocks = x.unflatten(-1, (5, whole[1])).unflatten(-3, (3, whole[0])).mean(dim=(-3, -1))
    assert torch.allclose(resize(x, size), blocks, atol=tolerance[torch.float64])


@pytest.mark.parametrize("size", [(26, 30), (17, 23), (40, 41), (7, 11)])
def test_auto_looks_at_every_cell_when_it_shrinks(size):
    x = noise(1, 1, 67, 83, dtype=torch.float64).requires_grad_()
    resize(x, size).sum().backward()
    assert (x.grad > 0).all()


def test_plain_bilinear_skips_cells_beyond_half_and_auto_does_not():
    stripes = torch.zeros(1, 1, 9, 9)
    stripes[..., 1::3] = 3
    assert resize(stripes, (3, 3), "bilinear").mean() == 3
    assert torch.allclose(resize(stripes, (3, 3)), torch.ones(1, 1, 3, 3))


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("size", [(1, 1), (5, 7), (9, 11), (18, 22), (13, 40), (4, 30)])
def test_resize_keeps_a_constant(method, size):
    x = torch.full((2, 3, 1, 9, 11), -1.75)
    assert torch.allclose(resize(x, size, method), torch.full((2, 3, 1, *size), -1.75), atol=1e-5)


@pytest.mark.parametrize("method", METHODS)
def test_resize_treats_every_frame_alone(method):
    x = noise(2, 4, 5, 9, 14)
    together = resize(x, (6, 7), method)
    for frame in range(5):
        assert torch.allclose(together[:, :, frame], resize(x[:, :, frame], (6, 7), method))


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("size", [(5, 4), (7, 9), (11, 13)])
def test_resize_is_linear(method, size, tolerance):
    a, b = noise(1, 2, 1, 7, 9, dtype=torch.float64), noise(1, 2, 1, 7, 9).double().flip(-1)
    mixed = resize(2 * a - 3 * b, size, method)
    apart = 2 * resize(a, size, method) - 3 * resize(b, size, method)
    assert torch.allclose(mixed, apart, atol=tolerance[torch.float64])


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("size", [(6, 8), (3, 4), (5, 5), (12, 9)])
def test_resize_does_not_alias_its_input(method, size):
    x = noise(1, 4, 2, 6, 8)
    before = x.clone()
    out = resize(x, size, method)
    out.fill_(7)
    assert torch.equal(x, before)


@pytest.mark.parametrize("shape", [(1, 4, 5, 7), (2, 16, 1, 3, 9)])
def test_auto_is_identity_at_the_same_size(shape):
    x = noise(*shape)
    assert torch.equal(resize(x, shape[-2:]), x)


def test_upscale_stays_within_the_bounds_of_the_input():
    x = noise(1, 4, 1, 7, 9)
    large = resize(x, (20, 31))
    assert large.min() >= x.min() - 1e-6
    assert large.max() <= x.max() + 1e-6
    assert resize(x, (20, 31), "bicubic").max() > x.max()


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("method", METHODS)
def test_half_precision_is_computed_in_single(dtype, method):
    x = noise(1, 4, 2, 15, 22).to(dtype)
    out = resize(x, (4, 9), method)
    assert out.dtype == dtype
    assert torch.equal(out, resize(x.float(), (4, 9), method).to(dtype))


def test_resize_takes_inputs_that_are_not_contiguous():
    x = noise(9, 14, 4, 3, 2).permute(4, 2, 3, 0, 1)
    assert torch.allclose(resize(x, (5, 6)), resize(x.contiguous(), (5, 6)))


def test_gradients_pass_through_resize():
    x = noise(1, 1, 1, 5, 4, dtype=torch.float64).requires_grad_()
    for size in ((2, 2), (3, 3), (7, 6)):
        assert torch.autograd.gradcheck(lambda x, size=size: resize(x, size), x)


@pytest.mark.parametrize(
    ("x", "size", "method", "expected"),
    [
        (torch.zeros(3, 4, 4), (2, 2), "auto", "pass a latent"),
        (torch.zeros(1, 3, 4, 4, dtype=torch.int32), (2, 2), "auto", "pass a latent"),
        (torch.zeros(1, 3, 4, 4), (0, 2), "auto", "larger scale"),
        (torch.zeros(1, 3, 4, 4), (2, 2), "lanczos", "method must be one of"),
    ],
)
def test_resize_rejects_bad_input(x, size, method, expected):
    with pytest.raises(ValueError, match=expected):
        resize(x, size, method)


@pytest.mark.parametrize(
    ("channels", "video", "side"),
    [
        (16, True, 8), (16, False, 8), (48, True, 16), (32, True, 16), (4, False, 8),
        (12, True, 8), (128, True, 32), (128, False, 16), (64, False, 32), (3, False, 1),
        (64, True, None), (7, True, None),
    ],
)  # fmt: skip
def test_cell_pixels_match_the_model_families(channels, video, side):
    assert cell_pixels(channels, video=video) == side


@steady
@given(st.floats(0.1, 5000), st.floats(0.1, 5000), st.sampled_from([1, 2, 8, 16, 32]))
def test_snap_gives_the_nearest_multiples(height, width, multiple):
    for side, got in zip((height, width), snap((height, width), multiple), strict=True):
        assert got % multiple == 0
        assert got >= multiple
        assert abs(got - side) <= multiple / 2 + 1e-9 or got == multiple


def test_snap_rounds_the_middle_up():
    assert snap((1080, 1920), 16) == (1088, 1920)
    assert snap((720, 240), 32) == (736, 256)


@pytest.mark.parametrize("method", METHODS[1:])
@pytest.mark.parametrize("size", [(27, 40), (12, 23), (13, 21), (5, 60), (1, 1)])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.float16])
def test_a_part_is_what_the_whole_resize_holds_there(method, size, dtype, tolerance):
    x = noise(2, 3, 12, 23, dtype=torch.float64).to(dtype)
    whole = resize(x, size, method)
    for box in (
        (slice(0, size[0]), slice(0, size[1])),
        (slice(size[0] // 2, size[0]), slice(size[1] // 3, size[1] // 2 + 1)),
        (slice(0, 1), slice(size[1] - 1, size[1])),
    ):
        part = resize_part(x, size, box, method)
        assert part.dtype == dtype
        assert torch.allclose(part, whole[(..., *box)], atol=tolerance[dtype])


def test_a_part_needs_only_the_cells_under_it():
    x = noise(1, 1, 40, 40)
    box = (slice(0, 20), slice(60, 80))
    far = x.clone()
    far[..., 20:, :20] = float("nan")
    assert torch.equal(resize_part(far, (80, 80), box), resize_part(x, (80, 80), box))


@pytest.mark.parametrize(
    ("box", "method", "expected"),
    [
        ((slice(0, 9), slice(0, 4)), "bicubic", "cut it out"),
        ((slice(2, 2), slice(0, 4)), "bicubic", "cut it out"),
        ((slice(0, 4), slice(0, 4)), "auto", "method must be one of"),
    ],
)
def test_a_part_rejects_bad_input(box, method, expected):
    with pytest.raises(ValueError, match=expected):
        resize_part(torch.zeros(1, 1, 4, 4), (8, 8), box, method)


@pytest.mark.parametrize("name", BUCKETS)
def test_the_two_shapes_of_a_bucket_have_one_area(name):
    square, wide = BUCKETS[name]
    assert square[0] * square[1] == pytest.approx(wide[0] * wide[1], rel=0.17)


def test_a_bucket_in_its_own_shapes_can_be_exact():
    assert target_size((480, 832), resolution="1080p", exact=True) == (1080, 1920)
    assert target_size((480, 832), resolution="1080p") == (1088, 1920)
    assert target_size((832, 480), resolution="2160p", multiple=32, exact=True) == (3840, 2160)
    other = target_size((480, 640), resolution="1080p", exact=True)
    assert other == target_size((480, 640), resolution="1080p")
    assert all(side % 16 == 0 for side in other)


@pytest.mark.parametrize("name", BUCKETS)
def test_buckets_of_the_paper_are_hit_in_both_orientations(name):
    square, (high, wide) = BUCKETS[name]
    assert target_size((512, 512), resolution=name, multiple=1) == square
    assert target_size((720, 1280), resolution=name, multiple=1) == (high, wide)
    assert target_size((832, 480), resolution=name, multiple=1) == (wide, high)


@pytest.mark.parametrize("multiple", [16, 32])
@pytest.mark.parametrize("name", BUCKETS)
@pytest.mark.parametrize("source", [(480, 832), (832, 480), (576, 576), (640, 480), (368, 864)])
def test_bucket_sizes_fit_the_model(source, name, multiple):
    size = target_size(source, resolution=name, multiple=multiple)
    assert all(side % multiple == 0 for side in size)


def test_240p_is_half_of_480p_for_wan():
    assert target_size((480, 832), resolution="240p") == (240, 416)
    assert target_size((480, 832), resolution="1080p") == (1088, 1920)


@steady
@given(st.floats(0.2, 5.0), st.sampled_from(list(BUCKETS)))
def test_other_shapes_keep_their_aspect_at_the_area_of_a_bucket(aspect, name):
    source = (round(1000 / aspect**0.5), round(1000 * aspect**0.5))
    height, width = target_size(source, resolution=name, multiple=1)
    assert width / height == pytest.approx(source[1] / source[0], rel=0.06)
    areas = [a * b for a, b in BUCKETS[name]]
    assert min(areas) * 0.97 <= height * width <= max(areas) * 1.03


@steady
@given(st.integers(16, 3000), st.integers(16, 3000), st.floats(0.1, 4.0))
def test_by_scale_multiplies_and_snaps(height, width, scale):
    got = target_size((height, width), resolution="by scale", scale=scale)
    assert got == snap((height * scale, width * scale), 16)


def test_by_size_is_taken_as_it_is():
    got = target_size((480, 832), resolution="by size", width=416, height=240)
    assert got == (240, 416)


@pytest.mark.parametrize(
    ("width", "height", "expected"),
    [
        (1270, 720, "width 1270 is not a multiple of 16; use 1264 or 1280"),
        (1280, 8, "height 8 is not a multiple of 16; use 16"),
        (0, 720, "width 0 is not"),
    ],
)
def test_by_size_rejects_what_does_not_fit_and_names_what_does(width, height, expected):
    with pytest.raises(ValueError, match=expected):
        target_size((480, 832), resolution="by size", width=width, height=height)


@pytest.mark.parametrize("scale", [0.0, -1.0, float("nan"), float("inf")])
def test_by_scale_rejects_what_is_no_factor(scale):
    with pytest.raises(ValueError, match="scale must be above 0"):
        target_size((480, 832), resolution="by scale", scale=scale)


def test_target_size_rejects_unknown_resolutions():
    assert RESOLUTIONS == ("by scale", "240p", "480p", "720p", "1080p", "by size")
    with pytest.raises(ValueError, match="resolution must be one of"):
        target_size((480, 832), resolution="360p")
