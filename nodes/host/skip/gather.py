"""Run the blocks of the host's Wan on the tokens of a mask.

A wrapper round each call of the network puts a patch round every block: the mask's tokens are
gathered before the first and put back after the last, and what other nodes put there runs inside.

Dims: B batch, L tokens of a sequence, K those that are refined or belong to no cell, D width.
"""

import inspect
import threading
from collections.abc import Callable

import torch
from torch import Tensor

from ....surf_core.skip import Packing, pack, unpack
from ..attention import ModelCall, read_call
from ..compiling import outside_graphs, outside_memory_graph
from ..models import uncompiled

BLOCK_PATCHES = ("double_block", "attn1_patch", "attn2_patch")
"""Functions of other nodes that see the tokens of a block and know nothing of a mask."""


def make_wrapper() -> Callable:
    """Build the wrapper that patches the blocks of a model call, round the patches of other nodes.

    The patches are the same objects in every call and read its state per thread, because a host
    with several GPUs runs both halves of the guidance side by side.
    """
    state, patches = threading.local(), {}
    ran = {"patches": False}

    def gather_tokens(executor, *args, **kwargs):
        call = read_call(executor, args, kwargs)
        if call.packing is None:
            return executor(*args, **kwargs)
        bound = inspect.signature(executor.original).bind(*args, **kwargs)
        options = bound.arguments["transformer_options"]
        check_patches(options)
        patches_replace = options.get("patches_replace", {})
        inner = patches_replace.get("dit", {})
        count = len(uncompiled(executor.class_obj).blocks)
        for index in range(len(patches), count):
            patches["double_block", index] = outside_graphs(
                make_patch(state, index), recursive=False
            )
        outer = getattr(state, "call", None)
        state.call = Gathering(call, bound.arguments["x"].device, inner, count - 1)
        bound.arguments["transformer_options"] = {
            **options, "patches_replace": {**patches_replace, "dit": {**inner, **patches}}
        }  # fmt: skip
        try:
            result = executor(*bound.args, **bound.kwargs)
            ran["patches"] |= state.call.has_run
        finally:
            state.call = outer
        if not ran["patches"]:
            raise ValueError(
                "a mask needs a host that lets blocks be replaced, and this model's are "
                "not; another node may have changed how it runs: take that out, or disconnect the "
                "mask."
            )
        return result

    return gather_tokens


def make_patch(state: threading.local, index: int) -> Callable:
    """Build the replacement of one block: the block, or what replaced it, on the mask's tokens."""

    def on_mask_tokens(args: dict, extra: dict) -> dict:
        call: Gathering = state.call
        with outside_memory_graph():
            args = call.gather(args)
        inner = call.inner.get(("double_block", index))
        out = inner(args, extra) if inner is not None else extra["original_block"](args)
        if index != call.last:
            return out
        with outside_memory_graph():
            return {**out, "img": call.scatter(out["img"])}

    return on_mask_tokens


class Gathering:
    """Gathers and scatters the tokens of one call of a Wan network.

    Args:
        call: with a mask.
        device: of the tokens.
        inner: what other nodes replaced blocks with: {("double_block", index): function}.
        last: index of the last block.
    """

    def __init__(self, call: ModelCall, device: torch.device, inner: dict, last: int):
        self.inner, self.last = inner, last
        self.has_run = False
        video = call.before + call.per_frame * call.frames
        indices = (
            torch.arange(call.before), call.before + call.packing.indices,
            torch.arange(video, call.length),
        )  # fmt: skip
        self.packing = Packing(grid=(1, 1, call.length), indices=torch.cat(indices).to(device))
        self.table = self.rows = None

    def gather(self, args: dict) -> dict:
        """Gather tokens, positions and modulations of a block's arguments, in a new dict.

        Raises:
            ValueError: a sequence of another length.
        """
        self.has_run = True
        img, (total, few) = args["img"], (self.packing.grid[2], len(self.packing.indices))
        if img.shape[1] not in (total, few):
            raise ValueError(
                f"expected {total} tokens, or the mask's {few}, got {img.shape[1]}; "
                "another node adds tokens to this model: take it out, or disconnect the mask."
            )
        if img.shape[1] == total:
            img = pack(img, self.packing)
        return {**args, "img": img, "pe": self._positions(args["pe"]),
                "vec": self._modulations(args["vec"])}  # fmt: skip

    def _positions(self, pe: Tensor) -> Tensor:
        """Gather rows of the rotary table [1, L, ...], once while it is the same table."""
        if self.table is not pe:
            self.table, self.rows = pe, pack(pe, self.packing)
        return self.rows

    def _modulations(self, vec: Tensor) -> Tensor:
        """Gather modulations [B, n, 6, D]: one for all tokens, or each for as many in a row.

        Wan 2.2 5B has one for each frame under a noise mask; the host repeats them evenly, which
        gathered tokens are not.
        """
        if vec.ndim < 4 or vec.shape[1] == 1:
            return vec
        each = -(-self.packing.grid[2] // vec.shape[1])
        return vec.index_select(1, self.packing.indices // each)

    def scatter(self, img: Tensor) -> Tensor:
        """Put tokens back: [B, K, D] -> [B, L, D]; zeros for skipped ones.

        Zeros leave means over the output alone, by which step caches decide.
        """
        return unpack(img, self.packing)


def check_patches(options: dict) -> None:
    """Refuse functions of other nodes that would be called with the refined tokens alone."""
    names = [name for name in BLOCK_PATCHES if options.get("patches", {}).get(name)]
    if names:
        raise ValueError(
            f"another node looks at the tokens of each block ({', '.join(names)}), and a "
            "mask leaves most of them out; take it out, or disconnect the mask."
        )
