"""Chunks cover time, meet at scene cuts, and their blend neither changes frames nor flickers."""

from itertools import pairwise, product

import pytest
import torch
from surf.surf_core.chunks import Chunk, blend_weights, chunks, in_chunks

SIZES = [
    case
    for case in product((1, 2, 7, 21, 22, 31, 81, 121), (4, 8, 21, 31), (0, 2, 5), (0, 1), (1, 5))
    if case[3] <= case[2] and (case[1] >= case[0] or case[1] >= max(2 * case[2], case[2] + case[4]))
]


def noise(*shape, seed=0, dtype=torch.float32):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=dtype)


def cut(case, **more):
    length, most, overlap, lead, multiple = case
    return chunks(length, most, overlap, lead=lead, multiple=multiple, **more)


def test_chunks_cover_time_and_share_the_overlap_and_are_no_longer_than_asked():
    assert len(SIZES) > 150
    for case in SIZES:
        length, most, overlap, lead, multiple = case
        parts = cut(case)
        assert (parts[0].start, parts[0].lead, parts[-1].stop) == (0, 0, length)
        assert all(part.length <= most and part.start % multiple == 0 for part in parts)
        for before, after in pairwise(parts):
            assert before.start < after.start
            assert before.stop < after.stop
            assert before.stop - after.start >= overlap
            assert after.lead == lead
        lengths = [part.length for part in parts]
        assert max(lengths) - min(lengths) < multiple


def test_chunks_are_as_few_as_can_be_and_no_longer_than_that_needs():
    assert cut((81, 21, 5, 1, 1)) == [
        Chunk(0, 21), *(Chunk(start, start + 21, 1) for start in (15, 30, 45, 60))
    ]  # fmt: skip
    assert cut((30, 21, 5, 1, 1)) == [Chunk(0, 18), Chunk(12, 30, 1)]
    for case in SIZES:
        length, most, overlap, _, multiple = case
        count = len(cut(case))
        if multiple == 1 and count > 1:
            assert (count - 1) * most - (count - 2) * overlap < length


def test_chunks_meet_at_cuts_where_that_is_cheaper():
    def found(cuts, length=30):
        return chunks(length, 21, 5, lead=1, cuts=cuts)

    plain = [Chunk(0, 18), Chunk(12, 30, 1)]
    assert found([15]) == [Chunk(0, 15), Chunk(14, 30, 1)]
    assert found([]) == found([2]) == found([28]) == found([0, 30, 40]) == plain
    # Of several, the one that makes the fewest frames and edges; the others stay inside of a chunk.
    assert found([10, 11, 15, 20]) in ([Chunk(0, n), Chunk(n - 1, 30, 1)] for n in (10, 11, 15, 20))
    long = found([10, 22, 47, 60], 81)
    assert {part.start + 1 for part in long} >= {10, 22, 47}
    assert sum(part.length for part in long) < 5 * 21
    assert found([15], 21) == [Chunk(0, 21)]
    # Nothing is blended over a cut.
    for before, after in pairwise(long):
        assert before.stop - after.start - after.lead in (0, 4, 5, 6, 7, 8)


def test_a_chunk_at_a_cut_starts_on_the_grid_before_it():
    parts = chunks(40, 22, 5, multiple=5, cuts=[13])
    assert parts[:2] == [Chunk(0, 13), Chunk(10, 30, 3)]
    assert parts[2].start % 5 == 0


def test_weights_sum_to_one_and_are_nothing_in_the_lead():
    for case in SIZES:
        for cuts in ((), (9, 13, 40, 41)):
            parts = cut(case, cuts=cuts)
            total = torch.zeros(case[0], dtype=torch.float64)
            for part, weight in zip(parts, blend_weights(parts), strict=True):
                assert len(weight) == part.length
                assert not weight[: part.lead].any()
                assert (weight[part.lead :] > 0).all()
                total[part.start : part.stop] += weight
            assert (total - 1).abs().max() < 1e-14


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_a_function_of_each_frame_gives_the_identical_result(dtype, tolerance):
    x = noise(2, 3, 40, 4, 5).to(dtype)
    before = x.clone()
    parts = chunks(40, 12, 4, lead=1, cuts=[15])
    out = in_chunks(lambda part, chunk: part * 3 + part.square(), x, parts)
    exact = before * 3 + before.square()
    assert out.dtype == dtype
    limit = 1e-6 if dtype == torch.float32 else tolerance[dtype]
    assert (out - exact).abs().max() <= limit * exact.abs().max()
    assert torch.equal(x, before)


def test_one_chunk_is_the_function_bit_for_bit():
    x, made = noise(1, 2, 9, 3), []

    def function(part, chunk):
        made.append((part.cos(), chunk))
        return made[-1][0]

    assert in_chunks(function, x, chunks(9, 9, 2, lead=1)) is made[0][0]
    assert [chunk for _, chunk in made] == [Chunk(0, 9)]


def test_what_a_chunk_makes_of_its_lead_is_thrown_away():
    x = torch.ones(1, 1, 30, 2)

    def function(part, chunk):
        out = part.clone()
        out[:, :, : chunk.lead] = float("inf") if chunk.start else 1
        return out

    out = in_chunks(function, x, chunks(30, 12, 4, lead=1, cuts=[16]))
    torch.testing.assert_close(out, x)


@pytest.mark.parametrize(
    ("case", "more", "said"),
    [
        ((0, 4, 0), {}, "length=0"),
        ((8, 0, 0), {}, "most=0"),
        ((8, 4, 1), {"lead": 2}, "lead=2"),
        ((8, 4, 2), {"multiple": 0}, "multiple=0"),
        ((8, 5, 3), {}, "two overlaps, 6 frames, got most=5"),
        ((20, 9, 3), {"multiple": 7}, "10 frames"),
    ],
)
def test_chunks_reject_what_cannot_cover(case, more, said):
    with pytest.raises(ValueError, match=said):
        chunks(*case, **more)


def test_a_function_that_changes_the_shape_is_rejected():
    with pytest.raises(ValueError, match="keep the shape"):
        in_chunks(lambda part, _: part[:, :, 1:], noise(1, 1, 16, 2), chunks(16, 8, 2))
