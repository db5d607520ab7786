"""Compile the transformer blocks of a host model one by one, on a clone.

The host's own helper compiles modules by name and puts them in place while the model runs. All
blocks of a model share one compiled code, and no text, step, window or mask is a constant of it:
torch guards everything that a block reads, and compiles again where something of it has changed.
"""

import importlib.util
import inspect
import shutil
import sys
import sysconfig
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any

import torch

from ...surf_core.refiner import SurfRefinerDiT
from .models import uncompiled
from .node import NodeLog, reporting_as, running_node, running_node_id, show_status

log = NodeLog(__name__)

LIMIT_KEY = "surf_compile"
ROWS = ("blocks", "double_blocks", "single_blocks", "vace_blocks", "transformer_blocks")
"""Attributes of a network that hold its blocks in a row."""
PARTS = ("attend", "cross_attend_and_mlp")
"""Methods of a block of ours: they see one segment, so that its length alone changes."""
LIMIT = 64
"""Codes of one block at most: torch would stop at 8, for all models of the same class together."""


def with_compiled_blocks(model: Any) -> Any:
    """Return a clone whose blocks run compiled.

    Args:
        model: host MODEL; its weights are shared, it is not changed.

    Returns:
        A clone. What later nodes add to it (LoRA, windows, masks, attention kernels) holds. The
        first run of each kind takes longer; it compiles.

    Raises:
        ValueError: a model without known blocks, or a machine that cannot compile, with what to
            install.
    """
    keys = list(block_keys(model.get_model_object("diffusion_model")))
    if not keys:
        raise ValueError(
            f"expected a model with blocks in a row ({', '.join(ROWS)}), got "
            f"{type(_network(model)).__name__}; leave this node out."
        )
    if reason := why_not_compile(model.load_device):
        raise ValueError(f"torch cannot compile here: {reason} Or leave this node out.")
    from comfy.patcher_extension import WrappersMP
    from comfy_api.torch_helpers import set_torch_compile_wrapper

    clone = _static_clone(model)
    set_torch_compile_wrapper(clone, backend="inductor", keys=keys)
    clone.remove_wrappers_with_key(WrappersMP.APPLY_MODEL, LIMIT_KEY)
    clone.add_wrapper_with_key(WrappersMP.APPLY_MODEL, LIMIT_KEY, CompiledCalls())
    return clone


def outside_graphs(function: Callable, *, recursive: bool) -> Callable:
    """Keep a function out of torch.compile, which would make the grid of its first call a constant.

    A host that compiles has loaded dynamo by then; without it nothing is compiled, and its import
    of two seconds is saved.
    """
    if "torch._dynamo" not in sys.modules:
        return function
    return torch.compiler.disable(function, recursive=recursive)


def outside_memory_graph() -> AbstractContextManager:
    """Return a context whose tensors may outlive the transformer block that they are made in.

    Hosts after 0.33 record the memory of a block of MiniMax H3 and LTX-2, and end the process when
    a tensor is left over; they have a function for those that must be. It is looked up where the
    host has loaded it, since without its models nothing is recorded.
    """
    prefetch = sys.modules.get("comfy.model_prefetch")
    pause = getattr(prefetch, "pause_malloc_graph", nullcontext)
    return pause()


def block_keys(module: Any) -> Iterator[str]:
    """Yield the names, in the host's form, of what to compile in a diffusion model.

    The first block of Wan stays as it is: its tokens come with other strides than those of all
    others, so that it alone would double what is compiled.
    """
    network = uncompiled(module)
    ours = isinstance(network, SurfRefinerDiT)
    for row in ROWS:
        first = 1 if row == "blocks" and not ours else 0
        for index in range(first, len(getattr(network, row, ()))):
            name = f"diffusion_model.{row}.{index}"
            yield from (f"{name}.{part}" for part in PARTS) if ours else (name,)


def why_not_compile(device: torch.device) -> str | None:
    """Say why torch cannot compile for a device, and what to install; None if it can.

    Nothing is run or compiled to find out.
    """
    import torch._dynamo

    if not torch._dynamo.is_dynamo_supported():
        return f"torch {torch.__version__} does not support Python {sys.version.split()[0]}."
    if device.type in ("cuda", "xpu"):
        return _why_not_triton(device)
    if device.type == "cpu":
        return _why_not_cpp()
    return f"it makes code for CUDA, ROCm, XPU and the CPU, not for {device.type}."


def _why_not_triton(device: torch.device) -> str | None:
    if importlib.util.find_spec("triton") is None:
        package = "triton-windows" if sys.platform == "win32" else "triton"
        return f"the package {package} is missing; install it with pip."
    if device.type == "cuda" and torch.cuda.get_device_capability(device)[0] < 7:
        return "this GPU is older than Volta, which triton needs."
    # The Windows package brings its own compiler.
    return None if sys.platform == "win32" else _why_not_c(("cc", "gcc", "clang"))


def _why_not_cpp() -> str | None:
    import torch._inductor.config

    if sys.platform == "win32":
        return None if shutil.which("cl") else (
            "cl, the C++ compiler, is not on the path; install the Build Tools for Visual Studio, "
            "and start ComfyUI from their prompt."
        )  # fmt: skip
    compilers = torch._inductor.config.cpp.cxx
    compilers = compilers if isinstance(compilers, list | tuple) else (compilers,)
    return _why_not_c(tuple(name for name in compilers if name))


def _why_not_c(compilers: tuple[str, ...]) -> str | None:
    """Look for one of the compilers, and for Python's headers, which the code includes."""
    if not any(map(shutil.which, compilers)):
        return f"no compiler ({', '.join(compilers)}) is on the path; install one, such as g++."
    headers = Path(sysconfig.get_path("include"))
    if not (headers / "Python.h").exists():
        return f"{headers / 'Python.h'} is missing; install python3-dev or what it is called here."
    return None


def _static_clone(model: Any) -> Any:
    """Clone without the dynamic weights of newer hosts, which compiled code cannot read; their own
    compile node asks for the same."""
    if "disable_dynamic" not in inspect.signature(model.clone).parameters:
        return model.clone()
    is_dynamic = getattr(model, "is_dynamic", lambda: False)()
    if is_dynamic and getattr(model, "cached_patcher_init", None) is None:
        raise ValueError(
            "the node that loaded this model does not say how to load it again without "
            "dynamic VRAM; use another loader, or start ComfyUI with --disable-dynamic-vram."
        )
    return model.clone(disable_dynamic=True)


class CompiledCalls:
    """Wraps the calls of a compiled model: room for more codes, and word of what compiling takes.

    The first call after the node ran compiles, which shows under the node; a later one that takes
    in another kind of input does so too, and shows when it is over.
    """

    def __init__(self) -> None:
        self.node, self.name, self.began = running_node_id(), running_node(), False

    def __call__(self, executor: Any, *args: Any, **kwargs: Any) -> Any:
        import torch._dynamo.config as config
        from torch._dynamo.utils import counters

        # The older name of the two.
        name = "recompile_limit" if hasattr(config, "recompile_limit") else "cache_size_limit"
        first, self.began = not self.began, True
        if first:
            show_status("compiling: this step\nmay take minutes", self.node)
        codes, start = counters["stats"]["unique_graphs"], time.perf_counter()
        with config.patch({name: max(LIMIT, getattr(config, name))}):
            out = executor(*args, **kwargs)
        made, seconds = counters["stats"]["unique_graphs"] - codes, time.perf_counter() - start
        if made:
            said = f"compiled {made} codes in a step of {seconds:.0f} s"
            show_status(said, self.node)
            with reporting_as(self.name):
                log.info("%s.", said)
        elif first:
            show_status("compiled before", self.node)
        return out


def _network(model: Any) -> Any:
    return uncompiled(model.get_model_object("diffusion_model"))
