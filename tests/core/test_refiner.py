"""The refiner network: windows, positions, shapes, names."""

from dataclasses import replace

import pytest
import torch
from surf.surf_core.refiner import RefinerConfig, SurfRefinerDiT, outline
from surf.surf_core.refiner.layers import timestep_features
from surf.surf_core.refiner.rope import rotary_table, rotate, split_axes
from surf.surf_core.window import sdpa
from torch import nn

GRIDS = [(1, 3, 5), (3, 1, 1), (5, 3, 1), (9, 1, 3), (7, 5, 3)]


BLOCKS = ["wan", "scale"]


def small(window=0, layers=3, attention=sdpa, operations=nn, block="wan"):
    config = RefinerConfig(
        dim=24, heads=2, layers=layers, ffn_dim=20, window=window, latent_channels=4, text_dim=8,
        block=block,
    )  # fmt: skip
    model = SurfRefinerDiT(config, operations=operations, attention=attention)
    generator = torch.Generator().manual_seed(1)
    model.initialise(torch.Generator().manual_seed(0))
    # Zeros, which is where training starts, would hide everything.
    model.head.head.weight.data.normal_(generator=generator)
    if block == "scale":
        for module in (*model.blocks, model.head):
            module.scale.weight.data.normal_(generator=generator)
    return model.double()


def inputs(grid, batch=2):
    generator = torch.Generator().manual_seed(2)
    t, h, w = grid
    z = torch.randn(batch, 4, t, 2 * h, 2 * w, generator=generator, dtype=torch.float64)
    context = torch.randn(batch, 5, 8, generator=generator, dtype=torch.float64)
    return z, torch.linspace(100, 900, batch, dtype=torch.float64), context


class FrameMaskedAttention:
    """Full attention whose mask is written down frame by frame, apart from the windows."""

    def __init__(self, grid, window):
        self.frame = torch.arange(grid[0]).repeat_interleave(grid[1] * grid[2])
        self.window, self.frames, self.layer = window, grid[0], -1

    def __call__(self, q, k, v, bounds):
        assert bounds == ((0, q.shape[1]),)
        q, k, v = (x.transpose(1, 2) for x in (q, k, v))
        self.layer += 1
        offset = self.window - self.window // 2 if self.layer % 2 else 0
        offset = 0 if self.frames <= self.window else offset
        home = (self.frame + offset) // self.window
        scores = q @ k.mT / q.shape[-1] ** 0.5
        scores = scores.masked_fill(home[:, None] != home, -torch.inf)
        return (scores.softmax(dim=-1) @ v).transpose(1, 2)


@pytest.mark.parametrize("block", BLOCKS)
@pytest.mark.parametrize("window", [2, 3, 4, 7])
@pytest.mark.parametrize("grid", GRIDS, ids=str)
def test_windowed_model_matches_masked_full_attention(grid, window, block, tolerance):
    """The windows count time from their own first frame, the reference from the clip's."""
    z, t, context = inputs(grid)
    windowed, full = small(window, block=block), small(0, block=block)
    full.packed = FrameMaskedAttention(grid, window)
    with torch.no_grad():
        out, expected = windowed(z, t, context), full(z, t, context)
    assert expected.abs().max() > 0.1
    assert torch.allclose(out, expected, atol=tolerance[torch.float64])


@pytest.mark.parametrize("block", BLOCKS)
def test_a_window_as_long_as_the_clip_is_full_attention(block):
    z, t, context = inputs((5, 3, 1))
    with torch.no_grad():
        full = small(0, block=block)(z, t, context)
        assert torch.equal(small(5, block=block)(z, t, context), full)
        assert not torch.allclose(small(4, block=block)(z, t, context), full)


def test_window_can_be_changed_after_construction():
    z, t, context = inputs((5, 3, 1))
    model = small(0)
    model.window = 2
    with torch.no_grad():
        assert torch.equal(model(z, t, context), small(2)(z, t, context))


@pytest.mark.parametrize(
    ("layers", "touched"), [(1, {4, 5}), (2, {3, 4, 5, 6}), (3, {2, 3, 4, 5, 6, 7})]
)
def test_a_frame_reaches_one_window_further_with_every_layer(layers, touched):
    z, t, context = inputs((9, 1, 3))
    model, other = small(2, layers=layers), z.clone()
    other[:, :, 4] += 1
    with torch.no_grad():
        change = (model(other, t, context) - model(z, t, context)).abs().amax(dim=(0, 1, 3, 4))
    assert set(change.nonzero().flatten().tolist()) == touched


@pytest.mark.parametrize("grid", GRIDS, ids=str)
@pytest.mark.parametrize("window", [0, 2])
@pytest.mark.parametrize("block", BLOCKS)
def test_output_has_the_shape_of_the_latent_which_is_not_mutated(grid, window, block):
    given = inputs(grid)
    kept = [x.clone() for x in given]
    with torch.inference_mode():
        out = small(window, block=block)(*given)
    assert out.shape == given[0].shape
    assert out.isfinite().all()
    assert all(torch.equal(x, y) for x, y in zip(given, kept, strict=True))


@pytest.mark.parametrize("window", [0, 2])
@pytest.mark.parametrize("block", BLOCKS)
def test_samples_of_a_batch_stay_apart(window, block, tolerance):
    z, t, context = inputs((5, 3, 1), batch=3)
    model = small(window, block=block)
    with torch.no_grad():
        together = model(z, t, context)
        for index in range(3):
            one = slice(index, index + 1)
            alone = model(z[one], t[one], context[one])
            assert torch.allclose(together[one], alone, atol=tolerance[torch.float64])


@pytest.mark.parametrize("block", BLOCKS)
def test_text_and_timestep_matter(block):
    z, t, context = inputs((3, 1, 1))
    model = small(2, block=block)
    with torch.no_grad():
        base = model(z, t, context)
        assert not torch.allclose(base, model(z, t + 50, context))
        assert not torch.allclose(base, model(z, t, context + 1))


@pytest.mark.parametrize("block", BLOCKS)
def test_a_fresh_model_predicts_zero_and_is_deterministic_by_seed(block):
    config = replace(small(layers=2).config, block=block)
    models = [SurfRefinerDiT(config) for _ in range(2)]
    for model in models:
        model.initialise(torch.Generator().manual_seed(3))
    for name, weight in models[0].state_dict().items():
        assert torch.equal(weight, models[1].state_dict()[name])
        assert weight.isfinite().all()
    z, t, context = (x.float() for x in inputs((3, 1, 1)))
    assert models[0](z, t, context).abs().max() == 0


@pytest.mark.parametrize("block", BLOCKS)
def test_every_parameter_gets_a_gradient(block):
    z, t, context = inputs((5, 1, 3))
    model = small(2, block=block)
    model(z, t, context).square().sum().backward()
    assert [name for name, p in model.named_parameters() if p.grad is None] == []
    assert [name for name, p in model.named_parameters() if not p.grad.isfinite().all()] == []
    assert [name for name, p in model.named_parameters() if p.grad.abs().max() == 0] == []


@pytest.mark.parametrize("size", [(2, 3, 4), (2, 4, 3)])
def test_sizes_that_the_patch_does_not_divide_are_rejected(size):
    with pytest.raises(ValueError, match="must be multiples of"):
        small()(torch.zeros(1, 4, *size).double(), torch.zeros(1), torch.zeros(1, 5, 8).double())


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        ({"dim": 25, "heads": 2}, "even multiple"),
        ({"dim": 6, "heads": 2}, "even multiple"),
        ({"heads": 0}, "heads must be a whole number from 1, got 0"),
        ({"layers": 1.5}, "layers must be"),
        ({"window": 1}, "at least 2, got 1"),
        ({"window": -4}, "window must be a whole number from 0"),
        ({"patch": (1, 2)}, "frames, rows and columns"),
        ({"block": "dit"}, "one of wan, scale"),
        ({"time": "step"}, "one of sigma, t"),
        ({"sigma_start": 0.0}, "sigma_start must lie within"),
        ({"sigma_start": 1.5}, "sigma_start must lie within"),
        ({"time": "t"}, "give the noise of its training"),
        ({"time": "t", "sigma_start": -0.1}, "sigma_start must lie within"),
    ],
    ids=str,
)
def test_config_rejects_what_cannot_be(change, expected):
    good = {"dim": 24, "heads": 2, "layers": 1, "ffn_dim": 8}
    with pytest.raises(ValueError, match=expected):
        RefinerConfig(**good | change)


def test_a_refiner_in_t_may_start_without_noise():
    config = RefinerConfig.surf_1b(time="t", sigma_start=0.0)
    assert (config.sigma_start, config.head_dim, config.window) == (0.0, 72, 4)


@pytest.mark.parametrize(
    ("config", "millions"),
    [
        (RefinerConfig.tiny(), 2.298),
        (RefinerConfig.wan_1_3b(), 1419.0),
        (RefinerConfig.surf_1b(), 1018.5),
    ],
    ids=["tiny", "wan_1_3b", "surf_1b"],
)
def test_named_sizes_have_their_parameters(config, millions):
    count = sum(p.numel() for p in outline(config).parameters())
    assert count / 1e6 == pytest.approx(millions, rel=2e-4)
    assert config.block == "wan" or 0.95e9 < count < 1.05e9


def test_parameter_names_are_those_of_wan():
    names = set(small(layers=1).state_dict())
    parts = ("self_attn", "cross_attn")
    expected = {"blocks.0.modulation", "head.modulation"}
    for module in (
        "patch_embedding", "text_embedding.0", "text_embedding.2", "time_embedding.0",
        "time_embedding.2", "time_projection.1", "head.head", "blocks.0.norm3", "blocks.0.ffn.0",
        "blocks.0.ffn.2", *(f"blocks.0.{part}.{map}" for part in parts for map in "qkvo"),
    ):  # fmt: skip
        expected |= {f"{module}.weight", f"{module}.bias"}
    expected |= {f"blocks.0.{part}.norm_{map}.weight" for part in parts for map in "qk"}
    assert names == expected


def test_the_papers_block_has_names_that_no_loader_takes_for_wan():
    model = small(layers=2, block="scale")
    shapes = {name: tuple(weight.shape) for name, weight in model.state_dict().items()}
    assert shapes["blocks.1.scale.weight"] == (72, 24)
    assert shapes["head.scale.weight"] == (24, 24)
    assert shapes["blocks.0.self_attn.norm_q.weight"] == (12,)
    assert not [name for name in shapes if "modulation" in name or "norm3" in name]
    assert not [name for name in shapes if name.startswith("time_projection")]


def test_the_papers_block_scales_an_rms_norm_and_nothing_else(tolerance):
    """One block, written down from SURF B.1: y = RMSNorm(x) * (1 + scale), x + module(y)."""
    model = small(layers=1, block="scale")
    [block], seen = model.blocks, []
    block.register_forward_hook(lambda _, given, out: seen.append((given, out)))
    model(*inputs((2, 3, 1)))
    (x, time, context, _, table, *_), out = seen[0]

    def normed(x, scale):
        return x * (x.square().mean(dim=-1, keepdim=True) + 1e-6).rsqrt() * (1 + scale[:, None])

    def attend(module, x, others, table=None):
        q, k, v = (
            layer(y).unflatten(-1, (2, 12))
            for layer, y in ((module.q, x), (module.k, others), (module.v, others))
        )
        q, k = (
            y * (y.square().mean(dim=-1, keepdim=True) + 1e-6).rsqrt() * norm.weight
            for y, norm in ((q, module.norm_q), (k, module.norm_k))
        )
        if table is not None:
            q, k = rotate(q, table), rotate(k, table)
        scores = torch.einsum("nqhc,nkhc->nhqk", q, k) / 12**0.5
        return module.o(torch.einsum("nhqk,nkhc->nqhc", scores.softmax(-1), v).flatten(-2))

    one, two, three = (time @ block.scale.weight.T + block.scale.bias).chunk(3, dim=-1)
    x = x + attend(block.self_attn, normed(x, one), normed(x, one), table)
    x = x + attend(block.cross_attn, normed(x, two), context)
    x = x + block.ffn(normed(x, three))
    assert torch.allclose(out, x, atol=tolerance[torch.float64])


@pytest.mark.parametrize("block", BLOCKS)
def test_all_layers_come_from_the_given_operations(block):
    made = []

    class CountedOperations:
        def __getattr__(self, kind):
            made.append(kind)
            return getattr(nn, kind)

    model = small(layers=1, operations=CountedOperations(), block=block)
    kinds = (nn.Linear, nn.Conv3d, nn.LayerNorm, nn.RMSNorm)
    assert len(made) == sum(isinstance(module, kinds) for module in model.modules())


@pytest.mark.parametrize(
    ("head_dim", "expected"), [(128, (44, 42, 42)), (72, (24, 24, 24)), (12, (4, 4, 4))]
)
def test_channels_are_shared_between_the_axes_as_in_wan(head_dim, expected):
    assert split_axes(head_dim) == expected
    for even in range(2, 130, 2):
        assert sum(split_axes(even)) == even
        assert all(width % 2 == 0 for width in split_axes(even))


@pytest.mark.parametrize("head_dim", [12, 72, 128])
def test_rotation_matches_complex_multiplication(head_dim):
    grid = (3, 5, 2)
    table = rotary_table(grid, head_dim, torch.device("cpu"))
    x = torch.randn(2, 30, 3, head_dim, generator=torch.Generator().manual_seed(0)).double()
    expected = torch.empty_like(x)
    for token in range(30):
        place = (token // 10, token // 2 % 5, token % 2)
        turn = [
            p * 10000 ** (-2 * i / width)
            for p, width in zip(place, split_axes(head_dim), strict=True)
            for i in range(width // 2)
        ]
        angles = torch.tensor(turn, dtype=torch.float64)
        pairs = torch.view_as_complex(x[:, token].unflatten(-1, (-1, 2)).contiguous())
        turned = pairs * torch.polar(torch.ones_like(angles), angles)
        expected[:, token] = torch.view_as_real(turned).flatten(-2)
    assert torch.allclose(rotate(x, table), expected, atol=1e-6)


def test_rotation_preserves_lengths_and_the_first_token():
    table = rotary_table((2, 3, 5), 24, torch.device("cpu"))
    x = torch.randn(1, 30, 2, 24, generator=torch.Generator().manual_seed(0))
    out = rotate(x, table)
    assert torch.allclose(out.norm(dim=-1), x.norm(dim=-1), rtol=1e-5)
    assert torch.equal(out[:, 0], x[:, 0])


def test_scores_depend_on_the_distance_alone():
    table = rotary_table((6, 5, 4), 24, torch.device("cpu"))
    q, k = torch.randn(2, 24, generator=torch.Generator().manual_seed(0))
    q, k = (rotate(x.expand(1, 120, 1, 24), table).view(6, 5, 4, 24) for x in (q, k))
    near, far = q[0, 0, 0] @ k[2, 1, 3], q[3, 3, 0] @ k[5, 4, 3]
    assert torch.allclose(near, far, atol=1e-4)
    assert not torch.allclose(near, q[0, 0, 0] @ k[1, 1, 3], atol=1e-2)


def test_timestep_features_are_cosines_then_sines():
    features = timestep_features(torch.tensor([0.0, 1.0]), 6)
    assert torch.equal(features[0], torch.tensor([1.0, 1, 1, 0, 0, 0]))
    angle = torch.tensor([1.0, 10000 ** (-1 / 3), 10000 ** (-2 / 3)])
    assert torch.allclose(features[1], torch.cat([angle.cos(), angle.sin()]))
