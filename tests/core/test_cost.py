"""Tokens and operations: against the paper, against a counter, by hand."""

from dataclasses import replace

import pytest
import torch
from surf.surf_core.cost import (
    FFN_ROWS,
    HUNYUAN_VIDEO,
    HUNYUAN_VIDEO_15,
    LTX_2,
    MINIMAX_H3,
    NORM_ROWS,
    SHAPES,
    SURF_1B,
    TINY,
    WAN_1_3B,
    WAN_5B,
    WAN_14B,
    Evaluations,
    ModelShape,
    activation_bytes,
    forward_flops,
    latent_frames,
    plan_flops,
    tokens,
    weight_bytes,
)
from surf.surf_core.refiner import RefinerConfig, SurfRefinerDiT, outline
from surf.surf_core.refiner import fused as steps
from surf.surf_core.tiny import vae
from surf.surf_core.tiny.caption import PHRASES
from surf.surf_core.training.live_bytes import LiveBytes
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import FlopCounterMode

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
    return Evaluations(shape=WAN_14B, steps=steps, frames=81, height=height, width=width, **options)


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
        (HUNYUAN_VIDEO_15, 121, 720, 1280, 31 * 3600),
        (HUNYUAN_VIDEO_15, 121, 360, 640, 31 * 23 * 40),
        (MINIMAX_H3, 124, 768, 1344, 37 * 42 * 24),
        (MINIMAX_H3, 124, 384, 672, 37 * 21 * 12),
        (MINIMAX_H3, 124, 240, 432, 37 * 14 * 8),
        (LTX_2, 121, 704, 1280, 16 * 22 * 40),
        (LTX_2, 121, 1088, 1920, 16 * 34 * 60),
        (TINY, 13, 128, 128, 256),
        (TINY, 13, 64, 64, 64),
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


@pytest.mark.parametrize("block", ["wan", "scale"])
@pytest.mark.parametrize("window", [0, 2, 3, 4, 9])
@pytest.mark.parametrize("grid", [(1, 3, 5), (5, 2, 3), (7, 1, 3)])
def test_layers_match_a_counter_on_the_real_model(grid, window, block):
    """Every second layer is shifted; what is left without layers are the embeddings."""

    def attention(q, k, v):
        q, k, v = (x.transpose(1, 2) for x in (q, k, v))
        return (torch.softmax(q @ k.mT, dim=-1) @ v).transpose(1, 2)

    def counted(layers):
        config = RefinerConfig(
            dim=24, heads=2, layers=layers, ffn_dim=40, window=window, latent_channels=4,
            text_dim=8, block=block,
        )  # fmt: skip
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

    # The scale of a block is one row, a matrix product all the same.
    row = 2 * 3 * 24 * 24 if block == "scale" else 0
    for layers in (1, 2, 3):
        assert priced(layers) + layers * row == counted(layers) - counted(0)


def without_flops(attention):
    """Steps around attention that count nothing, left out to be quick on the meta device."""
    fused = steps.Fused(
        name="none",
        modulated_norm=lambda x, scale, shift: x,
        norm_rotate=lambda q, k, *_: (q, k),
        rotate=lambda x, table: x,
    )
    return {"fused": fused, "attention": attention}


@pytest.mark.parametrize(
    ("height", "width", "least"), [(720, 1280, 3.6), (1080, 1920, 4.3), (2160, 3840, 5.0)]
)
def test_torch_counts_what_cost_says_of_surf_1b_and_windows_save_their_share(height, width, least):
    """Two layers on the meta device, one of each phase, twenty times; 1080 rows are 1088."""

    def attention(q, k, v):
        q, k, v = (x.transpose(1, 2) for x in (q, k, v))
        return ((q @ k.mT) @ v).transpose(1, 2)

    def counted(window, layers):
        config = replace(RefinerConfig.surf_1b(window), layers=layers)
        model = outline(config, **without_flops(attention))
        model.rows = 10**9
        z = torch.zeros(1, 16, 21, -(-height // 16) * 2, width // 8, device="meta")
        text = torch.zeros(1, 512, 4096, device="meta")
        with FlopCounterMode(display=False) as counter, torch.no_grad():
            model(z, torch.zeros(1, device="meta"), text)
        return counter.get_total_flops()

    def whole(window):
        ends = counted(window, 0)
        return ends + 20 * (counted(window, 2) - ends)

    total = {window: whole(window) for window in (0, 4, 8)}
    for window, flops in total.items():
        priced = forward_flops(SURF_1B, 81, height, width, window)
        assert priced == pytest.approx(flops, rel=0.03)
        assert priced == pytest.approx(flops, rel=2e-4)
    assert total[0] / total[4] > least
    assert total[0] > total[8] > total[4]


@pytest.mark.parametrize(
    "config",
    [
        RefinerConfig.surf_1b(),
        RefinerConfig.wan_1_3b(),
        replace(RefinerConfig.tiny(), patch=(1, 4, 4), latent_channels=48, text_dim=64),
        replace(RefinerConfig.surf_1b(), layers=1, freq_dim=128),
    ],
    ids=["surf_1b", "wan_1_3b", "odd tiny", "odd surf"],
)
def test_weight_bytes_are_those_of_the_model(config):
    count = sum(p.numel() for p in outline(config).parameters())
    assert weight_bytes(ModelShape.of(config)) == 2 * count
    assert weight_bytes(ModelShape.of(config), itemsize=4) == 4 * count


def test_weights_of_wan_are_what_its_files_weigh():
    assert weight_bytes(WAN_14B) / 2e9 == pytest.approx(14.29, abs=0.01)
    assert weight_bytes(WAN_5B) / 2e9 == pytest.approx(5.00, abs=0.01)


@pytest.mark.parametrize(
    ("block", "dtype", "window", "segmentwise", "batch", "side"),
    [
        ("scale", torch.bfloat16, 4, True, 1, (480, 832)),
        ("scale", torch.bfloat16, 4, True, 1, (1088, 1920)),
        ("scale", torch.bfloat16, 4, False, 1, (480, 832)),
        ("scale", torch.float32, 8, True, 2, (480, 832)),
        ("wan", torch.bfloat16, 4, True, 1, (1088, 1920)),
        ("wan", torch.bfloat16, 4, True, 1, (1440, 2560)),
        ("wan", torch.bfloat16, 0, True, 1, (720, 1280)),
        ("wan", torch.bfloat16, 30, True, 2, (720, 1280)),
        ("wan", torch.float32, 4, True, 1, (720, 1280)),
        ("wan", torch.float32, 4, False, 2, (720, 1280)),
        ("wan", torch.float64, 4, True, 1, (480, 832)),
    ],
    ids=str,
)
def test_activation_bytes_are_those_that_live(block, dtype, window, segmentwise, batch, side):
    """One layer of the real sizes on the meta device; attention gives back what it must."""
    big = RefinerConfig.surf_1b() if block == "scale" else RefinerConfig.wan_1_3b()
    config = replace(big, layers=1, window=window)
    model = outline(config, attention=lambda q, k, v: torch.empty_like(q)).to(dtype)
    model.segmentwise = segmentwise
    z = torch.zeros(batch, 16, 21, side[0] // 8, side[1] // 8, dtype=dtype, device="meta")
    text = torch.zeros(batch, 512, 4096, dtype=dtype, device="meta")
    with LiveBytes(model, z, text) as live, torch.no_grad():
        model(z, torch.zeros(batch, device="meta"), text)
    options = {"itemsize": dtype.itemsize, "segmentwise": segmentwise, "batch": batch}
    estimate = activation_bytes(ModelShape.of(config), 81, *side, window, **options)
    assert estimate == pytest.approx(live.peak, rel=0.01)


def test_the_rows_of_the_estimate_are_those_of_the_model():
    assert SurfRefinerDiT.rows == FFN_ROWS
    assert steps.ROWS == NORM_ROWS


def test_surf_1b_fits_where_it_should():
    """In bf16 with its weights: 1080p under 12 GB, 4K under 24 GB, 481 frames of 1080p too."""

    def needed(frames, height, width):
        return weight_bytes(SURF_1B) + activation_bytes(SURF_1B, frames, height, width, 4)

    assert needed(81, 1080, 1920) < 4e9
    assert needed(81, 2160, 3840) < 6e9
    assert needed(481, 1080, 1920) < 6e9
    # Beyond the stream, which is one vector a token, nothing grows with the frames.
    stream = tokens(SURF_1B, 481, 1080, 1920) - tokens(SURF_1B, 81, 1080, 1920)
    grown = needed(481, 1080, 1920) - needed(81, 1080, 1920)
    assert grown == 2 * SURF_1B.dim * stream


def test_presets_match_the_models_of_this_project():
    presets = (
        (TINY, replace(RefinerConfig.tiny(), heads=4)),
        (WAN_1_3B, RefinerConfig.wan_1_3b()),
        (SURF_1B, RefinerConfig.surf_1b()),
    )
    for shape, config in presets:
        more = {"cell_pixels": shape.cell_pixels, "cell_frames": shape.cell_frames}
        assert shape == ModelShape.of(config, shape.name, shape.text_tokens, **more)
    assert (TINY.cell_pixels, TINY.cell_frames) == (vae.CELL, vae.PERIOD)
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
    for shape in (HUNYUAN_VIDEO, MINIMAX_H3, LTX_2):
        with pytest.raises(ValueError, match="ask its host"):
            activation_bytes(shape, 129, 720, 1280)
        with pytest.raises(ValueError, match="ask its host"):
            weight_bytes(shape)
