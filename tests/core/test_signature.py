"""Agreement with a baseline, which adversaries must not win, and distances."""

import json
from dataclasses import asdict

import pytest
import torch
import torch.nn.functional as F
from kornia.filters import gaussian_blur2d
from surf.surf_core.resample import resize
from surf.surf_core.signature import (
    HEADLINE,
    bands,
    colour_distance,
    controls,
    detail,
    flicker,
    place_error,
    report,
    scores,
)
from surf.surf_core.signature.agreement import octaves
from surf.surf_core.signature.motion import optical_flow
from surf.surf_core.signature.named import named_pixels
from surf.surf_core.training.tiny.paint import PALETTE, paint
from surf.surf_core.training.tiny.world import draw

TIMES = torch.linspace(-0.5, 0.5, 13)[:7]
COLOURS = torch.tensor(PALETTE)
SIZE = (64, 64)
FAITHFUL = ("averaged down", "bicubic", "painted at this size")
ADVERSARIES = (
    "grey", "blurred by 4", "blurred by 6", "noise of .1", "another seed", "shuffled", "still",
    "shifted by 4", "faded",
)  # fmt: skip
CLEARLY = 0.05


def painted(seed, size=128):
    """Two scenes with swarms of three beads at least: noise harms small things."""
    index = torch.arange(32)
    chosen = index[draw(seed, index).count[:, 0] > 2][:2]
    return paint(draw(seed, chosen), TIMES, size) / 2 + 0.5


def blurred(video, sigma):
    frames = video.transpose(1, 2).flatten(0, 1)
    frames = gaussian_blur2d(frames, (6 * sigma + 1,) * 2, (float(sigma),) * 2)
    return frames.unflatten(0, (len(video), -1)).transpose(1, 2)


def shifted(video, pixels):
    return F.pad(video, (pixels, 0, 0, 0, 0, 0), mode="replicate")[..., :-pixels]


@pytest.fixture(scope="module")
def baseline():
    return painted(5)


@pytest.fixture(scope="module")
def shown(baseline):
    """What is compared with the baseline, at the preview's size."""
    chance = torch.Generator().manual_seed(1)
    mean = baseline.mean(dim=(2, 3, 4), keepdim=True)
    noise = torch.randn(baseline.shape, generator=chance)
    large = {
        "averaged down": baseline,
        "grey": mean.expand_as(baseline),
        "blurred by 4": blurred(baseline, 4),
        "blurred by 6": blurred(baseline, 6),
        "noise of .1": (baseline + 0.1 * noise).clamp(0, 1),
        "another seed": painted(6),
        "shuffled": baseline[:, :, torch.randperm(len(TIMES), generator=chance)],
        "still": baseline[:, :, 3:4].expand_as(baseline),
        "shifted by 4": shifted(baseline, 4),
        "faded": mean + (baseline - mean) / 2,
        "shifted and blurred by 4": blurred(shifted(baseline, 4), 4),
        "shifted and blurred by 6": blurred(shifted(baseline, 4), 6),
        "shifted and faded": mean + (shifted(baseline, 4) - mean) / 2,
        "shifted and noisy": (shifted(baseline, 4) + 0.1 * noise).clamp(0, 1),
    }
    small = {name: resize(video, SIZE, "area") for name, video in large.items()}
    small["bicubic"] = resize(baseline, SIZE, "bicubic").clamp(0, 1)
    return small | {"painted at this size": painted(5, 64)}


@pytest.fixture(scope="module")
def scored(shown, baseline):
    return {name: scores(video, baseline, COLOURS) for name, video in shown.items()}


@pytest.mark.parametrize("measure", HEADLINE)
@pytest.mark.parametrize("adversary", ADVERSARIES)
def test_adversary_scores_clearly_below_faithful_copies(measure, adversary, scored):
    worst = torch.stack([scored[name][measure] for name in FAITHFUL]).amin(dim=0)
    assert (scored[adversary][measure] < worst - CLEARLY).all()


def test_what_headlines_do_not_see_is_seen_beside_them(baseline):
    """The mean has no octave: a tint and a pulse need measures of their own."""
    tint = baseline + torch.tensor([0.1, -0.1, 0.0]).view(1, 3, 1, 1, 1)
    pulse = baseline + 0.05 * torch.tensor([1, -1] * 4)[: len(TIMES)].view(1, 1, -1, 1, 1)
    for video in (tint, pulse):
        assert (bands(video, baseline) > 0.95).all()
    assert (colour_distance(tint, baseline) > 0.05).all()
    shown, expected = flicker(pulse, baseline)
    assert (shown > 4 * expected + 10).all()


@pytest.mark.parametrize("measure", HEADLINE)
@pytest.mark.parametrize("change", ["blurred by 4", "blurred by 6", "faded", "noisy"])
def test_nothing_is_gained_by_hiding_that_a_video_is_misplaced(measure, change, scored):
    before, after = (
        scored[name][measure].mean() for name in ("shifted by 4", f"shifted and {change}")
    )
    assert after < before + 0.02 or (measure == "fine" and after < 0.1)


@pytest.mark.parametrize("measure", HEADLINE)
def test_a_video_displaced_further_scores_less(measure, scored):
    further, elsewhere = scored["shifted by 4"][measure], scored["another seed"][measure]
    assert (elsewhere < further).all() or (measure == "fine" and (further < 0.1).all())


def test_place_error_is_the_displacement_in_percent(baseline):
    error = place_error(shifted(baseline, 4), baseline, COLOURS)
    torch.testing.assert_close(error, torch.full((2,), 100 * 4 / 128), atol=1e-3, rtol=0)


def test_place_of_what_is_absent_is_far_and_of_nothing_unknown(baseline):
    grey = torch.full_like(baseline, 0.5)
    assert (place_error(grey, baseline, COLOURS) == 100).all()
    assert place_error(grey, grey, COLOURS).isnan().all()


def test_named_pixels_are_those_of_the_nearest_hue():
    shaded = torch.cat([COLOURS, COLOURS * 0.6, torch.full((1, 3), 0.5)])
    found = named_pixels(shaded.T[None, :, None, None], COLOURS)[0, :, 0, 0]
    eye = torch.eye(len(COLOURS))
    assert torch.equal(found, torch.cat([eye, eye, torch.zeros(len(COLOURS), 1)], dim=1))


def test_optical_flow_follows_a_moving_texture():
    texture = torch.rand(1, 3, 1, 32, 32, generator=torch.Generator().manual_seed(0))
    clip = torch.cat([texture.roll((2 * n, -3 * n), dims=(-2, -1)) for n in range(3)], dim=2)
    inner = optical_flow(clip)[..., 8:-8, 8:-8]
    expected = torch.tensor([-3.0, 2.0]).view(1, 2, 1, 1, 1)
    assert torch.equal(inner, expected.expand_as(inner))
    assert optical_flow(texture.expand(1, 3, 3, 32, 32)).abs().max() == 0


def test_octaves_hold_no_constant_and_halve(baseline):
    bands = octaves(torch.full((1, 3, 2, 40, 64), 0.7))
    assert [band.shape[-2:] for band in bands] == [(40, 64), (20, 32), (10, 16)]
    assert max(band.abs().max() for band in bands) < 1e-6


def test_scores_do_not_mutate_their_inputs(shown, baseline):
    before = shown["bicubic"].clone(), baseline.clone()
    scores(shown["bicubic"][:1], baseline[:1], COLOURS)
    assert torch.equal(shown["bicubic"], before[0])
    assert torch.equal(baseline, before[1])


def test_controls_span_the_scale(baseline, scored):
    rows = controls(baseline, painted(6), SIZE, COLOURS)
    assert list(rows) == ["grey", "another seed", "a perfect small copy"]
    for measure in HEADLINE:
        assert rows["grey"][measure].abs().max() < 1e-4
        assert (rows["another seed"][measure] == scored["another seed"][measure]).all()
        assert rows["a perfect small copy"][measure].min() > 1 - 1e-5


def test_report_is_json_with_none_for_what_a_still_picture_lacks(video):
    still = asdict(report(video[:, :, :1], video[:, :, :1]))
    assert json.loads(json.dumps(still, allow_nan=False)) == still
    lacking = {name for name, value in still.items() if value is None}
    assert lacking == {"motion", "flow", "iou", "magnitude", "place"}


def test_report_averages_the_scores(shown, baseline, scored):
    found = asdict(report(shown["shifted by 4"], baseline, COLOURS))
    means = {name: x.mean().item() for name, x in scored["shifted by 4"].items()}
    assert found == pytest.approx(means)


def test_scores_reject_other_lengths_shapes_and_sizes(video):
    with pytest.raises(ValueError, match="compare frame for frame"):
        scores(video, video[:, :, :4])
    with pytest.raises(ValueError, match="crop neither, or both"):
        scores(video, video[..., :32])
    with pytest.raises(ValueError, match="at least 8 pixels"):
        scores(video[..., ::8, ::8], video)


@pytest.fixture
def video():
    return torch.rand(2, 3, 5, 32, 48, generator=torch.Generator().manual_seed(0))


def test_colour_distance_is_zero_to_itself(video):
    assert colour_distance(video, video).abs().max() == 0


def test_colour_distance_is_blind_to_layout(video):
    assert colour_distance(video.flip(-1), video).max() < 1e-6
    assert colour_distance(video * 0.5, video).min() > 0.1


def test_detail_falls_with_blur(video):
    blurred = resize(resize(video, (16, 24), "area"), (32, 48), "bilinear")
    assert (detail(blurred) < 0.2 * detail(video)).all()


def test_colour_distance_rejects_other_lengths(video):
    with pytest.raises(ValueError, match="compare frame for frame"):
        colour_distance(video, video[:, :, :4])
