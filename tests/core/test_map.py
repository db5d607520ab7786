"""The map: every function that surf_core/README.md names is where it says."""

import importlib
import re
from pathlib import Path

import pytest

CORE = Path(__file__).parents[2] / "surf_core"
NAMED = re.findall(r"`([\w/]+)\.py:(\w+)`", (CORE / "README.md").read_text(encoding="utf-8"))


def test_the_map_names_code():
    assert len(NAMED) > 20


@pytest.mark.parametrize(("file", "name"), NAMED, ids=[":".join(pair) for pair in NAMED])
def test_named_code_exists(file, name):
    module = importlib.import_module("surf.surf_core." + file.replace("/", "."))
    assert hasattr(module, name)
