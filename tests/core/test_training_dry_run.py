"""The price of a step: against torch's own counter, and against real tensors."""

from dataclasses import replace

import pytest
import torch
from surf.surf_core.cost import SURF_1B, forward_flops
from surf.surf_core.refiner import RefinerConfig, SurfRefinerDiT
from surf.surf_core.training.dry_run import attention_flops, price
from surf.surf_core.training.live_bytes import LiveBytes

SMALL = RefinerConfig(dim=64, heads=4, layers=6, ffn_dim=256, window=2, block="scale", text_dim=32)


@pytest.mark.slow
def test_a_step_of_surf_1b_has_the_operations_of_four_forwards():
    """Linear maps: forward, again, and twice backward; attention 2 + 2.5 forwards.

    Not again: the last map of each block, whose result the backward pass does not need.
    """
    config = RefinerConfig.surf_1b(window=4)
    found = price(config, frames=81, height=720, width=1280, gpus=24, batch=24)
    forward = forward_flops(SURF_1B, 81, 720, 1280, 4)
    attention = attention_flops(config, (21, 90, 160), 512)
    last = 2 * 75600 * config.ffn_dim * config.dim * config.layers
    expected = 4 * (forward - attention) - last + 4.5 * attention
    assert found.flops == pytest.approx(expected, rel=0.002)
    assert found.parameters == pytest.approx(1.0185e9, rel=1e-4)
    assert found.samples == 1


@pytest.mark.slow
def test_state_is_shared_and_activations_are_not():
    config = replace(SMALL, layers=2)
    alone, eight = (
        price(config, frames=9, height=64, width=64, gpus=gpus, batch=24) for gpus in (1, 8)
    )
    assert alone.state == 20 * alone.parameters
    assert eight.state == pytest.approx(alone.state / 8, rel=1e-3)
    assert eight.activations == alone.activations
    assert (alone.samples, eight.samples) == (24, 3)
    two = price(config, frames=9, height=64, width=64, gpus=8, batch=24, shard=2)
    assert two.state == pytest.approx(alone.state / 2, rel=1e-3)


@pytest.mark.slow
def test_activations_are_those_of_real_tensors():
    """The same step with numbers in it, on the CPU, whose fused attention keeps a little more."""
    config = replace(SMALL, layers=3)
    found = price(config, frames=17, height=128, width=128, gpus=1, batch=1, text=16)
    model = SurfRefinerDiT(config).bfloat16()
    model.checkpointing = True
    for weight in model.parameters():
        weight.grad = torch.zeros_like(weight)
    z, text = torch.zeros(1, 16, 5, 16, 16).bfloat16(), torch.zeros(1, 16, 32).bfloat16()
    given = z, torch.zeros(1), text
    with LiveBytes(model, *given, *(weight.grad for weight in model.parameters())) as live:
        model(*given).float().square().mean().backward()
    assert found.activations == pytest.approx(live.peak, rel=0.1)


def test_price_rejects_what_does_not_divide():
    for given in ({"gpus": 5, "batch": 24}, {"gpus": 8, "batch": 24, "shard": 3}):
        with pytest.raises(ValueError, match="divide"):
            price(replace(SMALL, layers=2), frames=5, height=64, width=64, **given)
