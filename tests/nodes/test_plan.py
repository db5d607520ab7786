"""Surf Plan on the fake host: counts by hand, warnings, one picture."""

import re
import sys
from types import SimpleNamespace

import comfy.model_management as management
import host_stub
import pytest
import torch
from surf.nodes.host.plan import picture
from surf.nodes.host.plan.report import _smaller
from surf.nodes.host.refine import Timeline
from surf.nodes.host.refiner import TRAITS_KEY, HostRefinerDiT
from surf.nodes.plan import SurfPlan
from surf.surf_core.chunks import chunks
from surf.surf_core.cost import WAN_1_3B, forward_flops
from surf.surf_core.refiner import RefinerConfig
from surf.tests.nodes.plan_runs import Clock, latent, prompt, rows_of, run
from surf.tests.nodes.skip_node import CellVae, Unpriced, WanModel, wan

PIXELS = {"high": (480, 832), "low": (240, 416), "720p": (720, 1280)}


def pflops(name, frames=81, window=0):
    return forward_flops(WAN_1_3B, frames, *PIXELS[name], window) / 1e15


def test_operations_are_counted_by_hand():
    model, report, _ = run(resolution="720p")
    rows = rows_of(report)
    assert rows["before the switch"][:3] == ["832 x 480", "10 x 2", "32760"]
    assert rows["after the switch"][:3] == ["416 x 240", "30", "8190"]
    assert rows["refinement"][:3] == ["1280 x 720", "8", "75600"]
    parts = [20 * pflops("high"), 30 * pflops("low"), 8 * pflops("720p")]
    for name, expected in zip(("before the switch", "after the switch", "refinement"), parts):  # noqa: B905
        assert rows[name][3] == f"{expected:.3g} PFLOPs"
    assert rows["in all"][0] == f"{sum(parts):.3g} PFLOPs"
    assert rows["plain run"][:2] == ["1280 x 720", "40 x 2"]
    assert rows["plain run"][3] == f"{80 * pflops('720p'):.3g} PFLOPs"
    assert "counted, not timed" in report
    assert f"{80 * pflops('720p') / sum(parts):.2g} times fewer operations" in report


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"cfg_low": 7.5, "low_scale": 1.0}, "about as many operations as the plain run."),
        ({"switch_step": 40, "cfg": 4.5}, "about as many operations as the plain run."),
        ({"switch_step": 40, "refine_steps": 40}, "1.5 times the operations of the plain run."),
    ],
)
def test_a_plan_that_saves_nothing_says_so(monkeypatch, given, said):
    given = {"refine_steps": 0, "scale": 1.0} | given
    report = run(**given)[1]
    assert said in report
    assert " 1 times" not in report
    if "about" in said:
        clock = Clock(monkeypatch)
        given |= {"calibrate": True, "positive": prompt(), "samples": latent(2, 8, 12)}
        assert "about as fast as the plain run." in run(clock.model(), **given)[1]


def test_windows_and_a_mask_save_their_share():
    _, report, _ = run(resolution="720p", window=4, keep=0.5)
    tokens = 21 * round(0.5 * 45 * 80)
    kept_flops = forward_flops(WAN_1_3B, 81, 720, 1280, 4, [1800] * 21)
    assert rows_of(report)["refinement"][2:4] == [
        str(tokens),
        f"{8 * kept_flops / 1e15:.3g} PFLOPs",
    ]


def test_windows_that_the_refiner_would_refuse_are_refused():
    """Before anything is priced, calibrated or not; without a refinement there is no window."""
    other = wan()
    other.model.diffusion_model = Unpriced()
    with pytest.raises(ValueError, match="Surf Plan: .*set window to 0 for full attention"):
        run(other, window=4)
    assert "not known" in run(other, window=4, refine_steps=0)[1]
    with pytest.raises(ValueError, match="Surf Plan: .*window"):
        run(window=1)


def test_large_numbers_are_written_out():
    report = run(samples=latent(41, 16, 16), resolution="2160p", window=2)[1]
    rows = rows_of(report)
    plain = forward_flops(WAN_1_3B, 161, 2880, 2880) * 80 / 1e15
    assert plain > 1000
    assert rows["plain run"][3] == f"{float(f'{plain:.3g}'):.0f} PFLOPs"
    assert "e+" not in report


def test_without_a_refinement_the_plain_run_has_the_size_of_the_latent():
    rows = rows_of(run(refine_steps=0)[1])
    assert "refinement" not in rows
    assert rows["plain run"][0] == "832 x 480"
    assert list(rows_of(run(refine_steps=0, switch_step=0)[1])) == [
        "after the switch", "in all", "plain run",
    ]  # fmt: skip
    assert rows_of(run(switch_step=40)[1])["refinement"][0] == "1664 x 960"


def test_tokens_that_are_not_counted_make_the_operations_unknown():
    extra = [[torch.zeros(1, 512, 8), {"time_dim_concat": torch.zeros(1, 16, 1, 60, 104)}]]
    assert rows_of(run(positive=extra)[1])["before the switch"][2:4] == ["-", "-"]
    reference = WanModel(ref_conv=object())
    assert rows_of(run(wan(network=reference))[1])["before the switch"][2:4] == ["-", "-"]


def test_the_prompt_tells_the_text_tokens():
    short = [[torch.zeros(1, 16, 8), {}]]
    counts = [rows_of(run(positive=text)[1])["before the switch"][3] for text in (None, short)]
    assert counts[0] != counts[1]


def test_what_does_not_fit_is_said_with_what_to_turn(monkeypatch):
    monkeypatch.setattr(management, "get_free_memory", lambda *_: 2**30)
    report = run(cfg=1.0)[1]
    assert "will not fit: before the switch needs 2.91 GB beside 0 GB of weights, 1 GB" in report
    assert "set length to 25 instead of 81 in the node that makes the latent" in report
    monkeypatch.setattr(host_stub.Patcher, "model_size", lambda self: 3 * 2**29)
    monkeypatch.setattr(management, "get_free_memory", lambda *_: 2**32)
    report = run(cfg=1.0)[1]
    assert "tight: before the switch needs 2.91 GB beside 1.5 GB of weights" in report
    assert "fp8" in report


@pytest.mark.parametrize(
    ("kind", "frames", "said"),
    [("WAN21", 21, "37 instead of 81"), ("LTXV", 21, "73 instead of 161"),
     ("MiniMaxH3", 22, "22 instead of 73"), ("MiniMaxH3", 11, "None")],
)  # fmt: skip
def test_a_shorter_length_is_one_that_the_model_takes_and_that_fits(kind, frames, said):
    """By the memory at that length, of which a part does not shrink: 5 and one each frame."""
    model = host_stub.Patcher(base=type(kind, (), {}))
    stage = SimpleNamespace(
        time=Timeline(model, frames), chunks=(frames,), memory=2 * (5 + frames),
        memory_at=lambda count: 5 + count, tile=0, chunk_frames=0,
    )  # fmt: skip
    advice = _smaller(stage, 31)
    assert advice.startswith(f"set length to {said}") == (said != "None"), advice
    for more in ({"chunks": (12, 12)}, {"memory": 31}):
        cut = SimpleNamespace(**vars(stage) | more)
        assert _smaller(cut, 31) == "use a smaller size, or a model in fp8"


def test_a_length_that_is_advised_fits(monkeypatch):
    """A refiner of ours: its windows hold as much whatever the length."""
    monkeypatch.setattr(management, "get_free_memory", lambda *_: 0.58 * 2**30)
    refiner = host_stub.Patcher()
    sizes = RefinerConfig(dim=1536, heads=12, layers=2, ffn_dim=8960)
    network = HostRefinerDiT(sizes, torch.float16, "meta", torch.nn)
    refiner.model.diffusion_model = network
    refiner.set_attachments(TRAITS_KEY, SimpleNamespace(window=4))
    given = {"refiner": refiner}
    report = run(cfg=1.0, **given)[1]
    [line] = [line for line in report.splitlines() if line.startswith("will not fit: refinement")]
    length = int(line.split("length to ")[1].split()[0])
    fits = run(cfg=1.0, samples=latent((length + 3) // 4), **given)[1]
    assert "will not fit: refinement" not in fits
    longer = run(cfg=1.0, samples=latent((length + 3) // 4 + 1), **given)[1]
    assert "will not fit: refinement" in longer


def test_chunks_by_hand_that_do_not_fit_are_left_to_the_node(monkeypatch):
    monkeypatch.setattr(management, "get_free_memory", lambda *_: 2**20)
    report = run(chunk_frames=45)[1]
    assert "set chunk_frames to 0, which chooses as many as fit" in report


def test_weights_that_the_host_can_move_away_count_as_free(monkeypatch):
    class Loaded:
        load_device = torch.device("cpu")

        def loaded_size(self):
            return 2**40

    monkeypatch.setattr(management, "get_free_memory", lambda *_: 0)
    assert "will not fit" in run()[1]
    monkeypatch.setattr(management, "loaded_models", lambda: [Loaded()])
    assert "will not fit" not in run()[1]


def test_tiles_and_pieces_are_named_before_they_are_taken(monkeypatch):
    monkeypatch.setattr(management, "get_total_memory", lambda *_: 40000)
    model = wan()
    model.model.memory_required = lambda shape: 10 * shape[-1] * shape[-2]
    report = run(model, latent(1), vae=CellVae(), scale=4.0)[1]
    assert "refinement in " in report
    assert "tiles of" in report
    assert "VAE decode of 1664 x 960 pixels in " in report
    assert " pieces of 248 x 248 pixels, 1 frames at a time" in report
    monkeypatch.setattr(management, "get_total_memory", lambda *_: 2**40)
    by_hand = run(vae=CellVae(), tile=512)[1]
    assert "VAE decode of 832 x 480 pixels in one piece, 81 frames at a time" in by_hand
    assert "refinement in 2 tiles of" in by_hand


def test_chunks_of_time_are_counted_one_by_one():
    """All that the chunks compute, and the tokens of the longest."""
    report = run(samples=latent(21, 12, 20), chunk_frames=45)[1]
    lengths = [each.length for each in chunks(21, 12, 6, lead=1)]
    assert len(lengths) > 2
    assert sum(lengths) > 21
    longest = 1 + 4 * (max(lengths) - 1)
    assert f"refinement in {len(lengths)} chunks of {longest} of 81 frames." in report
    assert "latent frames" not in report
    row = rows_of(report)["refinement"]
    assert row[2] == str(max(lengths) * 6 * 10)
    flops = sum(forward_flops(WAN_1_3B, 1 + 4 * (n - 1), 96, 160) for n in lengths)
    assert row[3] == f"{8 * flops / 1e12:.3g} TFLOPs"


def test_decoded_frames_above_the_main_memory_name_the_node_that_writes_a_few_at_a_time(
    monkeypatch,
):
    monkeypatch.setattr(management, "get_free_memory", lambda *_: 3 * 2**30)
    report = run(vae=CellVae(), scale=4.0)[1]
    assert "the decoded frames need 2.89 GB of main memory" not in report
    monkeypatch.setattr(management, "get_free_memory", lambda *_: 2 * 2**30)
    report = run(vae=CellVae(), scale=4.0)[1]
    assert "the decoded frames need 2.89 GB of main memory" in report
    assert "use Surf Decode Video" in report


@pytest.mark.parametrize(
    ("held", "swap", "fit"),
    [(0, 0, "will not fit"), (0.4, 0.4, "will not fit"), (1, 0, "tight"), (0, 1, "tight")],
)
def test_decoded_frames_do_not_fit_where_the_decode_would_refuse_them(monkeypatch, held, swap, fit):
    """2 GB are free of 2.89; caches of the process, and swap space, may make up for the rest."""
    memory = {"rss": held * 2**30, "free": swap * 2**30}
    process = SimpleNamespace(memory_info=lambda: SimpleNamespace(**memory))
    counter = SimpleNamespace(
        swap_memory=lambda: SimpleNamespace(**memory), Process=lambda: process
    )  # fmt: skip
    monkeypatch.setattr(management, "psutil", counter)
    monkeypatch.setattr(management, "get_free_memory", lambda *_: 2 * 2**30)
    monkeypatch.setattr(sys, "platform", "linux")
    report = run(vae=CellVae(), scale=4.0)[1]
    needs = "the decoded frames need 2.89 GB of main memory, 2 GB are free"
    assert f"{fit}: {needs}" in report
    assert (f"{2 + held + swap:.3g} GB with all that ComfyUI holds" in report) == ("will" in fit)


@pytest.mark.parametrize(
    ("device", "state", "dynamic", "said"),
    [
        ("cuda", "NORMAL_VRAM", False, "tight: .* weights will be moved"),
        ("cuda", "HIGH_VRAM", False, "will not fit: .* weights must stay .* without --highvram"),
        ("cuda", "HIGH_VRAM", True, "tight: .* weights will be moved"),
        ("cpu", "NORMAL_VRAM", False, "tight: .* the system will page"),
    ],
)
def test_weights_that_do_not_fit_stream_unless_the_host_keeps_them(
    monkeypatch, device, state, dynamic, said
):
    model = wan()
    model.load_device, model.is_dynamic = torch.device(device), lambda: dynamic
    monkeypatch.setattr(host_stub.Patcher, "model_size", lambda self: 3 * 2**29)
    monkeypatch.setattr(management, "vram_state", management.VRAMState[state])
    monkeypatch.setattr(management, "get_free_memory", lambda *_: 2**32)
    report = run(model, cfg=1.0)[1]
    [line] = [line for line in report.splitlines() if "before the switch needs" in line]
    assert re.match(said, line), line


def test_the_largest_stage_names_the_widget():
    assert "turn first: switch_step" in run(refine_steps=1)[1]
    assert "turn first: refine_steps" in run(refine_steps=100)[1]
    assert "turn first: low_scale" in run(refine_steps=0, switch_step=1, cfg_low=2.0)[1]


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"calibrate": True}, "connect positive"),
        ({"switch_step": 41}, "switch_step must be at most steps"),
        ({"resolution": "by size", "width": 100}, "not a multiple"),
        ({"scale": 1.0, "tile": 100}, "two overlaps"),
        ({"keep": 0.5, "model": wan(network=Unpriced())}, "a mask needs"),
        (
            {"model": host_stub.Patcher(kind=(host_stub.DiscreteFlow, host_stub.Eps))},
            "a flow model",
        ),
        ({"refiner": wan(48)}, "refiner must use the latents"),
        ({"vae": CellVae(48)}, "the VAE that belongs"),
        (
            {"model": wan(network=WanModel(text_dim=9)), "positive": prompt(), "calibrate": True},
            "expected text 9 wide in the positive .* got 8; connect the text encoder",
        ),
    ],
)
def test_bad_plans_are_refused_with_advice(given, said):
    with pytest.raises(ValueError, match=said) as caught:
        run(**given)
    assert str(caught.value).startswith("Surf Plan: ")


def test_numbers_that_cannot_work_are_refused_when_the_graph_is_queued():
    assert "switch_step" in SurfPlan.validate_inputs(steps=4, switch_step=5)
    assert "multiple" in SurfPlan.validate_inputs(resolution="by size", width=100, height=64)
    assert "overlaps" in SurfPlan.validate_inputs(tile=64)
    assert SurfPlan.validate_inputs(steps=4, switch_step=4, tile=0) is True


def colours(image, row):
    """Colour -> how many pixels of a row of the picture have it."""
    line = (image[0, row] * 255).round().int().tolist()
    found = {}
    for r, g, b in line:
        found[f"#{r:02x}{g:02x}{b:02x}"] = found.get(f"#{r:02x}{g:02x}{b:02x}", 0) + 1
    return found


def test_bars_are_to_scale(monkeypatch):
    clock, drawn = Clock(monkeypatch), []
    inner = picture.draw
    monkeypatch.setattr("surf.nodes.plan.draw", lambda plan: drawn.append(inner(plan)) or drawn[-1])
    given = {"calibrate": True, "positive": prompt(), "scale": 3.0}
    _, report, shown = run(clock.model(), {"samples": torch.zeros(1, 16, 5, 12, 20)}, **given)
    [image] = drawn
    assert image.shape[-1] == 3
    assert image.shape[2] == picture.WIDTH
    first = picture.MARGIN + picture.LINE + picture.BAR // 3
    bar, plain = (colours(image, row) for row in (first, first + picture.LINE + picture.BAR))
    whole = picture.WIDTH - 2 * picture.MARGIN
    assert plain[picture.PLAIN] == pytest.approx(whole, abs=2)
    last = 40 * 2 * clock.of(5, 18, 30)
    for name, seconds in (
        ("before the switch", 20 * clock.of(5, 12, 20)),
        ("after the switch", 30 * clock.of(5, 6, 10)),
        ("refinement", 8 * clock.of(5, 18, 30)),
    ):
        assert bar[picture.COLOURS[name]] == pytest.approx(whole * seconds / last, abs=2)
    assert shown["text"] == (report,)
    assert shown["images"][0]["filename"].startswith("surf_plan")


def test_a_plan_without_numbers_is_drawn_all_the_same(monkeypatch):
    monkeypatch.setattr(management, "get_free_memory", lambda *_: 1)
    model = wan(network=Unpriced())
    model.model.memory_required = lambda shape: 2**33
    assert "will not fit" in run(model)[1]
