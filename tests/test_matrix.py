"""The page "What goes together" says what the tests in ComfyUI saw, and nothing else."""

import ast
import json
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
FOLDER = ROOT / "tests" / "host"
TABLE = json.loads((FOLDER / "matrix.json").read_text(encoding="utf-8"))
PAGE = (ROOT / "web" / "docs" / "guide" / "compatibility.md").read_text(encoding="utf-8")
CASES = (FOLDER / "matrix_cases.py").read_text(encoding="utf-8")
WORKFLOWS = sorted(path.stem for path in (ROOT / "workflows").glob("*.json"))
NEWER = ("SCAIL", "SCAIL-2", "MiniMax H3", "LTX-2.3", "LTX-2.5")
"""Families that ComfyUI 0.8.0 lacks."""
ANSWERS = ("yes", "refused", "not in ComfyUI")
OWN = ("Try SURF without downloads", "Refine my video with SeedVR2")
"""Workflows with models of their own: the embedded ones, and SeedVR2."""


def lines(table):
    """The page's table."""
    columns = list(next(iter(table.values())))
    said = [f"| family | {' | '.join(columns)} |", f"|{' --- |' * (len(columns) + 1)}"]
    for name, cells in table.items():
        shown = [cells[column] if cells[column] in ANSWERS else "-" for column in columns]
        said.append(f"| {name}{' `*`' * (name in NEWER)} | {' | '.join(shown)} |")
    return said


def test_the_page_shows_what_the_host_tests_recorded():
    section = PAGE[PAGE.index("<!-- cells:begin") : PAGE.index("<!-- cells:end")]
    assert [line for line in section.splitlines() if line.startswith("|")] == lines(TABLE)


def test_every_recorded_family_has_a_case_that_compares_it():
    tree = ast.parse(CASES)
    checked = [
        ast.literal_eval(node.body[0].value.args[0])
        for node in tree.body
        if isinstance(node, ast.FunctionDef) and node.name.startswith("case_")
    ]
    assert checked == list(TABLE)
    [columns] = [
        [ast.literal_eval(key) for key in node.value.keys]
        for node in tree.body
        if isinstance(node, ast.Assign) and getattr(node.targets[0], "id", "") == "COLUMNS"
    ]
    assert all(list(cells) == columns for cells in TABLE.values())


@pytest.mark.parametrize("column", next(iter(TABLE.values())))
def test_every_column_is_explained(column):
    assert f"**{column}:**" in PAGE


def families_of(workflow):
    """Families of the table that a workflow's title names; 2.2 without a size is the 14B pair."""
    title = workflow.replace("Wan 2.2 and", "Wan 2.2 A14B T2V and").replace("1.3B ", "")
    title = title.replace("Wan 2.1 tile", "Wan 2.1 T2V tile")
    found = [name for name in TABLE if re.search(rf"\b{re.escape(name)}\b", title)]
    return [name for name in found if not any(name != more and name in more for more in found)]


def test_families_of_our_workflows_are_tried_in_every_column():
    for workflow in WORKFLOWS:
        names = families_of(workflow)
        assert names or workflow.partition(" ")[2] in OWN, workflow
        for name in names:
            assert set(TABLE[name].values()) <= set(ANSWERS), (name, TABLE[name])


def test_cells_that_were_not_tried_are_few_and_say_why():
    left = {
        (name, column): said
        for name, cells in TABLE.items()
        for column, said in cells.items()
        if said not in ANSWERS
    }
    assert set(left) == {("Flux", "context windows"), ("Qwen-Image", "context windows")}
    assert set(left.values()) == {"one frame: nothing to cut"}
    assert "**-**: not tried; one picture has no frames to cut" in " ".join(PAGE.split())
