"""Windows in time: who sees whom, in tokens, and in how few dense calls."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from surf.surf_core.window import StridedRanges, segments, strided_ranges, token_bounds

steady = settings(max_examples=50, deadline=None, derandomize=True)

window_size = st.integers(2, 40)


def lengths(frames, window, shifted):
    return [stop - start for start, stop in segments(frames, window, shifted)]


@steady
@given(st.integers(1, 200), window_size, st.booleans())
def test_windows_cover_every_frame_once(frames, window, shifted):
    covered = [f for start, stop in segments(frames, window, shifted) for f in range(start, stop)]
    assert covered == list(range(frames))


@steady
@given(st.integers(1, 200), window_size, st.booleans())
def test_windows_are_full_but_for_the_ends(frames, window, shifted):
    sizes = lengths(frames, window, shifted)
    assert all(0 < size <= window for size in sizes)
    assert all(size == window for size in sizes[1:-1])


@steady
@given(st.integers(1, 200), window_size)
def test_shifted_windows_start_half_a_window_early(frames, window):
    first = lengths(frames, window, True)[0]
    assert first == (frames if frames <= window else window // 2)


@steady
@given(st.integers(1, 200), st.booleans())
def test_window_zero_is_full_attention(frames, shifted):
    assert segments(frames, 0, shifted) == [(0, frames)]


@steady
@given(window_size, st.booleans(), st.data())
def test_one_window_holds_a_short_clip_also_when_shifted(window, shifted, data):
    frames = data.draw(st.integers(1, window))
    assert segments(frames, window, shifted) == [(0, frames)]


def test_windows_of_a_wan_clip_are_clipped_not_wrapped():
    assert lengths(21, 4, False) == [4, 4, 4, 4, 4, 1]
    assert lengths(21, 4, True) == [2, 4, 4, 4, 4, 3]
    assert lengths(5, 3, True) == [1, 3, 1]


@steady
@given(st.integers(1, 120), window_size)
def test_two_layers_join_every_frame_to_its_neighbours(frames, window):
    seen = {
        (a, a + 1)
        for shifted in (False, True)
        for start, stop in segments(frames, window, shifted)
        for a in range(start, stop - 1)
    }
    assert seen == {(a, a + 1) for a in range(frames - 1)}


@pytest.mark.parametrize(("frames", "window"), [(0, 4), (-3, 4), (5, 1), (5, -2)])
def test_segments_reject_no_frames_and_windows_of_one(frames, window):
    with pytest.raises(ValueError, match="latent frame"):
        segments(frames, window, False)


def test_token_bounds_scale_frames_by_their_tokens():
    assert token_bounds(3, [(0, 2), (2, 5)]) == ((0, 6), (6, 15))
    assert token_bounds([3] * 5, [(0, 2), (2, 5)]) == token_bounds(3, [(0, 2), (2, 5)])


def test_token_bounds_follow_ragged_counts():
    counts = [4, 1, 0, 0, 2, 7]
    assert token_bounds(counts, [(0, 2), (2, 4), (4, 6)]) == ((0, 5), (5, 5), (5, 14))


@steady
@given(st.lists(st.integers(0, 9), min_size=1, max_size=40), window_size, st.booleans())
def test_token_bounds_cover_every_token_once(counts, window, shifted):
    bounds = token_bounds(counts, segments(len(counts), window, shifted))
    covered = [token for start, stop in bounds for token in range(start, stop)]
    assert covered == list(range(sum(counts)))


@pytest.mark.parametrize("counts", [[3, 3], [3, 3, 3, 3], [3, -1, 3], -2], ids=str)
def test_token_bounds_reject_counts_that_do_not_fit(counts):
    with pytest.raises(ValueError, match="expected 3 token counts"):
        token_bounds(counts, [(0, 2), (2, 3)])


def ranges(plan):
    """Every range that a plan holds, in order."""
    return sorted((start, start + run.length) for run in plan for start in run.starts)


@pytest.mark.parametrize("shifted", [False, True])
def test_a_layer_needs_one_call_per_distinct_length(shifted):
    """Fewest possible: without a mask, one call cannot hold two lengths."""
    most = 0
    for frames in range(1, 122):
        for window in (0, *range(2, 33)):
            bounds = token_bounds(7, segments(frames, window, shifted))
            plan = strided_ranges(bounds)
            assert len(plan) == len({stop - start for start, stop in bounds})
            assert ranges(plan) == list(bounds)
            most = max(most, len(plan))
    assert most == (3 if shifted else 2)


def test_the_plan_of_a_wan_clip():
    full, odd = (token_bounds(10, segments(21, 4, shifted)) for shifted in (False, True))
    assert strided_ranges(full) == (StridedRanges(0, 40, 40, 5), StridedRanges(200, 10, 10, 1))
    assert strided_ranges(odd) == (
        StridedRanges(0, 20, 20, 1),
        StridedRanges(20, 40, 40, 4),
        StridedRanges(180, 30, 30, 1),
    )


def test_equal_first_and_last_windows_are_one_call():
    bounds = token_bounds(10, segments(12, 4, True))
    assert bounds == ((0, 20), (20, 60), (60, 100), (100, 120))
    assert strided_ranges(bounds) == (StridedRanges(0, 20, 100, 2), StridedRanges(20, 40, 40, 2))


@steady
@given(st.lists(st.integers(0, 5), max_size=40))
def test_ragged_runs_hold_every_range_once_and_never_an_empty_one(sizes):
    bounds = token_bounds(sizes, [(i, i + 1) for i in range(len(sizes))]) if sizes else ()
    plan = strided_ranges(bounds)
    assert ranges(plan) == [pair for pair in bounds if pair[0] < pair[1]]
    for size in range(1, 6):
        assert sum(run.length == size for run in plan) <= (sizes.count(size) + 1) // 2


def test_ragged_runs_take_the_longest_progression_first():
    # Ranges of 2 at 0, 10, 20, 30 with others of 1 and of 3 between, and a stray one at 5.
    starts = [0, 5, 10, 20, 30]
    edges = sorted({edge for start in starts for edge in (start, start + 2)})
    plan = strided_ranges(tuple(zip(edges, edges[1:], strict=False)))
    assert StridedRanges(0, 2, 10, 4) in plan
    assert StridedRanges(5, 2, 2, 1) in plan


def test_runs_of_nothing_are_none():
    assert strided_ranges(()) == strided_ranges(((0, 0), (0, 0))) == ()
