"""A process inside the host: its modules, the pack as it loads it, and a report of cases.

For the scripts beside it, which are started in the host's folder with a file for their results.
"""

import importlib.util
import json
import sys
import traceback
from pathlib import Path

import checkpoints
import torch

ROOT = Path(__file__).resolve().parents[2]
NOT_RUN = "not run: the host has no "
"""As outcome.py knows it."""


def enter():
    """Make the host importable, and the pack as `surf`; the host must find nothing else of ours.

    Returns:
        The file for the results.
    """
    results = Path(sys.argv[1]).resolve()
    here = (ROOT, Path(__file__).parent)
    sys.path[:] = [path for path in sys.path if Path(path).resolve() not in here]
    checkpoints.start_host(Path.cwd())
    spec = importlib.util.spec_from_file_location("surf", ROOT / "__init__.py")
    spec.submodule_search_locations = [str(ROOT)]
    sys.modules["surf"] = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(sys.modules["surf"])
    return results


def load(name):
    """Import a script beside this one that imports the host itself; after `enter`."""
    spec = importlib.util.spec_from_file_location(name, Path(__file__).with_name(f"{name}.py"))
    sys.modules[name] = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(sys.modules[name])
    return sys.modules[name]


class HostLacks(Exception):
    """Raised by a case for what its host has not; it counts as not run."""


def noise(*shape, seed=1):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def report(results, cases, needs=lambda: None):
    """Run every function `case_*` and write {name: traceback, empty where it held}.

    A case that the host cannot run leaves NOT_RUN and what the host lacks; `needs` raises
    HostLacks for what all of them need.

    It is written after each, so that a process that ends early leaves what it had.
    """
    said = {}
    with torch.inference_mode():
        for name, case in [pair for pair in cases.items() if pair[0].startswith("case_")]:
            try:
                needs()
                case()
                said[name] = ""
            except HostLacks as lack:
                said[name] = f"{NOT_RUN}{lack}"
            except BaseException:  # noqa: BLE001 every failure is a result, the host's interrupt too
                said[name] = traceback.format_exc()
            beside = results.with_suffix(".part")
            beside.write_text(json.dumps(said), encoding="utf-8")
            beside.replace(results)
