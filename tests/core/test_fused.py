"""Norm, modulation and rotation: plain torch, comfy-kitchen, and the choice between them."""

import logging
import sys
from types import SimpleNamespace

import pytest
import torch
from surf.surf_core.refiner import RefinerConfig, SurfRefinerDiT, kitchen
from surf.surf_core.refiner.fused import NEEDED, ROWS, eager, why_not_kitchen
from surf.surf_core.refiner.rope import rotary_table, rotate
from torch import nn

DTYPES = [torch.float32, torch.float16, torch.bfloat16]
by_dtype = pytest.mark.parametrize("dtype", DTYPES, ids=str)
by_width = pytest.mark.parametrize("head_dim", [64, 72, 128])
both_ways = pytest.mark.parametrize("name", ["eager", "kitchen"])
GRID = (3, 2, 5)


def way(name):
    return eager if name == "eager" else kitchen()


def noise(*shape, seed=0):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def norms(head_dim, dtype):
    made = []
    for seed in (5, 6):
        norm = nn.RMSNorm(head_dim, eps=1e-6)
        norm.weight.data.copy_(1 + 0.2 * noise(head_dim, seed=seed))
        made.append(norm.to(dtype))
    return made


def close(out, expected, dtype, tolerance):
    """Within the table, relative to the largest value: half precision rounds at every step."""
    return (out.double() - expected).abs().max() <= tolerance[dtype] * expected.abs().max()


@both_ways
@by_dtype
@pytest.mark.parametrize("shifted", [True, False])
def test_modulated_norm_matches_float64(name, dtype, shifted, tolerance):
    x, scale = noise(2, 30, 48), 0.3 * noise(2, 1, 48, seed=1)
    shift = noise(2, 1, 48, seed=2) if shifted else None
    x, scale, shift = (y if y is None else y.to(dtype) for y in (x, scale, shift))
    wide = x.double()
    if shifted:
        wide = wide - wide.mean(dim=-1, keepdim=True)
    wide = wide * (wide.square().mean(dim=-1, keepdim=True) + 1e-6).rsqrt()
    expected = wide * (1 + scale.double()) + (shift.double() if shifted else 0)
    kept = x.clone()
    with torch.no_grad():
        out = way(name).modulated_norm(x, scale, shift)
    assert out.dtype == dtype
    assert torch.equal(x, kept)
    assert close(out, expected, dtype, tolerance)


@both_ways
@by_dtype
@by_width
def test_norm_and_rotation_match_float64(name, dtype, head_dim, tolerance):
    table = rotary_table(GRID, head_dim, torch.device("cpu"))
    q, k = (noise(2, 30, 3, head_dim, seed=seed).to(dtype) for seed in (3, 4))
    norm_q, norm_k = norms(head_dim, dtype)
    expected = [
        rotate(
            x.double()
            * (x.double().square().mean(dim=-1, keepdim=True) + 1e-6).rsqrt()
            * norm.weight.double(),
            table,
        )
        for x, norm in ((q, norm_q), (k, norm_k))
    ]
    with torch.no_grad():
        outs = way(name).norm_rotate(q, k, norm_q, norm_k, table)
    for out, right in zip(outs, expected, strict=True):
        assert out.dtype == dtype
        assert close(out, right, dtype, tolerance)


@both_ways
@by_dtype
@by_width
def test_rotation_writes_into_a_packed_view_and_nowhere_else(name, dtype, head_dim, tolerance):
    """A segment of q inside one tensor of q, k and v, as fused projections give it."""
    packed = noise(2, 30, 3, 2, head_dim).to(dtype)
    kept, segment = packed.clone(), slice(10, 20)
    table = rotary_table((1, 2, 5), head_dim, torch.device("cpu"))
    view = packed[:, segment, 0]
    with torch.no_grad():
        out = way(name).rotate(view, table)
    assert out.data_ptr() == view.data_ptr()
    assert close(
        packed[:, segment, 0], rotate(kept[:, segment, 0].double(), table), dtype, tolerance
    )
    packed[:, segment, 0] = kept[:, segment, 0]
    assert torch.equal(packed, kept)


@both_ways
@by_width
def test_norm_and_rotation_write_into_packed_views(name, head_dim):
    packed = noise(1, 30, 3, 2, head_dim).float()
    q, k = packed[:, :, 0], packed[:, :, 1]
    values = packed[:, :, 2].clone()
    table = rotary_table(GRID, head_dim, torch.device("cpu"))
    expected = [x.clone() for x in (q, k)]
    pair = norms(head_dim, torch.float32)
    with torch.no_grad():
        outs = way(name).norm_rotate(q, k, *pair, table)
        right = [rotate(n(x), table) for n, x in zip(pair, expected, strict=True)]
    for out, view, value in zip(outs, (q, k), right, strict=True):
        assert out.data_ptr() == view.data_ptr()
        assert torch.allclose(view, value, atol=2e-5)
    assert torch.equal(packed[:, :, 2], values)


@both_ways
def test_weights_that_lie_elsewhere_are_fetched_by_their_layer(name, tolerance):
    """Hosts keep weights in another dtype or place; then the layer's own forward casts them."""

    class Kept(nn.RMSNorm):
        calls = 0

        def forward(self, x):
            self.calls += 1
            return nn.functional.rms_norm(x, self.normalized_shape, self.weight.to(x), self.eps)

    q, k = noise(1, 30, 2, 64).bfloat16(), noise(1, 30, 2, 64, seed=1).bfloat16()
    table = rotary_table(GRID, 64, torch.device("cpu"))
    kept = Kept(64, eps=1e-6)
    expected = rotate(kept(q), table)
    with torch.no_grad():
        out, _ = way(name).norm_rotate(q, k, kept, kept, table)
    assert kept.calls == 3
    assert close(out, expected.double(), torch.bfloat16, tolerance)


def test_plain_torch_goes_by_rows_and_loses_none(tolerance):
    count = ROWS + 3
    x, scale, shift = noise(1, count, 4), noise(1, 1, 4, seed=1), noise(1, 1, 4, seed=2)
    # With four channels a head, all of them turn with time.
    table = rotary_table((count, 1, 1), 4, torch.device("cpu"), torch.float64)
    whole = eager.modulated_norm(x, scale, shift)
    with torch.no_grad():
        assert torch.allclose(eager.modulated_norm(x, scale, shift), whole, atol=1e-12)
        turned = eager.rotate(x[:, :, None].clone(), table)
    assert torch.allclose(turned, rotate(x[:, :, None], table), atol=tolerance[torch.float64])
    assert (turned[:, 1:, 0] - x[:, 1:]).abs().amax(-1).min() > 1e-4


@by_dtype
@pytest.mark.parametrize(("block", "dim"), [("wan", 144), ("scale", 144), ("scale", 128)])
def test_the_model_is_the_same_on_kitchen(block, dim, dtype, tolerance):
    config = RefinerConfig(
        dim=dim, heads=2, layers=2, ffn_dim=96, window=2, latent_channels=4, text_dim=8, block=block
    )
    model = SurfRefinerDiT(config)
    generator = torch.Generator().manual_seed(0)
    for weight in model.parameters():
        weight.data.normal_(std=0.5 * weight.shape[-1] ** -0.5, generator=generator)
    model = model.to(dtype)
    given = noise(2, 4, 3, 4, 6).to(dtype), torch.tensor([20.0, 800]), noise(2, 5, 8).to(dtype)
    for segmentwise in (True, False):
        model.segmentwise, model.fused = segmentwise, eager
        with torch.inference_mode():
            expected = model(*given).double()
            model.fused = kitchen()
            out = model(*given)
        assert expected.std() > 0.1
        assert close(out, expected, dtype, tolerance)


def test_a_missing_or_old_kitchen_is_none_with_a_logged_reason(monkeypatch, caplog):
    caplog.set_level(logging.INFO)
    assert why_not_kitchen() is None
    assert kitchen().name == "kitchen"
    assert caplog.text == ""
    monkeypatch.setitem(sys.modules, "comfy_kitchen", None)
    assert kitchen() is None
    assert "cannot be imported" in caplog.text
    old = SimpleNamespace(**{name: None for name in NEEDED if not name.endswith("_")})
    monkeypatch.setitem(sys.modules, "comfy_kitchen", old)
    assert kitchen() is None
    assert "too old, it lacks rms_rope_, apply_rope1_; update it" in caplog.text
