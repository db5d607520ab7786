"""Load the pack once, under the name `surf`, the way the host loads it; share out the tests."""

import importlib.util
import os
import sys
from pathlib import Path

import pytest
import torch

ROOT = Path(__file__).parents[1]
WORKER = "PYTEST_XDIST_WORKER" in os.environ
TOLERANCE = {torch.float64: 1e-12, torch.float32: 2e-5, torch.float16: 2e-3, torch.bfloat16: 2e-2}


def load_pack():
    """Import the repository's root as the package `surf`."""
    spec = importlib.util.spec_from_file_location(
        "surf", ROOT / "__init__.py", submodule_search_locations=[str(ROOT)]
    )
    module = importlib.util.module_from_spec(spec)
    sys.modules["surf"] = module
    spec.loader.exec_module(module)
    return module


def load_host_stub():
    """Put the small fake host where the pack's imports look for the real one."""
    spec = importlib.util.spec_from_file_location("host_stub", ROOT / "tests" / "host_stub.py")
    module = importlib.util.module_from_spec(spec)
    sys.modules["host_stub"] = module
    spec.loader.exec_module(module)
    module.install()


def pytest_addoption(parser):
    parser.addoption("--fuzz", type=int, default=0, help="cases of each fuzzer; 0 is a few")


def pytest_collection_modifyitems(items):
    """Give the workers the files with slow tests first, so that none is left when they end."""
    if WORKER:
        slow = {item.path for item in items if item.get_closest_marker("slow")}
        items.sort(key=lambda item: item.path not in slow)


if WORKER:
    # The workers share the cores: threads of one would wait for those of another. So would those
    # of the processes that tests start.
    os.environ["OMP_NUM_THREADS"] = "1"
    torch.set_num_threads(1)
load_host_stub()
load_pack()


@pytest.fixture(autouse=True)
def poisoned_memory(monkeypatch):
    """Fill fresh float memory with NaN, so that a read before a write shows."""

    def poison(make):
        def filled(*args, **kwargs):
            tensor = make(*args, **kwargs)
            return tensor.fill_(float("nan")) if tensor.is_floating_point() else tensor

        return filled

    monkeypatch.setattr(torch, "empty", poison(torch.empty))
    monkeypatch.setattr(torch, "empty_like", poison(torch.empty_like))


@pytest.fixture(autouse=True)
def as_many_threads_as_before():
    """Take back the threads that a command sets for itself: later tests would wait for them."""
    before = torch.get_num_threads()
    yield
    if torch.get_num_threads() != before:
        torch.set_num_threads(before)


@pytest.fixture
def tolerance():
    """Absolute tolerance by dtype; the only table."""
    return TOLERANCE


@pytest.fixture(scope="session")
def forks():
    """One process to fork others from, for all tests of a worker."""
    from surf.tests.forks import Forks

    if not hasattr(os, "fork"):
        pytest.skip("this system has no fork")
    made = Forks()
    yield made
    made.close()
