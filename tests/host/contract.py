"""The fake host of the fast tests, loaded beside the real one and put nowhere."""

import importlib.util
import sys
from pathlib import Path

TESTS = Path(__file__).resolve().parents[1]


def load(file, name):
    """Import a file of the tests' root under its name."""
    spec = importlib.util.spec_from_file_location(name, TESTS / file)
    module = sys.modules[name] = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def contents(stub):
    """Module name of the host -> name -> what stands for it; models and comfy.sd among them."""
    sd = load("host_stub_sd.py", "host_stub_sd")
    loaders = ("load_diffusion_model_state_dict", "VAE")
    return stub.contents() | {
        "comfy.sd": {name: getattr(sd, name) for name in loaders},
        "comfy.model_patcher": {"ModelPatcher": stub.Patcher},
    }
