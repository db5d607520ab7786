"""The benchmark of the flow where something goes wrong, and on cards that are not there.

See flow_run.py.
"""

import json

import pytest
from surf.surf_core import cost
from surf.tests.host.flow_run import about, call, on_a_host, run, tables

pytestmark = on_a_host
BUILD = """
import json
import torch
from benchmarks.speed.host import models
from surf_core import cost

models.enter("sizes")
import comfy.model_detection

def on_meta(support, dtype):
    support.set_inference_dtype(dtype, None)
    state = support.get_model({}, "", device="meta").diffusion_model.state_dict()
    found = comfy.model_detection.detect_unet_config(state, "") or {}
    same = all(support.unet_config[key] == value for key, value in found.items())
    return sum(weight.numel() for weight in state.values()), bool(found) and same

models.patcher = on_meta
print(json.dumps({
    "wan_14b": models.wan(cost.WAN_14B, torch.bfloat16),
    "wan_1_3b": models.wan(cost.WAN_1_3B, torch.bfloat16),
    "hunyuan": models.hunyuan(cost.HUNYUAN_VIDEO, torch.bfloat16),
}))
"""
"""Every model at its real size, without memory: (weights, the host finds the same config in it)."""

BREAK = """
import torch
from benchmarks.speed import host_flow
from benchmarks.speed.host.calls import HostCalls

real = HostCalls.refine

def refine(self, stage, **more):
    if stage.refiner == "surf_1b":
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB")
    if stage.keep < 1:
        raise KeyboardInterrupt
    real(self, stage, **more)

HostCalls.refine = refine
host_flow.main()
"""
"""One refiner runs out of memory; then someone stops the run."""

CARDS = """
from types import SimpleNamespace
import torch
from benchmarks.speed import host_flow
from benchmarks.speed.host import cards
from benchmarks.speed.host.calls import HostCalls

GIB = 2**30

class Card:
    "24 GiB, 1 of them taken; what is asked of it is written down."
    limit = 24 * GIB
    OutOfMemoryError = torch.OutOfMemoryError
    is_available = staticmethod(lambda: True)
    get_device_properties = staticmethod(lambda index: SimpleNamespace(total_memory=24 * GIB))
    mem_get_info = staticmethod(lambda device=None: (23 * GIB, 24 * GIB))
    memory_reserved = staticmethod(lambda: GIB)
    empty_cache = reset_peak_memory_stats = staticmethod(lambda: None)
    max_memory_allocated = staticmethod(lambda: 3 * GIB)

    def set_per_process_memory_fraction(self, fraction):
        self.limit = round(fraction * 24 * GIB)

card = Card()
cards.torch = SimpleNamespace(cuda=card)
real = HostCalls.refine

def refine(self, stage, **more):
    free, total = card.mem_get_info()
    assert (free, total) == (card.limit - GIB, card.limit), (free, total, card.limit)
    if card.limit < 10 * GIB:
        raise torch.OutOfMemoryError("CUDA out of memory.")
    if card.limit < 20 * GIB and stage.refiner == "wan_1_3b":
        raise RuntimeError("CUDNN_STATUS_ALLOC_FAILED")
    real(self, stage, **more)

HostCalls.refine = refine
host_flow.main()
assert card.limit == 24 * GIB
assert card.mem_get_info() == (23 * GIB, 24 * GIB)
"""
"""A card that is not there, which refuses what is too large."""


def test_real_sizes_are_those_that_the_host_and_cost_know():
    done = call("-c", BUILD)
    assert done.returncode == 0, done.stderr[-4000:]
    found = json.loads(done.stdout.splitlines()[-1])
    shapes = {"wan_14b": cost.WAN_14B, "wan_1_3b": cost.WAN_1_3B}
    for name, shape in shapes.items():
        assert found[name] == [cost.weight_bytes(shape, 1), True]
    assert found["hunyuan"] == [pytest.approx(12.8e9, rel=0.01), True]


def test_hunyuan_video_counts_one_evaluation_for_those_that_did_not_run():
    found = tables(run("--toy", "--base=hunyuan", "--reps=1", "--most=1"))
    rows = {row["stage"]: row for row in found["Stages (TOY SIZE)"]}
    assert list(rows) == ["plain run", "first leg, 480p", "second leg, 240p", "hunyuan"]
    for row in rows.values():
        assert row["measured"] == "1 x 1, the rest at the median of the later"
        parts = row["first, s"] + (row["evaluations"] - 1) * row["later, s"] + row["rest, s"]
        assert row["stage, s"] == about(parts)
        assert row["later, s"] <= row["first, s"]
    (flow,) = found["The whole flow (TOY SIZE)"]
    assert (flow["upsample, s"], flow["decode, s"], flow["VAE in all"]) == ("-", "-", 0)


def test_a_stage_that_fails_and_a_run_that_is_stopped_lose_no_other_row(tmp_path):
    options = ["--toy", "--reps=1", "--most=1", "--cfg", "first", "--keep", "1", "0.5"]
    done = call("-c", BREAK, *options, f"--out={tmp_path}")
    assert done.returncode != 0
    assert "KeyboardInterrupt" in done.stderr[-2000:]
    (out,) = tmp_path.iterdir()
    text = out.read_text(encoding="utf-8")
    assert text in done.stdout
    rows = {row["stage"]: row["measured"] for row in tables(text)["Stages (TOY SIZE)"]}
    assert rows["surf_1b"] == "not measured: out of memory"
    for name in ("plain run", "first leg, 480p", "second leg, 240p", "wan_1_3b"):
        assert rows[name].startswith("1 x 1")
    for name in ("surf_1b, keep 0.5", "wan_1_3b, keep 0.5", "VAE decode"):
        assert rows[name].startswith("not measured: ")


def test_smaller_cards_refuse_what_is_too_large_and_the_others_are_tried():
    options = ["--toy", "--only-memory", "--cfg", "off", "--limit-gb", "8", "16", "32",
               "--limit-size", "720p", "4k"]  # fmt: skip
    done = call("-c", CARDS, *options)
    assert done.returncode == 0, done.stderr[-4000:]
    rows = tables(done.stdout)["The refiner on smaller cards"]
    said = {}
    for row in rows:
        key = row["size"], row["refiner"], row["card, GiB"], row["blocks"]
        assert (row["guidance"], key in said) == ("off", False)
        said[key] = row["fitted"]
        if row["fitted"] == "yes":
            assert row["tiles"] == {"720p": "1 of 128 x 80", "4k": "1 of 192 x 128"}[row["size"]]
            assert row["peak, GiB"] == 3
    for size in ("720p", "4k"):
        for blocks in ("whole", "segment-wise"):
            assert said.pop((size, "surf_1b", "no limit", blocks)) == "yes"
        assert said.pop((size, "wan_1_3b", "no limit", "-")) == "yes"
        for name, blocks in (("surf_1b", "segment-wise"), ("wan_1_3b", "-")):
            assert said.pop((size, name, 8, blocks)) == "no: out of memory"
            assert said.pop((size, name, 32, blocks)) == "not measured: this card has 24"
        assert said.pop((size, "surf_1b", 16, "segment-wise")) == "yes"
        failed = "no: RuntimeError: CUDNN_STATUS_ALLOC_FAILED"
        assert said.pop((size, "wan_1_3b", 16, "-")) == failed
    assert not said


@pytest.mark.parametrize("part", ["flow-720p", "flow-1080p", "hunyuan", "cards"])
def test_the_commands_for_a_gpu_run_and_write_their_pages(part, tmp_path):
    done = call("-m", "benchmarks.on_gpu", part, "--toy", f"--out={tmp_path}")
    assert done.returncode == 0, done.stdout[-4000:] + done.stderr[-1000:]
    (page,) = tmp_path.iterdir()
    subject = {"flow-720p": "flow-wan-720p", "flow-1080p": "flow-wan-1080p",
               "hunyuan": "flow-hunyuan-720p", "cards": "cards-wan"}[part]  # fmt: skip
    assert page.name.endswith(f"-{subject}.md")
    text = page.read_text(encoding="utf-8")
    assert "TOY SIZE: says nothing about real models" in text
    if part == "cards":
        assert "## Stages" not in text
        return
    rows = tables(text)["The whole flow (TOY SIZE)"]
    assert rows
    assert all(row["networks, s"] > 0 for row in rows)


def test_what_the_minutes_do_not_allow_is_not_measured():
    said = run("--toy", "--minutes=0.0001")
    found = tables(said)
    for row in found["Stages (TOY SIZE)"]:
        assert row["measured"].startswith("not measured: ")
        assert row["stage, s"] == "-"
    assert found["Floors, largest gap first (TOY SIZE)"] == []
