"""Surf Compile: which blocks, what is refused with what to install, and what a clone gets."""

import copy
import importlib.util
import shutil
import sys
from types import ModuleType, SimpleNamespace

import comfy.patcher_extension
import host_stub
import pytest
import torch
import torch._dynamo.config as dynamo
from surf.nodes.compile import SurfCompile
from surf.nodes.host import compiling
from surf.surf_core.refiner import RefinerConfig, SurfRefinerDiT

CUDA = torch.device("cuda", 0)


def row(count):
    return torch.nn.ModuleList(torch.nn.Identity() for _ in range(count))


def network(**rows):
    module = torch.nn.Module()
    for name, count in rows.items():
        setattr(module, name, row(count))
    return module


def model(module):
    patcher = host_stub.Patcher()
    patcher.model.diffusion_model = module
    return patcher


@pytest.fixture
def calls(monkeypatch):
    """A host whose helper notes what it is asked to compile."""
    made = []
    helpers = ModuleType("comfy_api.torch_helpers")
    helpers.set_torch_compile_wrapper = lambda clone, **options: made.append((clone, options))
    monkeypatch.setitem(sys.modules, "comfy_api.torch_helpers", helpers)
    kinds = comfy.patcher_extension.WrappersMP
    monkeypatch.setattr(kinds, "APPLY_MODEL", "apply_model", raising=False)
    monkeypatch.setattr(compiling, "why_not_compile", lambda device: None)
    return made


def test_of_a_surf_refiner_two_methods_of_every_block_are_compiled():
    module = SurfRefinerDiT(RefinerConfig.tiny())
    keys = list(compiling.block_keys(module))
    blocks = [f"diffusion_model.blocks.{index}" for index in range(len(module.blocks))]
    assert keys == [
        f"{block}.{part}" for block in blocks for part in ("attend", "cross_attend_and_mlp")
    ]


def test_of_wan_every_block_but_the_first_is_compiled():
    assert list(compiling.block_keys(network(blocks=3, vace_blocks=1))) == [
        "diffusion_model.blocks.1", "diffusion_model.blocks.2", "diffusion_model.vace_blocks.0",
    ]  # fmt: skip


def test_both_rows_of_hunyuan_video_are_compiled():
    assert list(compiling.block_keys(network(double_blocks=1, single_blocks=2))) == [
        "diffusion_model.double_blocks.0", "diffusion_model.single_blocks.0",
        "diffusion_model.single_blocks.1",
    ]  # fmt: skip


def test_a_model_compiled_as_a_whole_shows_its_blocks():
    whole = SimpleNamespace(_orig_mod=network(blocks=2))
    assert list(compiling.block_keys(whole)) == ["diffusion_model.blocks.1"]


def test_the_node_clones_and_does_not_mutate_its_model(calls):
    given = model(network(blocks=2))
    before = copy.deepcopy((given.object_patches, given.wrappers, given.model_options))
    [out] = SurfCompile.execute(given).args
    assert out is not given
    assert (given.object_patches, given.wrappers, given.model_options) == before
    assert calls == [(out, {"backend": "inductor", "keys": ["diffusion_model.blocks.1"]})]


def test_two_nodes_in_a_row_leave_one_wrapper(calls):
    [once] = SurfCompile.execute(model(network(blocks=2))).args
    [twice] = SurfCompile.execute(once).args
    assert len(twice.wrappers["apply_model"][compiling.LIMIT_KEY]) == 1


def test_there_is_room_for_more_codes_while_the_model_runs_and_only_then(calls):
    [out] = SurfCompile.execute(model(network(blocks=2))).args
    [wrapper] = out.wrappers["apply_model"][compiling.LIMIT_KEY]
    before = dynamo.recompile_limit
    assert wrapper(lambda x, y: (x, y, dynamo.recompile_limit), 1, y=2) == (1, 2, compiling.LIMIT)
    assert dynamo.recompile_limit == before
    with pytest.raises(ZeroDivisionError):
        wrapper(lambda: 1 / 0)
    assert dynamo.recompile_limit == before
    with dynamo.patch(recompile_limit=1000):
        assert wrapper(lambda: dynamo.recompile_limit) == 1000


def test_weights_of_dynamic_vram_are_left_out_or_refused(calls):
    class Dynamic(host_stub.Patcher):
        cached_patcher_init = None

        def is_dynamic(self):
            return True

        def clone(self, disable_dynamic=False):
            new = super().clone()
            new.asked = disable_dynamic
            return new

    given = Dynamic()
    given.model.diffusion_model = network(blocks=2)
    with pytest.raises(ValueError, match="^Surf Compile: .*--disable-dynamic-vram"):
        SurfCompile.execute(given)
    given.cached_patcher_init = (lambda: None, ())
    assert SurfCompile.execute(given).args[0].asked is True


def test_a_model_without_blocks_is_rejected(calls):
    with pytest.raises(ValueError, match="^Surf Compile: .*blocks in a row.*got Module"):
        SurfCompile.execute(model(network()))
    assert calls == []


def test_a_machine_that_cannot_compile_is_rejected_before_anything_runs(calls, monkeypatch):
    monkeypatch.setattr(compiling, "why_not_compile", lambda device: "it lacks a compiler.")
    with pytest.raises(ValueError, match="^Surf Compile: .*it lacks a compiler.* leave this node"):
        SurfCompile.execute(model(network(blocks=2)))
    assert calls == []


def lacking(monkeypatch, *programs):
    monkeypatch.setattr(shutil, "which", lambda name: None if name in programs else f"/bin/{name}")


def with_triton(monkeypatch, found=True, capability=(9, 0)):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: found or None)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: capability)


def headers(monkeypatch, folder, there=True):
    if there:
        (folder / "Python.h").touch()
    monkeypatch.setattr(compiling.sysconfig, "get_path", lambda name: str(folder))


def test_a_cpu_needs_a_compiler_and_headers(monkeypatch, tmp_path):
    cpu = torch.device("cpu")
    headers(monkeypatch, tmp_path)
    lacking(monkeypatch)
    assert compiling.why_not_compile(cpu) is None
    lacking(monkeypatch, "g++", "clang++", "c++")
    assert "install one, such as g++" in compiling.why_not_compile(cpu)
    lacking(monkeypatch)
    (tmp_path / "Python.h").unlink()
    assert "python3-dev" in compiling.why_not_compile(cpu)
    monkeypatch.setattr(sys, "platform", "win32")
    assert compiling.why_not_compile(cpu) is None
    lacking(monkeypatch, "cl")
    assert "Visual Studio" in compiling.why_not_compile(cpu)


def test_a_gpu_needs_triton_and_a_compiler(monkeypatch, tmp_path):
    headers(monkeypatch, tmp_path)
    lacking(monkeypatch)
    with_triton(monkeypatch)
    assert compiling.why_not_compile(CUDA) is None
    with_triton(monkeypatch, capability=(6, 1))
    assert "Volta" in compiling.why_not_compile(CUDA)
    with_triton(monkeypatch, found=False)
    assert "triton is missing; install it with pip" in compiling.why_not_compile(CUDA)
    with_triton(monkeypatch)
    lacking(monkeypatch, "cc", "gcc", "clang")
    assert "no compiler (cc, gcc, clang)" in compiling.why_not_compile(CUDA)
    monkeypatch.setattr(sys, "platform", "win32")
    assert compiling.why_not_compile(CUDA) is None
    with_triton(monkeypatch, found=False)
    assert "triton-windows" in compiling.why_not_compile(CUDA)


def test_other_devices_and_other_pythons_are_named(monkeypatch):
    assert "not for mps" in compiling.why_not_compile(torch.device("mps"))
    monkeypatch.setattr(torch._dynamo, "is_dynamo_supported", lambda: False)
    assert "does not support Python" in compiling.why_not_compile(torch.device("cpu"))
