"""Packed attention backends by name, and the reason why one cannot run; none is replaced.

Dims: B batch, S tokens of a sequence, H heads, K channels of a head.
"""

from collections.abc import Callable
from functools import lru_cache, partial
from itertools import accumulate

import torch
from torch import Tensor

from ..checks import check_choice
from .attention import Packed, grouped, sdpa
from .geometry import Bounds, check_bounds

WIDEST = 256
"""Channels of a head that the flash kernels take at most."""
TRITON_WIDTHS = (16, 128)
"""Channels of a head that our Triton kernel takes: fewest and most, even."""


def why_not_flash_varlen(q: Tensor) -> str | None:
    """Return why flash-attn's varlen function cannot run on a tensor like q; None if it can."""
    try:
        from flash_attn import flash_attn_varlen_func  # noqa: F401
    except ImportError as error:
        return f"the package flash-attn is not usable here ({error})"
    return _why_not_on_device(q) or _why_not_width(q)


def why_not_torch_varlen(q: Tensor) -> str | None:
    """Return why torch's varlen_attn cannot run on a tensor like q; None if it can."""
    try:
        from torch.nn.attention.varlen import varlen_attn  # noqa: F401
    except ImportError:
        return f"torch has varlen_attn from 2.10, this is {torch.__version__}"
    reason = _why_not_on_device(q) or _why_not_width(q)
    if reason is None and not torch.backends.cuda.is_flash_attention_available():
        return "this build of torch has no flash attention, as on Windows"
    return reason


def why_not_triton(q: Tensor) -> str | None:
    """Return why our Triton kernel cannot run on a tensor like q; None if it can."""
    try:
        import triton  # noqa: F401
    except ImportError as error:
        return f"the package triton is not usable here ({error})"
    least, most = TRITON_WIDTHS
    width = q.shape[-1]
    if width % 2 or not least <= width <= most:
        return f"it takes even head widths of {least} to {most}, got {width}"
    if q.requires_grad and torch.is_grad_enabled():
        return "it has no backward pass, and the queries, keys or values require a gradient"
    return _why_not_on_device(q)


def _why_not_on_device(q: Tensor) -> str | None:
    """Check the device and dtype that all three kernels need."""
    if not torch.cuda.is_available():
        return f"it needs a CUDA or ROCm device, and torch {torch.__version__} sees none"
    if not q.is_cuda:
        return f"it needs tensors on the GPU, got {q.device}"
    if q.dtype not in (torch.float16, torch.bfloat16):
        return f"it takes float16 or bfloat16, got {q.dtype}"
    if torch.version.hip is None and torch.cuda.get_device_capability(q.device) < (8, 0):
        return "it needs compute capability 8.0 (Ampere) or newer"
    return None


def _why_not_width(q: Tensor) -> str | None:
    """Check the head width that the flash kernels need."""
    width = q.shape[-1]
    if width % 8 or width > WIDEST:
        return f"it takes head widths that are multiples of 8 up to {WIDEST}, got {width}"
    return None


def _flash_varlen(q: Tensor, k: Tensor, v: Tensor, bounds: Bounds) -> Tensor:
    from flash_attn import flash_attn_varlen_func

    return _varlen(flash_attn_varlen_func, q, k, v, bounds)


def _torch_varlen(q: Tensor, k: Tensor, v: Tensor, bounds: Bounds) -> Tensor:
    from torch.nn.attention.varlen import varlen_attn

    return _varlen(varlen_attn, q, k, v, bounds)


def _triton(q: Tensor, k: Tensor, v: Tensor, bounds: Bounds) -> Tensor:
    from .triton_kernel import attention

    return attention(q, k, v, bounds)


def _varlen(kernel: Callable, q: Tensor, k: Tensor, v: Tensor, bounds: Bounds) -> Tensor:
    """Call a kernel that takes tokens [B*S, H, K] and the offsets of the ranges in them."""
    lengths = tuple(stop - start for start, stop in bounds if stop > start)
    if not lengths or not len(q):
        return torch.zeros_like(v)
    # Both functions take offsets and lengths in this order, under different keywords.
    offsets, longest = _offsets(lengths, len(q), q.device), max(lengths)
    flat = (x.flatten(0, 1) for x in (q, k, v))
    out = kernel(*flat, offsets, offsets, longest, longest)
    return out.unflatten(0, q.shape[:2])


@lru_cache(maxsize=64)
def _offsets(lengths: tuple[int, ...], batch: int, device: torch.device) -> Tensor:
    """Return the first token of each range of each sample among B*S, and the end: int32.

    Cached, since the copy to a GPU synchronises and every layer needs the same.
    """
    # An inference tensor could not be saved for a later backward pass.
    with torch.inference_mode(False):
        ends = [0, *accumulate(lengths * batch)]
        return torch.tensor(ends, dtype=torch.int32, device=device)


_NAMED: dict[str, tuple[Packed, Callable[[Tensor], str | None]]] = {
    "sdpa": (grouped(sdpa), lambda q: None),
    "flash_varlen": (_flash_varlen, why_not_flash_varlen),
    "torch_varlen": (_torch_varlen, why_not_torch_varlen),
    "triton": (_triton, why_not_triton),
}
BACKENDS = tuple(_NAMED)
"""Names that `backend` and `why_not` take; a host's own attention enters through `grouped`."""


def why_not(name: str, q: Tensor) -> str | None:
    """Return why the backend `name` cannot run on a tensor like q [..., H, K]; None if it can."""
    check_choice(name, "attention backend", BACKENDS)
    return _NAMED[name][1](q)


def backend(name: str) -> Packed:
    """Return the packed attention of a name in BACKENDS.

    Returns:
        (q, k, v [B, S, H, K], bounds) -> [B, S, H, K]. It raises ValueError with the reason when
        it cannot run on its inputs; no other backend is called instead.

    Raises:
        ValueError: an unknown name.
    """
    check_choice(name, "attention backend", BACKENDS)
    return partial(_run_or_refuse, name)


def _run_or_refuse(name: str, q: Tensor, k: Tensor, v: Tensor, bounds: Bounds) -> Tensor:
    for x in (q, k, v):
        if reason := why_not(name, x):
            others = ", ".join(other for other in BACKENDS if other != name)
            raise ValueError(
                f"attention backend {name} cannot run: {reason}; choose another ({others})."
            )
    check_bounds(bounds, q.shape[1])
    return _NAMED[name][0](q, k, v, bounds)
