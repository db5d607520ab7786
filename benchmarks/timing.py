"""Time calls in turns, keep why one failed, and measure what a machine can do at best."""

import gc
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from statistics import median

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
CALLS = 5
"""Calls of a ceiling, of which the fastest counts."""
WARM_UPS, LEAST = 2, 3
OVER = "the minutes were over"


def device_scalar() -> Tensor:
    """A zero of the dtype and device that benchmarks use: bf16 on a GPU, fp32 on a CPU."""
    if torch.cuda.is_available():
        return torch.zeros((), dtype=torch.bfloat16, device="cuda")
    return torch.zeros(())


def seconds(run: Callable[[], object], cuda: bool) -> float:
    """Time one call, on a GPU until it has finished."""
    if cuda:
        torch.cuda.synchronize()
    began = time.perf_counter()
    run()
    if cuda:
        torch.cuda.synchronize()
    return time.perf_counter() - began


def reason(error: BaseException) -> str:
    """Say why a call failed, on one line of a table, and free memory that it held."""
    error.__traceback__ = error.__context__ = error.__cause__ = None
    if isinstance(error, torch.OutOfMemoryError):
        text = "out of memory"
    else:
        first, *more = str(error).splitlines() or [""]
        # A compiler says in the second line what went wrong.
        first = " ".join([first, *more[:1]]) if first.endswith(":") else first
        text = f"{type(error).__name__}: {first[:LONGEST]}".replace("|", "/")
    gc.collect()
    if torch.cuda.is_available():
        # After an error of the device itself, every call raises it again.
        try:
            torch.cuda.empty_cache()
        except RuntimeError as again:
            text += f"; the device is lost ({type(again).__name__})"
    return text


@dataclass(kw_only=True, slots=True, eq=False)
class TimedCall:
    """One way to compute something: what its calls took, or why there is no time."""

    name: str
    call: Callable[[], object]
    cuda: bool
    why_not: str = ""
    first: float = 0.0
    """Seconds of the very first call: plans, compilation, memory."""
    spent: list[float] = field(default_factory=list)
    """Seconds of each call after it, with warm-ups."""

    @property
    def took(self) -> float | None:
        """Median in seconds; None if it failed."""
        return None if self.why_not else median(self.spent[WARM_UPS:])

    def attempt(self, run: Callable[[], object]) -> None:
        """Run; a failure becomes `why_not`, and this call is not made again."""
        if self.why_not:
            return
        try:
            run()
        except FAILURES as error:
            # Its inputs go with it.
            self.call = lambda: None
            self.why_not = reason(error)

    def start(self, verify: Callable[[object], object]) -> None:
        """Make the first call and verify its result."""
        results: list[object] = []

        def run() -> None:
            self.first = seconds(lambda: results.append(self.call()), self.cuda)
            verify(results[0])

        self.attempt(run)

    def again(self) -> None:
        self.attempt(lambda: self.spent.append(seconds(self.call, self.cuda)))


def in_turns(calls: Iterable[TimedCall], reps: int, deadline: float) -> None:
    """Make every call once a turn; at least LEAST times after the warm-ups, then until deadline."""
    for turn in range(WARM_UPS + reps):
        if turn >= WARM_UPS + LEAST and time.perf_counter() > deadline:
            return
        for each in calls:
            each.again()


def ceilings(like: Tensor, heads: dict[int, int]) -> tuple[float, dict[int, float]]:
    """Measure rates of matrix products, and of dense attention by head width, operations a second.

    Args:
        heads: head width -> number of heads.
    """
    rows, wide = (16384, 5120) if like.is_cuda else (1024, 512)
    a, b = (torch.randn(*size, dtype=like.dtype, device=like.device)
            for size in ((rows, wide), (wide, wide)))  # fmt: skip
    rate = 2 * rows * wide**2 / _fastest(lambda: a @ b, like)
    attention = {}
    for width, count in heads.items():
        q = torch.randn(1, count, rows, width, dtype=like.dtype, device=like.device)
        took = _fastest(lambda: F.scaled_dot_product_attention(q, q, q), like)  # noqa: B023
        attention[width] = 4 * rows**2 * width * count / took
    return rate, attention


def _fastest(run: Callable[[], object], like: Tensor) -> float:
    return min(seconds(run, like.is_cuda) for _ in range(CALLS))
