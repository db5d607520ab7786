"""Which tokens are refined: the oracle's scores, the choice, the record, the preview's detail."""

from dataclasses import FrozenInstanceError

import pytest
import torch
from surf.surf_core.resample import resize
from surf.surf_core.skip import (
    Mask,
    MaskPredictor,
    PredictorConfig,
    check_keep,
    choose,
    detail,
    down_up,
    oracle_mask,
    pixel_detail,
    predict_mask,
    scores,
)
from surf.surf_core.training.mask import auc

GRIDS = [(1, 3, 5), (5, 3, 1), (7, 4, 6)]


def random(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def scored(grid=(7, 4, 6), seed=0):
    return 20 * torch.rand(grid, generator=torch.Generator().manual_seed(seed))


def mask_of(tokens):
    return Mask(tokens=tokens, scores=tokens.float(), source="test", tau=0.5)


# The oracle.


@pytest.mark.parametrize(("frames", "cell"), [(1, (4, 8)), (5, (4, 8)), (9, (4, 8)), (3, (1, 4))])
def test_a_pixel_score_matches_its_definition_written_out(frames, cell):
    rows, columns = 3 * 2 * cell[1], 2 * 2 * cell[1]
    hr, low = random(2, 3, frames, rows, columns), random(2, 3, frames, rows, columns, seed=1)
    out = scores(hr, low, cell=cell)
    assert out.shape == (2, 1 + (frames - 1) // cell[0], 3, 2)
    side = 2 * cell[1]
    for t in range(out.shape[1]):
        first = 0 if t == 0 else 1 + (t - 1) * cell[0]
        span = range(first, first + (cell[0] if t else 1))
        for y in range(3):
            for x in range(2):
                box = (..., slice(y * side, (y + 1) * side), slice(x * side, (x + 1) * side))
                error = ((hr - low)[box] ** 2).mean(dim=(1, 3, 4)).sqrt() * 127.5
                expected = torch.stack([error[:, f] for f in span]).amax(dim=0)
                assert torch.allclose(out[:, t, y, x], expected, rtol=1e-5)


@pytest.mark.parametrize("patch", [(1, 2, 2), (1, 1, 1), (2, 2, 3)])
def test_a_latent_score_covers_the_cells_of_its_token(patch):
    hr, low = random(1, 16, 4, 12, 12), random(1, 16, 4, 12, 12, seed=1)
    out = scores(hr, low, patch=patch)
    changed = hr.clone()
    changed[:, :, 3, 11, 11] += 100
    touched = (scores(changed, low, patch=patch) != out).nonzero().tolist()
    assert touched == [[0, 3 // patch[0], 11 // patch[1], 11 // patch[2]]]


def test_a_step_of_one_pixel_level_scores_one():
    hr = torch.zeros(1, 3, 1, 16, 16)
    assert torch.allclose(scores(hr, hr + 2 / 255, cell=(4, 8)), torch.ones(1, 1, 1, 1))


def test_flat_clips_lose_nothing_and_texture_does():
    flat, busy = torch.full((1, 3, 1, 32, 32), 0.3), random(1, 3, 1, 32, 32).clamp(-1, 1)
    assert oracle_mask(flat, tau=0.01, cell=(1, 8)).keep_ratio == 0
    assert oracle_mask(busy, tau=3, cell=(1, 8)).keep_ratio == 1
    assert oracle_mask(flat, tau=0, cell=(1, 8)).keep_ratio == 1


def test_down_up_is_identity_at_ratio_one_and_does_not_mutate():
    hr = random(1, 3, 2, 12, 20)
    kept = hr.clone()
    assert torch.allclose(down_up(hr, 1.0), hr, atol=1e-6)
    assert not torch.allclose(down_up(hr, 2.0), hr, atol=0.1)
    assert torch.equal(hr, kept)


def test_the_oracle_keeps_the_wanted_share_of_the_worst():
    hr = random(1, 3, 3, 64, 64)
    hr[..., :32] *= 0.1
    mask = oracle_mask(hr, keep=0.5, cell=(1, 4), hysteresis=1.0)
    assert (mask.source, mask.grid) == ("oracle", (3, 8, 8))
    assert mask.tokens[..., 4:].all()
    assert not mask.tokens[..., :4].any()


@pytest.mark.parametrize(
    ("hr", "low", "cell", "expected"),
    [
        (torch.zeros(1, 3, 5, 16, 16), torch.zeros(1, 3, 5, 16, 32), (4, 8), "of one shape"),
        (torch.zeros(1, 3, 4, 16, 16), torch.zeros(1, 3, 4, 16, 16), (4, 8), "whole tokens"),
        (torch.zeros(1, 3, 5, 24, 16), torch.zeros(1, 3, 5, 24, 16), (4, 8), "whole tokens"),
        (torch.zeros(1, 3, 16, 16), torch.zeros(1, 3, 16, 16), (4, 8), "two clips"),
        (torch.full((1, 3, 1, 16, 16), float("nan")), torch.zeros(1, 3, 1, 16, 16), (4, 8), "NaN"),
    ],
)
def test_the_oracle_rejects_clips_that_do_not_fit(hr, low, cell, expected):
    with pytest.raises(ValueError, match=expected):
        scores(hr, low, cell=cell)


# The choice.


@pytest.mark.parametrize("grid", GRIDS, ids=str)
def test_tau_zero_refines_everything(grid):
    mask = choose(scored(grid) * (scored(grid, 1) > 10), source="test", tau=0)
    assert mask.tokens.all()
    assert (mask.keep_ratio, mask.flip_rate) == (1.0, 0.0)


def test_tau_is_a_threshold_per_token_without_memory():
    given = scored()
    assert torch.equal(choose(given, source="test", tau=5, hysteresis=1).tokens, given >= 5)


def test_what_was_refined_stays_until_it_falls_well_below_tau():
    given = torch.tensor([8.0, 10, 8, 6.9, 8, 12, 7]).view(7, 1, 1)
    held = choose(given, source="test", tau=10).tokens.flatten()
    assert held.tolist() == [False, True, True, False, False, True, True]


def test_memory_lowers_the_flip_rate_and_never_drops_a_token():
    given = scored((20, 5, 7))
    plain, held = (choose(given, source="test", tau=10, hysteresis=hold) for hold in (1.0, 0.7))
    assert held.flip_rate < plain.flip_rate
    assert not (plain.tokens & ~held.tokens).any()


def test_flip_rate_counts_changes():
    tokens = torch.tensor([1, 0, 0, 1], dtype=torch.bool).view(4, 1, 1)
    assert mask_of(tokens).flip_rate == pytest.approx(2 / 3)
    assert mask_of(tokens[:1]).flip_rate == 0


def test_dilate_takes_the_neighbours_within_a_frame():
    given = torch.zeros(5, 5, 5)
    given[2, 2, 2] = 9
    dilated = choose(given, source="test", tau=5, dilate=1).tokens
    assert int(dilated.sum()) == 9
    assert dilated[2, 1:4, 1:4].all()


@pytest.mark.parametrize("options", [{}, {"hysteresis": 1}, {"hysteresis": 0}, {"dilate": 1}])
@pytest.mark.parametrize("keep", [0.01, 0.25, 0.5, 0.9, 1.0])
def test_keep_finds_the_largest_tau_that_keeps_as_much(keep, options):
    given = scored((6, 5, 7))
    mask = choose(given, source="test", keep=keep, **options)
    assert mask.keep_ratio >= keep - 1e-6
    more = choose(given, source="test", tau=min(255, mask.tau * 1.0001 + 1e-6), **options)
    assert more.keep_ratio < keep or torch.equal(more.tokens, mask.tokens)
    assert torch.equal(choose(given, source="test", tau=mask.tau, **options).tokens, mask.tokens)
    if options == {"hysteresis": 1}:
        assert mask.keep_ratio == pytest.approx(keep, abs=1 / 210 + 1e-6)


def test_a_batch_shares_the_mask_of_its_maximum():
    given = torch.stack([scored(seed=1), scored(seed=2)])
    both = choose(given, source="test", tau=10, hysteresis=1).tokens
    assert torch.equal(both, (given >= 10).any(dim=0))


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({}, "either tau or keep"),
        ({"tau": 3, "keep": 0.5}, "either tau or keep"),
        ({"tau": -1}, "tau must lie within"),
        ({"tau": 256}, "tau must lie within"),
        ({"tau": float("nan")}, "tau must lie within"),
        ({"keep": 0}, "keep must lie within"),
        ({"keep": 1.5}, "keep must lie within"),
        ({"tau": 3, "hysteresis": 2}, "hysteresis must lie within"),
        ({"tau": 3, "dilate": 65}, "dilate must lie within"),
    ],
    ids=str,
)
def test_the_choice_rejects_what_cannot_be(options, expected):
    with pytest.raises(ValueError, match=expected):
        choose(scored(), source="test", **options)


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -1.0])
def test_scores_that_are_none_are_rejected(value):
    bad = scored()
    bad[1, 2, 3] = value
    with pytest.raises(ValueError, match="finite scores"):
        choose(bad, source="test", tau=3)
    with pytest.raises(ValueError, match="finite scores"):
        Mask(tokens=bad > 3, scores=bad, source="test", tau=3)
    with pytest.raises(ValueError, match="one for each token"):
        choose(bad[0], source="test", tau=3)


def test_a_mask_is_frozen_and_checked():
    mask = mask_of(scored() > 10)
    with pytest.raises(FrozenInstanceError):
        mask.tau = 1
    with pytest.raises(ValueError, match="of bool"):
        Mask(tokens=scored(), scores=scored(), source="test", tau=3)
    with pytest.raises(ValueError, match="scores of the mask's grid"):
        Mask(tokens=scored() > 3, scores=scored((1, 2, 3)), source="test", tau=3)
    with pytest.raises(ValueError, match="tau must lie"):
        Mask(tokens=scored() > 3, scores=scored(), source="test", tau=-3)


@pytest.mark.parametrize(
    ("shape", "expected"),
    [
        ((6, 4, 6), "clip of another length"),
        ((7, 6, 4), "another resolution"),
        ((7, 8, 12), "another resolution"),
        ((2, 7, 4, 6), "one for all samples"),
    ],
)
def test_a_mask_of_another_clip_is_rejected(shape, expected):
    check_keep(torch.ones(7, 4, 6, dtype=torch.bool), (7, 4, 6))
    with pytest.raises(ValueError, match=expected):
        check_keep(torch.ones(shape, dtype=torch.bool), (7, 4, 6))


def test_a_mask_that_skips_the_whole_clip_is_rejected():
    with pytest.raises(ValueError, match="skips the whole clip; lower"):
        check_keep(torch.zeros(7, 4, 6, dtype=torch.bool), (7, 4, 6))
    with pytest.raises(ValueError, match="of bool"):
        check_keep(torch.ones(7, 4, 6), (7, 4, 6))


# The preview's detail, and the network's interface.


@pytest.mark.parametrize("shape", [(1, 16, 1, 2, 2), (2, 4, 3, 6, 10), (1, 16, 5, 8, 4)])
def test_detail_is_zero_where_nothing_varies_and_grows_with_contrast(shape):
    assert detail(torch.full(shape, 0.7)).max() < 1e-3
    start = random(*shape)
    once = detail(start)
    assert once.shape == (shape[0], shape[2], shape[3] // 2, shape[4] // 2)
    assert torch.allclose(detail(3 * start), 3 * once, rtol=1e-4)
    assert torch.allclose(detail(start + 5), once, rtol=1e-3)


def test_detail_sees_texture_where_it_is_and_little_of_motion():
    start = torch.zeros(1, 16, 4, 16, 16)
    start[..., 8:, 8:] = random(1, 16, 1, 8, 8)
    found = detail(start)[0]
    assert found[:, 5:, 5:].min() > 20 * found[:, :3, :3].max()
    moving = torch.ones(1, 16, 4, 16, 16) * torch.tensor([0.0, 1, 0, 1]).view(4, 1, 1)
    assert detail(moving).max() > 1
    assert detail(moving, temporal=0).max() < 1e-3


def test_faint_texture_outranks_a_flat_part_that_moves():
    """A soft disc of full contrast crosses the upper half, texture of a fifth lies in the lower."""
    place = torch.arange(32.0)
    centre = torch.tensor([8.0, 14, 20, 26]).view(4, 1, 1)
    disc = torch.exp(-((place[:, None] - 8) ** 2 + (place - centre) ** 2) / 32)
    start = disc.expand(1, 16, 4, 32, 32).clone()
    start[..., 20:, :] += 0.2 * random(1, 16, 1, 12, 32)
    found = detail(start)[0]
    moving, textured = found[:, :8], found[:, 11:15]
    assert moving.max() > 1
    assert textured.min() > moving.max()
    steady = detail(start, temporal=0)[0, :, :8].max()
    assert moving.max() > 1.02 * steady, "what moves counts a little"


# The preview's detail, of its pixels.


def natural(frames, rows, columns, seed=0):
    """Frames in 0..1 with a spectrum as pictures have it, sharp in some places, flat in others."""
    across, down = torch.fft.fftfreq(columns), torch.fft.fftfreq(rows)[:, None]
    falls = 1 / (across**2 + down**2).sqrt().clamp_min(1 / columns)
    spectrum = torch.fft.fft2(random(1, 3, frames, rows, columns, seed=seed)) * falls
    picture = torch.fft.ifft2(spectrum).real
    share = torch.rand(1, 1, 1, 4, 4, generator=torch.Generator().manual_seed(seed))
    share = resize(share.expand(-1, -1, frames, -1, -1), (rows, columns))
    return (0.5 + 0.15 * share**2 * picture / picture.std()).clamp(0, 1)


def enlarged(frames, size):
    return resize(frames, size, "bicubic").clamp(0, 1)


@pytest.mark.parametrize(("count", "cell"), [(1, (4, 8)), (5, (4, 8)), (3, (1, 4))])
def test_pixel_detail_matches_its_definition_written_out(count, cell):
    low, side = natural(count, 8, 12), 2 * cell[1]
    size = 3 * side, 2 * side
    out = pixel_detail(low, size, 2.0, cell=cell)
    large = enlarged(low, size)
    wide = torch.nn.functional.pad(large, (1, 1, 1, 1, 0, 0), mode="replicate")
    near = [wide[..., y : y + size[0], x : x + size[1]] for y in range(3) for x in range(3)]
    away = (large - torch.stack(near).mean(dim=0)).square().mean(dim=1)
    for t in range(out.shape[1]):
        first = 0 if t == 0 else 1 + (t - 1) * cell[0]
        span = slice(first, first + (cell[0] if t else 1))
        for y in range(3):
            for x in range(2):
                box = away[:, span, y * side : (y + 1) * side, x * side : (x + 1) * side]
                expected = 255 * 0.53 * 4 * box.mean(dim=(2, 3)).sqrt().amax(dim=1)
                torch.testing.assert_close(out[:, t, y, x], expected, rtol=1e-4, atol=1e-4)


def test_pixel_detail_takes_frames_that_are_large_already():
    low = natural(5, 16, 24)
    within, outside = (
        pixel_detail(x, (64, 96), 4.0, cell=(4, 8)) for x in (low, enlarged(low, (64, 96)))
    )
    torch.testing.assert_close(within, outside)


def test_pixel_detail_pads_what_is_no_whole_token_with_the_edge():
    low = natural(1, 15, 13)
    out = pixel_detail(low, (60, 52), 4.0, cell=(4, 8))
    assert out.shape == (1, 1, 4, 4)
    large = torch.nn.functional.pad(enlarged(low, (60, 52)), (0, 12, 0, 4, 0, 0), mode="replicate")
    torch.testing.assert_close(out, pixel_detail(large, (64, 64), 4.0, cell=(4, 8)))


def test_a_flat_part_that_moves_has_no_pixel_detail():
    video = torch.full((1, 3, 9, 16, 16), 0.2)
    for frame in range(9):
        video[:, :, frame] += 0.05 * frame
    assert pixel_detail(video, (64, 64), 4.0, cell=(4, 8)).max() < 1e-3


@pytest.mark.parametrize("ratio", [2, 3, 4])
def test_pixel_detail_is_near_the_oracle_in_rank_and_size(ratio):
    hr = natural(5, 192, 192)
    gains = scores(2 * hr - 1, 2 * down_up(hr, ratio) - 1, cell=(4, 8)).flatten()
    low = resize(hr, (192 // ratio, 192 // ratio), "area")
    found = pixel_detail(low, (192, 192), ratio, cell=(4, 8)).flatten()
    assert auc(found, gains >= gains.median()) > 0.95
    assert (found / gains).log().median().abs() < 0.5


@pytest.mark.parametrize(
    ("shape", "ratio", "expected"),
    [
        ((1, 3, 4, 8, 8), 4.0, "all frames of the preview"),
        ((1, 16, 5, 8, 8), 4.0, "decode the preview"),
        ((1, 3, 5, 8, 8), 0.5, "ratio"),
    ],
)
def test_pixel_detail_rejects_what_does_not_fit(shape, ratio, expected):
    with pytest.raises(ValueError, match=expected):
        pixel_detail(torch.rand(shape), (32, 32), ratio, cell=(4, 8))


def test_detail_and_predictor_have_one_interface():
    start = random(2, 16, 3, 8, 12)
    model = MaskPredictor(PredictorConfig())
    for predictor, source in ((None, "detail"), (model, "predictor")):
        mask = predict_mask(start, predictor, keep=0.5, hysteresis=1)
        assert (mask.source, mask.grid) == (source, (3, 4, 6))
        assert mask.keep_ratio >= 0.5
        assert torch.equal(
            predict_mask(start, predictor, tau=mask.tau, hysteresis=1).tokens, mask.tokens
        )
        assert predict_mask(start, predictor, tau=0).keep_ratio == 1


@pytest.mark.parametrize(
    ("start", "expected"),
    [
        (torch.zeros(1, 16, 3, 7, 8), "whole tokens"),
        (torch.zeros(1, 16, 8, 8), "\\[B, .*C|16, T, H, W\\]"),
        (torch.full((1, 16, 1, 8, 8), float("nan")), "finite"),
    ],
)
@pytest.mark.parametrize("trained", [False, True])
def test_latents_that_do_not_fit_are_rejected(start, expected, trained):
    predictor = MaskPredictor(PredictorConfig()) if trained else None
    with pytest.raises(ValueError, match=expected):
        predict_mask(start, predictor, tau=3)


def test_a_predictor_of_another_model_is_rejected():
    start = torch.zeros(1, 48, 1, 8, 8)
    with pytest.raises(ValueError, match="16 channels, got 48"):
        predict_mask(start, MaskPredictor(PredictorConfig()), tau=3)
    with pytest.raises(ValueError, match="predictor of tokens"):
        predict_mask(start[:, :16], MaskPredictor(PredictorConfig()), tau=3, patch=(1, 1, 1))
