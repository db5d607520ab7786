"""The Surf Refiner and its windowed attention inside a real ComfyUI.

COMFYUI_PATH names the host's folder, COMFYUI_PYTHON its Python (default: this one). All cases of
a script run in one process of the host.
"""

import ast
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

SCRIPTS = [Path(__file__).with_name(name) for name in ("window_cases.py", "refiner_cases.py")]
CASES = [
    (script.name, node.name)
    for script in SCRIPTS
    for node in ast.parse(script.read_text(encoding="utf-8")).body
    if isinstance(node, ast.FunctionDef) and node.name.startswith("case_")
]

pytestmark = [
    pytest.mark.host,
    pytest.mark.skipif("COMFYUI_PATH" not in os.environ, reason="COMFYUI_PATH is not set"),
]


@pytest.fixture(scope="module")
def results(tmp_path_factory):
    """Run every case once: {(script, case): traceback, empty when it held}."""
    said = {}
    for script in SCRIPTS:
        out = tmp_path_factory.mktemp("refiner") / "results.json"
        command = [os.environ.get("COMFYUI_PYTHON", sys.executable), str(script), str(out)]
        run = subprocess.run(
            command, cwd=os.environ["COMFYUI_PATH"], capture_output=True, text=True, timeout=900
        )
        assert out.exists(), run.stdout[-2000:] + run.stderr[-4000:]
        cases = json.loads(out.read_text(encoding="utf-8"))
        said |= {(script.name, name): text for name, text in cases.items()}
    return said


@pytest.mark.parametrize(("script", "case"), CASES)
def test_on_the_real_host(results, script, case):
    assert results[script, case] == "", results[script, case]
