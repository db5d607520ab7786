"""The benchmark of the flow as a command: run it, or lines beside it, and read its tables.

COMFYUI_PATH names the host's folder, COMFYUI_PYTHON its Python (default: this one).
"""

import os
import sys
from pathlib import Path

import pytest
from surf.tests import patience

ROOT = Path(__file__).parents[2]
HOST = "COMFYUI_PATH"
on_a_host = [pytest.mark.host, pytest.mark.skipif(HOST not in os.environ, reason="no host is set")]


def run(*options, **changed):
    """What the benchmark prints."""
    done = call("-m", "benchmarks.speed.host_flow", *options, **changed)
    assert done.returncode == 0, done.stderr[-4000:]
    return done.stdout


def call(*command, **changed):
    """The host's Python in the root."""
    environment = {key: value for key, value in (os.environ | changed).items() if value is not None}
    python = os.environ.get("COMFYUI_PYTHON", sys.executable)
    return patience.run([python, *command], 1800, cwd=ROOT, env=environment)


def tables(text):
    """{heading: [{column: cell, a number where it is one}]}."""
    found = {}
    for part in text.split("\n## ")[1:]:
        heading, *lines = part.splitlines()
        rows = [line.strip("| ").split(" | ") for line in lines if line.startswith("| ")]
        found[heading] = [dict(zip(rows[0], map(number, row), strict=True)) for row in rows[2:]]
    return found


def number(cell):
    try:
        return float(cell)
    except ValueError:
        return cell


def about(value):
    """Four digits on either side."""
    return pytest.approx(value, rel=2e-3, abs=2e-4)
