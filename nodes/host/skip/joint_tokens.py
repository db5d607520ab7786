"""Gather and scatter the tokens of one call of the host's HunyuanVideo.

Its two-stream blocks hold [reference | video] beside the text, its one-stream blocks all in one
sequence, the text first or, in older hosts, last. The text stays whole.

Dims: B batch, M tokens of reference and video, L of the whole sequence, K those of M or L that are
refined or belong to no cell, D width.
"""

from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch import Tensor

from ....surf_core.skip import Packing, pack, unpack
from ..attention import ModelCall

Ranges = list[tuple[int, int | None, int]] | None
"""Tokens from, to (None: to the end), and which modulation they have; None: one for all."""


class JointTokens:
    """The tokens of one call of a HunyuanVideo network.

    Args:
        call: with a mask.
        device: of the tokens.
    """

    def __init__(self, call: ModelCall, device: torch.device):
        self.text_last, total = call.text_last, call.before + call.per_frame * call.frames
        indices = torch.cat((torch.arange(call.before), call.before + call.packing.indices))
        self.picture = Packing(grid=(1, 1, total), indices=indices.to(device))
        self.joint: Packing | None = None
        self.table = self.rows = None
        self.ranges: dict[tuple, Ranges] = {}

    def around(self, network: Any) -> AbstractContextManager:
        """Return a context for the length of a call; patches of the host reach all blocks."""
        return nullcontext()

    def gather(self, args: dict) -> dict:
        """Gather tokens, positions, attention mask and modulated ranges of a block's arguments.

        Returns:
            A new dict.

        Raises:
            ValueError: a sequence of another length.
        """
        two_streams = "txt" in args
        if two_streams:
            self._join(args["txt"].shape[1])
        packing = self.picture if two_streams else self.joint
        ranges = "modulation_dims_img" if two_streams else "modulation_dims"
        mask = args["attention_mask"]
        return {
            **args,
            "img": _gathered(args["img"], packing),
            "pe": self._positions(args["pe"]),
            "attention_mask": None if mask is None else mask.index_select(-1, self.joint.indices),
            ranges: self._ranges(args[ranges], packing),
        }

    def scatter(self, img: Tensor) -> Tensor:
        """Put tokens back: [B, K, D] -> [B, M or L, D]; zeros for skipped ones.

        Zeros leave means over the output alone, by which step caches decide.
        """
        two_streams = img.shape[1] == len(self.picture.indices)
        return unpack(img, self.picture if two_streams else self.joint)

    def _join(self, text: int) -> None:
        """Index the whole sequence, once: only a block sees how long its text is."""
        if self.joint is not None:
            return
        picture, total = self.picture.indices, self.picture.grid[2]
        words = torch.arange(text, device=picture.device)
        parts = (picture, total + words) if self.text_last else (words, text + picture)
        self.joint = Packing(grid=(1, 1, total + text), indices=torch.cat(parts))

    def _positions(self, pe: Tensor) -> Tensor:
        """Gather rows of the rotary table [B, 1, L, ...], once while it is the same table."""
        if self.table is not pe:
            self.table, self.rows = pe, pe.index_select(2, self.joint.indices)
        return self.rows

    def _ranges(self, ranges: Ranges, packing: Packing) -> Ranges:
        """Count in gathered tokens the ranges that have modulations of their own, once for a kind.

        With a start picture in place of the first frame, that frame's tokens have one.
        """
        if ranges is None:
            return None
        key = (packing is self.joint, *ranges)
        if key not in self.ranges:
            bounds = {bound for start, stop, _ in ranges for bound in (start, stop)}
            few = {b: b if b is None else int((packing.indices < b).sum()) for b in bounds}
            self.ranges[key] = [(few[start], few[stop], row) for start, stop, row in ranges]
        return self.ranges[key]


def _gathered(img: Tensor, packing: Packing) -> Tensor:
    total, few = packing.grid[2], len(packing.indices)
    if img.shape[1] not in (total, few):
        raise ValueError(
            f"expected {total} tokens, or the mask's {few}, got {img.shape[1]}; "
            "another node adds tokens to this model: take it out, or disconnect the mask."
        )
    return pack(img, packing) if img.shape[1] == total else img
