"""Tiles cover a picture, their blend is exact where it can be and seamless where it cannot."""

from itertools import pairwise, product

import pytest
import torch
from surf.surf_core import flow
from surf.surf_core.tiles import blend, boxes, crossfade, in_tiles, spans, weights
from surf.surf_core.tiny.model import TinyT2V, to_pixels
from surf.surf_core.tiny.vae import CELL
from torch.nn import functional as F

SIZES = [
    case
    for case in product((1, 2, 5, 16, 31, 64, 135), (4, 8, 13, 20, 64), (0, 1, 2, 6), (1, 2, 4))
    if case[1] >= case[0] or case[1] // case[3] >= max(1, 2 * -(-case[2] // case[3]))
]


def noise(*shape, seed=0, dtype=torch.float32):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=dtype)


def test_tiles_cover_the_axis_are_equal_and_share_the_overlap():
    assert len(SIZES) > 300
    for length, tile, overlap, multiple in SIZES:
        cut = spans(length, tile, overlap, multiple)
        assert cut == spans(length, tile, overlap, multiple)
        assert (cut[0][0], cut[-1][1]) == (0, length)
        if len(cut) == 1:
            continue
        (side,) = {stop - start for start, stop in cut}
        assert side <= tile
        assert side % multiple == 0
        assert all(start % multiple == 0 for start, _ in cut[:-1])
        assert length % multiple or cut[-1][0] % multiple == 0
        for (start, stop), (after, _) in pairwise(cut):
            assert stop - after >= overlap
            assert after > start


def test_tiles_are_as_few_as_can_be():
    assert spans(135, 76, 16, 2) == [(0, 76), (59, 135)]
    assert spans(136, 80, 16, 2) == [(0, 76), (60, 136)]
    assert len(spans(240, 128, 16, 2)) == 2
    assert len(spans(240, 126, 16, 2)) == 3
    for length, tile, overlap in ((100, 20, 4), (101, 30, 7), (64, 16, 8)):
        count = len(spans(length, tile, overlap))
        assert count * tile - (count - 1) * overlap >= length
        assert (count - 1) * tile - (count - 2) * overlap < length


def test_a_tile_as_long_as_the_axis_is_the_axis():
    for length in (1, 7, 64):
        assert spans(length, length, 3, 2) == [(0, length)]
        assert spans(length, length + 5, 100, 2) == [(0, length)]


def test_weights_sum_to_one_and_vanish_at_the_edges_of_tiles():
    for case in SIZES:
        cut = spans(*case)
        parts, total = weights(cut), torch.zeros(case[0], dtype=torch.float64)
        for part, (start, stop) in zip(parts, cut, strict=True):
            assert (part > 0).all()
            total[start:stop] += part
        assert (total - 1).abs().max() < 1e-14
    first, second = weights([(0, 24), (8, 32)])
    assert first[-1] == pytest.approx(second[0])
    assert second[0] < 0.01
    assert (first.diff() <= 0).all()
    assert first.diff().abs().max() < 1.6 / 16


def test_boxes_of_a_picture_are_of_one_size():
    parts = boxes((135, 240), (80, 128), 16, 2)
    assert len(parts) == 4
    assert {(r.stop - r.start, c.stop - c.start) for r, c in parts} == {(76, 128)}


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
@pytest.mark.parametrize("shape", [(1, 2, 3, 21, 34), (2, 3, 17, 9), (12, 12)])
def test_a_pointwise_function_gives_the_identical_result(shape, dtype, tolerance):
    x = noise(*shape).to(dtype)
    out = in_tiles(lambda part, _: part * 3 + part.square(), x, (8, 10), 3)
    exact = x * 3 + x.square()
    assert out.dtype == dtype
    limit = 1e-6 if dtype == torch.float32 else tolerance[dtype]
    assert (out - exact).abs().max() <= limit * exact.abs().max()


def test_one_tile_is_the_function_bit_for_bit():
    x, calls = noise(1, 3, 7, 9), []

    def function(part, box):
        calls.append(box)
        return part.cos()

    assert torch.equal(in_tiles(function, x, (8, 16), 2), x.cos())
    assert calls == [(slice(0, 7), slice(0, 9))]


def test_boxes_reach_the_function_and_x_stays():
    x = noise(1, 2, 20, 30)
    before, place = x.clone(), torch.arange(600.0).reshape(20, 30)
    out = in_tiles(lambda part, box: part * place[box], x, (12, 12), 4)
    torch.testing.assert_close(out, x * place)
    assert torch.equal(x, before)


def test_the_result_may_have_other_axes_than_the_picture():
    out = blend(lambda box: torch.ones(2, 5, 1, 8, 8), (20, 20), (8, 8), 2)
    torch.testing.assert_close(out, torch.ones(2, 5, 1, 20, 20))


def test_half_precision_is_summed_in_single():
    x = torch.full((1, 40, 40), 1.0, dtype=torch.bfloat16)
    assert torch.equal(in_tiles(lambda part, _: part, x, (8, 8), 4), x)


def test_gradients_pass_through_tiles():
    x = noise(2, 7, 9, dtype=torch.float64).requires_grad_()
    assert torch.autograd.gradcheck(lambda x: in_tiles(lambda p, _: p.sin(), x, (5, 6), 2), x)


@pytest.mark.parametrize(
    ("case", "said"),
    [
        ((0, 4, 0), "length=0"),
        ((8, 0, 0), "tile=0"),
        ((8, 4, -1), "overlap=-1"),
        ((8, 4, 0, 0), "multiple=0"),
        ((8, 5, 3), "two overlaps, 6 cells"),
        ((9, 5, 3, 2), "two overlaps, 8 cells"),
        ((9, 3, 0, 4), "4 cells"),
    ],
)
def test_spans_reject_what_cannot_cover(case, said):
    with pytest.raises(ValueError, match=said):
        spans(*case)


def test_a_function_that_changes_the_size_is_rejected():
    with pytest.raises(ValueError, match="rows and columns"):
        in_tiles(lambda part, _: part[..., 1:], noise(1, 16, 16), (8, 8), 2)


def random_field(count, side, length, channels=1):
    """Random pictures, alike everywhere, smooth over `length` cells (0: white), unit variance."""
    white = noise(count, channels, side, side, seed=3)
    down, across = torch.fft.fftfreq(side)[:, None], torch.fft.rfftfreq(side)
    low = torch.exp(-2 * (torch.pi * length) ** 2 * (down**2 + across**2))
    field = torch.fft.irfft2(torch.fft.rfft2(white) * low)
    return field / field.std()


def step_ratio(x, edges, elsewhere, unit=1):
    """Mean step over the boundaries `edges`, of `unit` cells, over that of those `elsewhere`."""
    steps = sum(
        (y[..., unit::unit] - y[..., unit - 1 : -1 : unit]).abs().flatten(0, -2).mean(0)
        for y in (x, x.transpose(-1, -2))
    )
    pick = [torch.tensor(sorted(places)) - 1 for places in (edges, elsewhere)]
    return (steps[pick[0]].mean() / steps[pick[1]].mean()).item()


def add_half_the_mean(part, box):
    return part + 0.5 * part.mean((-2, -1), keepdim=True)


def blur_without_context(part, box):
    return F.avg_pool2d(part, 5, 1, 2)


@pytest.mark.parametrize("function", [add_half_the_mean, blur_without_context])
@pytest.mark.parametrize("length", [12.0, 0.0], ids=["smooth", "textured"])
def test_the_step_across_a_tile_edge_is_no_larger_than_elsewhere(function, length):
    side, tile, overlap = 128, 48, 16
    x = 1 + 0.5 * random_field(48, side, length)
    cut = spans(side, tile, overlap)
    edges = {edge for span in cut for edge in span if 0 < edge < side}
    near = {edge + shift for edge in edges for shift in range(-2, 3)}
    shared = {b for before, after in pairwise(cut) for b in range(after[0], before[1] + 1)}
    # The border of the picture, too, is an edge for the blur.
    elsewhere = set(range(8, side - 8)) - near - shared
    soft, hard = (in_tiles(function, x, (tile, tile), width) for width in (overlap, 0))
    assert step_ratio(soft, edges, elsewhere) <= 1.05
    assert step_ratio(soft, near, elsewhere) <= 1.05
    cuts = {edge for span in spans(side, tile, 0) for edge in span if 0 < edge < side}
    visible = function is blur_without_context or length
    assert (step_ratio(hard, cuts, set(range(8, side - 8)) - cuts) > 1.2) == bool(visible)


@pytest.mark.slow
def test_a_refined_video_shows_no_tile_edges():
    """The embedded model, a whole run; it steps at its patches, so those are compared.

    Without a prompt, since each tile would draw what it names, in a quarter of its own.
    """
    count, side, patch = 4, 24, 2
    tiny = TinyT2V([""] * count)
    start = 0.5 * random_field(count, side, 1.0, channels=16 * 2).unflatten(1, (16, 2))

    @torch.inference_mode()
    def velocity(z, sigma):
        return tiny.model(z, torch.full((count,), 1000 * sigma), tiny.context)

    def run(tile, overlap):
        def tiles(z, sigma):
            parts = (tile, tile), overlap, patch
            return in_tiles(lambda part, _: velocity(part, sigma), z, *parts)

        return flow.refine(tiles, start, 0.4, 5, noise(*start.shape, seed=4))

    whole = run(side, 0)

    def against_whole(tile, overlap):
        cut = spans(side, tile, overlap, patch)
        edges = {edge // patch for span in cut for edge in span if 0 < edge < side}
        elsewhere = set(range(1, side // patch)) - edges
        tiled = run(tile, overlap)
        for see in (lambda z: (z, patch), lambda z: (to_pixels(z), patch * CELL)):
            pair = [step_ratio(x, edges, elsewhere, unit) for x, unit in map(see, (tiled, whole))]
            yield pair[0] / pair[1]

    assert max(against_whole(16, 8)) <= 1.05
    assert min(against_whole(12, 0)) > 1.15


@pytest.mark.parametrize("looks_ahead", [False, True])
@pytest.mark.parametrize("axis", [0, 2])
def test_stretches_of_one_video_join_to_it(axis, looks_ahead):
    video = noise(3, 2, 41, 2) if axis == 2 else noise(41, 3)
    for length, shared in ((41, 0), (20, 4), (9, 1), (9, 2), (7, 3)):
        cut = spans(41, length, shared)
        parts = (video.narrow(axis, start, stop - start) for start, stop in cut)
        joined = crossfade(parts, [start for start, _ in cut], 41, axis, looks_ahead)
        torch.testing.assert_close(joined, video, rtol=0, atol=1e-6)


def test_what_a_stretch_lacks_at_its_ends_stays_out():
    """Ones are the first stretch, zeros the second; 12 frames are shared."""
    first, second = torch.ones(20), torch.zeros(20)
    causal, ahead = (crossfade((first, second), [0, 8], 28, 0, kind) for kind in (False, True))
    assert (causal[:16] == 1).all()
    assert (ahead[:12] == 1).all()
    assert (ahead[16:] == 0).all()
    for joined in (causal, ahead):
        assert (joined[20:] == 0).all()
        wave = joined[(joined > 0) & (joined < 1)]
        assert len(wave) == 4
        torch.testing.assert_close(wave + wave.flip(0), torch.ones(4))
        assert (joined.diff() <= 0).all()


@pytest.mark.parametrize(
    ("lengths", "starts", "said"),
    [
        ((5, 5), (0, 6), "go on from 5 of 10, got 6 to 11"),
        ((5, 4), (0, 5), "expected 10 frames, got 9"),
        ((8, 3), (0, 4), "go on from 8 of 10, got 4 to 7"),
        ((5, 9), (0, 3), "go on from 5 of 10, got 3 to 12"),
    ],
)
def test_stretches_that_do_not_make_the_video_are_refused(lengths, starts, said):
    with pytest.raises(ValueError, match=said):
        crossfade((torch.zeros(n) for n in lengths), list(starts), 10, 0)
