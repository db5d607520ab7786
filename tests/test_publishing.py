"""Workflows run the actions that were looked at, and only one job of them sees the token."""

import os
import re
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest
import yaml
from PIL import Image
from surf.tests.test_archive import archive, git

if sys.version_info >= (3, 11):
    import tomllib
else:
    from pip._vendor import tomli as tomllib

ROOT = Path(__file__).parents[1]
FOLDER = ROOT / ".github" / "workflows"
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


def missing_to_publish(project):
    """What the registry asks for and this project cannot know before it has an address."""
    has = {
        "project.urls: Repository": "Repository" in project["project"].get("urls", {}),
        "tool.comfy: Icon, the address of web/icon.png": "Icon" in project["tool"]["comfy"],
        "tool.comfy: Banner, the address of web/banner.png": "Banner" in project["tool"]["comfy"],
    }
    return [name for name, known in has.items() if not known]


def test_publishing_lacks_addresses_alone():
    """No address is invented; everything else that the registry shows is here."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
    assert len(missing_to_publish(project)) == 3, "delete what is known by now from this test"
    about = project["project"]
    assert {"name", "version", "description", "license", "classifiers"} <= about.keys()
    assert {"PublisherId", "DisplayName", "requires-comfyui"} <= project["tool"]["comfy"].keys()
    assert "scripts" not in about, "commands of a package that the archive lacks"
    with Image.open(ROOT / "web" / "icon.png") as icon:
        assert icon.size == (400, 400)
    with Image.open(ROOT / "web" / "banner.png") as banner:
        assert banner.width * 9 == banner.height * 21


@pytest.fixture(scope="module")
def registry_command(tmp_path_factory):
    """The registry's own command line, in an environment of its own."""
    home = tmp_path_factory.mktemp("comfy_cli")
    python = home / "bin" / "python"
    subprocess.run([sys.executable, "-m", "venv", str(home)], check=True)
    installed = subprocess.run(
        [str(python), "-m", "pip", "install", "--quiet", "comfy-cli"],
        capture_output=True,
        text=True,
    )
    if installed.returncode:
        pytest.skip(f"expected comfy-cli to install: {installed.stderr[-300:]}")

    def run(folder, *arguments):
        done = subprocess.run(
            [str(home / "bin" / "comfy"), "--skip-prompt", "--no-enable-telemetry", *arguments],
            cwd=folder,
            env={"HOME": str(home), "PATH": f"{home / 'bin'}:{os.environ['PATH']}"},
            capture_output=True,
            text=True,
        )
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout + done.stderr

    return run


@pytest.mark.web
@pytest.mark.skipif(not (ROOT / ".git").exists(), reason="needs the list of tracked files")
def test_the_registrys_command_validates_and_packs_what_a_user_needs(registry_command, tmp_path):
    for name in git(ROOT, "--cached", "--others", "--exclude-standard"):
        if (ROOT / name).is_file():
            (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(ROOT / name, tmp_path / name)
    for arguments in (["init", "--quiet"], ["add", "--all"]):
        subprocess.run(["git", *arguments], cwd=tmp_path, check=True)
    assert "validation checks passed" in registry_command(tmp_path, "node", "validate")
    registry_command(tmp_path, "node", "pack")
    [packed] = tmp_path.glob("*.zip")
    assert packed.stat().st_size < 12e6
    with zipfile.ZipFile(packed) as archived:
        assert set(archived.namelist()) == set(archive(tmp_path)) - {packed.name}
