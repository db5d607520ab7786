"""The page "which refiner for what": its costs are counted again, its files are the workflows'."""

import json
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PAGE = (ROOT / "web" / "docs" / "guide" / "refiners.md").read_text(encoding="utf-8")
WORKFLOWS = sorted((ROOT / "workflows").glob("*.json"))


def noted_files():
    """{file: GB} of the notes of all workflows."""
    found = {}
    for path in WORKFLOWS:
        for node in json.loads(path.read_text(encoding="utf-8"))["nodes"]:
            if node["type"] == "MarkdownNote":
                note = node["widgets_values"][0]
                found |= dict(re.findall(r"^- \[(\S+)\]\(\S+\) ([\d.]+) GB", note, re.MULTILINE))
    return found


def tables(text):
    return [line for line in text.splitlines() if line.startswith("|")]


def shown():
    """The lines of the page's table of costs."""
    section = PAGE[PAGE.index("cost:begin -->") : PAGE.index("<!-- cost:end")]
    return tables(section)


def test_costs_are_those_that_the_script_counts(forks, tmp_path):
    out = tmp_path / "page.md"
    forks.start("benchmarks.cost.refiners", f"--out={out}").finish(1800)
    assert shown() == tables(out.read_text(encoding="utf-8"))


def test_half_of_the_tokens_cost_less_than_half():
    rows = [line.strip("| ").split(" | ") for line in shown()[2:]]
    assert len({row[0] for row in rows}) == len(rows) >= 10
    prices = {row[0]: float(row[5]) for row in rows}
    assert 0.4 < prices["SeedVR2 3B, half of the tokens"] / prices["SeedVR2 3B"] < 0.5
    assert prices["the same, half of the tokens"] < prices["the same with the 4-step LoRA"] / 2


def test_sizes_of_files_are_those_of_the_workflows():
    named = dict(re.findall(r"`(\S+\.safetensors)` ([\d.]+)", PAGE))
    noted = noted_files()
    assert len(named) >= 6
    assert {name: float(size) for name, size in named.items()} == {
        name: float(noted[name]) for name in named
    }


def test_workflows_that_it_names_exist():
    named = set(re.findall(r"\*([^*\n]+ to \d+p|\d\d Refine my video[^*\n]*)\*", PAGE))
    assert len(named) >= 3
    assert named <= {path.stem for path in WORKFLOWS}


@pytest.mark.parametrize("link", re.findall(r"\]\(([^)]+)\)", PAGE))
def test_links_are_addresses_or_pages_beside_it(link):
    if not link.startswith("https://"):
        assert (ROOT / "web" / "docs" / "guide" / link.partition("#")[0]).is_file()
