"""The benchmark of decoding runs in the host at toy size, and its columns fit each other.

COMFYUI_PATH names the host's folder, COMFYUI_PYTHON its Python (default: this one).
"""

import os
import sys
from pathlib import Path

import pytest
from surf.surf_core.tiles import spans
from surf.tests import patience

ROOT = Path(__file__).parents[2]
PYTHON = os.environ.get("COMFYUI_PYTHON", sys.executable)


def bench(environment, *options):
    command = [PYTHON, "-m", "benchmarks.speed.vae_decode", *options]
    done = patience.run(command, 1800, cwd=ROOT, env=environment)
    assert done.returncode == 0, done.stderr[-3000:]
    return done.stdout


def test_without_a_host_it_says_what_it_needs():
    without = {name: value for name, value in os.environ.items() if name != "COMFYUI_PATH"}
    command = [sys.executable, "-m", "benchmarks.speed.vae_decode"]
    done = patience.run(command, 300, cwd=ROOT, env=without)
    assert done.returncode == 0, done.stderr[-3000:]
    assert "not run: set COMFYUI_PATH" in done.stdout


@pytest.mark.host
@pytest.mark.skipif("COMFYUI_PATH" not in os.environ, reason="COMFYUI_PATH is not set")
@pytest.mark.skipif(sys.platform != "linux", reason="reads the resident set")
def test_a_decode_into_a_file_does_not_grow_with_the_video_and_a_whole_one_does(tmp_path):
    command = [PYTHON, "-m", "benchmarks.cost.streamed_decode", "--lengths", "81", "241"]
    done = patience.run(command, 1800, cwd=ROOT, env=os.environ)
    assert done.returncode == 0, done.stderr[-3000:]
    counted, measured = (
        [line.strip("| ").split(" | ") for line in text.splitlines() if line.startswith("| ")][2:]
        for text in done.stdout.split("## ")[1:]
    )
    assert len(counted) == 6
    for row in counted:
        assert float(row[3]) <= float(row[2]) < float(row[1])
    (_, _, whole, streamed, _), (_, frames, more, longer, _) = (
        [*map(float, row)] for row in measured
    )
    assert more - whole > 0.15
    assert longer - streamed < 0.05
    assert longer < more - frames


@pytest.mark.host
@pytest.mark.skipif("COMFYUI_PATH" not in os.environ, reason="COMFYUI_PATH is not set")
def test_columns_fit_each_other_and_every_call_is_timed(tmp_path):
    out = tmp_path / "page.md"
    options = ("--toy", "--time", "--reps", "1", "--frames", "1", "--size", "480p", "720p")
    said = bench(os.environ, *options, f"--out={out}")
    assert out.read_text() in said
    tables = said.split("## ")[1:]
    rows = [
        [line.strip("| ").split(" | ") for line in text.splitlines() if line.startswith("| ")][2:]
        for text in tables
    ]
    counted, chosen, timed = rows
    whole = {row[0]: float(row[5]) for row in counted if row[1] == "whole"}
    assert len(whole) == 2
    for size, cut, by, pieces, _, work, share, *_ in counted:
        assert float(share) == pytest.approx(float(work) / whole[size], rel=2e-3)
        if by == "Surf":
            side = int(cut.split()[0])
            across, down = (len(spans(n, side, 64, 8)) for n in (224, 160))
            assert size == "480p" or int(pieces) == across * down
    assert len(chosen) == 12
    assert len(timed) == len(counted)
    assert all(float(row[4]) > 0 for row in timed), timed
