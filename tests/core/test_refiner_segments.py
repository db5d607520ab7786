"""The refiner one segment at a time: the same numbers, less memory; and its training mode."""

import pytest
import torch
from surf.surf_core.refiner import RefinerConfig, SurfRefinerDiT
from surf.surf_core.refiner import fused as steps
from surf.surf_core.training.live_bytes import LiveBytes
from surf.surf_core.window import sdpa, segments
from torch import nn

# Latent frames and windows: one frame, fewer than a window, a window that does not divide.
CLIPS = [(1, 4), (3, 4), (4, 4), (5, 2), (7, 3), (8, 4), (9, 5), (6, 0)]
both_blocks = pytest.mark.parametrize("block", ["wan", "scale"])


def make(window=4, block="scale", dim=24, heads=2, layers=3, dtype=torch.float64, **options):
    config = RefinerConfig(
        dim=dim, heads=heads, layers=layers, ffn_dim=4 * dim, window=window, latent_channels=4,
        text_dim=8, block=block,
    )  # fmt: skip
    model = SurfRefinerDiT(config, **options)
    generator = torch.Generator().manual_seed(0)
    for weight in model.parameters():
        weight.data.normal_(std=weight.shape[-1] ** -0.5, generator=generator)
    return model.to(dtype)


def inputs(frames, rows=3, columns=5, batch=2, dtype=torch.float64):
    generator = torch.Generator().manual_seed(1)
    z = torch.randn(batch, 4, frames, 2 * rows, 2 * columns, generator=generator)
    context = torch.randn(batch, 6, 8, generator=generator)
    return z.to(dtype), torch.linspace(50, 950, batch), context.to(dtype)


def whole(model, *given):
    model.segmentwise = False
    with torch.no_grad():
        out = model(*given)
    model.segmentwise = True
    return out


@both_blocks
@pytest.mark.parametrize(("frames", "window"), CLIPS)
def test_segment_by_segment_equals_the_whole_run(frames, window, block, tolerance):
    model, given = make(window, block), inputs(frames)
    with torch.no_grad():
        out = model(*given)
    assert out.std() > 0.1
    assert (out - whole(model, *given)).abs().max() < tolerance[torch.float64]
    assert torch.allclose(out, model(*given), atol=tolerance[torch.float64])  # gradients on


class RowLinear(nn.Linear):
    """A linear map that adds up every row by itself, whatever rows there are beside it."""

    def forward(self, x):
        return (x[..., None, :] * self.weight).sum(dim=-1) + self.bias


class RowByRow:
    """torch.nn with a linear map whose bits do not depend on the number of rows."""

    Linear = RowLinear

    def __getattr__(self, kind):
        return getattr(nn, kind)


@both_blocks
@pytest.mark.parametrize(("frames", "window"), [(1, 4), (3, 4), (5, 2), (7, 3)])
def test_segment_by_segment_is_bit_identical_but_for_matrix_products(frames, window, block):
    """A library may round a matrix product of fewer rows differently, so that is kept out."""

    def attention(q, k, v):
        scores = (q[:, :, None] * k[:, None]).sum(dim=-1, keepdim=True)
        return (scores.softmax(dim=2) * v[:, None]).sum(dim=2)

    model = make(window, block, dtype=torch.float32, operations=RowByRow(), attention=attention)
    given = inputs(frames, dtype=torch.float32)
    with torch.inference_mode():
        assert torch.equal(model(*given), whole(model, *given))


@both_blocks
@pytest.mark.parametrize("rows", [1, 7, 15, 40])
def test_rows_at_a_time_change_nothing(rows, block, monkeypatch, tolerance):
    model, given = make(3, block), inputs(7)
    with torch.no_grad():
        expected = model(*given)
        model.rows = rows
        monkeypatch.setattr(steps, "ROWS", rows)
        assert (model(*given) - expected).abs().max() < tolerance[torch.float64]


@both_blocks
@pytest.mark.parametrize(("frames", "window"), CLIPS)
def test_every_segment_is_one_dense_call_over_all_of_it_and_nothing_else(frames, window, block):
    seen = []

    def attention(q, k, v):
        seen.append((q.shape[1], k.shape[1]))
        return sdpa(q, k, v)

    model = make(window, block, attention=attention)
    with torch.no_grad():
        model(*inputs(frames))
    planned = [
        15 * (stop - start)
        for layer in range(3)
        for start, stop in segments(frames, window, bool(layer % 2))
    ]
    assert [pair for pair in seen if pair[1] != 6] == [(length, length) for length in planned]
    assert sum(length for length, keys in seen if keys == 6) == 3 * 15 * frames


def test_packed_attention_gets_the_plan_of_its_layer():
    seen = []
    model = make(2)
    packed = model.packed
    model.packed = lambda q, k, v, bounds: seen.append(bounds) or packed(q, k, v, bounds)
    model(*inputs(5))
    assert seen == [((0, 30), (30, 60), (60, 75)), ((0, 15), (15, 45), (45, 75))] + seen[:1]


def test_nothing_is_kept_between_calls_of_different_sizes():
    model = make(2)
    assert list(model.buffers()) == []
    sizes = [(5, 3, 5), (1, 2, 2), (9, 1, 7), (5, 3, 5)]
    with torch.inference_mode():
        outs = [model(*inputs(*size)) for size in sizes]
        for size, out in zip(sizes, outs, strict=True):
            assert torch.equal(out, make(2)(*inputs(*size)))


@both_blocks
def test_raw_parameters_are_cast_where_they_are_used(block, tolerance):
    """Hosts cast the layers' weights; what is a bare parameter keeps its own dtype."""
    model = make(2, block, dtype=torch.float32)
    given = inputs(3, dtype=torch.float32)
    with torch.no_grad():
        expected = model(*given)
        for module in model.modules():
            if isinstance(module, nn.Linear | nn.Conv3d | nn.LayerNorm | nn.RMSNorm):
                module.to(torch.bfloat16)
        half = [x.bfloat16() for x in given]
        out = model(half[0], given[1], half[2])
    assert out.dtype == torch.bfloat16
    assert torch.allclose(out.float(), expected, atol=5 * tolerance[torch.bfloat16])


def peak(frames, side, window=4, segmentwise=True, rows=256):
    """Live bytes of a forward in fp32."""
    model = make(window, dim=96, heads=4, layers=2, dtype=torch.float32)
    model.segmentwise, model.rows = segmentwise, rows
    given = inputs(frames, *side, batch=1, dtype=torch.float32)
    with LiveBytes(model, *given) as live, torch.no_grad():
        model(*given)
    return live.peak


def test_a_segment_at_a_time_halves_the_peak_at_1080p_ratios():
    """81 frames of 1920x1088, an eighth of the tokens a side, and rows to match."""
    assert peak(21, (9, 15), segmentwise=False) > 2 * peak(21, (9, 15))


def test_beyond_the_stream_memory_does_not_grow_with_the_frames():
    side, stream = (5, 6), 5 * 6 * 96 * 4
    beyond = {frames: peak(frames, side, rows=64) - frames * stream for frames in (8, 21, 41)}
    assert max(beyond.values()) - min(beyond.values()) < 0.1 * stream
    # Control: with one window over the clip they grow.
    assert peak(41, side, window=0) - peak(21, side, window=0) > 3 * 20 * stream


@both_blocks
def test_checkpointing_keeps_fewer_bytes_and_the_same_gradients(block):
    def backward(checkpointing):
        model, saved = make(2, block), {}
        model.checkpointing = checkpointing
        own = {p.untyped_storage().data_ptr() for p in model.parameters()}

        def pack(x):
            if x.untyped_storage().data_ptr() not in own:
                saved[x.untyped_storage().data_ptr()] = x.untyped_storage().nbytes()
            return x

        with torch.autograd.graph.saved_tensors_hooks(pack, lambda x: x):
            out = model(*inputs(5))
        out.square().sum().backward()
        return out, [p.grad for p in model.parameters()], sum(saved.values())

    plain, checkpointed = backward(False), backward(True)
    assert torch.equal(plain[0], checkpointed[0])
    assert all(torch.equal(a, b) for a, b in zip(plain[1], checkpointed[1], strict=True))
    assert 0 < 3 * checkpointed[2] < plain[2]


@both_blocks
def test_gradients_are_those_of_the_function(block):
    """Finite differences along random directions, through windows, norms and positions."""
    model, (z, t, context) = make(2, block, dim=12, layers=2), inputs(3, 1, 2, batch=1)

    def f(z, context, bias):
        swapped = {"blocks.1.self_attn.q.bias": bias}
        return torch.func.functional_call(model, swapped, (z, t, context))

    bias = model.blocks[1].self_attn.q.bias
    given = [x.detach().clone().requires_grad_() for x in (z, context, bias)]
    assert torch.autograd.gradcheck(f, given, fast_mode=True)


def test_gradients_never_pass_through_the_inference_kernels():
    def refuse(*_):
        raise AssertionError("an inference kernel ran with gradients on")

    model = make(2)
    model.fused = steps.Fused(
        name="refusing", modulated_norm=refuse, norm_rotate=refuse, rotate=refuse
    )
    model(*inputs(3)).sum().backward()
    with torch.no_grad(), pytest.raises(AssertionError, match="inference kernel"):
        model(*inputs(3))
