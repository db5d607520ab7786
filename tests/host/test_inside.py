"""The nodes inside a real ComfyUI: the switch bit for bit, windows, the refiner.

COMFYUI_PATH names the host's folder, COMFYUI_PYTHON its Python (default: this one). The cases of a
script share a process of the host, and no script another's: one that hangs, crashes or fails leaves
the others alone, and keeps what it had; see outcome.py.
"""

import ast
import os
from pathlib import Path

import pytest
from surf.tests.host.outcome import NOT_RUN

FOLDER = Path(__file__).parent
SCRIPTS = {
    "sampling_cases.py": ("golden_cases.py", "switch_cases.py", "embedded_cases.py"),
    "leg_cases.py": ("leg_cases.py",),
    "after_switch_cases.py": ("after_switch_cases.py",),
    "contract_cases.py": ("contract_cases.py",),
    "contract_result_cases.py": ("contract_result_cases.py",),
    "window_cases.py": ("window_cases.py",),
    "colour_cases.py": ("colour_cases.py",),
    "decode_cases.py": ("decode_cases.py",),
    "decode_video_cases.py": ("decode_video_cases.py",),
    "compile_cases.py": ("compile_cases.py",),
    "refiner_cases.py": ("refiner_cases.py",),
    "frames_cases.py": ("frames_cases.py",),
    "made_for_cases.py": ("made_for_cases.py",),
    "i2v_cases.py": ("i2v_cases.py",),
    "family_cases.py": ("family_cases.py",),
    "tile_cases.py": ("tile_cases.py",),
    "chunk_cases.py": ("chunk_cases.py",),
    "loader_cases.py": ("loader_cases.py",),
    "trained_cases.py": ("trained_cases.py",),
    "tiny_cases.py": ("tiny_cases.py",),
    "seedvr2_cases.py": ("seedvr2_cases.py",),
    "seedvr2_run_cases.py": ("seedvr2_run_cases.py",),
    "skip_cases.py": ("skip_cases.py",),
    "skip_family_cases.py": ("skip_family_cases.py",),
    "skip_family_run_cases.py": ("skip_family_run_cases.py",),
    "skip_run_cases.py": ("skip_run_cases.py",),
    "mask_cases.py": ("mask_cases.py",),
    "av_model_cases.py": ("av_model_cases.py",),
    "guide_cases.py": ("guide_cases.py",),
    "av_switch_cases.py": ("av_switch_cases.py",),
    "av_kept_cases.py": ("av_kept_cases.py",),
    "fuzz_cases.py": ("fuzz_cases.py",),
    "av_refine_cases.py": ("av_refine_cases.py",),
    "av_anchor_cases.py": ("av_anchor_cases.py",),
    "draft_cases.py": ("draft_cases.py",),
    "plan_cases.py": ("plan_cases.py",),
    "matrix_cases.py": ("matrix_cases.py",),
}
"""Script -> the files that hold its cases."""
CASES = [
    (script, node.name)
    for script, files in SCRIPTS.items()
    for file in files
    for node in ast.parse((FOLDER / file).read_text(encoding="utf-8")).body
    if isinstance(node, ast.FunctionDef) and node.name.startswith("case_")
]

pytestmark = [
    pytest.mark.host,
    pytest.mark.skipif("COMFYUI_PATH" not in os.environ, reason="COMFYUI_PATH is not set"),
]


@pytest.mark.parametrize(("script", "case"), CASES)
def test_on_the_real_host(outcomes, script, case):
    said = outcomes(script).of(case)
    if said.startswith(NOT_RUN):
        pytest.skip(said)
    assert said == "", said
