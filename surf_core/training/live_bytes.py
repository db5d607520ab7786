"""Count the bytes of live tensors while a function runs, on any device, the meta device included.

    with LiveBytes(model, z) as live:
        model(z, t, context)
    live.peak

It counts storages that are created inside the `with` block, until their last tensor is freed; it
does not see workspaces inside a kernel.
"""

from collections.abc import Callable, Sequence
from typing import Any

from torch import Tensor, nn
from torch.multiprocessing.reductions import StorageWeakRef
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves


class LiveBytes(TorchDispatchMode):
    """Counts peak and current bytes, without the storages of `known` models and tensors."""

    def __init__(self, *known: nn.Module | Tensor):
        super().__init__()
        self.peak = 0
        self._live: dict[int, tuple[StorageWeakRef, int]] = {}
        self._known: set[int] = set()
        for thing in known:
            tensors = thing.state_dict().values() if isinstance(thing, nn.Module) else [thing]
            self._known |= {StorageWeakRef(tensor.untyped_storage()).cdata for tensor in tensors}

    @property
    def now(self) -> int:
        """Bytes alive at this moment."""
        self._live = {key: item for key, item in self._live.items() if not item[0].expired()}
        return sum(count for _, count in self._live.values())

    def __torch_dispatch__(
        self,
        func: Callable[..., Any],
        types: Sequence[type],
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:
        out = func(*args, **(kwargs or {}))
        for tensor in tree_leaves(out):
            if isinstance(tensor, Tensor):
                storage = tensor.untyped_storage()
                weak = StorageWeakRef(storage)
                if weak.cdata not in self._known:
                    self._live[weak.cdata] = (weak, storage.nbytes())
        self.peak = max(self.peak, self.now)
        return out
