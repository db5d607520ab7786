"""Record when each evaluation of the host's models ended, and its memory.

The wrappers wait for the device after each evaluation.

Dims: B batch, T latent frames, H, W latent cells.
"""

import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

KEY = "host_flow"


@dataclass(kw_only=True, slots=True)
class ProfiledCall:
    """One evaluation of a sampler, or one pass through the VAE."""

    began: float
    """Seconds of the clock."""
    ended: float
    """Seconds of the clock."""
    peak: int
    """Bytes allocated at most, weights and all, since this size began; 0 on a CPU."""
    size: tuple[int, int] | None = None
    """Rows and columns in latent cells, of an evaluation."""
    calls: list[tuple[int, int, int]] = field(default_factory=list)
    """Batch, rows and columns of each call of the network that came to its end."""


@dataclass(slots=True)
class StageProfiler:
    """Record what one call of a stage does, through the host's own wrapper points."""

    cuda: bool
    evaluations: list[ProfiledCall] = field(default_factory=list)
    coding: list[ProfiledCall] = field(default_factory=list)
    calls: list[tuple[int, int, int]] = field(default_factory=list)

    def now(self) -> float:
        """Wait for the device and read the clock."""
        if self.cuda:
            torch.cuda.synchronize()
        return time.perf_counter()

    def start(self) -> float:
        self.evaluations, self.coding = [], []
        self._forget_peak()
        return self.now()

    def over(self, model: Any) -> Any:
        """Clone a MODEL of the host so that its evaluations are recorded."""
        from comfy.patcher_extension import WrappersMP

        clone = model.clone()
        clone.add_wrapper_with_key(WrappersMP.PREDICT_NOISE, KEY, self._evaluation)
        clone.add_wrapper_with_key(WrappersMP.APPLY_MODEL, KEY, self._call)
        return clone

    def over_vae(self, coder: Any) -> None:
        """Record what a VAE of the host does."""
        coder.decode, coder.encode = self._coding(coder.decode), self._coding(coder.encode)

    def __deepcopy__(self, memo: dict) -> "StageProfiler":
        # The host copies a model's options with all that its wrappers are bound to.
        return self

    def _evaluation(self, executor: Any, x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        size, self.calls = tuple(x.shape[-2:]), []
        if not self.evaluations or self.evaluations[-1].size != size:
            self._forget_peak()
        return self._record(self.evaluations, lambda: executor(x, *args, **kwargs), size)

    def _call(self, executor: Any, x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        out = executor(x, *args, **kwargs)
        self.calls.append((x.shape[0], *x.shape[-2:]))
        return out

    def _coding(self, code: Callable) -> Callable:
        def recorded(*args: Any, **kwargs: Any) -> Tensor:
            self._forget_peak()
            self.calls = []
            return self._record(self.coding, lambda: code(*args, **kwargs))

        return recorded

    def _record(self, into: list[ProfiledCall], run: Callable, size: Any = None) -> Tensor:
        began, out = self.now(), run()
        into.append(
            ProfiledCall(began=began, ended=self.now(), peak=self.peak(),
                         size=size, calls=self.calls)
        )  # fmt: skip
        return out

    def peak(self) -> int:
        return torch.cuda.max_memory_allocated() if self.cuda else 0

    def _forget_peak(self) -> None:
        if self.cuda:
            torch.cuda.reset_peak_memory_stats()
