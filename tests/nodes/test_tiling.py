"""Tiles round a host model: chosen by memory, cropped alike, smaller when memory runs out."""

import logging
import sys

import host_stub
import pytest
import torch
from surf.nodes.host.refine import tile_plan
from surf.nodes.host.refine.tiling import WRAPPER_KEY, with_tiles
from surf.surf_core.tiles import boxes, in_tiles

GB = 2**30
CELLS, OVERLAP = (60, 104), 16


class Memory(RuntimeError):
    """Stands in for the host's out-of-memory error."""


@pytest.fixture(autouse=True)
def host(monkeypatch):
    """The host's memory functions; the test may set the device's bytes."""
    module = sys.modules["comfy.model_management"]
    amount = {"device": 1000 * GB, "emptied": 0}

    def empty():
        amount["emptied"] += 1

    monkeypatch.setattr(module, "OOM_EXCEPTION", Memory)
    monkeypatch.setattr(module, "soft_empty_cache", empty)
    monkeypatch.setattr(module, "get_total_memory", lambda device: amount["device"])
    monkeypatch.setattr(module, "extra_reserved_memory", lambda: 1 * GB, raising=False)
    return amount


def model(weights=0, per_cell=0, **kwargs):
    made = host_stub.Patcher(**kwargs)
    made.model_size = lambda: weights
    made.model.memory_required = lambda shape: per_cell * shape[0] * shape[-1] * shape[-2]
    return made


def start(rows=CELLS[0], columns=CELLS[1], batch=1):
    return torch.zeros(batch, 16, 3, rows, columns)


def noise(*shape, seed=0):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def sides(clone, size=CELLS):
    """Sizes of the tiles that a clone calls its model with, in order."""
    seen = []

    def apply_model(x, t, **c):
        seen.append(tuple(x.shape[-2:]))
        return x

    call(clone, apply_model, torch.zeros(1, 16, 3, *size))
    return seen


def call(clone, apply_model, x, **conditioning):
    args = {"input": x, "timestep": torch.ones(len(x)), "c": conditioning}
    return clone.model_options["model_function_wrapper"](apply_model, args)


def own_mean(x, t, **c):
    """A model whose answer depends on its tile."""
    return x + x.mean((-2, -1), keepdim=True)


def test_a_picture_that_fits_is_the_plain_model_bit_for_bit():
    x, plain, options = noise(2, 16, 3, *CELLS), [], {"wrappers": {}}

    def apply_model(x, t, **c):
        plain.append((tuple(x.shape), c))
        return x.cos()

    clone = with_tiles(model(), start(), 0)
    assert torch.equal(call(clone, apply_model, x, transformer_options=options), x.cos())
    ((shape, conditioning),) = plain
    assert shape == x.shape
    assert conditioning["transformer_options"] is options


def test_tiles_blend_as_the_core_does():
    x = noise(1, 16, 3, *CELLS)
    clone = with_tiles(model(), start(), 40 * 8)
    expected = in_tiles(lambda part, box: own_mean(part, None), x, (40, 40), OVERLAP, 2)
    assert torch.equal(call(clone, own_mean, x), expected)
    assert len(set(sides(clone))) == 1
    assert len(sides(clone)) == len(boxes(CELLS, (40, 40), OVERLAP, 2)) == 8


@pytest.mark.parametrize(
    ("pixels", "channels", "side"),
    [(256, 16, 32), (257, 16, 34), (272, 16, 34), (320, 16, 40), (256, 48, 16), (257, 48, 18)],
)
def test_a_tile_by_hand_is_rounded_up_to_whole_patches(pixels, channels, side):
    clone = with_tiles(model(channels=channels), start(200, 200), pixels)
    assert all(rows <= side for rows, _ in sides(clone, (200, 200)))
    assert max(sides(clone, (side, 200)))[0] == side
    assert len(sides(clone, (side, side))) == 1


@pytest.mark.parametrize("pixels", [-8, 1, 128, 240])
def test_a_tile_below_two_overlaps_is_refused(pixels):
    with pytest.raises(ValueError, match="a tile must hold two overlaps, 256 pixels, got"):
        with_tiles(model(), start(), pixels)


def test_automatic_takes_the_cheapest_tiles_that_fit(host):
    whole = CELLS[0] * CELLS[1]
    for share in (1.0, 0.7, 0.4, 0.25, 0.17):
        room = share * whole * GB
        kept = tile_plan.LATENT_COPIES * 4 * start().numel()
        host["device"] = 1 * GB + kept + room + 1
        tiles = sides(with_tiles(model(per_cell=GB), start(), 0))
        assert all(rows * columns * GB <= room + 2 for rows, columns in tiles)
        total = sum(rows * columns for rows, columns in tiles)
        others = [
            boxes(CELLS, (rows, columns), OVERLAP, 2)
            for rows in range(32, CELLS[0] + 1, 2)
            for columns in range(32, CELLS[1] + 1, 2)
        ]
        fitting = [o for o in others if o[0][0].stop * o[0][1].stop * GB <= room + 1]
        assert total == min(len(o) * o[0][0].stop * o[0][1].stop for o in fitting)
    assert len(tiles) > 2


def test_automatic_leaves_room_for_the_weights_but_may_use_half_of_the_device(host):
    host["device"] = 101 * GB
    per_cell = 60 * GB / (CELLS[0] * CELLS[1])
    assert len(sides(with_tiles(model(30 * GB, per_cell), start(), 0))) == 1
    assert len(sides(with_tiles(model(60 * GB, per_cell), start(), 0))) > 1
    tiles = sides(with_tiles(model(400 * GB, per_cell), start(), 0))
    assert tiles[0][0] * tiles[0][1] * per_cell > 25 * GB


def test_automatic_takes_the_smallest_tiles_when_nothing_fits(host):
    host["device"] = 2 * GB
    tiles = sides(with_tiles(model(per_cell=GB), start(), 0))
    assert min(tiles) >= (32, 32)
    assert max(map(max, tiles)) <= 34


@pytest.mark.parametrize("size", [(40, 56), (20, 200), (33, 35), (135, 240), (31, 31), (5, 7)])
def test_every_size_finds_tiles_and_smaller_ones(host, size):
    for device in (2, 3, 6, 30):
        host["device"] = device * GB
        clone = with_tiles(model(per_cell=GB / 1000), start(*size), 0)
        areas = [rows * columns for rows, columns in sides(clone, size)]
        assert len(set(areas)) == 1
        small = Small(1)
        with pytest.raises(Memory):
            call(clone, small, noise(1, 16, 3, *size))
        tried = [area for _, area, _ in small.log]
        assert tried == sorted(set(tried), reverse=True)
        assert tried[0] == areas[0]
        assert tried[-1] <= 34 * 34


def test_the_choice_is_told_once_with_its_numbers(host, caplog):
    host["device"] = 31 * GB
    with caplog.at_level(logging.INFO):
        clone = with_tiles(model(per_cell=60 * GB / 6240), start(), 0)
        sides(clone)
    (line,) = [record.message for record in caplog.records]
    assert line.startswith("SURF: 832 x 480 pixels in ")
    assert "tiles of" in line
    assert "whole 60.0 GB" in line
    assert "30.0" in line


def test_the_host_estimates_memory_by_the_tile():
    clone = with_tiles(model(), start(), 320)
    (wrapper,) = clone.wrappers["prepare_sampling"][WRAPPER_KEY]
    seen = []

    def executor(*args, **kwargs):
        seen.append((args, kwargs))
        return "loaded"

    assert wrapper(executor, "model", torch.Size([2, 16, 3, *CELLS]), "conds", more=1) == "loaded"
    ((args, kwargs),) = seen
    assert args == ("model", [2, 16, 3, *sides(clone)[0]], "conds")
    assert kwargs == {"more": 1}


def test_neither_the_model_nor_what_it_is_called_with_changes():
    original, options = model(), {"wrappers": {"diffusion_model": {"easycache": [1], "other": [2]}}}
    conditioning = {"c_concat": noise(1, 4, 3, *CELLS), "transformer_options": options}
    before, seen = conditioning["c_concat"].clone(), []

    def apply_model(x, t, **c):
        seen.append(c["transformer_options"])
        return x

    clone = with_tiles(original, start(), 320)
    call(clone, apply_model, noise(1, 16, 3, *CELLS), **conditioning)
    assert not original.model_options
    assert not original.wrappers
    assert torch.equal(conditioning["c_concat"], before)
    assert options == {"wrappers": {"diffusion_model": {"easycache": [1], "other": [2]}}}
    assert all(each == {"wrappers": {"diffusion_model": {"other": [2]}}} for each in seen)


def test_a_step_cache_round_the_network_is_off_in_tiles_and_said_once(caplog):
    options = {"wrappers": {"diffusion_model": {"easycache": [1]}}}
    clone = with_tiles(model(), start(), 320)
    with caplog.at_level(logging.WARNING):
        for _ in range(2):
            call(clone, own_mean, noise(1, 16, 3, *CELLS), transformer_options=options)
    assert [record.message for record in caplog.records] == ["SURF: easycache is off in tiles."]


def test_conditioning_on_the_grid_is_cropped_like_the_latent():
    rows, columns = torch.meshgrid(*(torch.arange(n).float() for n in CELLS), indexing="ij")
    place = torch.stack([rows, columns])
    pixels = place.repeat_interleave(8, -1).repeat_interleave(8, -2)
    on_grid = {
        "c_concat": place[None, :, None].expand(1, 2, 3, *CELLS),
        "vace_context": place[None, None, :, None].expand(1, 1, 2, 3, *CELLS),
        "reference_latent": place[None],
        "camera_conditions": pixels[None, :, None],
        "context": [place[None, :, None], place[None, :, None]],
    }
    whole = {
        "c_crossattn": noise(1, 8, 32), "guidance": torch.tensor([6.0]), "vace_strength": [1.0],
        "audio_embed": noise(1, 3, 5, 12), "y": noise(1, 768), "nothing": None,
        "ref_latent": noise(1, 16, 1, 6, 6),
    }  # fmt: skip

    def apply_model(x, t, **c):
        mine = x[0, :2, 0]
        assert torch.equal(c["c_concat"][0, :, 0], mine)
        assert torch.equal(c["vace_context"][0, 0, :, 0], mine)
        assert torch.equal(c["reference_latent"][0], mine)
        assert torch.equal(c["camera_conditions"][0, :, 0, ::8, ::8], mine)
        assert c["camera_conditions"].shape[-1] == 8 * x.shape[-1]
        assert all(torch.equal(each[0, :, 0], mine) for each in c["context"])
        assert all(c[name] is whole[name] for name in whole if name != "vace_strength")
        assert c["vace_strength"] == [1.0]
        return x

    x = place.repeat(8, 1, 1)[None, :, None]
    clone = with_tiles(model(), start(), 320)
    torch.testing.assert_close(call(clone, apply_model, x, **on_grid, **whole), x)


@pytest.mark.parametrize(
    ("conditioning", "said"),
    [
        ({"control": {"output": []}}, "ControlNet"),
        ({"pose": noise(1, 16, 3, 30, 52)}, "'pose'"),
        ({"poses": [noise(1, 16, 30, 52)]}, "'poses'"),
    ],
)
def test_what_cannot_follow_tiles_is_refused_before_the_model_runs(conditioning, said):
    calls = []
    x, clone = noise(1, 16, 3, *CELLS), with_tiles(model(), start(), 320)
    with pytest.raises(ValueError, match=said):
        call(clone, lambda x, t, **c: calls.append(x), x, **conditioning)
    assert not calls
    whole = with_tiles(model(), start(), 0)
    assert torch.equal(call(whole, lambda x, t, **c: x, x, **conditioning), x)


def test_an_earlier_wrapper_sees_the_whole_picture():
    original, seen = model(), []

    def earlier(apply_model, args):
        seen.append(tuple(args["input"].shape))
        return 2 * apply_model(args["input"] + 1, args["timestep"], **args["c"])

    original.set_model_unet_function_wrapper(earlier)
    x = noise(1, 16, 3, *CELLS)
    clone = with_tiles(original, start(), 320)
    expected = 2 * in_tiles(lambda part, box: own_mean(part, None), x + 1, (40, 40), OVERLAP, 2)
    assert torch.equal(call(clone, own_mean, x), expected)
    assert seen == [tuple(x.shape)]
    assert original.model_options["model_function_wrapper"] is earlier


class Small:
    """A model that fits areas up to a limit from some evaluation on; remembers what it did."""

    def __init__(self, limit, fails_from=0, error=Memory):
        self.limit, self.fails_from, self.error = limit, fails_from, error
        self.log, self.evaluation = [], 0

    def __call__(self, x, t, **c):
        area = x.shape[-1] * x.shape[-2]
        failed = self.evaluation >= self.fails_from and area > self.limit
        self.log.append((self.evaluation, area, failed))
        if failed:
            raise self.error("CUDA out of memory" if self.error is RuntimeError else "full")
        return own_mean(x, t)


def steps(clone, apply_model, count=4):
    """Call the model again and again on what it made; apply_model learns the number."""
    x, results = noise(1, 16, 3, *CELLS), []
    for number in range(count):
        apply_model.evaluation = number
        x = call(clone, apply_model, x) / 2
        results.append(x)
    return results


@pytest.mark.parametrize("error", [Memory, RuntimeError])
def test_running_out_of_memory_halves_the_tile_and_repeats_that_evaluation_only(
    host, caplog, error
):
    fits = Small(60 * 32, fails_from=2, error=error)
    with caplog.at_level(logging.WARNING):
        got = steps(with_tiles(model(), start(), 0), fits)
    whole, tiles = CELLS[0] * CELLS[1], 38 * 60
    failed = [(number, area) for number, area, bad in fits.log if bad]
    assert failed == [(2, whole), (2, tiles)]
    for number in (0, 1):
        assert [area for n, area, _ in fits.log if n == number] == [whole]
    assert {area for n, area, _ in fits.log if n == 3} == {32 * 38}
    assert host["emptied"] == 2
    assert len(caplog.records) == 2
    assert "repeated" in caplog.records[0].message
    # The same as a run with these tiles from that step on.
    x = got[1]
    for expected in got[2:]:
        x = in_tiles(lambda part, box: own_mean(part, None), x, (32, 38), OVERLAP, 2) / 2
        torch.testing.assert_close(expected, x)


def test_with_the_smallest_tiles_the_error_comes_through_with_advice(caplog):
    never = Small(1)
    with caplog.at_level(logging.ERROR), pytest.raises(Memory, match="full"):
        steps(with_tiles(model(), start(), 0), never, 1)
    assert "fewer frames" in caplog.records[-1].message
    areas = [area for _, area, _ in never.log]
    assert areas == sorted(areas, reverse=True)
    assert areas[-1] >= 32 * 32
    assert len(areas) < 6


def test_failed_tensors_are_free_before_the_evaluation_is_repeated(monkeypatch):
    import weakref

    alive, module = [], sys.modules["comfy.model_management"]
    held = []
    monkeypatch.setattr(
        module, "soft_empty_cache", lambda: held.extend(ref() is not None for ref in alive)
    )

    def greedy(x, t, **c):
        if x.shape[-1] == CELLS[1]:
            large = torch.zeros(10)
            alive.append(weakref.ref(large))
            raise Memory("full")
        return x

    call(with_tiles(model(), start(), 0), greedy, noise(1, 16, 3, *CELLS))
    assert held == [False]


@pytest.mark.parametrize("error", [host_stub.Interrupted, ValueError, RuntimeError])
def test_other_errors_and_interrupts_pass_through(error):
    calls = []

    def apply_model(x, t, **c):
        calls.append(x)
        raise error("stop")

    with pytest.raises(error, match="stop"):
        call(with_tiles(model(), start(), 0), apply_model, noise(1, 16, 3, *CELLS))
    assert len(calls) == 1


def test_a_run_of_many_frames_holds_one_tile_beside_the_picture():
    """121 latent frames: the largest tensors are the picture's own."""
    x = torch.zeros(1, 16, 121, 64, 64)
    sizes = []

    def apply_model(part, t, **c):
        sizes.append(part.numel())
        return part

    clone = with_tiles(model(), x, 256)
    assert call(clone, apply_model, x).shape == x.shape
    assert max(sizes) <= x.numel() // 3
