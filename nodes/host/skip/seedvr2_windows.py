"""The windows of the host's SeedVR2 over kept tokens, told to its own blocks through their cache.

Its attention looks up how tokens are dealt to windows, how many each window holds and how they are
rotated; what is not there yet it works out for all tokens of the clip. The cache is made anew for
every call of the model. Where the answers for the kept tokens are in it beforehand, the host's own
blocks run on these alone.

Dims: S samples of a call, T, h, w tokens of a clip along time, rows and columns; N all of them,
K kept ones; M windows of a clip that keep a token.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class Windows:
    """The kept tokens of a clip in the windows of one phase; windows without any are left out."""

    order: Tensor
    """[K] int64: kept tokens, counted in (t, h, w) order, one window after the other."""
    rows: Tensor
    """[K] int64: the place of each among all tokens, kept or not, of these windows."""
    sizes: tuple[tuple[int, int, int], ...]
    """M times the tokens of a window along time, rows and columns, kept or not."""
    counts: tuple[int, ...]
    """M times the kept tokens of a window."""


def deal(keep: Tensor, cuts: Iterable[tuple[slice, slice, slice]]) -> Windows:
    """Deal the kept tokens of a mask to windows.

    Args:
        keep: [T, h, w] bool with something kept.
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
    return Windows(
        order=torch.cat(order),
        rows=torch.cat(rows),
        sizes=tuple(sizes),
        counts=tuple(map(len, order)),
    )


class Told(dict):
    """Entries of the host's cache: some given beforehand, some its own; knows which were read."""

    def __init__(self):
        super().__init__()
        self.unread: set[str] = set()

    def give(self, key: str, value: Any) -> None:
        """Answer a question before it is asked."""
        self[key] = value
        self.unread.add(key)

    def __getitem__(self, key: str) -> Any:
        self.unread.discard(key)
        return super().__getitem__(key)


def tell(told: Told, attention: Any, dealt: Windows, txt_shape: Tensor) -> None:
    """Give the answers that the attention of one phase asks for.

    Args:
        attention: the host's module, for its rotary embedding.
        dealt: the windows of its phase.
        txt_shape: [S, 1], text tokens of every sample.
    """
    device, samples = txt_shape.device, len(txt_shape)
    windows, kept = len(dealt.counts), len(dealt.order)
    order = _for_samples(dealt.order, kept, samples).to(device)
    back = order.argsort()
    sizes = torch.tensor(dealt.sizes * samples, device=device)
    answers = {
        "win_transform": (
            lambda tokens: tokens.index_select(0, order),
            lambda tokens: tokens.index_select(0, back),
            sizes,
            torch.full((samples,), windows, device=device),
            list(dealt.counts * samples),
            [windows] * samples,
        ),
        "vid_len": torch.tensor(dealt.counts * samples, device=device),
    }
    for name, value in (answers | _rotation(attention, dealt, sizes, txt_shape)).items():
        told.give(f"{phase(attention)}.{name}", value)


def phase(attention: Any) -> str:
    """The name under which the host's cache keeps the windows of an attention module."""
    return f"{attention.window_method}_{attention.window}_sd3"


def _rotation(attention: Any, dealt: Windows, sizes: Tensor, txt_shape: Tensor) -> dict[str, Any]:
    """The host's rotary embedding of whole windows, of which kept tokens take their rows."""
    if attention.rope is None:
        return {}
    samples = len(txt_shape)
    whole = sum(t * h * w for t, h, w in dealt.sizes)
    if attention.version_7b or not attention.rope.mm:
        table = attention.rope.get_freqs(sizes)
        rows = _for_samples(dealt.rows, whole, samples).to(table.device)
        return {"rope_freqs_3d": table.index_select(0, rows)}
    texts = txt_shape.repeat_interleave(len(dealt.counts), dim=0)
    table, text = attention.rope.get_freqs(sizes, texts)
    rows = _for_samples(dealt.rows, whole, samples).to(table.device)
    return {"mmrope_freqs_3d": (table.index_select(0, rows), text)}


def _for_samples(places: Tensor, step: int, samples: int) -> Tensor:
    """Places of one sample -> of all of them, one after the other: [K] -> [S * K]."""
    return (torch.arange(samples)[:, None] * step + places).flatten()
