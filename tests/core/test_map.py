"""The map: every function that surf_core/README.md names is where it says."""

import importlib
import re
from pathlib import Path

CORE = Path(__file__).parents[2] / "surf_core"
NAMED = re.findall(r"`([\w/]+)\.py:(\w+)`", (CORE / "README.md").read_text(encoding="utf-8"))


def test_every_name_of_the_map_is_where_it_says():
    assert len(NAMED) > 20
    missing = []
    for file, name in NAMED:
        module = importlib.import_module("surf.surf_core." + file.replace("/", "."))
        missing += [] if hasattr(module, name) else [f"{file}.py:{name}"]
    assert missing == []
