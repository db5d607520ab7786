"""The Triton kernel without a GPU: in Triton's interpreter, and compiled for real targets.

The interpreter needs a process of its own, so its tests are in interpreted_triton.py; each is a
test here by its name.
"""

import ast
import os
import subprocess
import sys
import xml.etree.ElementTree as ElementTree
from pathlib import Path

import pytest
import torch

triton = pytest.importorskip("triton", reason="triton is in requirements-dev.txt for Linux only")
from surf.surf_core.window.triton_kernel import (  # noqa: E402
    CONFIGS,
    FLOAT32,
    attention,
    choose,
    split,
)

ROOT = Path(__file__).parents[2]
WIDTHS = range(16, 129, 2)
INTERPRETED = Path(__file__).with_name("interpreted_triton.py")
CLAIMS = [
    node.name
    for node in ast.parse(INTERPRETED.read_text(encoding="utf-8")).body
    if isinstance(node, ast.FunctionDef) and node.name.startswith("test_")
]
COMPILERS = Path(triton.__file__).parent.glob("backends/nvidia/bin/ptxas*")
BOOM = """
import triton
def boom(): raise SystemError("asked for a driver")
for backend in triton.backends.backends.values():
    backend.driver.is_active = boom
"""


def child(*arguments, **environment):
    """Run Python in the repository's root; without -I it would put that before the packages."""
    inherited = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    return subprocess.run(
        [sys.executable, *arguments],
        cwd=ROOT,
        env={**inherited, "OMP_NUM_THREADS": "1", **environment},
        capture_output=True,
        text=True,
    )


@pytest.fixture(scope="module")
def outcomes(tmp_path_factory):
    """What became of every test in the interpreter: name -> [(case, failure or None)]."""
    report = tmp_path_factory.mktemp("interpreter") / "report.xml"
    done = child(
        "-I", "-m", "pytest", "-p", "no:cacheprovider", f"--junitxml={report}", str(INTERPRETED),
        TRITON_INTERPRET="1",
    )  # fmt: skip
    assert report.exists(), done.stdout + done.stderr
    found = {}
    for case in ElementTree.parse(report).iter("testcase"):
        bad = [part.get("message") or part.text for part in case if part.tag != "properties"]
        found.setdefault(case.get("name").split("[")[0], []).append(
            (case.get("name"), bad[0] if bad else None)
        )
    return found


@pytest.mark.slow
@pytest.mark.parametrize("claim", CLAIMS)
def test_in_the_interpreter(claim, outcomes):
    assert claim in outcomes, outcomes
    assert [case for case in outcomes[claim] if case[1]] == []


def test_importing_the_core_does_not_import_triton():
    done = child(
        "-c", "import sys, surf_core, surf_core.window as w; print(sorted(sys.modules)); "
        "w.backend('triton')"
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    names = ast.literal_eval(done.stdout)
    assert "surf_core.window.backends" in names
    assert [name for name in names if name.split(".")[0] in ("triton", "flash_attn")] == []
    assert "surf_core.window.triton_kernel" not in names


def test_importing_the_kernel_asks_for_no_driver():
    done = child("-c", BOOM + "import surf_core.window.triton_kernel; print('imported')")
    assert done.stdout == "imported\n", done.stderr
    control = child("-c", BOOM + "triton.runtime.driver.active.get_current_device()")
    assert "asked for a driver" in control.stderr


def test_the_kernel_rejects_tensors_on_the_cpu():
    x = torch.zeros(1, 6, 2, 72, dtype=torch.float16)
    with pytest.raises(ValueError, match="expected tensors on one GPU, got .*cpu"):
        attention(x, x, x, ((0, 6),))


@pytest.mark.parametrize(("channels", "parts"), [(72, (64, 16)), (64, (64, 0)), (96, (64, 32))])
def test_a_head_of_72_is_64_and_16(channels, parts):
    assert split(channels) == parts


def test_main_and_tail_cover_every_channel_of_a_head():
    for channels in WIDTHS:
        main, tail = split(channels)
        assert {*range(main), *range(channels - tail, channels)} == set(range(channels))
        assert tail == 0 or 16 <= tail <= main
        assert all(size & (size - 1) == 0 for size in (main, tail))


@pytest.mark.parametrize(
    ("capability", "known"),
    [((8, 0), (8, 0)), ((8, 9), (8, 0)), ((9, 0), (9, 0)), ((10, 3), (9, 0)), ((12, 0), (12, 0)),
     ((13, 1), (12, 0))],
)  # fmt: skip
def test_every_gpu_has_a_configuration_for_every_head(capability, known):
    for channels in WIDTHS:
        widest = {config: most for most, config in CONFIGS[known].items()}
        assert sum(split(channels)) <= widest[choose(capability, channels, torch.bfloat16)]
        assert choose(capability, channels, torch.float32) == FLOAT32


def test_gpus_before_ampere_are_rejected():
    with pytest.raises(ValueError, match="8.0 or newer, got"):
        choose((7, 5), 72, torch.float16)


@pytest.mark.slow
@pytest.mark.skipif(not any(COMPILERS), reason="this build of triton came without ptxas")
def test_the_kernel_compiles_for_hopper_without_spills(tmp_path):
    done = child(
        "-m", "benchmarks.cost.triton_kernel", "--target", "90", "--head", "72",
        TRITON_CACHE_DIR=str(tmp_path),
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    names, _, ours, padded = (
        [cell.strip() for cell in line.split("|")[1:-1]]
        for line in done.stdout.splitlines()
        if line.startswith("|")
    )
    ours, padded = (dict(zip(names, line, strict=True)) for line in (ours, padded))
    assert ours["target"] == "sm90"
    assert ours["head"] == "72 as 64 + 16"
    assert int(ours["spilled, B"]) == 0
    assert padded["head"] == "72 as 64 + 64"
