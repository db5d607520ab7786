"""The part `extras` of what needs a GPU, at toy size: decodes and compiled blocks, and their ends.

See flow_run.py.
"""

import re

import pytest
from surf.tests.host.flow_run import call, number, on_a_host

pytestmark = [*on_a_host, pytest.mark.slow]

DECODES = """
import torch
from benchmarks.speed import decodes, vae_decode

real, calls = decodes.TimedDecode.measure, []

def measure(self, *args):
    calls.append(self)
    if len(calls) == 4:
        raise KeyboardInterrupt
    if self.by == "host":
        def fail():
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB")
        self.decode = fail
    real(self, *args)

decodes.TimedDecode.measure = measure
vae_decode.main()
"""
"""The host's tiles run out of memory; then someone stops the run."""

COMPILED = """
import torch
from benchmarks.speed import compile as benchmark
from benchmarks.speed import compile_settings as settings

real, calls = settings.refined, []

def refined(*args, **more):
    calls.append(more)
    if more.get("cfg"):
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB")
    if more.get("keep") == 0.33:
        raise KeyboardInterrupt
    return real(*args, **more)

settings.refined = refined
benchmark.main()
"""
"""The guided refiner runs out of memory; then someone stops the run."""


def rows_of(text):
    """[{column: cell, a number where it is one}] of each table, in their order."""
    found = []
    for block in re.split(r"\n(?!\|)", text):
        lines = [line.strip("| ").split(" | ") for line in block.splitlines() if line[:2] == "| "]
        if lines:
            head, _, *rest = lines
            found.append([dict(zip(head, map(number, row), strict=True)) for row in rest])
    return found


@pytest.fixture(scope="module")
def pages(tmp_path_factory):
    """What the part writes: {subject: text}."""
    out = tmp_path_factory.mktemp("pages")
    done = call("-m", "benchmarks.on_gpu", "extras", "--toy", f"--out={out}")
    assert done.returncode == 0, done.stdout[-4000:] + done.stderr[-1000:]
    return {path.stem.split("-", 4)[-1]: path.read_text(encoding="utf-8") for path in out.iterdir()}


def test_each_command_writes_a_page_with_its_origin(pages):
    assert pages.keys() == {"vae-decode", "compile"}
    for subject, text in pages.items():
        assert "TOY SIZE" in text
        assert re.search(r"Commit .*torch \d", text)
        assert f"    python -m benchmarks.speed.{subject.replace('-', '_')} --" in text
        assert "--out" not in text


def test_the_most_telling_decodes_come_first(pages):
    rows = rows_of(pages["vae-decode"])[-1]
    said = [(row["size"], row["cut"], row["by"]) for row in rows]
    assert said[:5] == [
        ("720p", "whole", "both"), ("1080p", "whole", "both"), ("1080p", "for 0.001 GB", "Surf"),
        ("720p", "128 / 64", "host"), ("1080p", "128 / 64", "host"),
    ]  # fmt: skip
    assert len(set(said)) == len(said) == 15
    assert all(row["seconds, median"] > 0 for row in rows)


def test_compiled_rows_are_held_against_the_plain_ones_before_them(pages):
    [rows] = rows_of(pages["compile"])
    assert [row["mode"] for row in rows] == ["eager", "surf"] * 7
    for plain, ours in zip(rows[::2], rows[1::2], strict=True):
        assert plain["setting"] == ours["setting"]
        assert (plain["times eager"], plain["compiled"], plain["differs by"]) == (1, 0, 0)
        assert ours["differs by"] < 1e-4
        faster = plain["later, s"] / ours["later, s"]
        assert ours["times eager"] == pytest.approx(faster, rel=0.02, abs=0.01)
    assert rows[1]["compiled"] > 0


def stopped(script, out, *options):
    """The page of a run that is interrupted."""
    done = call("-c", script, "--toy", *options, f"--out={out}")
    assert done.returncode != 0
    assert "KeyboardInterrupt" in done.stderr[-2000:]
    (page,) = out.iterdir()
    text = page.read_text(encoding="utf-8")
    assert text in done.stdout
    return rows_of(text)


def test_decodes_that_fail_and_a_run_that_is_stopped_lose_no_other_row(tmp_path):
    options = ["--time", "--reps=1", "--frames=1", "--size=1080p"]
    counted, chosen, rows = stopped(DECODES, tmp_path, *options)
    assert counted
    assert chosen
    times = {(row["cut"], row["by"]): row["seconds, median"] for row in rows}
    assert times["whole", "both"] > 0
    assert times["for 0.001 GB", "Surf"] > 0
    assert times["128 / 64", "host"] == "not measured: out of memory"
    assert times["128 / 64", "Surf"] == "not measured: not reached"


def test_settings_that_fail_and_a_run_that_is_stopped_lose_no_other_row(tmp_path):
    [rows] = stopped(COMPILED, tmp_path, "--models=surf", "--modes", "eager", "surf")
    said = {row["setting"]: row["first, s"] for row in rows if row["mode"] == "eager"}
    assert said["refine in windows"] > 0
    assert said["refine, guided"] == "not measured: out of memory"
    assert said["refine half of the tokens"] > 0
    assert said["refine a third of the tokens"] == "not measured: not reached"
    assert {row["first, s"] for row in rows if row["mode"] == "surf"} == {
        "not measured: not reached"
    }


def test_minutes_that_are_over_end_both_with_a_page_and_in_order(tmp_path):
    timed = ["--time", "--reps=1", "--frames=1", "--size=720p"]
    compiled = ["--models", "surf", "wan", "--modes", "eager"]
    for module, options in (("vae_decode", timed), ("compile", compiled)):
        out = tmp_path / module
        out.mkdir()
        limits = ["--minutes=0.0001", f"--out={out}"]
        done = call("-m", f"benchmarks.speed.{module}", "--toy", *options, *limits)
        assert done.returncode == 0, done.stderr[-3000:]
        (page,) = out.iterdir()
        rows = rows_of(page.read_text(encoding="utf-8"))[-1]
        column = "seconds, median" if module == "vae_decode" else "first, s"
        assert {row[column] for row in rows} == {"not measured: the minutes were over"}
