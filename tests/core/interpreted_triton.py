"""The Triton kernel in Triton's interpreter, on the CPU; test_triton_kernel.py runs this file.

    TRITON_INTERPRET=1 pytest tests/core/interpreted_triton.py

The variable has to be set before triton is imported, so this takes a process of its own. bfloat16
is left out: the interpreter computes garbage with it and says nothing.
"""

import pytest
import torch
from surf.surf_core.window import backend, backends, grouped, sdpa, segments, token_bounds
from surf.surf_core.window import triton_kernel as kernel
from surf.surf_core.window.triton_kernel import attention

assert kernel._interpreted(), "set TRITON_INTERPRET=1 before triton is imported"
FLOAT = [torch.float32, torch.float16]
RAGGED = ((0, 37), (37, 38), (38, 38), (38, 54), (54, 85), (85, 85), (85, 87), (87, 101))
"""Ranges of 37, 1, 0, 16, 31, 0, 2 and 14 tokens: shorter and longer than tiles and steps."""


def packed(tokens, width, dtype=torch.float32, heads=2, batch=2):
    """q, k, v [B, S, H, K] as views of one tensor [B, S, 3, H, K]."""
    generator = torch.Generator().manual_seed(width)
    shape = (batch, tokens, 3, heads, width)
    return torch.randn(shape, generator=generator).to(dtype).unbind(2)


def exact(q, k, v, bounds):
    """Softmax attention in float64, range by range."""
    q, k, v = (x.double().transpose(1, 2) for x in (q, k, v))
    out = [
        (q[:, :, a:b] @ k[:, :, a:b].mT / q.shape[-1] ** 0.5).softmax(-1) @ v[:, :, a:b]
        for a, b in bounds
    ]
    return torch.cat(out, dim=2).transpose(1, 2)


def difference(out, expected):
    """Largest absolute difference; NaN, as of an element never written, stays NaN."""
    assert out.shape == expected.shape
    return (out.double() - expected).abs().max().item()


@pytest.mark.parametrize("dtype", FLOAT)
@pytest.mark.parametrize("width", [64, 72, 96, 128])
def test_ragged_ranges_match_the_reference(width, dtype, tolerance):
    q, k, v = packed(101, width, dtype)
    out = attention(q, k, v, RAGGED)
    assert out.dtype == dtype
    assert difference(out, exact(q, k, v, RAGGED)) <= tolerance[dtype]


@pytest.mark.parametrize("width", [16, 18, 32, 40, 74, 88, 120, 126])
def test_every_way_to_split_a_head_matches_the_reference(width, tolerance):
    q, k, v = packed(39, width, heads=3, batch=1)
    bounds = ((0, 22), (22, 39))
    out = attention(q, k, v, bounds)
    assert difference(out, exact(q, k, v, bounds)) <= tolerance[torch.float32]


@pytest.mark.parametrize("length", [1, 15, 16, 17, 31, 32, 33, 48, 64, 65, 200])
def test_every_rest_of_tile_and_step_matches_the_reference(length, tolerance):
    q, k, v = packed(length, 72, heads=1, batch=1)
    out = attention(q, k, v, ((0, length),))
    assert difference(out, exact(q, k, v, ((0, length),))) <= tolerance[torch.float32]


@pytest.mark.parametrize("frames", [1, 3, 9])
@pytest.mark.parametrize("shifted", [False, True])
def test_the_backend_matches_grouped_dense_calls(frames, shifted, tolerance, monkeypatch):
    # It takes 16-bit tensors on a GPU; here the CPU stands for that.
    monkeypatch.setattr(backends, "_why_not_on_device", lambda q: None)
    counts = [(5 * frame) % 9 for frame in range(1, frames + 1)]
    bounds = token_bounds(counts, segments(frames, 4, shifted))
    q, k, v = packed(sum(counts), 72, torch.float16)
    out = backend("triton")(q, k, v, bounds)
    expected = grouped(sdpa)(q.double(), k.double(), v.double(), bounds)
    assert difference(out, expected) <= tolerance[torch.float16]


@pytest.mark.parametrize("width", [64, 72])
def test_nothing_outside_a_range_leaks_into_it(width, tolerance):
    """What is beyond a range, a head, a sample or a token's channels in memory is NaN."""
    clean = packed(101, width, heads=1, batch=1)
    expected = exact(*clean, RAGGED)
    for start, stop in RAGGED:
        memory = torch.full((3, 110, 5, width + 8), float("nan"))
        q, k, v = (memory[1:2, 3:104, i : i + 1, 4 : 4 + width] for i in (1, 2, 3))
        for poisoned, x in zip((q, k, v), clean, strict=True):
            poisoned[:, start:stop] = x[:, start:stop]
        out = attention(q, k, v, RAGGED)
        if start < stop:
            inside = slice(start, stop)
            found = difference(out[:, inside], expected[:, inside])
            assert found <= tolerance[torch.float32]
        assert out.isnan().sum() == (101 - (stop - start)) * width


def test_a_wrong_bound_changes_the_result_of_its_two_ranges_only(tolerance):
    """The control: the comparisons above can fail."""
    q, k, v = packed(101, 72)
    wrong = ((0, 36), (36, 38), *RAGGED[2:])
    found = (attention(q, k, v, wrong).double() - exact(q, k, v, RAGGED)).abs().amax((0, 2, 3))
    assert (found[:38] > 100 * tolerance[torch.float32]).all()
    assert (found[38:] <= tolerance[torch.float32]).all()


@pytest.mark.parametrize("dtype", FLOAT)
def test_logits_whose_exponentials_overflow_stay_exact(dtype, tolerance):
    # Logits are multiples of 30, up to 1086 and exact: each weight is a tie or nothing.
    generator = torch.Generator().manual_seed(0)
    q, k = (torch.randint(-1, 2, (1, 70, 1, 72), generator=generator).to(dtype) for _ in range(2))
    q, k = 16 * q, 16 * k
    v = packed(70, 72, dtype, heads=1, batch=1)[2]
    assert (q[0, :, 0].float() @ k[0, :, 0].float().T).max() / 72**0.5 > 100
    bounds = ((0, 35), (35, 70))
    assert difference(attention(q, k, v, bounds), exact(q, k, v, bounds)) <= tolerance[dtype]


def test_logits_whose_exponentials_vanish_give_the_mean(tolerance):
    v = packed(40, 72)[2]
    q = torch.full_like(v, 16.0)
    out = attention(q, -q, v, ((0, 40),))
    expected = v.double().mean(1, keepdim=True).expand(v.shape)
    assert difference(out, expected) <= tolerance[torch.float32]


def other_strides():
    heads_first = [x.transpose(1, 2).contiguous().transpose(1, 2) for x in packed(40, 72)]
    q, k, v = packed(40, 72)
    yield "heads before tokens", heads_first
    yield "three different ones", (heads_first[0], k, v.contiguous())
    yield "one k and v for all samples", (q, *(x[:1].expand_as(x) for x in (k, v)))
    yield "some of the heads", [x[:, :, 1:] for x in packed(40, 72, heads=3)]
    yield "some of the channels", [x[..., 8:] for x in packed(40, 80)]
    yield "every other token", [x[:, ::2] for x in packed(80, 72)]


@pytest.mark.parametrize("case", list(other_strides()), ids=lambda case: case[0])
def test_views_match_the_reference(case, tolerance):
    q, k, v = case[1]
    before = [x.clone() for x in (q, k, v)]
    bounds = ((0, 17), (17, 40))
    out = attention(q, k, v, bounds)
    assert difference(out, exact(q, k, v, bounds)) <= tolerance[torch.float32]
    assert all(torch.equal(x, y) for x, y in zip((q, k, v), before, strict=True))


@pytest.mark.parametrize("shape", [(1, 0, 2, 72), (0, 6, 2, 72), (1, 6, 0, 72)])
def test_nothing_to_attend_to_gives_nothing(shape):
    x = torch.zeros(shape)
    assert attention(x, x, x, ((0, shape[1]), (shape[1], shape[1]))).shape == shape


def test_the_kernel_rejects_gradients_but_not_under_no_grad():
    q, k, v = packed(6, 72)
    v = v.clone().requires_grad_()
    with pytest.raises(ValueError, match="no backward pass, and q, k or v requires a gradient"):
        attention(q, k, v, ((0, 6),))
    with torch.no_grad():
        assert attention(q, k, v, ((0, 6),)).isfinite().all()


@pytest.mark.parametrize("bounds", [((0, 5),), ((0, 4), (3, 6)), ((0, 2), (3, 6)), ((0, 7),)])
def test_the_kernel_rejects_ranges_that_do_not_cover_the_tokens_once(bounds):
    with pytest.raises(ValueError, match="cover 6 tokens once"):
        attention(*packed(6, 72), bounds)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda q, k, v: (q, k[:, :5], v), "one shape and one dtype"),
        (lambda q, k, v: (q, k, v.half()), "one shape and one dtype"),
        (lambda q, k, v: (q.double(), k.double(), v.double()), "one shape and one dtype"),
        (lambda q, k, v: (q[0], k[0], v[0]), r"\[B, S, H, K\]"),
        (lambda q, k, v: (q[..., :71], k[..., :71], v[..., :71]), "even, 16 to 128, got 71"),
        (lambda q, k, v: (q[..., :14], k[..., :14], v[..., :14]), "even, 16 to 128, got 14"),
        (lambda q, k, v: (q.repeat(1, 1, 1, 2),) * 3, "even, 16 to 128, got 144"),
        (lambda q, k, v: (q, k.mT.contiguous().mT, v), "side by side"),
    ],
)
def test_the_kernel_rejects_tensors_it_would_get_wrong(change, said):
    with pytest.raises(ValueError, match=said):
        attention(*change(*packed(6, 72)), ((0, 6),))
