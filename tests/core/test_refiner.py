"""The refiner network: windows, positions, shapes, names."""

from math import prod

import pytest
import torch
from surf.surf_core.refiner import RefinerConfig, SurfRefinerDiT
from surf.surf_core.refiner.layers import sdpa, timestep_features
from surf.surf_core.refiner.rope import rotary_table, rotate, split_axes
from torch import nn

GRIDS = [(1, 3, 5), (3, 1, 1), (5, 3, 1), (9, 1, 3), (7, 5, 3)]


def small(window=0, layers=3, attention=sdpa, operations=nn):
    config = RefinerConfig(
        dim=24, heads=2, layers=layers, ffn_dim=20, window=window, latent_channels=4, text_dim=8
    )
    model = SurfRefinerDiT(config, operations=operations, attention=attention)
    model.initialise(torch.Generator().manual_seed(0))
    # A head of zeros, which is where training starts, would hide everything.
    model.head.head.weight.data.normal_(generator=torch.Generator().manual_seed(1))
    return model.double()


def inputs(grid, batch=2):
    generator = torch.Generator().manual_seed(2)
    t, h, w = grid
    z = torch.randn(batch, 4, t, 2 * h, 2 * w, generator=generator, dtype=torch.float64)
    context = torch.randn(batch, 5, 8, generator=generator, dtype=torch.float64)
    return z, torch.linspace(100, 900, batch, dtype=torch.float64), context


class MaskedAttention:
    """Full attention whose mask is written down frame by frame, apart from the windows."""

    def __init__(self, grid, window):
        self.frame = torch.arange(grid[0]).repeat_interleave(grid[1] * grid[2])
        self.window, self.frames, self.layer = window, grid[0], -1

    def __call__(self, q, k, v, heads):
        q, k, v = (x.unflatten(-1, (heads, -1)).transpose(1, 2) for x in (q, k, v))
        scores = q @ k.mT / q.shape[-1] ** 0.5
        if k.shape == q.shape:  # self-attention
            self.layer += 1
            offset = self.window - self.window // 2 if self.layer % 2 else 0
            offset = 0 if self.frames <= self.window else offset
            home = (self.frame + offset) // self.window
            scores = scores.masked_fill(home[:, None] != home, -torch.inf)
        return (scores.softmax(dim=-1) @ v).transpose(1, 2).flatten(-2)


@pytest.mark.parametrize("window", [2, 3, 4, 7])
@pytest.mark.parametrize("grid", GRIDS, ids=str)
def test_windowed_model_matches_masked_full_attention(grid, window, tolerance):
    z, t, context = inputs(grid)
    windowed, full = small(window), small(0, attention=MaskedAttention(grid, window))
    with torch.no_grad():
        out, expected = windowed(z, t, context), full(z, t, context)
    assert expected.abs().max() > 0.1
    assert torch.allclose(out, expected, atol=tolerance[torch.float64])


def test_a_window_as_long_as_the_clip_is_full_attention():
    z, t, context = inputs((5, 3, 1))
    with torch.no_grad():
        assert torch.equal(small(5)(z, t, context), small(0)(z, t, context))
        assert not torch.allclose(small(4)(z, t, context), small(0)(z, t, context))


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
def test_output_has_the_shape_of_the_latent(grid, window):
    z, t, context = inputs(grid)
    kept = z.clone()
    with torch.no_grad():
        out = small(window)(z, t, context)
    assert out.shape == z.shape
    assert out.isfinite().all()
    assert torch.equal(z, kept)


@pytest.mark.parametrize("window", [0, 2])
def test_samples_of_a_batch_stay_apart(window, tolerance):
    z, t, context = inputs((5, 3, 1), batch=3)
    model = small(window)
    with torch.no_grad():
        together = model(z, t, context)
        for index in range(3):
            one = slice(index, index + 1)
            alone = model(z[one], t[one], context[one])
            assert torch.allclose(together[one], alone, atol=tolerance[torch.float64])


def test_text_and_timestep_matter():
    z, t, context = inputs((3, 1, 1))
    model = small(2)
    with torch.no_grad():
        base = model(z, t, context)
        assert not torch.allclose(base, model(z, t + 50, context))
        assert not torch.allclose(base, model(z, t, context + 1))


def test_a_fresh_model_predicts_zero_and_is_deterministic_by_seed():
    config = RefinerConfig(dim=24, heads=2, layers=2, ffn_dim=20, latent_channels=4, text_dim=8)
    models = [SurfRefinerDiT(config) for _ in range(2)]
    for model in models:
        model.initialise(torch.Generator().manual_seed(3))
    for name, weight in models[0].state_dict().items():
        assert torch.equal(weight, models[1].state_dict()[name])
        assert weight.isfinite().all()
    z, t, context = (x.float() for x in inputs((3, 1, 1)))
    assert models[0](z, t, context).abs().max() == 0


def test_every_parameter_gets_a_gradient():
    z, t, context = inputs((5, 1, 3))
    model = small(2)
    model(z, t, context).square().sum().backward()
    assert [name for name, p in model.named_parameters() if p.grad is None] == []
    assert [name for name, p in model.named_parameters() if not p.grad.isfinite().all()] == []
    assert [name for name, p in model.named_parameters() if p.grad.abs().max() == 0] == []


@pytest.mark.parametrize("size", [(2, 3, 4), (2, 4, 3)])
def test_sizes_that_the_patch_does_not_divide_are_rejected(size):
    with pytest.raises(ValueError, match="must be multiples of"):
        small()(torch.zeros(1, 4, *size).double(), torch.zeros(1), torch.zeros(1, 5, 8).double())


@pytest.mark.parametrize(("dim", "heads"), [(25, 2), (6, 2)])
def test_config_rejects_heads_that_do_not_fit(dim, heads):
    with pytest.raises(ValueError, match="even multiple"):
        RefinerConfig(dim=dim, heads=heads, layers=1, ffn_dim=8)


class Sizes:
    """Operations that only count what their layers would hold."""

    held = 0

    def hold(self, count):
        self.held += count
        return nn.Identity()

    def Linear(self, wide, out):
        return self.hold(wide * out + out)

    def Conv3d(self, channels, out, patch, stride):
        return self.hold(channels * out * prod(patch) + out)

    def LayerNorm(self, dim, eps, elementwise_affine=True):
        return self.hold(2 * dim * elementwise_affine)

    def RMSNorm(self, dim, eps):
        return self.hold(dim)


@pytest.mark.parametrize(
    ("config", "millions"), [(RefinerConfig.tiny(), 2.30), (RefinerConfig.wan_1_3b(), 1419)]
)
def test_named_sizes_have_their_parameters(config, millions):
    sizes = Sizes()
    rest = SurfRefinerDiT(config, operations=sizes).parameters()
    count = sizes.held + sum(parameter.numel() for parameter in rest)
    assert count / 1e6 == pytest.approx(millions, rel=0.003)


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


def test_all_layers_come_from_the_given_operations():
    made = []

    class Operations:
        def __getattr__(self, kind):
            made.append(kind)
            return getattr(nn, kind)

    model = small(layers=1, operations=Operations())
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
