"""Partition refined tokens by the windows of the host's SeedVR2, and fill the cache of its blocks.

Its attention looks up how tokens are ordered by windows, how many each window holds and how they
are rotated; what is not there it computes for all tokens of the clip. The cache is new in every
call of the model. Filled beforehand for the refined tokens, it lets the host's own blocks run on
these alone.

Dims: S samples of a call, T, h, w tokens of a clip along time, rows and columns; N all of them,
K refined ones; M windows of a clip with a refined token.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class Partition:
    """The refined tokens of a clip by windows of one phase; windows without any are left out."""

    order: Tensor
    """[K] int64: refined tokens, counted in (t, h, w) order, one window after the other."""
    rows: Tensor
    """[K] int64: the index of each among all tokens, refined or not, of these windows."""
    sizes: tuple[tuple[int, int, int], ...]
    """M times the tokens of a window along time, rows and columns, refined or not."""
    counts: tuple[int, ...]
    """M times the refined tokens of a window."""


def partition(keep: Tensor, cuts: Iterable[tuple[slice, slice, slice]]) -> Partition:
    """Partition the refined tokens of a mask by windows.

    Args:
        keep: [T, h, w] bool, not all False.
        cuts: windows that cover every token once.
    """
    number = keep.flatten().cumsum(0).view(keep.shape) - 1
    order, rows, sizes, before = [], [], [], 0
    for cut in cuts:
        inside = keep[cut].flatten()
        if inside.any():
            order.append(number[cut].flatten()[inside])
            rows.append(before + inside.nonzero().flatten())
            sizes.append(tuple(keep[cut].shape))
            before += len(inside)
    return Partition(
        order=torch.cat(order),
        rows=torch.cat(rows),
        sizes=tuple(sizes),
        counts=tuple(map(len, order)),
    )


class PrefilledCache(dict):
    """A cache of the host with entries filled beforehand; records which of them were not read."""

    def __init__(self):
        super().__init__()
        self.unread: set[str] = set()

    def prefill(self, key: str, value: Any) -> None:
        """Set an entry and count it as unread."""
        self[key] = value
        self.unread.add(key)

    def __getitem__(self, key: str) -> Any:
        self.unread.discard(key)
        return super().__getitem__(key)


def fill_cache(
    cache: PrefilledCache, attention: Any, windows: Partition, txt_shape: Tensor
) -> None:
    """Fill in what the attention of one phase looks up.

    Args:
        attention: the host's module, for its rotary embedding.
        windows: those of its phase.
        txt_shape: [S, 1], text tokens of every sample.
    """
    device, samples = txt_shape.device, len(txt_shape)
    count = len(windows.counts)
    order = _for_samples(windows.order, len(windows.order), samples).to(device)
    back = order.argsort()
    sizes = torch.tensor(windows.sizes * samples, device=device)
    entries = {
        "win_transform": (
            lambda tokens: tokens.index_select(0, order),
            lambda tokens: tokens.index_select(0, back),
            sizes,
            torch.full((samples,), count, device=device),
            list(windows.counts * samples),
            [count] * samples,
        ),
        "vid_len": torch.tensor(windows.counts * samples, device=device),
    }
    for name, value in (entries | _rotation(attention, windows, sizes, txt_shape)).items():
        cache.prefill(f"{phase(attention)}.{name}", value)


def phase(attention: Any) -> str:
    """Return the key of an attention module's windows in the host's cache."""
    return f"{attention.window_method}_{attention.window}_sd3"


def _rotation(
    attention: Any, windows: Partition, sizes: Tensor, txt_shape: Tensor
) -> dict[str, Any]:
    """Take the rows of refined tokens from the host's rotary embedding of whole windows."""
    if attention.rope is None:
        return {}
    samples = len(txt_shape)
    whole = sum(t * h * w for t, h, w in windows.sizes)
    if attention.version_7b or not attention.rope.mm:
        table = attention.rope.get_freqs(sizes)
        rows = _for_samples(windows.rows, whole, samples).to(table.device)
        return {"rope_freqs_3d": table.index_select(0, rows)}
    texts = txt_shape.repeat_interleave(len(windows.counts), dim=0)
    table, text = attention.rope.get_freqs(sizes, texts)
    rows = _for_samples(windows.rows, whole, samples).to(table.device)
    return {"mmrope_freqs_3d": (table.index_select(0, rows), text)}


def _for_samples(indices: Tensor, stride: int, samples: int) -> Tensor:
    """Repeat the indices of one sample for all of them, one after the other: [K] -> [S * K]."""
    return (torch.arange(samples)[:, None] * stride + indices).flatten()
