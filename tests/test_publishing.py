"""Workflows run the actions that were looked at, and only one job of them sees the token."""

import re
from pathlib import Path

import pytest
import yaml

FOLDER = Path(__file__).parents[1] / ".github" / "workflows"
FILES = sorted(FOLDER.glob("*.yml"))
LOADS = re.compile(r"\bpip\b|\bmake\b|\.ci/run|\bnpm\b|\bcurl\b|\bapt")


def jobs(path):
    return yaml.safe_load(path.read_text(encoding="utf-8"))["jobs"]


def uses(path):
    return [step["uses"] for job in jobs(path).values() for step in job["steps"] if "uses" in step]


def holders(path):
    """Jobs that can read a secret, by name."""
    return {name: job for name, job in jobs(path).items() if "secrets." in str(job)}


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.name)
def test_every_action_is_named_by_its_commit(path):
    assert uses(path)
    for action in uses(path):
        assert re.fullmatch(r"[\w-]+/[\w-]+@[0-9a-f]{40}", action), action


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.name)
def test_a_job_with_a_secret_runs_nothing_that_installs(path):
    for name, job in holders(path).items():
        commands = " ".join(step.get("run", "") for step in job["steps"])
        assert not LOADS.search(commands), f"{path.name}: {name}"
        assert not re.search(r"secrets\.", str(job.get("env", ""))), f"{path.name}: {name}"


def test_the_token_is_used_only_after_the_checks_of_another_job():
    (job,) = holders(FOLDER / "publish.yml").values()
    assert job["needs"] == "check"
    assert any(
        ".ci/run" in step.get("run", "") for step in jobs(FOLDER / "publish.yml")["check"]["steps"]
    )
    given = [step["with"] for step in job["steps"] if "secrets." in str(step)]
    assert [list(one) for one in given] == [["skip_checkout", "personal_access_token"]]


def test_checks_run_on_the_oldest_python_and_comfyui_that_are_declared():
    declared = (FOLDER.parents[1] / "pyproject.toml").read_text(encoding="utf-8")
    [python] = re.findall(r'^requires-python = ">=([\d.]+)"$', declared, re.MULTILINE)
    [comfyui] = re.findall(r'^requires-comfyui = ">=([\d.]+)"$', declared, re.MULTILINE)
    checks = jobs(FOLDER / "check.yml")
    assert checks["cpu"]["strategy"]["matrix"]["python"][0] == python
    assert checks["host"]["strategy"]["matrix"]["comfyui"] == [f"v{comfyui}", "newest"]
    assert ".venv/bin/pytest -m host" in [step.get("run") for step in checks["host"]["steps"]]
