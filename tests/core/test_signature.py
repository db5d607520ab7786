"""Distances between videos."""

import pytest
import torch
from surf.surf_core.resample import resize
from surf.surf_core.signature import (
    colour_distance,
    compare,
    detail,
    layout_distance,
    motion_distance,
)


@pytest.fixture
def video():
    return torch.rand(2, 3, 5, 32, 48, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("distance", [layout_distance, motion_distance, colour_distance])
def test_distance_is_zero_to_itself(distance, video):
    assert distance(video, video).abs().max() == 0


def test_layout_distance_ignores_the_resolution(video):
    smooth = resize(video, (16, 16), "area")
    large = smooth.repeat_interleave(4, dim=-1).repeat_interleave(4, dim=-2)
    assert layout_distance(large, smooth).max() < 1e-6


def test_layout_distance_grows_as_an_object_moves_away():
    scene = torch.zeros(1, 3, 1, 64, 64)
    scene[..., 8:24, 8:24] = 1
    near, far = scene.roll(4, dims=-1), scene.roll(16, dims=-1)
    assert 0 < layout_distance(near, scene) < layout_distance(far, scene)


def test_colour_distance_is_blind_to_layout(video):
    assert colour_distance(video.flip(-1), video).max() < 1e-6
    assert colour_distance(video * 0.5, video).min() > 0.1


def test_motion_distance_of_a_still_image_is_zero(video):
    assert motion_distance(video[:, :, :1], video[:, :, :1].flip(-1)).max() == 0


def test_detail_falls_with_blur(video):
    blurred = resize(resize(video, (16, 24), "area"), (32, 48), "bilinear")
    assert (detail(blurred) < 0.2 * detail(video)).all()
    assert compare(blurred, video).detail < 0.2


def test_layout_distance_rejects_other_lengths(video):
    with pytest.raises(ValueError, match="compare frame for frame"):
        layout_distance(video, video[:, :, :4])
