"""Benchmarks that wait for a GPU run at toy size, so that they run when there is one."""

import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]


@pytest.mark.slow
def test_the_flow_is_measured_stage_by_stage_and_its_operations_are_those_of_cost():
    command = [sys.executable, "-m", "benchmarks.flow", "--reps", "1", "--frames", "17"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr[-2000:]
    rows = [line.strip("| ").split(" | ") for line in done.stdout.splitlines() if "| 720p" in line]
    assert [row[1] for row in rows[:5]] == [
        "plain, base", "base, 480p", "base, 240p", "surf_1b", "wan_1_3b"
    ]  # fmt: skip
    for _, name, count, ms, total, share, *_ in rows[:5]:
        assert int(count) == {"plain, base": 100, "base, 240p": 80}.get(name, 20)
        assert float(total) == pytest.approx(float(ms) * int(count) / 1000, rel=0.01)
        assert 0 <= float(share) <= 1
    spent = {row[1]: float(row[4]) for row in rows[:5]}
    for _, name, plain, ours, faster, fewer, _ in rows[5:]:
        assert float(plain) == spent["plain, base"]
        stages = spent["base, 480p"] + spent["base, 240p"] + spent[name]
        assert float(ours) == pytest.approx(stages, rel=0.01)
        assert float(faster) == pytest.approx(float(plain) / float(ours), rel=0.01)
        assert float(fewer) > 2
    assert "TOY SIZE" in done.stdout or re.search(r"NVIDIA|AMD", done.stdout)
