"""Tokens and operations: against the paper, against a counter, by hand."""

from dataclasses import replace

import pytest
import torch
from surf.surf_core.cost import (
    HUNYUAN_VIDEO,
    SHAPES,
    SURF_1B,
    TINY,
    WAN_1_3B,
    WAN_5B,
    WAN_14B,
    ModelShape,
    Stage,
    forward_flops,
    latent_frames,
    plan_flops,
    tokens,
)
from surf.surf_core.refiner import RefinerConfig, SurfRefinerDiT
from surf.surf_core.tiny import codec
from surf.surf_core.tiny.prompt import PHRASES
from torch.utils._python_dispatch import TorchDispatchMode

PETA = 1e15


class Counter(TorchDispatchMode):
    """Adds up the operations of the matrix products that really run."""

    flops = 0

    def __torch_dispatch__(self, call, types, args=(), kwargs=None):
        out = call(*args, **(kwargs or {}))
        left = {"mm": 0, "bmm": 0, "addmm": 1}.get(call.overloadpacket.__name__)
        if left is not None:
            self.flops += 2 * out.numel() * args[left].shape[-1]
        return out


def wan(steps, height, width, **options):
    return Stage(shape=WAN_14B, steps=steps, frames=81, height=height, width=width, **options)


@pytest.mark.parametrize(
    ("shape", "frames", "height", "width", "count"),
    [
        (WAN_14B, 81, 720, 1280, 75600),
        (WAN_14B, 81, 480, 832, 32760),
        (WAN_14B, 81, 240, 416, 8190),
        (WAN_14B, 81, 1088, 1920, 171360),
        (WAN_14B, 1, 480, 832, 1560),
        (WAN_5B, 121, 704, 1280, 31 * 22 * 40),
        (HUNYUAN_VIDEO, 129, 720, 1280, 118800),
        (TINY, 4, 64, 64, 256),
        (TINY, 4, 32, 32, 64),
    ],
)
def test_tokens_match_the_models(shape, frames, height, width, count):
    assert tokens(shape, frames, height, width) == count


def test_partial_tokens_are_counted_whole():
    assert tokens(WAN_14B, 81, 1080, 1920) == tokens(WAN_14B, 81, 1088, 1920)
    assert tokens(WAN_14B, 1, 1, 1) == 1


@pytest.mark.parametrize(("frames", "expected"), [(1, 1), (2, 2), (5, 2), (21, 6), (81, 21)])
def test_latent_frames_hold_four_after_the_first(frames, expected):
    assert latent_frames(WAN_14B, frames) == expected


def test_the_papers_baseline_is_met_within_one_percent():
    total = plan_flops([wan(50, 720, 1280)]) / PETA
    assert 640 < total < 665
    assert total == pytest.approx(658.46, rel=0.01)


@pytest.mark.parametrize(("k", "expected"), [(10, 48.9), (4, 31.9)])
def test_previews_of_forty_steps_are_priced_with_guidance_on_both_legs(k, expected):
    plan = [wan(k, 480, 832), wan(40 - k, 240, 416)]
    assert plan_flops(plan) / PETA == pytest.approx(expected, abs=0.06)


@pytest.mark.parametrize(
    ("height", "width", "window", "expected"),
    [
        (720, 1280, 0, 0.821), (720, 1280, 8, 0.333), (720, 1280, 4, 0.216),
        (720, 1280, 2, 0.152), (1080, 1920, 0, 3.978), (1080, 1920, 7, 1.349),
        (1080, 1920, 4, 0.868),
    ],
)  # fmt: skip
def test_a_windowed_refiner_of_28_layers_costs_what_was_worked_out(height, width, window, expected):
    flops = forward_flops(replace(SURF_1B, layers=28), 81, height, width, window)
    assert flops / PETA == pytest.approx(expected, abs=6e-4)


@pytest.mark.parametrize("window", [0, 2, 3, 4, 9])
@pytest.mark.parametrize("grid", [(1, 3, 5), (5, 2, 3), (7, 1, 3)])
def test_layers_match_a_counter_on_the_real_model(grid, window):
    """Every second layer is shifted; what is left without layers are the embeddings."""

    def attention(q, k, v, heads):
        q, k, v = (x.unflatten(-1, (heads, -1)).transpose(1, 2) for x in (q, k, v))
        return (torch.softmax(q @ k.mT, dim=-1) @ v).transpose(1, 2).flatten(-2)

    def counted(layers):
        config = RefinerConfig(
            dim=24, heads=2, layers=layers, ffn_dim=40, window=window, latent_channels=4, text_dim=8
        )
        model = SurfRefinerDiT(config, attention=attention)
        z = torch.zeros(1, 4, grid[0], 2 * grid[1], 2 * grid[2])
        with Counter() as counter, torch.no_grad():
            model(z, torch.zeros(1), torch.zeros(1, 5, 8))
        return counter.flops

    def priced(layers):
        shape = ModelShape(
            name="test", dim=24, layers=layers, heads=2, ffn_dim=40, text_tokens=5, cell_pixels=1,
            cell_frames=1,
        )  # fmt: skip
        return forward_flops(shape, grid[0], 2 * grid[1], 2 * grid[2], window)

    for layers in (1, 2, 3):
        assert priced(layers) == counted(layers) - counted(0)


def test_presets_match_the_models_of_this_project():
    for shape, config in ((TINY, RefinerConfig.tiny()), (WAN_1_3B, RefinerConfig.wan_1_3b())):
        for field in ("dim", "layers", "heads", "ffn_dim", "patch"):
            assert getattr(shape, field) == getattr(config, field)
    assert TINY.cell_pixels == codec.CELL
    assert TINY.text_tokens == PHRASES


@pytest.mark.parametrize("shape", SHAPES, ids=lambda shape: shape.name)
@pytest.mark.parametrize(
    ("frames", "height", "width"), [(1, 240, 416), (81, 480, 832), (17, 100, 36)]
)
def test_more_of_anything_costs_more(shape, frames, height, width):
    price = forward_flops(shape, frames, height, width)
    assert 0 < price < forward_flops(shape, frames + 4, height, width)
    assert price < forward_flops(shape, frames, height + 64, width)
    assert price < forward_flops(replace(shape, layers=shape.layers + 1), frames, height, width)


@pytest.mark.parametrize("window", [2, 4, 9, 20])
def test_windows_cost_less_until_they_hold_the_clip(window):
    full = forward_flops(WAN_1_3B, 81, 720, 1280)
    assert forward_flops(WAN_1_3B, 81, 720, 1280, window) < full
    assert forward_flops(WAN_1_3B, 81, 720, 1280, 21) == full


def test_hunyuan_text_passes_through_the_blocks():
    alone = replace(HUNYUAN_VIDEO, text_tokens=0)
    d, n, m = 3072, 118800, 118800 + 256
    extra = forward_flops(HUNYUAN_VIDEO, 129, 720, 1280) - forward_flops(alone, 129, 720, 1280)
    assert extra == 60 * (2 * 256 * 12 * d * d + 4 * (m * m - n * n) * d)


def test_guidance_doubles_forwards_tokens_and_operations():
    one, two = wan(10, 480, 832, guided=False), wan(10, 480, 832)
    assert (one.forwards, two.forwards) == (10, 20)
    assert two.tokens == 2 * one.tokens == 20 * 32760
    assert plan_flops([two]) == plan_flops([one, one])
    assert plan_flops([]) == 0


def test_bad_sizes_and_windows_are_rejected():
    with pytest.raises(ValueError, match="at least one frame"):
        tokens(WAN_14B, 0, 480, 832)
    with pytest.raises(ValueError, match="a size in pixels"):
        tokens(WAN_14B, 81, 0, 832)
    with pytest.raises(ValueError, match="window must be 0"):
        forward_flops(WAN_14B, 81, 480, 832, 1)
    with pytest.raises(ValueError, match="use window 0"):
        forward_flops(HUNYUAN_VIDEO, 129, 720, 1280, 4)
