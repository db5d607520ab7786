"""The benchmark of the whole flow runs in the host at toy size, and its columns fit each other.

See flow_run.py; what goes wrong, and what a GPU would do, is in test_flow_elsewhere.py.
"""

import json
import os
import subprocess
import sys
from dataclasses import replace

import pytest
from surf.surf_core import cost
from surf.tests.host.flow_run import ROOT, about, on_a_host, run, tables

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
GUIDED = {
    "on": ("on", "on", "on", "on"), "off": ("off", "off", "off", "off"),
    "first": ("on", "on", "off", "off"),
}  # fmt: skip
"""Plan -> guidance of the plain run, both legs, the refiner."""
PLANS = [(plan, name) for plan in GUIDED for name in (*REFINERS, *KEPT)]
UPSAMPLE = "upsample through the VAE"

PLAN = """
import json, sys
from benchmarks.speed.host.budget import plan
from benchmarks.speed.host.stages import TimedStage
from surf_core import cost

work = cost.Evaluations(shape=cost.WAN_14B, steps=50, frames=81, height=480, width=832)
stages = [TimedStage(target="-", cfg=cfg, name="", work=work, guess=guess)
          for cfg, guess in (("on", 10.0), ("on", 1.0), ("off", 1.0), ("off", 10.0))]
said = []
for seconds, most in ((30, 99), (10, 99), (1e6, 99), (1e6, 3), (-1, 99)):
    plan(stages, seconds, most)
    said.append([stage.planned for stage in stages])
print(json.dumps([said, stages[0].why_not]))
"""


def work(name, cfg, steps):
    shape = REFINERS.get(name, WAN)
    height, width = SIDES.get(name, SIDES["720p"])
    return cost.Evaluations(shape=shape, steps=steps, frames=9, height=height, width=width,
                      window=2 if name in REFINERS else 0, guided=cfg != "off")  # fmt: skip


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
            later = row["evaluations"] - 1
            parts = row["first, s"] + later * row["later, s"] + row["rest, s"]
            assert row["stage, s"] == about(parts)
            if name not in KEPT:
                flops = work(name, cfg, row["evaluations"]).flops / row["evaluations"]
                assert row["TFLOP/s"] == about(flops / row["later, s"] / 1e12)
        coding = [row["stage"] for row in rows if row["guidance"] == "-"]
        assert sorted(coding) == ["VAE decode", UPSAMPLE, f"{UPSAMPLE}, mask of 0.5"]

    def test_it_is_clear_which_plans_a_stage_is_part_of(self, found):
        rows = found["Stages (TOY SIZE)"]
        plans = {(row["guidance"], row["stage"]): row["plans"] for row in rows}
        for (cfg, name), said in plans.items():
            index = {"plain run": 0, "first leg, 480p": 1, "second leg, 240p": 2}.get(name, 3)
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
            stages = list(zip(GUIDED[plan][1:], (*legs, name), strict=True))
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
                refine = work(refiner, GUIDED[plan][-1], 2).flops
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
            floor = row["floor, s"]
            assert row["later / floor"] == about(row["later, s"] / floor)
            name = row["stage"]
            gap = spent[row["guidance"], name] - FULL.get(name, 2) * floor
            assert row["gap of the stage, s"] == about(gap)
        gaps = [row["gap of the stage, s"] for row in rows]
        assert gaps == sorted(gaps, reverse=True)
