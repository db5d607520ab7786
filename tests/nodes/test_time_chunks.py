"""Chunks of time round a host model: chosen with tiles, cut alike, bounded, shorter on demand."""

import logging
import sys
from itertools import product

import host_stub
import pytest
import torch
from surf.nodes.host.refine import tile_plan
from surf.nodes.host.refine.tiling import WRAPPER_KEY, with_tiles
from surf.nodes.host.refine.timeline import MADE_FOR, Timeline
from surf.nodes.host.refiner import TinyFormat
from surf.surf_core.chunks import Chunk, chunks, in_chunks
from surf.surf_core.tiles import boxes, in_tiles
from surf.surf_core.training.live_bytes import LiveBytes

GB = 2**30
CELLS = (32, 40)


class FullDevice(RuntimeError):
    """Stands in for the host's out-of-memory error."""


@pytest.fixture(autouse=True)
def host(monkeypatch):
    """The host's memory functions; the test may set the device's bytes."""
    module = sys.modules["comfy.model_management"]
    amount = {"device": 1000 * GB}
    monkeypatch.setattr(module, "OOM_EXCEPTION", FullDevice)
    monkeypatch.setattr(module, "soft_empty_cache", lambda: None)
    monkeypatch.setattr(module, "get_total_memory", lambda device: amount["device"])
    monkeypatch.setattr(module, "extra_reserved_memory", lambda: 0, raising=False)
    return amount


def model(kind="WAN21", per_cell=0, channels=16):
    made = host_stub.Patcher(channels, base=type(kind, (), {}))
    made.model.memory_required = lambda shape: per_cell * shape[-3] * shape[-2] * shape[-1]
    return made


def empty(frames, size=CELLS, channels=16):
    return torch.empty((1, channels, frames, *size), device="meta")


def noise(*shape, seed=0):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def call(clone, apply_model, x, **conditioning):
    args = {"input": x, "timestep": torch.ones(len(x)), "c": conditioning}
    return clone.model_options["model_function_wrapper"](apply_model, args)


def seen(clone, shape):
    """Frames, rows and columns that a clone calls its model with, in order."""
    sizes = []

    def apply_model(x, t, **c):
        sizes.append(tuple(x.shape[2:]))
        return x

    call(clone, apply_model, torch.zeros(shape))
    return sizes


def own_mean(x, t, **c):
    """A model whose answer depends on its piece."""
    return x + x.mean((-3, -2, -1), keepdim=True)


def test_a_video_that_a_model_was_made_for_is_the_plain_model_bit_for_bit():
    options = {"wrappers": {}}
    for frames, by_hand in ((1, 0), (20, 0), (21, 0), (21, 81), (30, 117), (30, 5000)):
        clone, given = with_tiles(model(), empty(frames), 0, chunk_frames=by_hand), []

        def apply_model(x, t, given=given, **c):
            given.append((x.shape, c))
            return x.cos()

        x = noise(1, 16, frames, *CELLS)
        assert torch.equal(call(clone, apply_model, x, transformer_options=options), x.cos())
        ((shape, conditioning),) = given
        assert shape == x.shape
        assert conditioning["transformer_options"] is options


@pytest.mark.parametrize("kind", MADE_FOR)
def test_no_model_sees_more_frames_than_it_was_made_for(kind):
    time = Timeline(model(kind), 10)
    most = time.made_for
    assert time.pixels(most) <= MADE_FOR[kind] < time.pixels(most + 1)
    for frames in (most, most + 1, 2 * most, 5 * most + 3):
        lengths = [n for n, *_ in seen(with_tiles(model(kind), empty(frames, (4, 4)), 0),
                                       (1, 16, frames, 4, 4))]  # fmt: skip
        assert max(lengths) <= most
        assert (len(lengths) == 1) == (frames == most)


def test_the_models_own_class_counts_and_then_what_it_derives_from():
    vace = type("WAN21_Vace", (type("WAN21", (), {}),), {})
    made = host_stub.Patcher(base=vace)
    assert Timeline(made, 10).made_for == 21
    assert Timeline(host_stub.Patcher(), 10).made_for is None
    assert Timeline(model("LTXAV"), 10).pixels(61) == 481
    assert Timeline(model("GenmoMochi"), 10).pixels(28) == 163
    assert Timeline(model("MiniMaxH3"), 10).pixels(107) == 362


def test_chunks_and_tiles_blend_as_the_core_does():
    x = noise(1, 16, 41, *CELLS)
    parts = chunks(41, 21, 7, lead=1)

    def one(part, chunk):
        return in_tiles(lambda tile, box: own_mean(tile, None), part, (32, 32), 16, 2)

    clone = with_tiles(model(), empty(41), 256)
    assert torch.equal(call(clone, own_mean, x), in_chunks(one, x, parts))
    assert len(seen(clone, x.shape)) == len(parts) * len(boxes(CELLS, (32, 32), 16, 2)) == 6


def test_chunks_by_hand_hold_the_frames_that_were_asked_for():
    for asked, most in ((33, 9), (34, 10), (36, 10), (37, 10), (53, 14), (121, 31)):
        clone = with_tiles(model(), empty(81, (4, 4)), 0, chunk_frames=asked)
        lengths = [n for n, *_ in seen(clone, (1, 16, 81, 4, 4))]
        assert lengths == [part.length for part in Timeline(model(), 81).chunks(81, most)]
        assert max(lengths) <= most
    clone = with_tiles(model("LTXAV"), empty(81, (4, 4)), 0, chunk_frames=129)
    assert max(n for n, *_ in seen(clone, (1, 16, 81, 4, 4))) <= 17


@pytest.mark.parametrize(
    ("asked", "window", "said"),
    [
        (4, 0, "two overlaps, 21 frames, got chunk_frames=4; use 21 or more"),
        (17, 2, "two overlaps, 21 frames"),
        (33, 10, "a window of 10 latent frames and two overlaps, 37 frames, got chunk_frames=33"),
    ],
)
def test_a_chunk_that_is_too_short_is_refused_and_the_least_is_not(asked, window, said):
    with pytest.raises(ValueError, match=said):
        with_tiles(model(), empty(41), 0, chunk_frames=asked, window=window)
    least = int(said.split(" frames, got")[0].split()[-1]) if ", got" in said else 21
    with_tiles(model(), empty(41), 0, chunk_frames=least, window=window)


def tiny():
    """The embedded model: made for fewer frames than two overlaps."""
    made = model(per_cell=1)
    made.add_object_patch("latent_format", TinyFormat())
    return made


@pytest.mark.parametrize(
    ("made", "frames", "window", "least"),
    [
        (tiny, 20, 0, 13),
        (tiny, 20, 4, 13),
        (lambda: model(per_cell=1), 41, 0, 21),
        (lambda: model(per_cell=1), 41, 30, 81),
        (lambda: model("LTXAV", 1), 99, 0, 41),
        (lambda: model("MiniMaxH3", 1), 200, 0, 22),
    ],
)
def test_the_least_by_hand_is_the_least_that_memory_can_bring(host, made, frames, window, least):
    """On a full device the planner takes the shortest chunks that it knows."""
    shape, host["device"] = (1, 16, frames, 4, 4), 1
    automatic = seen(with_tiles(made(), empty(frames, (4, 4)), 0, window=window), shape)
    given = {"chunk_frames": least, "window": window}
    assert seen(with_tiles(made(), empty(frames, (4, 4)), 0, **given), shape) == automatic
    given["chunk_frames"] -= 8
    with pytest.raises(ValueError, match=f", {least} frames, got .* use {least} or more"):
        with_tiles(made(), empty(frames, (4, 4)), 0, **given)


def test_a_chunk_that_is_too_short_says_what_it_must_hold():
    for made, frames, said in (
        (tiny(), 20, "must hold what the model was made for, 13 frames, got chunk_frames=9"),
        (model(), 5, "must hold all of so short a video, 17 frames, got chunk_frames=9"),
    ):
        with pytest.raises(ValueError, match=said):
            with_tiles(made, empty(frames), 0, chunk_frames=9)


def test_chunks_start_where_windows_do_unless_that_makes_many_more():
    for window, multiple in ((0, 1), (2, 2), (4, 4), (7, 7), (9, 1)):
        parts = Timeline(model(), 81, window).chunks(81, 21)
        assert all(part.start % multiple == 0 for part in parts)
        assert len(parts) <= 11
    parts = Timeline(model("MiniMaxH3"), 300).chunks(300, 107)
    assert all(part.start % 5 == 0 and not part.lead for part in parts)
    parts = Timeline(model("MiniMaxH3"), 300, 4).chunks(300, 107)
    assert all(part.start % 20 == 0 for part in parts)


def test_scenes_of_the_preview_are_where_chunks_meet(caplog):
    preview = torch.cat([noise(1, 16, 1, 8, 8, seed=seed).expand(-1, -1, n, -1, -1)
                         for seed, n in ((1, 15), (2, 16))], 2)  # fmt: skip
    with caplog.at_level(logging.INFO):
        clone = with_tiles(model(), empty(31), 0, preview=preview)
        x = noise(1, 16, 31, *CELLS)
        parts = [Chunk(0, 15), Chunk(14, 31, 1)]
        assert torch.equal(call(clone, own_mean, x),
                           in_chunks(lambda part, _: own_mean(part, None), x, parts))  # fmt: skip
    assert "scenes begin at frames [57]" in caplog.text
    assert "2 chunks of 65 of 121 frames, one piece" in caplog.text
    # A part of the video, as under a prompt for an area of time, is cut without them.
    assert {n for n, *_ in seen(clone, (1, 16, 28, *CELLS))} == {18}


def test_automatic_takes_the_cheapest_tiles_and_chunks_that_fit(host):
    frames, least = 41, 6
    time = Timeline(model(), frames)
    kept = tile_plan.LATENT_COPIES * 4 * empty(frames).numel()
    whole = 21 * CELLS[0] * CELLS[1]

    def cells(rows, columns, most):
        spread = boxes(CELLS, (rows, columns), 16, 2)
        side = spread[0][0].stop * spread[0][1].stop
        parts = time.chunks(frames, most)
        return (
            side * max(part.length for part in parts),
            len(spread) * side * sum(part.length for part in parts),
        )

    sizes = product(range(32, 33), range(32, 41, 2), range(least, 22))
    every = [cells(*size) for size in sizes]
    for share in (1.0, 0.9, 0.6, 0.4, 0.3):
        host["device"] = kept + share * whole * GB + 1
        made = model(per_cell=GB)
        pieces = seen(with_tiles(made, empty(frames), 0), (1, 16, frames, *CELLS))
        assert max(n * rows * columns for n, rows, columns in pieces) <= share * whole
        total = sum(n * rows * columns for n, rows, columns in pieces)
        assert total == min(cost for part, cost in every if part <= share * whole)
    assert pieces[0][0] < 19


def test_the_models_memory_does_not_grow_with_the_length():
    """What is asked of the host, and what lives while it runs, beyond the video itself."""
    asked, held = set(), []
    for frames in (81, 161, 321):
        made = model()
        made.model.memory_required = lambda shape: asked.add(tuple(shape)) or 0
        clone = with_tiles(made, empty(frames, (8, 8)), 0)
        (wrapper,) = clone.wrappers["prepare_sampling"][WRAPPER_KEY]
        shape = wrapper(lambda model, shape: shape, None, torch.Size([1, 16, frames, 8, 8]))
        assert shape[2] in (20, 21)
        x = noise(1, 16, frames, 8, 8)
        alone = []

        def apply_model(part, t, alone=alone, **c):
            with LiveBytes(part) as live:
                out = torch.stack([part] * 9).square().sum(0)
            alone.append(live.peak)
            return out

        with LiveBytes(x) as live:
            call(clone, apply_model, x)
        # One sum of the video's size, which is what comes back; the rest is one chunk's.
        held.append(live.peak - x.nbytes)
        assert max(alone) <= 20 * x.nbytes * 21 / frames
    assert max(held) <= 1.1 * min(held)
    assert {shape[2] for shape in asked} <= {20, 21, 81, 161, 321}


def test_running_out_of_memory_shrinks_tiles_and_then_chunks(caplog):
    sizes = []

    def small(x, t, **c):
        sizes.append(tuple(x.shape[2:]))
        if x[0, 0].numel() > 8 * 32 * 28:
            raise FullDevice("full")
        return own_mean(x, t)

    x = noise(1, 16, 41, *CELLS)
    clone = with_tiles(model(), empty(41), 0)
    with caplog.at_level(logging.WARNING):
        got = call(clone, small, x)
    tried = list(dict.fromkeys(sizes))
    assert tried[:2] == [(19, 32, 40), (19, 32, 28)]
    lengths = [frames for frames, *_ in tried[1:]]
    assert lengths == sorted(lengths, reverse=True)
    assert lengths[-1] <= 8
    assert "256 pixels and 73 frames" in caplog.text
    assert "Finished steps stay" in caplog.text

    def one(part, chunk):
        return in_tiles(lambda tile, box: own_mean(tile, None), part, (32, 32), 16, 2)

    time = Timeline(model(), 41)
    same = [m for m in range(6, 9) if torch.equal(got, in_chunks(one, x, time.chunks(41, m)))]
    assert same
    never = with_tiles(model(), empty(41), 0)
    with caplog.at_level(logging.ERROR), pytest.raises(FullDevice):
        call(never, lambda x, t, **c: (_ for _ in ()).throw(FullDevice("full")), x)
    assert "smallest tiles" in caplog.records[-1].message


def test_under_context_windows_of_the_model_time_is_left_to_them():
    made = model()
    made.model_options["context_handler"] = type("Handler", (), {"context_length": 30, "dim": 2})()
    with pytest.raises(ValueError, match="got both, chunk_frames=81 and windows of 30"):
        with_tiles(made, empty(81), 0, chunk_frames=81)
    asked = []
    made.model.memory_required = lambda shape: asked.append(shape[2]) or 0
    clone = with_tiles(made, empty(81), 0)
    assert set(asked) == {31}
    assert seen(clone, (1, 16, 31, *CELLS)) == [(31, *CELLS)]
    made.model_options["context_handler"].dim = 0
    assert len(seen(with_tiles(made, empty(81), 0), (1, 16, 81, *CELLS))) > 1


def test_a_video_that_must_stay_whole_runs_whole_with_a_warning(caplog):
    whole = "audio is refined with the whole picture"
    with pytest.raises(ValueError, match="whole picture, got chunk_frames=81; set chunk_frames to"):
        with_tiles(model(), empty(41), 0, None, whole, chunk_frames=81)
    with caplog.at_level(logging.WARNING):
        clone = with_tiles(model(), empty(41), 0, None, whole)
    assert "161 frames at once, and the model was made for 81: audio is refined" in caplog.text
    assert seen(clone, (1, 16, 41, *CELLS)) == [(41, *CELLS)]
