"""The benchmark of Surf Plan's seconds runs in the host at toy size, and compares what it says.

COMFYUI_PATH names the host's folder, COMFYUI_PYTHON its Python (default: this one).
"""

import pytest
from surf.tests.host.flow_run import call, on_a_host

pytestmark = on_a_host


def test_every_part_of_every_plan_is_priced_and_run(tmp_path):
    out = tmp_path / "page.md"
    done = call("-m", "benchmarks.cost.plan_seconds", "--toy", "--reps=1", f"--out={out}")
    assert done.returncode == 0, done.stderr[-3000:]
    page = out.read_text(encoding="utf-8")
    assert page in done.stdout
    assert "TOY SIZE" in page
    lines = [line for line in page.splitlines() if line.startswith("| ")][2:]
    rows = [line.strip("| ").split(" | ") for line in lines]
    assert [row[1] for row in rows] == ["preview", "refinement", "plan", "plain run"] * 3
    for _, _, predicted, measured, ratio in rows:
        assert float(predicted) > 0
        assert float(ratio) == pytest.approx(float(predicted) / float(measured), rel=2e-2)
    for first in (0, 4, 8):
        for column in (2, 3):
            parts = [float(row[column]) for row in rows[first : first + 3]]
            assert parts[2] == pytest.approx(parts[0] + parts[1], rel=2e-3)
