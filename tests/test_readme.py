"""What the README shows was measured, and is what lies in benchmarks/results."""

import json
import re
from pathlib import Path

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text(encoding="utf-8")


def test_demo_table_is_from_the_committed_report():
    report = json.loads((ROOT / "benchmarks" / "results" / "demo-report.json").read_text())
    for row in report["rows"]:
        assert f"| {' | '.join(str(value) for value in row.values())} |" in README


def test_layout_table_is_from_the_committed_benchmark():
    [result] = (ROOT / "benchmarks" / "results").glob("*-layout.md")
    measured = result.read_text(encoding="utf-8").splitlines()
    shown = README[README.index("numbers:begin") : README.index("numbers:end")].splitlines()
    rows = [line for line in shown if line.startswith("| k=") or line.startswith("| direct")]
    assert len(rows) >= 12
    assert set(rows) <= set(measured)


def test_every_picture_and_file_that_is_linked_exists():
    for target in re.findall(r"\]\(([^)#]+)\)", README):
        assert target.startswith("https://") or (ROOT / target).exists(), target
