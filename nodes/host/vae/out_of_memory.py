"""Detect that memory ran out, by one table of error texts of all backends.

torch has one exception type for it, which its CUDA and XPU allocators raise. Other allocators, and
libraries that allocate by themselves, raise a RuntimeError, which is recognised by its text.
"""

import copy
from collections.abc import Callable
from typing import Any

import comfy.model_management
import torch

from ..node import label

MEMORY_ERRORS = (RuntimeError, MemoryError)
"""Types to catch, and to ask `is_out_of_memory` about."""
TEXTS = {
    # CUDA, HIP, XPU, NPU and MLU allocators; MPS ("MPS backend out of memory", pytorch's
    # MPSAllocator.mm); "CUDA error: out of memory" of other calls than the allocator's.
    "out of memory": "c10/cuda/CUDACachingAllocator.cpp",
    # cuBLAS, cuSOLVER, cuFFT, cuDNN 8, and the same names with HIP in front.
    "_alloc_failed": "status names in ATen/cuda/Exceptions.cpp; pytorch/pytorch issue 20123",
    # cuDNN 9: CUDNN_STATUS_INTERNAL_ERROR_DEVICE_ALLOCATION_FAILED, and HOST_.
    "_allocation_failed": "status names in libcudnn_graph.so.9",
    "miopenstatusallocfailed": "miopen.h",
    # One buffer larger than Metal allows.
    "invalid buffer size": "pytorch/pytorch issue 141909",
    # Level Zero under XPU: device, host, and 40 for a kernel's own needs.
    "ur_result_error_out_of_": "intel/torch-xpu-ops issues 1598 and 1170",
    "not enough gpu video memory": "microsoft/DirectML issue 579",
    # Linux and macOS; Windows.
    "can't allocate memory": "c10/core/impl/alloc_cpu.cpp",
    "not enough memory": "c10/core/impl/alloc_cpu.cpp",
    # Dynamic VRAM. 2: the driver refused a page of weights, and named another reason than a full
    # device (Comfy-Org/ComfyUI issues 12943 and 15269); smaller activations leave it more room.
    "fault failed: 2": "comfy_aimdo/model_vbar.py",
    "vram grow failed": "comfy_aimdo/vram_buffer.py",
    "vram reservation failed": "comfy_aimdo/vram_buffer.py; Comfy-Org/comfy-aimdo issue 49",
    "hostbuffer allocation failed": "comfy_aimdo/host_buffer.py",
}
"""Part of an error's text, in lower case -> where it comes from."""

FALLBACKS = ("decode_tiled_", "decode_tiled_3d", "encode_tiled_", "encode_tiled_3d")
FALLBACKS += ("_decode_tiled_owned", "_encode_tiled_owned")
"""What the host's VAE calls when memory ran out, by version and kind of VAE."""


def is_out_of_memory(error: BaseException) -> bool:
    """Say whether an error means that memory ran out, so that smaller pieces may fit.

    The host is asked first: it also clears the error that a failed CUDA call leaves behind.
    """
    if isinstance(error, MemoryError) or _known_to_host(comfy.model_management, error):
        return True
    message = str(error).lower()
    return isinstance(error, MEMORY_ERRORS) and any(text in message for text in TEXTS)


def _known_to_host(host: Any, error: BaseException) -> bool:
    if hasattr(host, "is_oom"):
        return host.is_oom(error)
    # Exception itself where torch has no type for it.
    return host.OOM_EXCEPTION is not Exception and isinstance(error, host.OOM_EXCEPTION)


def without_fallback(vae: Any) -> Any:
    """Copy a VAE object so that it raises where it would take smaller tiles by itself.

    The network stays shared.
    """

    def refuse(name: str) -> Callable:
        def out_of_memory(*args: Any, **kwargs: Any) -> None:
            raise torch.cuda.OutOfMemoryError(
                f"{label()}: out of memory in the VAE, in place of the host's {name}."
            )

        return out_of_memory

    shallow = copy.copy(vae)
    for name in FALLBACKS:
        if hasattr(shallow, name):
            setattr(shallow, name, refuse(name))
    return shallow
