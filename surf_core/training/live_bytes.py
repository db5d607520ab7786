"""Count the bytes of live tensors while a function runs, on any device, the meta device included.

    with LiveBytes(model, z) as live:
        model(z, t, context)
    live.peak

Counted are the storages that appear under it, from the operation that makes them until the last
tensor on them dies; what a kernel uses inside one operation is not seen.
"""

from torch import Tensor, nn
from torch.multiprocessing.reductions import StorageWeakRef
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves


class LiveBytes(TorchDispatchMode):
    """Peak and current bytes; storages of `known` models and tensors do not count."""

    def __init__(self, *known: nn.Module | Tensor):
        super().__init__()
        self.peak = 0
        self._live: dict[int, tuple[StorageWeakRef, int]] = {}
        self._known = set()
        for thing in known:
            tensors = thing.state_dict().values() if isinstance(thing, nn.Module) else [thing]
            self._known |= {StorageWeakRef(tensor.untyped_storage()).cdata for tensor in tensors}

    @property
    def now(self) -> int:
        """Bytes alive at this moment."""
        self._live = {key: held for key, held in self._live.items() if not held[0].expired()}
        return sum(count for _, count in self._live.values())

    def __torch_dispatch__(self, call, types, args=(), kwargs=None):
        out = call(*args, **(kwargs or {}))
        for tensor in tree_leaves(out):
            if isinstance(tensor, Tensor):
                storage = tensor.untyped_storage()
                weak = StorageWeakRef(storage)
                if weak.cdata not in self._known:
                    self._live[weak.cdata] = (weak, storage.nbytes())
        self.peak = max(self.peak, self.now)
        return out
