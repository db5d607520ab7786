"""Keep caches of other nodes from answering one tile with the result of another.

A cache that knows a step by its time or its number (TeaCache and its kind) takes the tiles of a
picture for repetitions of one step. Known caches of the host are off in tiles. Others are detected
by what they do: the tiles of one evaluation run equally many layers, and never less than half of
what another evaluation does. Guidance that skips layers leaves out a few, for all tiles alike.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from torch import Tensor, nn

from ..models import COMPILED, STEP_CACHES
from ..node import NodeLog
from ..others import ATTENTION, BLOCK, FUNCTION, OBJECT, PATCH, WRAPPER, log_patches, patches_on

log = NodeLog(__name__)


class TileCaches:
    """Detect caches of other nodes that would answer a tile with the result of another."""

    def __init__(self, model: Any):
        self.model, self.network = model, model.model.diffusion_model
        self.patches = [name for _, name in patches_on(model)]
        self.compiled = COMPILED in model.model_options or any(
            hasattr(module, "_orig_mod") for module in _modules(self.network)
        )
        self.most = 0
        """Layers that a tile has run, at most."""
        self.is_logged = self.is_warned = False

    def log_once(self) -> None:
        """Log the patches of other nodes, and their effect on tiles, in one line."""
        if not self.is_logged:
            self.is_logged = True
            checked = "compiled, so not checked" if self.compiled else "checked for caches"
            fates = dict.fromkeys(
                (WRAPPER, PATCH, BLOCK, OBJECT, ATTENTION), f"sees one; {checked}"
            )
            log_patches(
                self.model, "tiles", {**fates, FUNCTION: f"sees the whole picture; {checked}"}
            )

    def without_step_cache(self, conditioning: dict) -> dict:
        """Leave out the host's caches round the network, which would take one tile for another."""
        from comfy.patcher_extension import WrappersMP

        options = conditioning.get("transformer_options", {})
        wrappers = options.get("wrappers", {})
        inner = wrappers.get(WrappersMP.DIFFUSION_MODEL, {})
        caches = [key for key in inner if key in STEP_CACHES]
        if not caches:
            return conditioning
        if not self.is_warned:
            self.is_warned = True
            log.warning("%s is off in tiles.", " and ".join(caches))
        inner = {key: value for key, value in inner.items() if key not in STEP_CACHES}
        wrappers = {**wrappers, WrappersMP.DIFFUSION_MODEL: inner}
        return {**conditioning, "transformer_options": {**options, "wrappers": wrappers}}

    @contextmanager
    def checked(self, apply_model: Callable) -> Iterator[Callable]:
        """Yield the model's function, checked to run the network for each tile.

        Raises:
            ValueError: on the first tile that runs another number of layers than the first one of
                this evaluation, or less than half of what one of another did.
        """
        # Another GPU has a network of its own.
        network = getattr(getattr(apply_model, "__self__", None), "diffusion_model", self.network)
        if not self.patches or self.compiled or not isinstance(network, nn.Module):
            yield apply_model
            return
        calls, expected = 0, None

        def count(*args: Any) -> None:
            nonlocal calls
            calls += 1

        def run(x: Tensor, t: Tensor, **conditioning: Any) -> Tensor:
            nonlocal calls, expected
            calls = 0
            out = apply_model(x, t, **conditioning)
            expected = calls if expected is None else expected
            self.most = max(self.most, calls)
            if calls != expected or 2 * calls < self.most:
                names = ", ".join(dict.fromkeys(self.patches))
                raise ValueError(
                    "a cache of another node answers one tile with the result of another: a tile "
                    f"ran {calls} layers, others up to {self.most}. Found on the model: {names}; "
                    "take the cache out, or choose a size that fits in one piece."
                )
            return out

        hooks = [
            module.register_forward_pre_hook(count)
            for module in _modules(network)
            if next(module.children(), None) is None
        ]
        try:
            yield run
        finally:
            for hook in hooks:
                hook.remove()


def _modules(network: Any) -> Iterator[nn.Module]:
    return network.modules() if isinstance(network, nn.Module) else iter(())
