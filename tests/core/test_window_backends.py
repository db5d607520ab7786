"""Other kernels by name: called with the right offsets, or refused with the reason.

Stand-ins with the kernels' signatures attend exactly, range by range, from the offsets they get.
"""

import ast
import sys
import types
from pathlib import Path

import pytest
import torch
from surf.surf_core.window import (
    BACKENDS,
    backend,
    grouped,
    sdpa,
    segments,
    token_bounds,
    why_not,
    why_not_flash_varlen,
    why_not_torch_varlen,
    why_not_triton,
)
from surf.surf_core.window import backends as module

FOLDER = Path(module.__file__).parent
HEADS, WIDTH = 2, 8
BOUNDS = {
    "uniform": token_bounds(3, segments(9, 4, True)),
    "ragged with empty ranges": token_bounds([0, 0, 5, 1, 0, 2, 1, 0, 0], segments(9, 2, False)),
    "one range": ((0, 11),),
}
NAMED = [name for name in BACKENDS if name != "sdpa"]


def qkv(tokens, batch=1, width=WIDTH, dtype=torch.float64):
    generator = torch.Generator().manual_seed(0)
    shape = (batch, tokens, HEADS, width)
    return tuple(torch.randn(shape, generator=generator, dtype=dtype) for _ in range(3))


class Varlen:
    """What both varlen functions do, with the arguments that they share."""

    def __init__(self):
        self.calls = []

    def __call__(self, q, k, v, cu_q, cu_k, max_q, max_k, **keywords):
        assert not keywords
        assert q.ndim == 3
        assert cu_q.dtype == cu_k.dtype == torch.int32
        assert cu_q.device == q.device
        self.calls.append((cu_q.tolist(), max_q))
        sizes = cu_q.diff()
        assert cu_q[0] == 0
        assert cu_q[-1] == len(q) == len(k) == len(v)
        assert (sizes > 0).all()
        assert torch.equal(cu_q, cu_k)
        assert isinstance(max_q, int)
        assert max_q == max_k == sizes.max()
        parts = [x.split(sizes.tolist()) for x in (q, k, v)]
        return torch.cat([sdpa(*(x[None] for x in one))[0] for one in zip(*parts, strict=True)])


@pytest.fixture
def anywhere(monkeypatch):
    """Let the glue run on the CPU in float64."""
    monkeypatch.setattr(module, "_why_not_on_device", lambda q: None)
    monkeypatch.setattr(torch.backends.cuda, "is_flash_attention_available", lambda: True)


@pytest.fixture
def kernels(monkeypatch, anywhere):
    """Stand-ins for all three kernels, by the name of their backend."""
    made = {"flash_varlen": Varlen(), "torch_varlen": Varlen(), "triton": grouped(sdpa)}
    flash = types.ModuleType("flash_attn")
    flash.flash_attn_varlen_func = made["flash_varlen"]
    ours = types.ModuleType(f"{module.__package__}.triton_kernel")
    ours.attention = made["triton"]
    varlen = types.ModuleType("torch.nn.attention.varlen")
    varlen.varlen_attn = made["torch_varlen"]
    for stand_in in (flash, varlen, ours, types.ModuleType("triton")):
        monkeypatch.setitem(sys.modules, stand_in.__name__, stand_in)
    return made


def test_backends_are_these():
    assert BACKENDS == ("sdpa", "flash_varlen", "torch_varlen", "triton")


@pytest.mark.parametrize("batch", [1, 2])
@pytest.mark.parametrize("case", BOUNDS)
@pytest.mark.parametrize("name", BACKENDS)
def test_every_backend_matches_grouped_dense_calls(name, case, batch, kernels, tolerance):
    bounds = BOUNDS[case]
    width = 16 if name == "triton" else WIDTH
    tensors = qkv(bounds[-1][1], batch, width)
    assert why_not(name, tensors[0]) is None
    out = backend(name)(*tensors, bounds)
    expected = grouped(sdpa)(*tensors, bounds)
    assert out.shape == expected.shape
    assert torch.allclose(out, expected, rtol=0, atol=tolerance[torch.float64])


@pytest.mark.parametrize("name", ["flash_varlen", "torch_varlen"])
def test_offsets_skip_empty_ranges_and_continue_through_the_batch(name, kernels):
    backend(name)(*qkv(6, batch=2), ((0, 0), (0, 2), (2, 2), (2, 6), (6, 6)))
    assert kernels[name].calls == [([0, 2, 6, 8, 12], 4)]


@pytest.mark.parametrize("name", ["flash_varlen", "torch_varlen"])
def test_nothing_to_attend_to_calls_no_kernel(name, kernels):
    q, k, v = qkv(0, batch=2)
    assert backend(name)(q, k, v, ((0, 0), (0, 0))).shape == v.shape
    assert kernels[name].calls == []


@pytest.mark.parametrize("name", ["flash_varlen", "torch_varlen"])
def test_offsets_made_without_gradients_serve_training_later(name, kernels):
    bounds = ((0, 3), (3, 10))
    with torch.inference_mode():
        backend(name)(*qkv(10), bounds)
    leaves = [x.requires_grad_() for x in qkv(10)]
    backend(name)(*leaves, bounds).sum().backward()
    assert not module._offsets((3, 7), 1, torch.device("cpu")).is_inference()
    assert all(x.grad is not None for x in leaves)


@pytest.mark.parametrize("name", NAMED)
def test_named_backends_reject_ranges_that_do_not_cover_the_tokens(name, kernels):
    with pytest.raises(ValueError, match="cover 6 tokens once"):
        backend(name)(*qkv(6, width=16), ((0, 5),))


def test_triton_rejects_tensors_that_require_a_gradient(kernels):
    q, k, v = qkv(6, width=16)
    v.requires_grad_()
    with pytest.raises(ValueError, match="backend triton cannot run: it has no backward pass"):
        backend("triton")(q, k, v, ((0, 6),))
    with torch.no_grad():
        backend("triton")(q, k, v, ((0, 6),))


@pytest.mark.parametrize("name", NAMED)
def test_a_kernel_that_cannot_run_is_refused_with_its_reason(name, kernels, monkeypatch):
    monkeypatch.setattr(module, "_why_not_on_device", lambda q: "it is Sunday")
    with pytest.raises(ValueError, match=rf"{name} cannot run: it is Sunday; choose another.*sdpa"):
        backend(name)(*qkv(6, width=16), ((0, 6),))


@pytest.mark.parametrize("call", [backend, lambda name: why_not(name, torch.zeros(1))])
def test_unknown_names_are_rejected(call):
    with pytest.raises(ValueError, match="attention backend must be one of sdpa, .*'sage'"):
        call("sage")


def test_sdpa_runs_everywhere():
    assert why_not("sdpa", qkv(1)[0]) is None


@pytest.mark.parametrize(
    ("reason", "package"),
    [(why_not_flash_varlen, "flash_attn"), (why_not_triton, "triton")],
    ids=["flash_attn", "triton"],
)
def test_a_missing_package_is_said(reason, package, anywhere, monkeypatch):
    monkeypatch.setitem(sys.modules, package, None)
    assert "is not usable here" in reason(qkv(1, width=16)[0])


def test_a_torch_without_varlen_attn_is_said(anywhere, monkeypatch):
    monkeypatch.setitem(sys.modules, "torch.nn.attention.varlen", None)
    assert why_not_torch_varlen(qkv(1)[0]).startswith("torch has varlen_attn from 2.10, this is")


def test_a_torch_built_without_flash_attention_is_said(kernels, monkeypatch):
    monkeypatch.setattr(torch.backends.cuda, "is_flash_attention_available", lambda: False)
    assert "no flash attention" in why_not_torch_varlen(qkv(1)[0])


@pytest.mark.parametrize(
    ("name", "width", "fits"),
    [
        *((name, width, fits) for name in ("flash_varlen", "torch_varlen")
          for width, fits in [(72, True), (256, True), (36, False), (264, False)]),
        *(("triton", width, fits)
          for width, fits in [(72, True), (16, True), (128, True), (73, False), (8, False),
                              (136, False)]),
    ],
)  # fmt: skip
def test_head_widths_that_a_kernel_does_not_take_are_said(name, width, fits, kernels):
    reason = why_not(name, torch.zeros(1, 1, 1, width))
    assert reason is None if fits else f"got {width}" in reason


def on_gpu(dtype):
    """What the checks look at of a tensor on a GPU."""
    return types.SimpleNamespace(dtype=dtype, is_cuda=True, device="cuda:0")


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_full_precision_is_refused(dtype, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    said = module._why_not_on_device(on_gpu(dtype))
    assert "float16 or bfloat16, got torch.float" in said


def test_a_machine_without_a_gpu_and_a_tensor_beside_it_are_said(monkeypatch):
    half = torch.zeros(1, dtype=torch.float16)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert "needs a CUDA or ROCm device" in module._why_not_on_device(half)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    assert "needs tensors on the GPU, got cpu" in module._why_not_on_device(half)


@pytest.mark.parametrize(("capability", "fits"), [((7, 5), False), ((8, 0), True), ((12, 0), True)])
def test_old_gpus_are_refused(capability, fits, monkeypatch):
    monkeypatch.setattr(torch.version, "hip", None)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: capability)
    reason = module._why_not_on_device(on_gpu(torch.float16))
    assert reason is None if fits else "compute capability 8.0" in reason


def test_optional_packages_are_imported_when_called_only():
    files = {path.name: path for path in FOLDER.glob("*.py")}
    assert {"triton_kernel.py", "backends.py", "attention.py"} <= files.keys()
    for name, path in files.items():
        if name == "triton_kernel.py":
            continue
        for node in ast.parse(path.read_text(encoding="utf-8")).body:
            if isinstance(node, ast.Import | ast.ImportFrom):
                text = ast.unparse(node)
                assert not any(word in text for word in ("triton_kernel", "flash_attn", "varlen "))
                assert "import triton" not in text


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("batch", [1, 2])
@pytest.mark.parametrize("case", BOUNDS)
@pytest.mark.parametrize("name", BACKENDS)
def test_every_kernel_matches_dense_calls_on_a_gpu(name, case, batch, tolerance):
    bounds = BOUNDS[case]
    tensors = qkv(bounds[-1][1], batch, 72, torch.float32)
    half = [x.to("cuda", torch.bfloat16) for x in tensors]
    if reason := why_not(name, half[0]):
        pytest.skip(reason)
    out = backend(name)(*half, bounds).cpu().double()
    expected = grouped(sdpa)(*(x.cpu().double() for x in half), bounds)
    assert torch.allclose(out, expected, rtol=0, atol=tolerance[torch.bfloat16])
