"""The embedding of s, which conditions a refiner on how much noise its start holds."""

from dataclasses import replace

import pytest
import torch
from surf.surf_core import checkpoint
from surf.surf_core.flow import refine_with
from surf.surf_core.refiner import RefinerConfig, SurfRefinerDiT

BLOCKS = ["wan", "scale"]


def conditioned(block="wan", **changes):
    fixed = {"sigma_start": 0.7, "sigma_start_range": (0.6, 0.9)}
    config = RefinerConfig(
        dim=16, heads=2, layers=2, ffn_dim=20, latent_channels=4, text_dim=8, block=block,
        **fixed | changes,
    )  # fmt: skip
    model = SurfRefinerDiT(config)
    model.initialise(torch.Generator().manual_seed(0))
    # Zeros, which is where training starts, would hide everything.
    for name, weight in model.named_parameters():
        if "head" in name or "scale" in name:
            weight.data.normal_(generator=torch.Generator().manual_seed(1))
    return model.double()


def inputs():
    generator = torch.Generator().manual_seed(2)
    z = torch.randn(2, 4, 3, 4, 4, generator=generator, dtype=torch.float64)
    context = torch.randn(2, 5, 8, generator=generator, dtype=torch.float64)
    return z, torch.tensor([300.0, 700.0], dtype=torch.float64), context


def both(first, second):
    return torch.tensor([first, second], dtype=torch.float64)


@pytest.mark.parametrize("block", BLOCKS)
def test_a_fresh_embedding_of_s_is_identity(block):
    model, plain = conditioned(block), conditioned(block, sigma_start_range=None)
    problems = plain.load_state_dict(model.state_dict(), strict=False)
    assert {key.split(".")[0] for key in problems.unexpected_keys} == {"sigma_start_embedding"}
    expected = plain(*inputs())
    assert torch.equal(model(*inputs()), expected)
    assert torch.equal(model(*inputs(), both(0.6, 0.9)), expected)


@pytest.mark.parametrize("block", BLOCKS)
def test_s_is_heard_by_each_item_alone_and_defaults_to_the_config(block):
    model = conditioned(block)
    model.sigma_start_embedding[2].weight.data.normal_(generator=torch.Generator().manual_seed(3))
    low, mixed, default = (model(*inputs(), s) for s in (both(0.6, 0.6), both(0.6, 0.9), None))
    assert torch.equal(low[0], mixed[0])
    assert not torch.allclose(low[1], mixed[1], atol=1e-3)
    assert torch.equal(default, model(*inputs(), both(0.7, 0.7)))


def test_a_run_tells_the_model_its_start_and_refuses_others():
    model = conditioned()
    model.sigma_start_embedding[2].weight.data.normal_(generator=torch.Generator().manual_seed(3))
    z, _, context = inputs()
    heard = []
    hook = model.sigma_start_embedding.register_forward_pre_hook(
        lambda _, args: heard.append(args[0])
    )
    noise = torch.randn(z.shape, generator=torch.Generator().manual_seed(4), dtype=z.dtype)
    with torch.no_grad():
        outs = [
            refine_with(model, z, context, steps=2, noise=noise, sigma_start=s)
            for s in (None, 0.7, 0.8)
        ]
    hook.remove()
    assert torch.equal(heard[0], heard[2])
    assert not torch.equal(heard[2], heard[4])
    assert torch.equal(outs[0], outs[1])
    assert not torch.allclose(outs[1], outs[2])
    with pytest.raises(ValueError, match="sigma_start"):
        refine_with(model, z, context, steps=2, noise=noise, sigma_start=0.5)


def test_start_range_round_trips_through_a_file(tmp_path):
    model = conditioned()
    checkpoint.save(tmp_path / "a.safetensors", model.state_dict(), model.config, {})
    config, _ = checkpoint.read_config(tmp_path / "a.safetensors")
    assert config == model.config
    assert checkpoint.report(tmp_path / "a.safetensors") == []
    assert checkpoint.load(tmp_path / "a.safetensors").config.sigma_start_range == (0.6, 0.9)


@pytest.mark.parametrize(
    ("start", "bounds"), [(None, (0.6, 0.9)), (0.5, (0.6, 0.9)), (0.7, (0.9, 0.6)), (1.0, (0.5, 2))]
)
def test_config_rejects_a_start_outside_its_range(start, bounds):
    with pytest.raises(ValueError, match="sigma_start_range"):
        replace(RefinerConfig.tiny(), sigma_start=start, sigma_start_range=bounds)
