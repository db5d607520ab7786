"""What may go wrong in one measurement without taking the others along."""

import gc

import torch

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
