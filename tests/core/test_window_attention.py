"""Attention in windows: views in, few calls, one copy out."""

from collections import Counter

import pytest
import torch
from surf.surf_core.window import (
    grouped,
    sdpa,
    segments,
    token_bounds,
    window_attention,
)
from surf.surf_core.window.reference import reference_attention

HEADS, WIDTH = 2, 8
CLIPS = [(1, 4), (2, 2), (3, 4), (4, 4), (5, 4), (8, 4), (9, 2), (12, 3), (12, 7), (21, 4), (21, 0),
         (21, 32)]  # fmt: skip
"""Latent frames and window: one frame, fewer than a window, as many, one more, no window, and
clips that windows divide or not, shifted or not."""
RAGGED = [3, 0, 1, 2, 0, 0, 5, 1, 1]


def qkv(tokens, batch=1, dtype=torch.float64):
    generator = torch.Generator().manual_seed(0)
    shape = (batch, tokens, HEADS, WIDTH)
    return tuple(torch.randn(shape, generator=generator, dtype=dtype) for _ in range(3))


def each_range(q, k, v, bounds):
    """The plain meaning of a packed attention, by softmax."""
    out = torch.zeros_like(v)
    for start, stop in bounds:
        a, b, c = (x[:, start:stop] for x in (q, k, v))
        scores = torch.einsum("bqhk,bmhk->bhqm", a, b) / WIDTH**0.5
        out[:, start:stop] = torch.einsum("bhqm,bmhk->bqhk", scores.softmax(dim=-1), c)
    return out


def same_storage(part, whole):
    return part.untyped_storage().data_ptr() == whole.untyped_storage().data_ptr()


class Counting:
    """A dense attention that notes its calls; it gives v + 1."""

    def __init__(self):
        self.calls = []

    def __call__(self, q, k, v):
        self.calls.append((q, k, v))
        return v + 1

    @property
    def sizes(self):
        return [tuple(v.shape[:2]) for _, _, v in self.calls]


def reference_windows(frames, window, shifted):
    """Which frames see which, by the weights that the reference gives equal scores."""
    alike = torch.zeros(1, frames, 1, frames, dtype=torch.float64)
    values = torch.eye(frames, dtype=torch.float64)[None, :, None]
    weights = reference_attention(
        alike, alike, values, counts=[1] * frames, window=window, shifted=shifted
    )[0, :, 0]
    return sorted({tuple(row.nonzero().flatten().tolist()) for row in weights})


@pytest.mark.parametrize("shifted", [False, True])
@pytest.mark.parametrize(("frames", "window"), CLIPS)
def test_windows_of_one_length_are_one_call_on_views(frames, window, shifted):
    windows = reference_windows(frames, window, shifted)
    lengths = Counter(len(members) for members in windows)
    bounds = token_bounds(7, segments(frames, window, shifted))
    for batch in (1, 2, 3):
        wholes, dense = qkv(7 * frames, batch), Counting()
        out = grouped(dense)(*wholes, bounds)
        # One view holds the windows of one length or the samples, not both.
        expected = Counter()
        for length, count in lengths.items():
            expected[max(batch, count), 7 * length] += min(batch, count)
        assert Counter(dense.sizes) == expected
        for parts in dense.calls:
            for part, whole in zip(parts, wholes, strict=True):
                assert part.shape[2:] == (HEADS, WIDTH)
                assert same_storage(part, whole)
                assert same_storage(part.flatten(-2), whole)  # hosts want heads and channels as one
        assert torch.equal(out, wholes[2] + 1)


def test_calls_with_a_batch_are_per_sample_or_per_range_whichever_are_fewer():
    bounds = token_bounds(1, segments(12, 4, True))  # 2 4 4 2
    for batch, sizes in [
        (1, [(2, 2), (2, 4)]),
        (2, [(2, 2), (2, 2), (2, 4), (2, 4)]),
        (5, [(5, 2), (5, 2), (5, 4), (5, 4)]),
    ]:
        dense = Counting()
        grouped(dense)(*qkv(12, batch), bounds)
        assert dense.sizes == sizes


def test_slices_of_packed_projections_stay_views():
    packed, dense = torch.randn(1, 21, 3, HEADS, WIDTH), Counting()
    q, k, v = packed.unbind(2)
    out = grouped(dense)(q, k, v, token_bounds(1, segments(21, 4, True)))
    assert all(same_storage(part, packed) for parts in dense.calls for part in parts)
    assert torch.equal(out, v + 1)


def test_one_range_is_handed_through_without_a_copy():
    q, k, v = qkv(6)
    made = []

    def dense(q, k, v):
        made.append(v + 1)
        return made[-1]

    for bounds in (((0, 6),), ((0, 0), (0, 6), (6, 6))):
        assert grouped(dense)(q, k, v, bounds) is made[-1]


@pytest.mark.parametrize("batch", [1, 2, 6])
@pytest.mark.parametrize("dense_keeps", ["layout", "heads first"])
def test_grouped_matches_every_range_by_itself(batch, dense_keeps, tolerance):
    def heads_first(q, k, v):
        return sdpa(q, k, v).transpose(1, 2).contiguous().transpose(1, 2)

    attend = grouped(sdpa if dense_keeps == "layout" else heads_first)
    for counts in (RAGGED, [3] * 9, [0, 0, 4, 0, 0, 4, 0, 0, 4]):
        for window in (0, 2, 3, 4):
            for shifted in (False, True):
                bounds = token_bounds(counts, segments(9, window, shifted))
                tensors = qkv(sum(counts), batch)
                expected = each_range(*tensors, bounds)
                out = attend(*tensors, bounds)
                assert torch.allclose(out, expected, rtol=0, atol=tolerance[torch.float64])


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_lower_precision_stays_within_the_table(dtype, tolerance):
    tensors = qkv(21, dtype=dtype)
    bounds = token_bounds(1, segments(21, 4, True))
    expected = each_range(*(x.double() for x in tensors), bounds)
    out = grouped(sdpa)(*tensors, bounds)
    assert out.dtype == dtype
    assert torch.allclose(out.double(), expected, rtol=0, atol=tolerance[dtype])


def test_a_sequence_without_tokens_gives_none():
    q, k, v = qkv(0, batch=2)
    dense = Counting()
    assert grouped(dense)(q, k, v, ((0, 0), (0, 0))).shape == v.shape
    assert dense.calls == []


@pytest.mark.parametrize("batch", [1, 2])
@pytest.mark.parametrize("bounds", [((0, 2), (2, 4), (4, 6)), ((0, 1), (1, 5), (5, 6))], ids=str)
def test_gradients_are_exact(bounds, batch):
    leaves = [x[..., :2].clone().requires_grad_() for x in qkv(6, batch)]
    assert torch.autograd.gradcheck(lambda q, k, v: grouped(sdpa)(q, k, v, bounds), leaves)


def test_gradients_stay_inside_their_window():
    q, k, v = (x.requires_grad_() for x in qkv(21))
    out = grouped(sdpa)(q, k, v, token_bounds(3, segments(7, 3, True)))
    out[:, 3:12].sum().backward()  # frames 1 to 3, the second window
    for x in (q, k, v):
        assert (x.grad[:, :3] == 0).all()
        assert (x.grad[:, 12:] == 0).all()
        assert (x.grad[:, 3:12] != 0).any()


def test_grouped_does_not_mutate_its_inputs():
    tensors = qkv(21)
    before = [x.clone() for x in tensors]
    grouped(sdpa)(*tensors, token_bounds(1, segments(21, 4, True)))
    assert all(torch.equal(a, b) for a, b in zip(tensors, before, strict=True))


@pytest.mark.parametrize(
    "bounds",
    [
        (),
        ((0, 5),),
        ((0, 7),),
        ((0, 2), (3, 6)),
        ((0, 4), (3, 6)),
        ((1, 6),),
        ((0, 4), (4, 2), (2, 6)),
    ],
    ids=str,
)
def test_grouped_rejects_ranges_that_do_not_cover_the_tokens_once(bounds):
    dense = Counting()
    with pytest.raises(ValueError, match="cover 6 tokens once"):
        grouped(dense)(*qkv(6), bounds)
    assert dense.calls == []


def test_window_attention_rejects_a_window_of_one_and_a_clip_of_none():
    clip = [x.unflatten(1, (3, 2)) for x in qkv(6)]
    with pytest.raises(ValueError, match="at least 2 latent frames"):
        window_attention(*clip, window=1, shifted=False)
    with pytest.raises(ValueError, match="at least one latent frame"):
        window_attention(*(x[:, :0] for x in clip), window=4, shifted=False)
