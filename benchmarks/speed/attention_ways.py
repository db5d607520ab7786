"""Every way to attend inside the windows of a clip, and why one cannot run here.

Dims: T latent frames, N tokens of a frame, S tokens of a clip, H heads, K channels of a head.
"""

import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cache

import torch
import torch.nn.functional as F
from torch import Tensor

from benchmarks.timing import FAILURES, reason
from surf_core.window import BACKENDS, backend, grouped, sdpa, segments, token_bounds, why_not

HEADS, WIDTH = 16, 72
PADDED = (80, 96, 128)
"""Widths to which kernels pad a head of 72."""
FORCED = {"sdpa, cuDNN": "CUDNN_ATTENTION", "sdpa, flash": "FLASH_ATTENTION",
          "sdpa, efficient": "EFFICIENT_ATTENTION"}  # fmt: skip
"""Kernels of torch that it chooses among by itself; here each alone."""
PROBE = 256
"""Tokens on which a kernel shows whether it takes such heads."""
Attention = Callable[[Tensor, Tensor, Tensor], Tensor]


@dataclass(frozen=True, kw_only=True, slots=True)
class WindowedClip:
    """Which tokens there are, and which of them see each other."""

    counts: tuple[int, ...]
    """Tokens of each latent frame."""
    window: int
    """Latent frames of a window."""
    shifted: bool
    """Whether it is a shifted layer."""

    @property
    def bounds(self):
        return token_bounds(self.counts, segments(len(self.counts), self.window, self.shifted))

    def qkv(self, seed: int, like: Tensor) -> tuple[Tensor, ...]:
        """Random q, k, v [1, S, H, K], drawn on the device: half a billion numbers at 1080p."""
        shape, device = (1, sum(self.counts), HEADS, WIDTH), like.device
        generator = torch.Generator(device).manual_seed(seed)
        return tuple(
            torch.randn(shape, generator=generator, device=device).to(like.dtype) for _ in range(3)
        )


@dataclass(frozen=True, kw_only=True, slots=True)
class AttentionWay:
    """One way to compute the attention of a clip, or why it cannot."""

    name: str
    attend: Attention | None = None
    whole: bool = False
    """True: full attention, not windows."""
    width: int = WIDTH
    """Channels of a head after padding, which is not timed."""
    reason: str | None = None

    def prepare(self, qkv: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        """Pad the heads; queries make up for the scale that the padded width would give."""
        if self.width == WIDTH:
            return qkv
        scaled = (qkv[0] * (self.width / WIDTH) ** 0.5, *qkv[1:])
        return tuple(F.pad(x, (0, self.width - WIDTH)) for x in scaled)

    def bounds(self, clip: WindowedClip):
        return ((0, sum(clip.counts)),) if self.whole else clip.bounds


def only(name: str) -> Attention:
    """Dense attention by one of torch's kernels, or none."""

    def dense(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        from torch.nn.attention import SDPBackend, sdpa_kernel

        with sdpa_kernel(getattr(SDPBackend, name)):
            return sdpa(q, k, v)

    return dense


def flash3(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """Dense attention by FlashAttention 3; its older versions give back more than the result."""
    from flash_attn_interface import flash_attn_func

    out = flash_attn_func(q, k, v)
    return out[0] if isinstance(out, tuple) else out


@cache
def why_not_dense(dense: Attention, dtype: torch.dtype, device: torch.device) -> str | None:
    """Say why a dense attention cannot run on heads of 72; None if it can."""
    q = torch.randn(1, PROBE, HEADS, WIDTH, dtype=dtype, device=device)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        try:
            dense(q, q, q)
        except FAILURES as error:
            # What torch has against a kernel it says in warnings.
            messages = (str(each.message).partition(" (Triggered")[0] for each in caught)
            parts = dict.fromkeys([reason(error), *messages])
            return " ".join(parts).replace("|", "/")[:400]
    return None


DENSE = {name: only(kernel) for name, kernel in FORCED.items()} | {"FA3": flash3}


def roll_and_mask(clip: WindowedClip, device: torch.device) -> Attention:
    """The paper's way at its best: masks are made once, and only windows that need one get it."""
    frames, window, per_frame = len(clip.counts), clip.window, clip.counts[0]
    shift = window // 2 if clip.shifted and frames > window else 0
    extra = -frames % window
    label = torch.tensor([0] * frames + [1] * extra)
    label[:shift] = 2
    label = label.roll(-shift).unflatten(0, (-1, window))
    mixed = (label != label[:, :1]).any(dim=1)
    mixed, plain = mixed.nonzero()[:, 0].tolist(), (~mixed).nonzero()[:, 0].tolist()
    fine = label[mixed].repeat_interleave(per_frame, dim=1).to(device)
    masks = []

    def attend(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        def windows(x: Tensor) -> Tensor:
            x = F.pad(x[0].unflatten(0, (frames, per_frame)), (0, 0, 0, 0, 0, 0, 0, extra))
            return x.roll(-shift, dims=0).unflatten(0, (-1, window)).flatten(1, 2).transpose(1, 2)

        if mixed and not masks:
            masks.append(fine[:, None, :, None] == fine[:, None, None, :])
        q, k, v = (windows(x) for x in (q, k, v))
        out = torch.empty_like(v)
        if plain:
            out[plain] = F.scaled_dot_product_attention(q[plain], k[plain], v[plain])
        if mixed:
            out[mixed] = F.scaled_dot_product_attention(
                q[mixed], k[mixed], v[mixed], masks[0]
            )  # fmt: skip
        out = out.transpose(1, 2).unflatten(1, (window, per_frame)).flatten(0, 1)
        return out.roll(shift, dims=0)[:frames].flatten(0, 1)[None]

    return attend


def ways(clip: WindowedClip, like: Tensor) -> Iterator[AttentionWay]:
    """Yield every way to attend in this clip, the segments first."""
    bounds = clip.bounds

    def over(dense: Attention) -> Attention:
        packed = grouped(dense)
        return lambda q, k, v: packed(q, k, v, bounds)

    yield AttentionWay(name="segments", attend=over(sdpa))
    uneven = "frames with different numbers of tokens would need padding"
    if len(set(clip.counts)) == 1:
        yield AttentionWay(name="roll + mask", attend=roll_and_mask(clip, like.device))
    else:
        yield AttentionWay(name="roll + mask", reason=uneven)
    yield AttentionWay(name="full", attend=sdpa, whole=True)
    for name, dense in DENSE.items():
        why = why_not_dense(dense, like.dtype, like.device)
        yield AttentionWay(name=name, reason=why, attend=None if why else over(dense))
    for name in BACKENDS[1:]:
        if why := why_not(name, like.expand(1, 1, HEADS, WIDTH)):
            yield AttentionWay(name=name, reason=why)
        else:
            packed = backend(name)
            yield AttentionWay(name=name, attend=lambda q, k, v, p=packed: p(q, k, v, bounds))
    for width in PADDED:
        yield AttentionWay(name=f"segments, heads of {width}", attend=over(sdpa), width=width)
