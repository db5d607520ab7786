"""What speaks against a clip, and which size it is brought to."""

import io
import math

import numpy as np
import pytest
import torch
from PIL import Image
from surf.surf_core.training.prepare import buckets as sizes
from surf.surf_core.training.prepare.buckets import (
    AREAS,
    UNIT,
    Bucket,
    CropPlan,
    apply,
    buckets,
    choose,
)
from surf.surf_core.training.prepare.decode import Rejected
from surf.surf_core.training.prepare.filters import (
    Limits,
    compression_quality,
    examine,
    laplacian_variance,
    luma,
)


def textured(level=128.0, spread=30.0, count=12, grain=2):
    """Frames [count, 64, 96, 3] of soft noise around a brightness; more grain is softer."""
    generator = torch.Generator().manual_seed(0)
    noise = torch.randn(count, 1, 64 // grain, 96 // grain, generator=generator)
    noise = torch.nn.functional.interpolate(noise, size=(64, 96), mode="bicubic")
    return (level + spread * noise).clamp(0, 255).byte().movedim(1, -1).expand(-1, -1, -1, 3)


def jpeg(frames, quality):
    """Frames after JPEG."""
    out = []
    for frame in frames:
        buffer = io.BytesIO()
        Image.fromarray(frame.numpy()).save(buffer, "JPEG", quality=quality)
        out.append(torch.from_numpy(np.array(Image.open(buffer))))
    return torch.stack(out)


def fixed(score):
    def scorer(frames):
        return score

    return scorer


def test_a_good_clip_passes_with_its_numbers():
    verdict = examine(textured())
    assert verdict.reasons == ()
    assert verdict.scorer == "compression_quality"
    assert list(verdict.numbers) == ["luma", "clipped", "sharpness", "quality"]
    assert verdict.numbers["luma"] == pytest.approx(128, abs=2)


@pytest.mark.parametrize(
    ("frames", "reasons"),
    [
        (textured(15, 10), ("dark",)),
        (textured(238, 8), ("bright",)),
        (textured(128, 255), ("clipped",)),
        (textured(grain=16), ("blurred",)),
        (textured(10, 0.5, grain=16), ("dark", "blurred")),
    ],
)
def test_each_defect_has_its_word(frames, reasons):
    assert examine(frames, scorer=fixed(50.0)).reasons == reasons


def test_limits_are_where_they_say():
    numbers = examine(textured(), scorer=fixed(40.0)).numbers
    at = {"darkest": "luma", "brightest": "luma", "clipped": "clipped", "sharpness": "sharpness"}
    for limit, number in at.items():
        assert examine(textured(), Limits(**{limit: numbers[number]}), fixed(40.0)).reasons == ()
    assert examine(textured(), Limits(sharpness=numbers["sharpness"] + 0.01)).reasons == (
        "blurred",
    )


@pytest.mark.parametrize(("score", "poor"), [(40.0, False), (39.9, True), (math.nan, True)])
def test_a_scorer_can_be_plugged_in(score, poor):
    seen = []

    def musiq(frames):
        seen.append(frames.shape)
        return score

    verdict = examine(textured(count=81), scorer=musiq)
    assert seen == [(1, 64, 96, 3)] * 10
    assert (verdict.scorer, "poor" in verdict.reasons) == ("musiq", poor)


def test_laplacian_variance_matches_reference():
    y = luma(textured(count=2)).double()
    for frame, value in zip(y, laplacian_variance(y.float()), strict=True):
        padded = np.pad(frame.numpy(), 1, mode="reflect")
        around = padded[:-2, 1:-1] + padded[2:, 1:-1] + padded[1:-1, :-2] + padded[1:-1, 2:]
        assert value.item() == pytest.approx(np.var(around - 4 * frame.numpy()), rel=1e-9)


def test_luma_matches_pillow_to_a_step():
    frame = torch.randint(0, 256, (1, 32, 32, 3), generator=torch.Generator().manual_seed(0)).byte()
    grey = np.asarray(Image.fromarray(frame[0].numpy()).convert("L"), np.float32)
    assert np.abs(luma(frame)[0].numpy() - grey).max() <= 1


def test_compression_quality_falls_with_jpeg_quality():
    frames = textured(count=3)
    scores = [compression_quality(jpeg(frames, q)) for q in (95, 50, 20, 5)]
    assert scores == sorted(scores, reverse=True)
    assert compression_quality(frames) > 60 > 40 > scores[-1]


def test_compression_quality_of_a_flat_picture_is_nothing():
    assert compression_quality(torch.full((2, 32, 32, 3), 90, dtype=torch.uint8)) == 0


@pytest.mark.parametrize(
    "frames",
    [torch.zeros(2, 3, 32, 32).byte(), torch.zeros(2, 32, 32, 3), textured()[:0]],
)
def test_examine_rejects_other_shapes_and_types(frames):
    with pytest.raises(ValueError, match="pass a clip's frames"):
        examine(frames)


def test_buckets_are_whole_units_within_the_area_in_both_orientations():
    for resolution, area in AREAS.items():
        found = buckets(resolution)
        assert len(found) == len(set(found)) == 11
        for bucket in found:
            assert bucket.rows % UNIT == bucket.columns % UNIT == 0
            assert 0.92 * area < bucket.rows * bucket.columns <= area
            assert Bucket(bucket.columns, bucket.rows) in found
    with pytest.raises(ValueError, match="resolution='4K'"):
        buckets("4K")


@pytest.mark.parametrize(
    ("size", "name"),
    [
        ((720, 1280), "704x1280"),
        ((1280, 720), "1280x704"),
        ((1080, 1920), "1056x1920"),
        ((2160, 3840), "1056x1920"),
        ((1440, 1440), "1440x1440"),
        ((1079, 1919), "704x1280"),
        ((1080, 1440), "800x1088"),
    ],
)
def test_common_sizes_go_where_expected(size, name):
    assert choose(size).bucket.name == name


def test_choice_is_the_closest_aspect_never_enlarged():
    generator = np.random.default_rng(0)
    chosen = 0
    for rows, columns in generator.integers(300, 2500, (400, 2)).tolist():
        found = choose((rows, columns), ("720p",))
        errors = {b: abs(math.log(b.columns / b.rows * rows / columns)) for b in buckets("720p")}
        if isinstance(found, Rejected):
            best = min(errors, key=errors.get)
            small = best.rows > rows or best.columns > columns
            assert small if found.reason == "small" else found.numbers["lost"] > 0.3
            continue
        chosen += 1
        top, left, height, width = found.crop
        assert errors[found.bucket] == min(errors.values())
        assert 0 <= top <= top + height <= rows
        assert 0 <= left <= left + width <= columns
        assert height == rows or width == columns
        assert height >= found.bucket.rows
        assert width >= found.bucket.columns
        stretch = height / found.bucket.rows / (width / found.bucket.columns)
        assert stretch == pytest.approx(1, abs=1 / min(height, width))
        assert found.lost == pytest.approx(1 - height * width / rows / columns)
    assert chosen > 100


def test_equal_aspects_are_decided_by_the_area_lost(monkeypatch):
    pair = Bucket(320, 640), Bucket(500, 640)
    monkeypatch.setattr(sizes, "buckets", lambda resolution: pair)
    monkeypatch.setattr(sizes, "log", lambda ratio: 0.0)
    for size, best in (((1000, 1500), pair[1]), ((1000, 1900), pair[0])):
        lost = {bucket: sizes.plan(size, bucket).lost for bucket in pair}
        assert choose(size, ("720p",)).bucket == best == min(lost, key=lost.get)


@pytest.mark.parametrize(
    ("size", "reason"), [((480, 832), "small"), ((700, 1280), "small"), ((800, 4000), "aspect")]
)
def test_what_fits_no_bucket_has_its_word(size, reason):
    assert choose(size).reason == reason


def test_apply_crops_the_middle_and_keeps_the_mean():
    frames = torch.zeros(2, 100, 100, 3, dtype=torch.uint8)
    frames[:, 20:80] = 200
    planned = sizes.plan((100, 100), Bucket(32, 64))
    assert planned == CropPlan(bucket=Bucket(32, 64), crop=(25, 0, 50, 100), lost=0.5)
    out = apply(planned, frames)
    assert out.shape == (2, 32, 64, 3)
    assert out.dtype == torch.uint8
    assert (out == 200).all()
    with pytest.raises(ValueError, match="plan from the size"):
        apply(planned, frames[:, :60])


def test_apply_is_identity_at_the_buckets_own_size():
    frames = textured(count=2)
    assert torch.equal(apply(sizes.plan((64, 96), Bucket(64, 96)), frames), frames)
