"""Save the latent of a sampling run between two steps, and go on from it.

For samplers that carry nothing from step to step but the latent and draw no noise between them:
Euler. The host prepares the whole run as always; only the first call of the model finds the saved
latent in place of noise, with the sigmas that are left.
"""

import copy
import functools
import time
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from ....surf_core.run_state import Progress
from ..finite import is_finite
from ..node import NodeLog
from .key import Key, QueuedNode, key_of
from .store import Store

log = NodeLog(__name__)

SHARE = 20
"""A state is saved when the steps since the last one took so many times as long as saving it."""


class KeptRun:
    """A run that can be taken up: what is known of it, and what is said of it under the node."""

    def __init__(self, key: Key, shape: tuple[int, ...], plan: Any, steps: int):
        """Look for a state, and give the run's tiles and chunks to the plan.

        Args:
            shape: of the sampler's latent.
            plan: has `tile` and `most`, which shrink when memory runs out.
        """
        self.plan, self.steps = plan, steps
        self.store = Store(key)
        self.key, self.first = key, 0
        """Step to begin with."""
        self.latent: Tensor | None = None
        self.is_saved = True
        self._saved_at = self._took = 0.0
        found = self.store.load(shape, steps)
        if found is not None:
            progress, self.latent = found
            self.first = progress.done
            plan.tile, plan.most = progress.tile, progress.most
            log.info("resumed after step %d of %d.", self.first, steps)

    @property
    def said(self) -> str:
        """A clause for the text under the node, with a comma in front; "" where all is usual."""
        if self.first:
            return f", resumed after step {self.first}"
        return ", from the start: " + self.store.passed_over if self.store.passed_over else ""

    def sampler(self, sampler: Any) -> Any:
        """Copy a SAMPLER for this run; the sampler itself stays as it is."""
        inner, made = sampler.sampler_function, copy.copy(sampler)

        @functools.wraps(inner)
        def run(model: Any, x: Tensor, sigmas: Tensor, *args: Any, **kwargs: Any) -> Tensor:
            if self.latent is not None:
                x, self.latent = self.latent.to(x), None
            watched = _BeforeSteps(model, self._save, self.first)
            return inner(watched, x, sigmas[self.first :], *args, **kwargs)

        made.sampler_function = run
        return made

    def finish(self) -> None:
        """Remove the state: the run is done."""
        self.store.remove()

    def _save(self, done: int, x: Tensor) -> None:
        """Save the latent after so many steps, unless the last one was saved shortly before."""
        now = time.monotonic()
        if done <= self.first or not self.is_saved or now - self._saved_at < SHARE * self._took:
            return
        here = x.detach().cpu()
        # A bad evaluation ends the run by itself; the state before it stays.
        if not is_finite(here):
            return
        self.is_saved = self.store.save(here, self._progress(done))
        self._saved_at = time.monotonic()
        self._took = self._saved_at - now

    def _progress(self, done: int) -> Progress:
        key, plan = self.key, self.plan
        return Progress(
            graph=key.graph, inputs=key.inputs, files=key.files, versions=key.versions, done=done,
            steps=self.steps, tile=tuple(plan.tile), most=plan.most,
        )  # fmt: skip


class _BeforeSteps:
    """A model as samplers call it, that hands on each latent before the call."""

    def __init__(self, model: Any, tell: Callable[[int, Tensor], None], first: int):
        self.__dict__.update(model=model, tell=tell, count=first)

    def __call__(self, x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        self.tell(self.count, x)
        self.__dict__["count"] += 1
        return self.model(x, *args, **kwargs)

    def __getattr__(self, name: str) -> Any:
        return getattr(self.model, name)

    def __setattr__(self, name: str, value: Any) -> None:
        setattr(self.model, name, value)


def keep_run(
    node: QueuedNode, inputs: Any, device: torch.device, shape: tuple[int, ...], plan: Any,
    steps: int,
) -> KeptRun:  # fmt: skip
    """Begin or take up a run; arguments as in `key_of` and `KeptRun`."""
    return KeptRun(key_of(node, inputs, device), shape, plan, steps)
