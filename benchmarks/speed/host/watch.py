"""A watch on the host's models: when each evaluation ended, what it held, which kernels it ran.

It sits in the host's own wrapper points and waits for the device after each evaluation.

Dims: B batch, T latent frames, H, W latent cells.
"""

import re
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

KEY = "host_flow"
KINDS = (
    ("attention", r"attention|sdpa|flash|fmha|attn"),
    ("convolution", r"conv|fprop|implicit|winograd|im2col"),
    ("GEMM", r"gemm|nvjet|cutlass|splitk|linear|::(add|b|badd)?mm$"),
)
"""Class -> what its kernels, or torch's own operations on a CPU, are called; first match counts."""
ELEMENTWISE = "elementwise"


@dataclass(kw_only=True, slots=True)
class Evaluation:
    """One step of a sampler: the network with and without the prompt."""

    size: tuple[int, int]
    """Rows and columns in latent cells."""
    began: float
    """Seconds of the clock."""
    ended: float
    """Seconds of the clock."""
    peak: int
    """Bytes allocated at most since this size began, weights and all; 0 on a CPU."""
    calls: list[tuple[int, int, int]]
    """Batch, rows and columns of each call of the network that came to its end."""
    shares: dict[str, float] | None
    """Class of kernels -> share of the time, if this one was profiled."""


@dataclass(kw_only=True, slots=True)
class Coding:
    """One pass through the VAE."""

    began: float
    ended: float
    peak: int
    """Bytes allocated at most, weights and all; 0 on a CPU."""
    shares: dict[str, float] | None


@dataclass(slots=True)
class Watch:
    """What one call of a stage did: set to zero by `start`, filled by the wrappers."""

    cuda: bool
    profiling: bool = False
    evaluations: list[Evaluation] = field(default_factory=list)
    coding: list[Coding] = field(default_factory=list)
    calls: list[tuple[int, int, int]] = field(default_factory=list)

    def now(self) -> float:
        """The clock, when the device has finished."""
        if self.cuda:
            torch.cuda.synchronize()
        return time.perf_counter()

    def start(self, profiling: bool = False) -> float:
        self.evaluations, self.coding, self.profiling = [], [], profiling
        self._forget_peak()
        return self.now()

    def over(self, model: Any) -> Any:
        """Clone a MODEL of the host so that this watch sees its evaluations."""
        from comfy.patcher_extension import WrappersMP

        clone = model.clone()
        clone.add_wrapper_with_key(WrappersMP.PREDICT_NOISE, KEY, self._evaluation)
        clone.add_wrapper_with_key(WrappersMP.APPLY_MODEL, KEY, self._call)
        return clone

    def over_vae(self, coder: Any) -> None:
        """See what a VAE of the host does."""
        coder.decode, coder.encode = self._coding(coder.decode), self._coding(coder.encode)

    def __deepcopy__(self, memo: dict) -> "Watch":
        # The host copies a model's options with all that its wrappers are bound to.
        return self

    def _evaluation(self, executor: Any, x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        size, self.calls = tuple(x.shape[-2:]), []
        if not self.evaluations or self.evaluations[-1].size != size:
            self._forget_peak()
        began = self.now()
        out, shares = self._run(lambda: executor(x, *args, **kwargs))
        self.evaluations.append(
            Evaluation(size=size, began=began, ended=self.now(), peak=self.peak(),
                       calls=self.calls, shares=shares)
        )  # fmt: skip
        return out

    def _call(self, executor: Any, x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        out = executor(x, *args, **kwargs)
        self.calls.append((x.shape[0], *x.shape[-2:]))
        return out

    def _coding(self, code: Callable) -> Callable:
        def timed(*args: Any, **kwargs: Any) -> Tensor:
            self._forget_peak()
            began = self.now()
            out, shares = self._run(lambda: code(*args, **kwargs))
            ended, peak = self.now(), self.peak()
            self.coding.append(Coding(began=began, ended=ended, peak=peak, shares=shares))
            return out

        return timed

    def _run(self, run: Callable) -> tuple[Any, dict[str, float] | None]:
        return profiled(run, self.cuda) if self.profiling else (run(), None)

    def peak(self) -> int:
        return torch.cuda.max_memory_allocated() if self.cuda else 0

    def _forget_peak(self) -> None:
        if self.cuda:
            torch.cuda.reset_peak_memory_stats()


def profiled(run: Callable, cuda: bool) -> tuple[Any, dict[str, float] | None]:
    """Call, and give the share of each class of kernels in the time of all; None if none show."""
    from torch.profiler import ProfilerActivity, profile

    with profile(activities=[ProfilerActivity.CUDA if cuda else ProfilerActivity.CPU]) as seen:
        out = run()
        if cuda:
            torch.cuda.synchronize()
    spent = dict.fromkeys([*(name for name, _ in KINDS), ELEMENTWISE], 0.0)
    for event in seen.key_averages():
        took = event.self_device_time_total if cuda else event.self_cpu_time_total
        found = [name for name, pattern in KINDS if re.search(pattern, event.key, re.IGNORECASE)]
        spent[found[0] if found else ELEMENTWISE] += took
    total = sum(spent.values())
    return out, {name: took / total for name, took in spent.items()} if total else None
