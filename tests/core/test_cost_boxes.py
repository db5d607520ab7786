"""Operations of windows in time and space, as SeedVR2 has them."""

from itertools import product

import pytest
import torch
from surf.surf_core.cost import SEEDVR2_3B, SEEDVR2_7B, WAN_14B, forward_flops, tokens
from surf.surf_core.cost.boxes import box_pairs, box_sides, cuts

PARTS = (4, 3, 3)
GRIDS = [(1, 45, 80), (21, 45, 80), (5, 20, 30), (40, 68, 120), (3, 7, 5)]


@pytest.mark.parametrize("shifted", [False, True])
@pytest.mark.parametrize(("length", "side"), [(21, 6), (5, 2), (4, 1), (3, 8), (45, 15), (1, 1)])
def test_cuts_cover_an_axis_once(length, side, shifted):
    parts = cuts(length, side, shifted)
    assert [i for start, stop in parts for i in range(start, stop)] == list(range(length))
    assert all(0 < stop - start <= side for start, stop in parts)
    moved = shifted and 1 < side < length
    assert parts[0][1] == (side // 2 if moved else min(side, length))


def test_boxes_of_a_720p_clip_are_thirds_of_its_frame():
    assert box_sides(PARTS, (21, 45, 80)) == (6, 15, 27)
    assert box_sides(PARTS, (60, 45, 80)) == (8, 15, 27)


def test_a_larger_frame_has_more_boxes_of_the_same_size():
    assert box_sides(PARTS, (21, 135, 240)) == (6, 15, 27)


@pytest.mark.parametrize("shifted", [False, True])
@pytest.mark.parametrize("grid", GRIDS)
def test_pairs_match_those_counted_token_by_token(grid, shifted):
    sides = box_sides(PARTS, grid)
    axes = [cuts(n, side, shifted) for n, side in zip(grid, sides, strict=True)]
    box = torch.empty(grid, dtype=torch.long)
    for number, cut in enumerate(product(*axes)):
        box[tuple(slice(*part) for part in cut)] = number
    _, sizes = box.unique(return_counts=True)
    frame = grid[1] * grid[2]
    found = box_pairs(PARTS, grid, [frame] * grid[0], 58, shifted)
    assert found == ((sizes + 58) ** 2).sum().item()


def test_left_out_tokens_leave_their_share_of_each_box():
    grid = (4, 45, 80)
    half, full = (box_pairs(PARTS, grid, [n] * 4, 0, False) for n in (1800, 3600))
    assert half == pytest.approx(full / 4)
    assert box_pairs(PARTS, grid, [3600, 0, 0, 0], 58, False) < full / 3


@pytest.mark.parametrize("shape", [SEEDVR2_3B, SEEDVR2_7B], ids=lambda shape: shape.name)
def test_the_price_grows_with_the_tokens_and_not_with_their_square(shape):
    small, large = (forward_flops(shape, 81, *size) for size in ((720, 1280), (2160, 3840)))
    assert 8.9 < large / small < 9.3
    count = tokens(shape, 1, 720, 1280)
    half = forward_flops(shape, 81, 720, 1280, 0, [count // 2] * 21)
    assert 0.45 < half / small < 0.5


def test_a_forward_of_3b_by_hand():
    linear = 75600 + 58
    per_token = 4 * 2560 * 2560 + 3 * 2560 * 6912
    pairs = sum(
        box_pairs(PARTS, (21, 45, 80), [3600] * 21, 58, shifted) for shifted in (False, True)
    )
    expected = 2 * (32 * linear * per_token + 16 * 2 * pairs * 2560)
    assert forward_flops(SEEDVR2_3B, 81, 720, 1280) == expected


def test_a_window_of_ours_is_rejected():
    with pytest.raises(ValueError, match="SeedVR2 3B has windows of its own, got window=4"):
        forward_flops(SEEDVR2_3B, 81, 720, 1280, 4)
    assert forward_flops(WAN_14B, 81, 720, 1280, 4) > 0
