"""Kept tokens: gathered, put back, rounded up; skipped attention is masked attention."""

import pytest
import torch
from surf.surf_core.refiner.rope import rotary_table, rotate
from surf.surf_core.skip import pack, packing, unpack
from surf.surf_core.window import grouped, sdpa, segments
from surf.surf_core.window.reference import reference_attention

# One frame, fewer than a window, as many, one more, and lengths that no window divides.
CLIPS = [(1, 4), (3, 4), (4, 4), (5, 4), (7, 3), (9, 2), (9, 5), (6, 0)]


def mask_of(grid, share, seed=0):
    """About a share of the tokens; 0 and 1 are none and all."""
    return torch.rand(grid, generator=torch.Generator().manual_seed(seed)) < share


def tokens(grid, *more, seed=3):
    count = grid[0] * grid[1] * grid[2]
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(2, count, *more, generator=generator, dtype=torch.float64)


@pytest.mark.parametrize("share", [0, 0.1, 0.5, 1])
@pytest.mark.parametrize("grid", [(1, 3, 5), (5, 1, 1), (8, 4, 7)], ids=str)
def test_gathering_round_trips(grid, share):
    keep, x = mask_of(grid, share), tokens(grid, 6)
    before, packed = x.clone(), packing(keep)
    kept = pack(x, packed)
    assert kept.shape == (2, int(keep.sum()), 6)
    assert torch.equal(kept, x[:, keep.flatten()])
    assert torch.equal(unpack(kept, packed, x + 1)[:, keep.flatten()], kept)
    assert torch.equal(unpack(kept, packed, x), x)
    holes = unpack(kept, packed)
    assert torch.equal(holes, x * keep.flatten()[:, None])
    assert torch.equal(x, before)
    assert packed.counts == tuple(keep.sum(dim=(1, 2)).tolist())


def test_gradients_reach_kept_tokens_alone():
    grid = (3, 2, 3)
    keep = mask_of(grid, 0.5)
    x = tokens(grid, 4).requires_grad_()
    unpack(pack(x, packing(keep)), packing(keep)).sum().backward()
    assert torch.equal(x.grad, keep.flatten()[:, None].expand_as(x).double())


@pytest.mark.parametrize(("frames", "window"), CLIPS)
@pytest.mark.parametrize("shifted", [False, True])
def test_ranges_cover_kept_tokens_once_at_their_own_positions(frames, window, shifted):
    for share in (0, 0.3, 1):
        check_ranges(frames, window, shifted, share)


def check_ranges(frames, window, shifted, share):
    grid = (frames, 3, 5)
    packed = packing(mask_of(grid, share))
    bounds, positions = packed.bounds(window, shifted), packed.positions(window, shifted)
    edges = [0, *(stop for _, stop in bounds)]
    assert [start for start, _ in bounds] == edges[:-1]
    assert edges[-1] == len(packed.indices)
    assert all(start < stop for start, stop in bounds)
    cuts = segments(frames, window, shifted)
    for place, position in zip(packed.indices.tolist(), positions.tolist(), strict=True):
        start = next(start for start, stop in cuts if start <= place // 15 < stop)
        assert position == place - 15 * start


@pytest.mark.parametrize(("frames", "window"), CLIPS)
@pytest.mark.parametrize("shifted", [False, True])
def test_attention_of_kept_tokens_matches_the_reference(frames, window, shifted, tolerance):
    """Which rolls, masks and counts positions from the rolled window, among kept tokens alone."""
    for size, share in (((3, 5), 0.05), ((3, 5), 0.5), ((1, 1), 0.95), ((4, 7), 1)):
        grid = (frames, *size)
        keep = mask_of(grid, share, seed=frames)
        keep[0, 0, 0] = True
        q, k, v = (tokens(grid, 2, 12, seed=seed) for seed in range(3))
        packed = packing(keep)
        turns = rotary_table(grid, 12, q.device, torch.float64)
        turns = turns[:, packed.positions(window, shifted)]
        ours = grouped(sdpa)(
            rotate(pack(q, packed), turns), rotate(pack(k, packed), turns), pack(v, packed),
            packed.bounds(window, shifted),
        )  # fmt: skip
        kept = keep.flatten()
        expected = reference_attention(
            q[:, kept], k[:, kept], v[:, kept], counts=keep.sum((1, 2)).tolist(), window=window,
            shifted=shifted, positions=keep.nonzero()[:, 1:],
        )  # fmt: skip
        assert (ours - expected).abs().max() <= tolerance[torch.float64]


def test_attention_of_nothing_is_nothing():
    grid = (5, 2, 3)
    packed = packing(mask_of(grid, 0))
    x = pack(tokens(grid, 2, 12), packed)
    assert packed.bounds(4, True) == ()
    assert grouped(sdpa)(x, x, x, packed.bounds(4, True)).shape == (2, 0, 2, 12)


def test_wrong_token_counts_are_rejected():
    packed = packing(mask_of((3, 2, 3), 0.5))
    with pytest.raises(ValueError, match="expected 18 tokens"):
        pack(torch.zeros(1, 12, 4), packed)
    with pytest.raises(ValueError, match="kept tokens, got 18"):
        unpack(torch.zeros(1, 18, 4), packed)
