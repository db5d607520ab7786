"""Time one call, say why it failed, and measure what a machine can do at best."""

import gc
import time
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

try:
    from triton.runtime.errors import TritonError
except ImportError:
    TritonError = RuntimeError

FAILURES = (
    RuntimeError, TritonError, ValueError, TypeError, AttributeError, LookupError, AssertionError,
    ArithmeticError, ImportError, OSError,
)  # fmt: skip
"""All that kernels, hosts and nodes raise; torch's errors of the device are RuntimeErrors. An
interrupt is none of them."""
LONGEST = 160
TIMES = 5
"""Calls, of which the fastest counts."""


def seconds(run: Callable[[], object], cuda: bool) -> float:
    """Time one call."""
    if cuda:
        torch.cuda.synchronize()
    began = time.perf_counter()
    run()
    if cuda:
        torch.cuda.synchronize()
    return time.perf_counter() - began


def reason(error: BaseException) -> str:
    """Why a call failed, on one line of a table; memory that it held is let go."""
    error.__traceback__ = error.__context__ = error.__cause__ = None
    if isinstance(error, torch.OutOfMemoryError):
        said = "out of memory"
    else:
        first, *more = str(error).splitlines() or [""]
        # A compiler says in the second line what went wrong.
        first = " ".join([first, *more[:1]]) if first.endswith(":") else first
        said = f"{type(error).__name__}: {first[:LONGEST]}".replace("|", "/")
    gc.collect()
    if torch.cuda.is_available():
        # After an error of the device itself, every call raises it again.
        try:
            torch.cuda.empty_cache()
        except RuntimeError as again:
            said += f"; the device is lost ({type(again).__name__})"
    return said


def ceilings(like: Tensor, heads: dict[int, int]) -> tuple[float, dict[int, float]]:
    """Rates of matrix products, and of dense attention by head width, operations a second.

    Args:
        heads: head width -> number of heads.
    """
    rows, wide = (16384, 5120) if like.is_cuda else (1024, 512)
    a, b = (torch.randn(*size, dtype=like.dtype, device=like.device)
            for size in ((rows, wide), (wide, wide)))  # fmt: skip
    rate = 2 * rows * wide**2 / best(lambda: a @ b, like)
    attention = {}
    for width, count in heads.items():
        q = torch.randn(1, count, rows, width, dtype=like.dtype, device=like.device)
        took = best(lambda: F.scaled_dot_product_attention(q, q, q), like)  # noqa: B023
        attention[width] = 4 * rows**2 * width * count / took
    return rate, attention


def bandwidth(like: Tensor) -> float:
    """Bytes a second of a large copy, those read and those written."""
    source = torch.ones(2**30 if like.is_cuda else 2**26, dtype=torch.uint8, device=like.device)
    target = torch.empty_like(source)
    return 2 * source.numel() / best(lambda: target.copy_(source), like)


def best(run: Callable[[], object], like: Tensor) -> float:
    """Seconds of the fastest of some calls."""
    return min(seconds(run, like.is_cuda) for _ in range(TIMES))
