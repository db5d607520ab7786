"""Keyframes and guides at another size of their video: on its grid, at their times."""

import logging

import pytest
import torch
from surf.nodes.host.conditioning import Grid, SizeChange, carry, check_keyframes
from surf.nodes.host.conditioning.guides import move_guides, resize_entries, resize_keyframes

HALVED = SizeChange(source=(4, 6), target=(2, 3), grid=Grid(cell=32))


def positions(grid, frames, cell=32, times=None):
    """Lay tokens out as the host does: [1, 3, tokens, 2]."""
    t = torch.tensor(times or list(range(frames)), dtype=torch.int64)
    axes = [torch.arange(n) for n in grid]
    t, y, x = (a.flatten() for a in torch.meshgrid(t, *axes, indexing="ij"))
    starts = torch.stack([t * 8, y * cell, x * cell])
    return torch.stack([starts, starts + torch.tensor([8, cell, cell])[:, None]], dim=-1)[None]


@pytest.mark.parametrize("frames", [0, 1, 3])
@pytest.mark.parametrize("target", [(2, 3), (1, 1), (5, 7), (4, 6)])
def test_guides_lie_on_the_new_grid_at_their_old_times(frames, target):
    old = positions((4, 6), frames, times=[5, 0, 9][:frames])
    before = old.clone()
    moved = move_guides(old, (4, 6), target, 32)
    assert torch.equal(moved, positions(target, frames, times=[5, 0, 9][:frames]))
    assert moved.dtype == old.dtype
    assert torch.equal(old, before)


def test_entries_count_the_tokens_of_the_new_grid_and_keep_their_strengths():
    mask = torch.ones(1, 1, 1, 128, 192)
    entry = {"pre_filter_count": 48, "strength": 0.7, "pixel_mask": mask, "latent_shape": [2, 4, 6]}
    [fitted] = resize_entries([entry], (2, 3))
    assert fitted["pre_filter_count"] == 12
    assert fitted["latent_shape"] == [2, 2, 3]
    assert fitted["strength"] == 0.7
    assert fitted["pixel_mask"] is mask
    assert entry["pre_filter_count"] == 48


def test_guides_of_another_grid_and_of_coarser_references_are_refused():
    with pytest.raises(ValueError, match="LTXVCropGuides"):
        move_guides(positions((4, 5), 1), (4, 6), (2, 3), 32)
    with pytest.raises(ValueError, match="downscale factor"):
        move_guides(positions((4, 6), 1, cell=64), (4, 6), (2, 3), 32)


@pytest.mark.parametrize(
    ("target", "padded"), [((2, 3), (2, 4)), ((4, 6), (4, 6)), ((5, 7), (6, 8))]
)
def test_keyframes_get_the_grid_that_the_network_pads_its_video_to(target, padded):
    sound = torch.randn(1, 32, 2, 3)
    keyframes = [
        {"resolved_frame_index": 0, "latent": torch.randn(1, 24, 2, 8, 12), "audio_latent": sound},
        {"resolved_frame_index": 9, "audio_latent": sound},
    ]
    first, second = resize_keyframes(keyframes, target)
    assert first["latent"].shape == (1, 24, 2, *padded)
    assert first["audio_latent"] is second["audio_latent"] is sound
    assert [first["resolved_frame_index"], second["resolved_frame_index"]] == [0, 9]
    assert keyframes[0]["latent"].shape == (1, 24, 2, 8, 12)


@pytest.mark.parametrize(("grid", "fits"), [((4, 6), True), ((3, 5), True), ((8, 12), False)])
def test_keyframes_of_another_size_than_the_first_latent_are_refused(grid, fits):
    keyframe = {"resolved_frame_index": 0, "latent": torch.zeros(1, 24, 1, 4, 6)}
    conds = {"positive": [[None, {"minimax_keyframes": [keyframe]}]], "negative": [[None, {}]]}
    if fits:
        check_keyframes(conds, grid)
        return
    with pytest.raises(ValueError, match=r"8 x 12 cells in the positive .*got \(4, 6\); take"):
        check_keyframes(conds, grid)


def test_conditioning_carries_guides_and_keyframes_and_leaves_references(caplog):
    latent = torch.randn(1, 24, 1, 4, 6)
    options = {
        "keyframe_idxs": positions((4, 6), 2),
        "guide_attention_entries": [{"pre_filter_count": 48, "latent_shape": [2, 4, 6]}],
        "minimax_keyframes": [{"resolved_frame_index": 0, "latent": latent}],
        "minimax_refs": [{"kind": "image", "latent": latent}],
    }
    with caplog.at_level(logging.INFO):
        [[_, out]] = carry({"positive": [[None, options]]}, HALVED)["positive"]
    assert out["keyframe_idxs"].shape[2] == 2 * 6
    assert out["guide_attention_entries"][0]["pre_filter_count"] == 12
    assert out["minimax_keyframes"][0]["latent"].shape[-2:] == (2, 4)
    assert out["minimax_refs"] is options["minimax_refs"]
    assert "first_frame" in caplog.text
    assert "guess" not in caplog.text


@pytest.mark.parametrize("key", ["keyframe_idxs", "guide_attention_entries", "minimax_keyframes"])
def test_guides_that_were_taken_out_stay_out(key):
    [[_, out]] = carry({"positive": [[None, {key: None}]]}, HALVED)["positive"]
    assert out == {key: None}
