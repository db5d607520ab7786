"""The benchmark of the whole flow runs in the host at toy size, and its columns fit each other.

COMFYUI_PATH names the host's folder, COMFYUI_PYTHON its Python (default: this one).
"""

import json
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
from surf.surf_core import cost

ROOT = Path(__file__).parents[2]
HOST = "COMFYUI_PATH"
WAN = replace(cost.WAN_14B, dim=256, layers=3, heads=2, ffn_dim=512)
REFINERS = {
    "surf_1b": replace(cost.SURF_1B, dim=144, layers=2, heads=2, ffn_dim=288),
    "wan_1_3b": replace(cost.WAN_1_3B, dim=128, layers=2, heads=1, ffn_dim=256),
}
SIDES = {"first leg, 480p": (64, 96), "second leg, 240p": (32, 48), "720p": (80, 128)}
FULL = {"plain run": 4}
"""Evaluations by stage; 2 of all others."""
KEPT = [f"{name}, keep 0.5" for name in REFINERS]
NETWORKS = ("plain run", "first leg, 480p", "second leg, 240p", *REFINERS, *KEPT)
STAGES = [(cfg, name) for cfg in ("on", "off") for name in NETWORKS]
GUIDED = {"on": ("on", "on", "on"), "off": ("off", "off", "off"), "first": ("on", "off", "off")}
"""Plan -> guidance of its plain run and first leg, of its second leg, of its refiner."""
PLANS = [(plan, name) for plan in GUIDED for name in (*REFINERS, *KEPT)]
UPSAMPLE = "upsample through the VAE"

BUILD = """
import json, sys
from pathlib import Path
import torch
from benchmarks.host import models
from surf_core import cost

models.enter(Path(sys.argv[1]), ["--cpu"])
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

PLAN = """
import json, sys
from benchmarks.host.minutes import plan
from benchmarks.host.stages import Stage
from surf_core import cost

work = cost.Stage(shape=cost.WAN_14B, steps=50, frames=81, height=480, width=832)
stages = [Stage(target="-", cfg=cfg, name="", work=work, guess=guess)
          for cfg, guess in (("on", 10.0), ("on", 1.0), ("off", 1.0), ("off", 10.0))]
said = []
for seconds, most in ((30, 99), (10, 99), (1e6, 99), (1e6, 3), (-1, 99)):
    plan(stages, seconds, most)
    said.append([stage.planned for stage in stages])
print(json.dumps([said, stages[0].why_not]))
"""

BREAK = """
import torch
from benchmarks import host_flow
from benchmarks.host.calls import Kit

real = Kit.refine

def refine(self, stage, **more):
    if stage.refiner == "surf_1b":
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB")
    if stage.keep < 1:
        raise KeyboardInterrupt
    real(self, stage, **more)

Kit.refine = refine
host_flow.main()
"""
"""One refiner runs out of memory; then someone stops the run."""

CARDS = """
from types import SimpleNamespace
import torch
from benchmarks import host_flow
from benchmarks.host import memory
from benchmarks.host.calls import Kit

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
memory.torch = SimpleNamespace(cuda=card)
real = Kit.refine

def refine(self, stage, **more):
    free, total = card.mem_get_info()
    assert (free, total) == (card.limit - GIB, card.limit), (free, total, card.limit)
    if card.limit < 10 * GIB:
        raise torch.OutOfMemoryError("CUDA out of memory.")
    if card.limit < 20 * GIB and stage.refiner == "wan_1_3b":
        raise RuntimeError("CUDNN_STATUS_ALLOC_FAILED")
    real(self, stage, **more)

Kit.refine = refine
host_flow.main()
assert card.limit == 24 * GIB
assert card.mem_get_info() == (23 * GIB, 24 * GIB)
"""
"""A card that is not there, which refuses what is too large."""

on_a_host = [pytest.mark.host, pytest.mark.skipif(HOST not in os.environ, reason="no host is set")]


def run(*options, **changed):
    command = [os.environ.get("COMFYUI_PYTHON", sys.executable), "-m", "benchmarks.host_flow"]
    done = subprocess.run(
        [*command, *options], cwd=ROOT, capture_output=True, text=True, timeout=600,
        env={key: value for key, value in (os.environ | changed).items() if value is not None},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-4000:]
    return done.stdout


def tables(text):
    """{heading: [{column: cell, a number where it is one}]}."""
    found = {}
    for part in text.split("\n## ")[1:]:
        heading, *lines = part.splitlines()
        rows = [line.strip("| ").split(" | ") for line in lines if line.startswith("| ")]
        found[heading] = [dict(zip(rows[0], map(number, row), strict=True)) for row in rows[2:]]
    return found


def number(cell):
    try:
        return float(cell)
    except ValueError:
        return cell


def about(value):
    """Four digits on either side."""
    return pytest.approx(value, rel=2e-3, abs=2e-4)


def work(name, cfg, steps):
    shape = REFINERS.get(name, WAN)
    height, width = SIDES.get(name, SIDES["720p"])
    return cost.Stage(shape=shape, steps=steps, frames=9, height=height, width=width,
                      window=2 if name in REFINERS else 0, guided=cfg == "on")  # fmt: skip


@pytest.mark.slow
def test_without_a_host_it_says_what_it_needs_and_does_not_fail():
    said = run(COMFYUI_PATH=None, COMFYUI_PYTHON=None)
    assert said.splitlines() == [
        "host_flow: not run: set COMFYUI_PATH to a ComfyUI checkout, and use the Python of it."
    ]


@pytest.mark.slow
def test_minutes_go_to_every_stage_before_they_go_to_more_evaluations():
    done = subprocess.run([sys.executable, "-c", PLAN], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-2000:]
    planned, why_not = json.loads(done.stdout)
    assert planned == [[1, 5, 5, 1], [0, 5, 5, 0], [50] * 4, [3] * 4, [0] * 4]
    assert why_not == "an evaluation takes about 10 s, too long for --minutes"


@pytest.fixture(scope="module")
def page(tmp_path_factory):
    """One run of everything, every call twice: two evaluations, of four in the plain run."""
    out = tmp_path_factory.mktemp("flow") / "page.md"
    said = run("--toy", "--reps=1", "--most=2", "--limit-gb", "12", f"--out={out}",
               "--cfg", *GUIDED, "--keep", "1", "0.5")  # fmt: skip
    text = out.read_text(encoding="utf-8")
    assert text in said
    return text


@pytest.fixture(scope="module")
def found(page):
    return tables(page)


class TestAtToySize:
    pytestmark = on_a_host

    def test_the_page_says_that_it_is_a_toy_and_where_it_was_made(self, page, found):
        assert "TOY SIZE: says nothing about real models" in page
        assert all("(TOY SIZE)" in name for name in found if name != "The refiner on smaller cards")
        assert "ComfyUI 0." in page
        assert "Ceilings of the same run: matrix products" in page
        assert "Commit " in page

    @pytest.mark.skipif("CUDA_VISIBLE_DEVICES" in os.environ, reason="may see a GPU")
    def test_smaller_cards_are_not_made_up_on_a_cpu(self, page):
        import torch

        if not torch.cuda.is_available():
            assert "not run: needs CUDA" in page.split("## The refiner on smaller cards")[1]
            assert "not measured: needs CUDA" in page

    def test_a_stage_is_its_first_evaluation_the_later_ones_and_the_rest(self, found):
        rows = found["Stages (TOY SIZE)"]
        networks = {(row["guidance"], row["stage"]): row for row in rows if row["guidance"] != "-"}
        assert list(networks) == STAGES
        for (cfg, name), row in networks.items():
            assert row["evaluations"] == FULL.get(name, 2)
            # What plans have in common is measured once.
            assert row["measured"].startswith("1 x 2")
            assert ("the rest at the median" in row["measured"]) == (name == "plain run")
            parts = row["first, s"] + (row["evaluations"] - 1) * row["later, s"] + row["rest, s"]
            assert row["stage, s"] == about(parts)
            if name not in KEPT:
                flops = work(name, cfg, 1).flops
                assert row["TFLOP/s"] == about(flops / row["later, s"] / 1e12)
        coding = [row["stage"] for row in rows if row["guidance"] == "-"]
        assert sorted(coding) == ["VAE decode", UPSAMPLE, f"{UPSAMPLE}, mask of 0.5"]

    def test_it_is_clear_which_plans_a_stage_is_part_of(self, found):
        rows = found["Stages (TOY SIZE)"]
        plans = {(row["guidance"], row["stage"]): row["plans"] for row in rows}
        for (cfg, name), said in plans.items():
            index = {"plain run": 0, "first leg, 480p": 0, "second leg, 240p": 1}.get(name, 2)
            part_of = [plan for plan, guided in GUIDED.items() if cfg in (guided[index], "-")]
            assert said == ", ".join(part_of), (cfg, name)

    def test_the_flow_is_the_sum_of_its_stages_and_its_operations_are_those_of_cost(self, found):
        spent = {(row["guidance"], row["stage"]): row["stage, s"]
                 for row in found["Stages (TOY SIZE)"]}  # fmt: skip
        rows = found["The whole flow (TOY SIZE)"]
        assert [(row["guidance"], row["refiner"]) for row in rows] == PLANS
        for row in rows:
            plan, name = row["guidance"], row["refiner"]
            legs = ["first leg, 480p", "second leg, 240p"]
            stages = list(zip(GUIDED[plan], (*legs, name), strict=True))
            networks = sum(spent[stage] for stage in stages)
            assert row["networks, s"] == about(networks)
            assert row["plain, s"] == spent[GUIDED[plan][0], "plain run"]
            assert row["times faster"] == about(row["plain, s"] / networks)
            plain = work("plain run", GUIDED[plan][0], 4).flops
            refiner, masked = name.partition(",")[0], name in KEPT
            ours = cost.plan_flops(
                work(stage.partition(", keep")[0], cfg, 2) for cfg, stage in stages
            )
            if masked:
                assert 0.5 <= row["kept"] < 0.55
                refine = work(refiner, GUIDED[plan][2], 2).flops
                most, least = ours - refine / 3, ours - 3 * refine / 4
                assert plain / most < row["times fewer operations"] < plain / least
            else:
                assert row["kept"] == 1
                assert row["times fewer operations"] == about(plain / ours)
            assert row["at the floors"] > 1
            assert row["share"] == about(row["times faster"] / row["times fewer operations"])
            up = spent["-", f"{UPSAMPLE}, mask of 0.5" if masked else UPSAMPLE]
            decode = spent["-", "VAE decode"]
            assert row["all, s"] == about(networks + up + decode)
            assert row["plain and VAE, s"] == about(row["plain, s"] + decode)
            assert row["all, times faster"] == about(row["plain and VAE, s"] / row["all, s"])
            assert row["VAE in all"] == about((up + decode) / row["all, s"])

    def test_a_gap_is_what_a_stage_takes_beyond_its_floors(self, found):
        spent = {(row["guidance"], row["stage"]): row["stage, s"]
                 for row in found["Stages (TOY SIZE)"]}  # fmt: skip
        rows = found["Floors, largest gap first (TOY SIZE)"]
        assert {(row["guidance"], row["stage"]) for row in rows} == set(STAGES)
        for row in rows:
            floor = max(row["floor of operations, s"], row["floor of bytes, s"])
            assert row["later / floor"] == about(row["later, s"] / floor)
            name = row["stage"]
            gap = spent[row["guidance"], name] - FULL.get(name, 2) * floor
            assert row["gap of the stage, s"] == about(gap)
        gaps = [row["gap of the stage, s"] for row in rows]
        assert gaps == sorted(gaps, reverse=True)

    def test_goals_are_met_by_what_was_measured(self, found):
        rows = found["Goals (TOY SIZE)"]
        flows = {(row["guidance"], row["refiner"]): row
                 for row in found["The whole flow (TOY SIZE)"]}  # fmt: skip
        rates = {(row["guidance"], row["stage"]): row["TFLOP/s"]
                 for row in found["Stages (TOY SIZE)"]}  # fmt: skip
        assert len(rows) == 2 * len(GUIDED) + 3 * len(PLANS)
        for row in rows:
            sign, wanted = row["wanted"].split()
            got, key = row["measured"], (row["guidance"], row["stage"])
            assert (row["met"] == "yes") == (
                got >= float(wanted) if sign == ">=" else got <= float(wanted)
            )
            if row["goal"] == "times faster over times fewer operations":
                assert (got, wanted) == (flows[key]["share"], "0.9")
            elif row["goal"] == "times faster, with the VAE":
                assert (got, wanted) == (flows[key]["all, times faster"], "12.58")
            elif row["goal"] == "operations a second, over the plain run's":
                cfg, plain = GUIDED[key[0]][row["stage"].startswith("second")], GUIDED[key[0]][0]
                assert got == about(rates[cfg, row["stage"]] / rates[plain, "plain run"])

    def test_it_says_which_plans_are_as_fast_as_wanted(self, page, found):
        (said,) = [line for line in page.splitlines() if line.startswith("- 720p, 12.58 times")]
        for plan, name in PLANS:
            assert f"guidance {plan} with {name}" in said
        assert "not met by" in said

    def test_the_kernels_of_a_stage_share_all_of_its_time(self, found):
        rows = found["One evaluation, by kernels (TOY SIZE)"]
        assert len(rows) == len(STAGES) + 3
        kinds = ("attention", "convolution", "GEMM", "elementwise")
        for row in rows:
            assert sum(row[kind] for kind in kinds) == about(1.0)
            if row["guidance"] == "-":
                assert row["convolution"] > 0.1
            else:
                assert min(row["attention"], row["GEMM"]) > 0


class TestElsewhere:
    pytestmark = on_a_host

    def test_real_sizes_are_those_that_the_host_and_cost_know(self):
        command = [os.environ.get("COMFYUI_PYTHON", sys.executable), "-c", BUILD, os.environ[HOST]]
        done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=300)
        assert done.returncode == 0, done.stderr[-4000:]
        found = json.loads(done.stdout.splitlines()[-1])
        shapes = {"wan_14b": cost.WAN_14B, "wan_1_3b": cost.WAN_1_3B}
        for name, shape in shapes.items():
            assert found[name] == [cost.weight_bytes(shape, 1), True]
        assert found["hunyuan"] == [pytest.approx(12.8e9, rel=0.01), True]

    def test_hunyuan_video_counts_one_evaluation_for_those_that_did_not_run(self):
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

    def test_a_stage_that_fails_and_a_run_that_is_stopped_lose_no_other_row(self, tmp_path):
        command = [os.environ.get("COMFYUI_PYTHON", sys.executable), "-c", BREAK, "--toy",
                   "--reps=1", "--most=1", "--cfg", "first", "--keep", "1", "0.5",
                   f"--out={tmp_path}"]  # fmt: skip
        done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=300)
        assert done.returncode != 0
        assert "KeyboardInterrupt" in done.stderr[-2000:]
        (out,) = tmp_path.iterdir()
        text = out.read_text(encoding="utf-8")
        assert text in done.stdout
        rows = {row["stage"]: row["measured"] for row in tables(text)["Stages (TOY SIZE)"]}
        assert rows["surf_1b"] == "not measured: out of memory"
        for name in ("plain run", "first leg, 480p", "second leg, 240p", "wan_1_3b"):
            assert rows[name].startswith("1 x 1")
        for name in (*KEPT, "VAE decode"):
            assert rows[name].startswith("not measured: ")

    def test_smaller_cards_refuse_what_is_too_large_and_the_others_are_tried(self):
        options = ["--toy", "--only-memory", "--cfg", "off", "--limit-gb", "8", "16", "32",
                   "--limit-size", "720p", "4k"]  # fmt: skip
        command = [os.environ.get("COMFYUI_PYTHON", sys.executable), "-c", CARDS, *options]
        done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=300)
        assert done.returncode == 0, done.stderr[-4000:]
        rows = tables(done.stdout)["The refiner on smaller cards"]
        said = {}
        for row in rows:
            key = row["size"], row["refiner"], row["card, GiB"], row["blocks"]
            assert (row["guidance"], key in said) == ("off", False)
            said[key] = row["fitted"]
            if row["fitted"] == "yes":
                assert (
                    row["tiles"] == {"720p": "1 of 128 x 80", "4k": "1 of 192 x 128"}[row["size"]]
                )
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
    def test_the_commands_for_a_gpu_run_and_write_their_pages(self, part, tmp_path):
        command = [os.environ.get("COMFYUI_PYTHON", sys.executable), "-m", "benchmarks.on_gpu"]
        done = subprocess.run([*command, part, "--toy", f"--out={tmp_path}"], cwd=ROOT,
                              capture_output=True, text=True, timeout=300)  # fmt: skip
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

    def test_what_the_minutes_do_not_allow_is_not_measured(self):
        said = run("--toy", "--minutes=0.0001")
        found = tables(said)
        assert {row["met"] for row in found["Goals (TOY SIZE)"]} == {"-"}
        for row in found["Stages (TOY SIZE)"]:
            assert row["measured"].startswith("not measured: ")
            assert row["stage, s"] == "-"
        assert found["Floors, largest gap first (TOY SIZE)"] == []
