"""Colours of the preview for refined frames: exact where they match, without flicker."""

import pytest
import torch
from kornia.color import lab_to_rgb, rgb_to_lab
from surf.surf_core import colour
from surf.surf_core.colour import METHODS, match_colour, slow_levels
from surf.surf_core.lowband import wavelet_match
from surf.surf_core.resample import resize
from surf.surf_core.signature import detail

SIZES = [((24, 40), (24, 40)), ((24, 40), (12, 20)), ((33, 57), (10, 17)), ((24, 40), (48, 80))]


def random(*shape, seed=0, dtype=torch.float64):
    return torch.rand(shape, generator=torch.Generator().manual_seed(seed), dtype=dtype)


def scene(frames=3, rows=48, columns=80, seed=0, dtype=torch.float64):
    """A soft picture with fine texture, far from 0 and 1, all frames alike."""
    soft = resize(random(1, 3, 4, 6, seed=seed, dtype=dtype), (rows, columns))
    fine = random(1, 3, rows, columns, seed=seed + 1, dtype=dtype)
    return (0.35 + 0.25 * soft + 0.1 * (fine - 0.5)).expand(frames, -1, -1, -1).clone()


def in_lab(frames, lightness=0.0, a=0.0, b=0.0):
    """Move frames by a constant in CIE LAB."""
    step = torch.tensor([lightness, a, b], dtype=frames.dtype)[:, None, None]
    return lab_to_rgb(rgb_to_lab(frames) + step)


def chroma(frames):
    """Mean a and b of every frame: [F, 2]."""
    return rgb_to_lab(frames)[:, 1:].mean((2, 3))


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize(("size", "small"), SIZES)
@pytest.mark.parametrize("dtype", [torch.float16, torch.float32, torch.float64])
def test_frames_that_already_match_are_unchanged(method, size, small, dtype):
    frames = random(5, 3, *size, dtype=torch.float64).to(dtype)
    reference = frames.float() if dtype == torch.float16 else frames
    reference = resize(reference, tuple(map(min, zip(size, small, strict=True))))
    assert torch.equal(match_colour(frames, reference, method), frames)


@pytest.mark.parametrize("method", METHODS)
def test_a_larger_reference_is_brought_down_to_the_frames(method):
    frames, reference = scene(), resize(scene(seed=4), (96, 160))
    small = resize(reference, (48, 80))
    assert torch.equal(match_colour(frames, reference, method), match_colour(frames, small, method))


@pytest.mark.parametrize("low", [(48, 80), (24, 40), (17, 29)])
def test_wavelet_takes_over_a_constant_tint(low, tolerance):
    frames = scene()
    tint = torch.tensor([0.1, -0.05, 0.02], dtype=torch.float64)[:, None, None]
    out = match_colour(frames, resize(frames + tint, low), "wavelet")
    assert (out - frames - tint).abs().max() < tolerance[torch.float64]


@pytest.mark.parametrize("low", [(48, 80), (24, 40)])
@pytest.mark.parametrize("shift", [(6.0, 0.0, 0.0), (0.0, 5.0, -7.0), (-4.0, 3.0, 8.0)])
def test_lab_takes_over_a_constant_shift_in_lab(low, shift):
    frames = scene()
    expected = in_lab(frames, *shift)
    assert (expected - frames).abs().max() > 0.02
    out = match_colour(frames, resize(expected, low), "lab")
    # Averaging cells in RGB is not averaging them in LAB, so only at one size it is exact.
    assert (out - expected).abs().max() < (1e-3 if low == (48, 80) else 0.01)


def saturated(frames, gain):
    """Multiply a and b."""
    return lab_to_rgb(rgb_to_lab(frames) * torch.tensor([1, gain, gain])[:, None, None])


def test_lab_takes_over_a_change_of_saturation():
    frames = resize(scene(rows=4, columns=6), (48, 80))
    expected = saturated(frames, 1.4)
    far, near = (
        (x - expected).square().mean() for x in (frames, match_colour(frames, expected, "lab"))
    )
    assert near < 0.05 * far
    detailed = scene()
    out = match_colour(detailed, saturated(detailed, 1.4), "lab")
    sharp = [detail(x.movedim(0, 1)[None]) for x in (detailed, out)]
    assert 0.95 < sharp[1] / sharp[0] < 1.05


def test_lab_stretches_faint_colours_as_much_as_strong_ones():
    """A deviation of a or b of one is a colour, too."""
    gains = []
    for colourful in (1.0, 0.1):
        frames = saturated(resize(scene(rows=4, columns=6), (48, 80)), colourful)
        out = match_colour(frames, saturated(frames, 1.4), "lab")
        after, before = (rgb_to_lab(x)[:, 1:].std((0, 2, 3)) for x in (out, frames))
        gains.append(after / before)
    assert before.max() < 1.2
    assert (gains[0] > 1.3).all()
    torch.testing.assert_close(gains[1], gains[0], rtol=0.02, atol=0)


def test_lab_stretches_the_chroma_of_a_grey_video_at_most_twice():
    frames = resize(scene(rows=4, columns=6), (48, 80))
    grey = 0.5 + 0.05 * (frames - 0.5)
    out = match_colour(grey, frames, "lab")
    spread, before = (rgb_to_lab(x)[:, 1:].std((0, 2, 3)) for x in (out, grey))
    assert (spread / before > 1.5).all()
    assert (spread / before < 2.1).all()


@pytest.mark.parametrize(("rows", "columns"), [(48, 80), (64, 64), (7, 9), (1, 1)])
def test_wavelet_at_one_size_is_the_wavelet_match(rows, columns, tolerance):
    frames, other = scene(2, rows, columns), scene(2, rows, columns, seed=3)
    expected = wavelet_match(frames, other, slow_levels((rows, columns)))
    out = match_colour(frames, other, "wavelet")
    assert (out - expected.clamp(0, 1)).abs().max() < tolerance[torch.float64]


def test_levels_grow_with_the_size():
    sizes = [(1, 1), (16, 16), (64, 64), (240, 416), (512, 768), (1080, 1920), (2160, 3840)]
    assert [slow_levels(size) for size in sizes] == [1, 1, 3, 5, 6, 7, 8]


@pytest.mark.parametrize("method", METHODS)
def test_the_low_band_becomes_the_previews_and_detail_stays(method):
    frames = scene(2, 96, 160)
    reference = resize(in_lab(scene(2, 96, 160, seed=9), 5.0, 4.0, -6.0), (48, 80))
    out = match_colour(frames, reference, method)

    def apart(x):
        light, wanted = (rgb_to_lab(resize(y, (6, 10)))[:, 0] for y in (x, reference))
        return (light - wanted).square().mean().sqrt()

    assert apart(out) < 0.4 * apart(frames)
    sharp = [detail(x.movedim(0, 1)[None]) for x in (frames, out)]
    assert 0.9 < sharp[1] / sharp[0] < 1.1
    blurred = resize(reference, (96, 160))
    assert detail(blurred.movedim(0, 1)[None]) < 0.5 * sharp[0]


@pytest.mark.parametrize("method", METHODS)
def test_a_still_video_stays_still(method):
    out = match_colour(scene(6), resize(scene(6, seed=5), (24, 40)), method)
    assert torch.equal(out, out[:1].expand_as(out))


@pytest.mark.parametrize("method", METHODS)
def test_brightness_flicker_of_the_video_goes(method):
    flicker = 0.06 * torch.tensor([0.0, 1, -1, 1, 0, -1], dtype=torch.float64)[:, None, None, None]
    out = match_colour(scene(6) + flicker, resize(scene(6), (24, 40)), method)
    light = rgb_to_lab(out)[:, 0].mean((1, 2))
    before = rgb_to_lab(scene(6) + flicker)[:, 0].mean((1, 2))
    assert light.std() < 0.05 * before.std()


def test_chroma_flicker_of_the_preview_does_not_pass_lab():
    frames = scene(6)
    sign = torch.tensor([1.0, -1, 1, -1, 1, -1], dtype=torch.float64)
    flickering = torch.cat([in_lab(frames[:1], a=6 * s, b=-4 * s) for s in sign.tolist()])
    steady, moving = (
        chroma(match_colour(frames, flickering, method)) for method in ("lab", "wavelet")
    )
    assert steady.std(0).max() < 1e-6
    assert moving.std(0).min() > 2


@pytest.mark.parametrize("method", METHODS)
def test_results_stay_within_zero_to_one(method):
    dark, bright = random(2, 3, 24, 40) ** 4, random(2, 3, 24, 40, seed=1) ** 0.2
    for frames, reference in ((dark, bright), (bright, dark)):
        out = match_colour(frames, reference, method)
        assert out.min() >= 0
        assert out.max() <= 1
        assert not torch.equal(out, frames)


@pytest.mark.parametrize("method", METHODS)
def test_strength_walks_from_the_frames_to_the_match(method, tolerance):
    frames, reference = scene(), resize(scene(seed=4), (24, 40))
    full = match_colour(frames, reference, method)
    assert torch.equal(match_colour(frames, reference, method, strength=0.0), frames)
    half = match_colour(frames, reference, method, strength=0.5)
    assert (half - (frames + full) / 2).abs().max() < tolerance[torch.float64]


@pytest.mark.parametrize("method", METHODS)
def test_chunks_do_not_show_and_bound_the_frames_at_once(method, monkeypatch, tolerance):
    frames, reference = scene(7), resize(scene(7, seed=4), (24, 40))
    reference += 0.02 * random(7, 3, 1, 1)
    whole = match_colour(frames, reference, method)
    seen, progress, plain = [], [], colour.resize
    monkeypatch.setattr(colour, "resize", lambda x, *args: seen.append(len(x)) or plain(x, *args))
    for pixels, most in ((1, 1), (3 * 48 * 80, 3)):
        monkeypatch.setattr(colour, "CHUNK_PIXELS", pixels)
        out = match_colour(frames, reference, method, on_chunk=lambda *step: progress.append(step))
        assert max(seen) == most
        assert (out - whole).abs().max() < tolerance[torch.float64]
        seen.clear()
    assert progress == [(n, 7) for n in (1, 2, 3, 4, 5, 6, 7, 3, 6, 7)]


@pytest.mark.parametrize("method", METHODS)
def test_inputs_are_not_mutated_and_the_layout_is_kept(method):
    frames, reference = scene(2).movedim(1, -1).contiguous().movedim(-1, 1), scene(2, seed=4)
    kept = frames.clone(), reference.clone()
    out = match_colour(frames, reference, method)
    assert out.stride() == frames.stride()
    assert torch.equal(frames, kept[0])
    assert torch.equal(reference, kept[1])
    assert out.data_ptr() != frames.data_ptr()


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
def test_results_keep_the_dtype(method, dtype, tolerance):
    frames, reference = scene(2).to(dtype), scene(2, seed=4).to(dtype)
    out = match_colour(frames, reference, method)
    assert out.dtype == dtype
    expected = match_colour(frames.double(), reference.double(), method)
    assert (out.double() - expected).abs().max() < 2 * tolerance[dtype]


def test_bad_input_is_rejected_with_advice():
    frames = scene(2)
    for change, said in (
        ({"frames": frames[:, :2]}, "expected frames .* decode a video"),
        ({"reference": (frames * 255).to(torch.uint8)}, "expected reference .* floating"),
        ({"frames": frames[:0], "reference": frames[:0]}, "expected frames"),
        ({"reference": frames[:1]}, "as many frames.*got 1 for 2"),
        ({"reference": frames[..., :60]}, "in the shape of the video, 80 x 48 pixels, got 60 x 48"),
        ({"method": "histogram"}, "method must be one of wavelet, lab"),
        ({"strength": 1.5}, "strength must lie"),
    ):
        with pytest.raises(ValueError, match=said):
            match_colour(**({"frames": frames, "reference": frames} | change))
    match_colour(frames, resize(frames, (23, 40)))
