"""The switch against the stock nodes of a real ComfyUI: bit for bit.

COMFYUI_PATH names the host's folder, COMFYUI_PYTHON its Python (default: this one). All cases of
golden_cases.py and switch_cases.py run in one process of the host.
"""

import ast
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

SCRIPT = Path(__file__).with_name("run_cases.py")
FILES = ("golden_cases.py", "switch_cases.py")
CASES = [
    node.name
    for file in FILES
    for node in ast.parse(SCRIPT.with_name(file).read_text(encoding="utf-8")).body
    if isinstance(node, ast.FunctionDef) and node.name.startswith("case_")
]

pytestmark = [
    pytest.mark.host,
    pytest.mark.skipif("COMFYUI_PATH" not in os.environ, reason="COMFYUI_PATH is not set"),
]


@pytest.fixture(scope="module")
def results(tmp_path_factory):
    """Run every case once: {name: traceback, empty when it held}."""
    out = tmp_path_factory.mktemp("golden") / "results.json"
    command = [os.environ.get("COMFYUI_PYTHON", sys.executable), str(SCRIPT), str(out)]
    run = subprocess.run(
        command, cwd=os.environ["COMFYUI_PATH"], capture_output=True, text=True, timeout=900
    )
    assert out.exists(), run.stdout[-2000:] + run.stderr[-4000:]
    return json.loads(out.read_text())


@pytest.mark.parametrize("case", CASES)
def test_on_the_real_host(results, case):
    assert results[case] == "", results[case]
