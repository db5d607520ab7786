"""Gather and scatter the tokens of one call of the host's Wan: [before | video | after].

VACE runs a second row of blocks over tokens of its own, one for each of the video's.

Dims: B batch, L tokens of a sequence, K those that are refined or belong to no cell, D width.
"""

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch import Tensor

from ....surf_core.skip import Packing, pack, unpack
from ..attention import ModelCall
from ..compiling import outside_graphs, outside_memory_graph


class WanTokens:
    """The tokens of one call of a Wan network.

    Args:
        call: with a mask.
        device: of the tokens.
    """

    def __init__(self, call: ModelCall, device: torch.device):
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
        return {**args, "img": self._tokens(args["img"]), "pe": self._positions(args["pe"]),
                "vec": self._modulations(args["vec"])}  # fmt: skip

    def scatter(self, img: Tensor) -> Tensor:
        """Put tokens back: [B, K, D] -> [B, L, D]; zeros for skipped ones.

        Zeros leave means over the output alone, by which step caches decide.
        """
        return unpack(img, self.packing)

    @contextmanager
    def around(self, network: Any) -> Iterator[None]:
        """Run VACE's control blocks on the mask's tokens, for the length of a call.

        No patch of the host reaches them, so hooks of torch gather what they are called with. The
        control tokens of the first come out gathered, and what comes out is added to the video's.
        """
        blocks = getattr(network, "vace_blocks", ())
        with ExitStack() as hooks:
            for block in blocks:
                hook = outside_graphs(self._before_control, recursive=False)
                handle = block.register_forward_pre_hook(hook, with_kwargs=True)
                hooks.callback(handle.remove)
            order = getattr(network, "vace_layers_mapping", {})
            if (last := order.get(len(network.blocks) - 1)) is not None:
                hook = outside_graphs(self._after_last_control, recursive=False)
                hooks.callback(blocks[last].register_forward_hook(hook).remove)
            yield

    def _before_control(self, block: Any, args: tuple, kwargs: dict) -> tuple[tuple, dict]:
        """Gather control tokens, positions, modulations, and the video that the first one adds."""
        with outside_memory_graph():
            changed = {"freqs": self._positions(kwargs["freqs"]),
                       "e": self._modulations(kwargs["e"])}  # fmt: skip
            if block.block_id == 0:
                changed["x"] = self._tokens(kwargs["x"])
            return (self._tokens(args[0]), *args[1:]), {**kwargs, **changed}

    def _after_last_control(self, block: Any, args: tuple, out: tuple) -> tuple:
        """Put back what is added to the video's tokens, after the block that has put them back."""
        added, control = out
        with outside_memory_graph():
            return self.scatter(added), control

    def _tokens(self, img: Tensor) -> Tensor:
        total, few = self.packing.grid[2], len(self.packing.indices)
        if img.shape[1] not in (total, few):
            raise ValueError(
                f"expected {total} tokens, or the mask's {few}, got {img.shape[1]}; "
                "another node adds tokens to this model: take it out, or disconnect the mask."
            )
        return pack(img, self.packing) if img.shape[1] == total else img

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
