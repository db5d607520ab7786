"""Windows as segments equal the paper's padded, rolled and masked ones."""

import pytest
import torch
from surf.surf_core.window import grouped, sdpa, segments, token_bounds, window_attention
from surf.surf_core.window.reference import reference_attention

HEADS, WIDTH = 2, 6
WINDOWS = range(2, 33)
PHASES = (False, True)
attend = grouped(sdpa)


def clip(counts, batch=1, seed=0):
    """Random q, k, v [B, S, H, K] and the row and column of every token."""
    generator = torch.Generator().manual_seed(seed)
    shape = (batch, sum(counts), HEADS, WIDTH)
    q, k, v = (torch.randn(shape, generator=generator, dtype=torch.float64) for _ in range(3))
    positions = torch.randint(0, 9, (sum(counts), 2), generator=generator)
    return 3 * q, k, v, positions


def ragged(frames, seed=0):
    """Token counts of 0 to 3; some frames keep none, one keeps some."""
    generator = torch.Generator().manual_seed(100 * frames + seed)
    counts = torch.randint(0, 4, (frames,), generator=generator)
    counts[frames // 3] = 0
    counts[frames - 1] = 2
    return counts.tolist()


def turn(x, time, positions):
    """Rotate channel pairs of x [B, S, H, 6] by time, row and column; written apart from ours."""
    angle = torch.stack([time, positions[:, 0], positions[:, 1]], dim=1).double()[:, None]
    even, odd = x[..., 0::2], x[..., 1::2]
    sin, cos = angle.sin(), angle.cos()
    return torch.stack([even * cos - odd * sin, odd * cos + even * sin], dim=-1).flatten(-2)


def frame_of_token(counts):
    return torch.repeat_interleave(torch.arange(len(counts)), torch.tensor(counts))


def local_time(counts, cuts):
    """The frame of every token, counted from the start of its segment."""
    time = frame_of_token(counts)
    for start, stop in cuts:
        time = torch.where((time >= start) & (time < stop) & (start > 0), time - start, time)
    return time


def ours(q, k, v, positions, counts, window, shifted, time=None):
    cuts = segments(len(counts), window, shifted)
    time = frame_of_token(counts) if time is None else time
    q, k = turn(q, time, positions), turn(k, time, positions)
    return attend(q, k, v, token_bounds(counts, cuts))


def worst_difference(counts, **options):
    q, k, v, positions = clip(counts, **options)
    differences = []
    for window in WINDOWS:
        for shifted in PHASES:
            expected = reference_attention(
                q, k, v, counts=counts, window=window, shifted=shifted, positions=positions
            )
            out = ours(q, k, v, positions, counts, window, shifted)
            differences.append((out - expected).abs().max())
    return torch.stack(differences).max()  # NaN if any is


@pytest.mark.parametrize("frames", range(1, 22))
def test_segments_match_the_reference_for_every_window_and_phase(frames):
    assert worst_difference([2] * frames) <= 1e-12


@pytest.mark.parametrize("frames", range(1, 22))
def test_ragged_segments_match_the_reference_for_every_window_and_phase(frames):
    assert worst_difference(ragged(frames)) <= 1e-12


@pytest.mark.parametrize("frames", [1, 5, 21])
def test_a_batch_matches_the_reference(frames):
    assert worst_difference([2] * frames, batch=2) <= 1e-12


@pytest.mark.parametrize("shifted", PHASES)
@pytest.mark.parametrize("frames", [1, 3, 8, 21])
def test_positions_may_count_from_the_window_too(frames, shifted):
    for window in (2, 3, 4, 7, 32):
        counts = ragged(frames)
        q, k, v, positions = clip(counts)
        expected = reference_attention(
            q, k, v, counts=counts, window=window, shifted=shifted, positions=positions
        )
        time = local_time(counts, segments(frames, window, shifted))
        out = ours(q, k, v, positions, counts, window, shifted, time)
        assert (out - expected).abs().max() <= 1e-12


def test_local_time_restarts_in_every_segment():
    assert local_time([1, 2, 0, 1, 1], [(0, 2), (2, 5)]).tolist() == [0, 1, 1, 1, 2]


def gradients(attention, q, k, v):
    """Gradients of a fixed weighting of the result with respect to q, k, v."""
    leaves = [x.clone().requires_grad_() for x in (q, k, v)]
    out = attention(*leaves)
    weighting = torch.linspace(-1, 1, out.numel(), dtype=torch.float64).view(out.shape)
    return torch.autograd.grad((out * weighting).sum(), leaves)


@pytest.mark.parametrize("batch", [1, 2])
@pytest.mark.parametrize("make", [ragged, lambda frames: [3] * frames], ids=["ragged", "uniform"])
@pytest.mark.parametrize(("frames", "window"), [(1, 4), (3, 4), (5, 2), (8, 4), (13, 3), (21, 4)])
def test_gradients_match_the_reference(frames, window, make, batch):
    counts = make(frames)
    q, k, v, positions = clip(counts, batch)
    for shifted in PHASES:
        case = {"counts": counts, "window": window, "shifted": shifted}
        expected = gradients(
            lambda *x, case=case: reference_attention(*x, **case, positions=positions), q, k, v
        )
        found = gradients(lambda *x, case=case: ours(*x, positions, **case), q, k, v)
        for a, b in zip(found, expected, strict=True):
            assert (a - b).abs().max() <= 1e-12


def test_a_wrapped_window_without_a_mask_differs():
    q, k, v, _ = clip([2] * 8)
    expected = reference_attention(q, k, v, counts=[2] * 8, window=4, shifted=True)
    rolled = (x.roll(-4, dims=1) for x in (q, k, v))
    unmasked = attend(*rolled, token_bounds(2, segments(8, 4, False))).roll(4, dims=1)
    inside = slice(4, 12)  # frames 2 to 5 are a whole window either way
    assert (unmasked - expected)[:, inside].abs().max() <= 1e-12
    assert (unmasked - expected).abs().max() > 0.1


def test_rolling_an_unpadded_clip_differs_where_the_window_does_not_divide_it():
    q, k, v, _ = clip([2] * 21)
    expected = reference_attention(q, k, v, counts=[2] * 21, window=4, shifted=True)
    # 21 frames rolled by 2: the last window of 4 holds frames 18, 19, 20 and 0; 1 is alone.
    cuts = [(0, 1), (1, 2), *((start, start + 4) for start in range(2, 18, 4)), (18, 21)]
    assert (attend(q, k, v, token_bounds(2, cuts)) - expected).abs().max() > 0.1


def test_padding_without_a_mask_differs():
    counts = [2] * 6
    q, k, v, _ = clip(counts)
    expected = reference_attention(q, k, v, counts=counts, window=4, shifted=False)
    padded = (torch.cat([x, x.new_zeros(1, 4, HEADS, WIDTH)], dim=1) for x in (q, k, v))
    out = attend(*padded, token_bounds(2, segments(8, 4, False)))[:, :12]
    assert (out - expected)[:, :8].abs().max() <= 1e-12
    assert (out - expected).abs().max() > 0.1


def test_positions_and_the_phase_matter_to_the_comparison():
    counts = [2] * 9
    q, k, v, positions = clip(counts)
    expected = reference_attention(
        q, k, v, counts=counts, window=4, shifted=True, positions=positions
    )
    others = [
        ours(q, k, v, positions, counts, 4, False),
        ours(q, k, v, positions, counts, 4, True, 2 * frame_of_token(counts)),
        reference_attention(q, k, v, counts=counts, window=4, shifted=True),
    ]
    assert all((other - expected).abs().max() > 0.1 for other in others)


@pytest.mark.parametrize(("window", "shifted"), [(0, True), (3, False), (3, True)])
def test_window_attention_matches_the_reference(window, shifted):
    q, k, v, _ = clip([4] * 7, batch=2)
    out = window_attention(
        *(x.unflatten(1, (7, 4)) for x in (q, k, v)), window=window, shifted=shifted
    )
    expected = reference_attention(q, k, v, counts=[4] * 7, window=window, shifted=shifted)
    assert out.shape == (2, 7, 4, HEADS, WIDTH)
    assert (out.flatten(1, 2) - expected).abs().max() <= 1e-12


def test_window_attention_runs_the_attention_it_is_given():
    q, k, v = (x.unflatten(1, (7, 4)) for x in clip([4] * 7)[:3])
    seen = []

    def attention(q, k, v, bounds):
        seen.append(bounds)
        return v + 1

    out = window_attention(q, k, v, window=4, shifted=True, attention=attention)
    assert seen == [((0, 8), (8, 24), (24, 28))]
    assert torch.equal(out, v + 1)
