"""Show the progress of a VAE within a call, and end the call where the user interrupts it.

A call takes minutes for a large video. Layers are counted as they run: hooks on a network see every
one, of the host's own VAEs and of others, and stay for one call only.

Dims: T frames that the network is called with, pixels or latent.
"""

from collections.abc import Callable
from contextlib import ExitStack
from typing import Any

import comfy.model_management
import comfy.utils
from torch import nn

PARTS = 100
"""Steps of the progress bar in a call."""


class WatchedCalls:
    """Counts calls of a VAE, and the layers within each, on the host's progress bar."""

    def __init__(self, vae: Any, count: int):
        """Watch `count` calls of a VAE."""
        self.network = getattr(vae, "first_stage_model", None)
        self.bar, self.count = comfy.utils.ProgressBar(count * PARTS), count
        self.done = self.shown = 0

    def run(self, call: Callable[[], Any], half: str, frames: int) -> Any:
        """Make a call, and return what it returns.

        Args:
            half: module of the network that does the work, "encoder" or "decoder".
            frames: T that this call hands over in all.

        Raises:
            the host's interrupt, before the layer that would run next.
        """
        comfy.model_management.throw_exception_if_processing_interrupted()
        with ExitStack() as hooks:
            worker = getattr(self.network, half, self.network)
            if isinstance(worker, nn.Module) and not _is_compiled(worker):
                _Layers(worker, frames, self._show).watch(hooks)
            out = call()
        self.done += 1
        self._show(0.0)
        return out

    def _show(self, share: float) -> None:
        """Move the bar, by whole parts: each is a message to the browser."""
        at = min(int((self.done + share) * PARTS), self.bar.total)
        if at > self.shown:
            self.shown = at
            self.bar.update_absolute(at)


class _Layers:
    """Layers of a network that have run, of those that a call will run."""

    def __init__(self, network: nn.Module, frames: int, show: Callable[[float], None]):
        self.network, self.frames, self.show = network, frames, show
        self.layers = [m for m in network.modules() if next(m.children(), None) is None]
        self.before = self.now = self.ran = 0
        """Frames of earlier calls of the network, of this one, and the layers of this one."""

    def watch(self, hooks: ExitStack) -> None:
        hooks.callback(self.network.register_forward_pre_hook(self._begin).remove)
        for layer in self.layers:
            if layer is not self.network:
                hooks.callback(layer.register_forward_pre_hook(self._layer).remove)

    def _begin(self, module: nn.Module, args: tuple) -> None:
        """Count the frames of a group: causal VAEs call their network for a few at a time."""
        self.before, self.ran = self.before + self.now, 0
        x = args[0] if args else None
        self.now = x.shape[2] if getattr(x, "ndim", 0) == 5 else self.frames

    def _layer(self, module: nn.Module, args: tuple) -> None:
        comfy.model_management.throw_exception_if_processing_interrupted()
        self.ran += 1
        here = min(1.0, self.ran / len(self.layers)) * (self.now or self.frames)
        self.show(min(1.0, (self.before + here) / self.frames))


def _is_compiled(network: nn.Module) -> bool:
    """Say whether torch.compile made part of it, which hooks would make it compile again."""
    return any(hasattr(module, "_orig_mod") for module in network.modules())
