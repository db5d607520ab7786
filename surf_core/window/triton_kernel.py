"""Attention within ranges of a packed sequence, as one Triton kernel without a backward pass.

Matrix products need powers of two, so other kernels pad a head of 72 channels to 96 or 128. Here
it costs 64 + 16: the largest power of two, and a tail with products of its own. Importing this
needs the package triton, so only `backends.py` does, when the kernel is called.

Dims: B batch, S tokens of a sequence, H heads, K channels of a head.
"""

from functools import lru_cache
from math import e, log2
from typing import NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from .geometry import Bounds, check_bounds

DTYPES = (torch.bfloat16, torch.float16, torch.float32)
FEWEST, MOST = 16, 128
"""Channels of a head: even, and within these."""


class Config(NamedTuple):
    """Tile sizes and launch options; what each compiles to is in benchmarks/results."""

    rows: int
    """Queries of a program."""
    keys: int
    """Keys and values of an iteration."""
    warps: int
    """Warps of a program."""
    stages: int
    """Iterations whose loads are in flight at once."""


CONFIGS = {
    (8, 0): {80: Config(128, 32, 4, 3), 96: Config(128, 64, 8, 2), 128: Config(128, 32, 8, 3)},
    (9, 0): {80: Config(128, 128, 8, 3), 128: Config(128, 64, 8, 3)},
    (12, 0): {96: Config(128, 64, 8, 2), 128: Config(128, 32, 8, 2)},
}
"""By least compute capability, then by most channels after padding. Chosen so that heads of 64 to
128 spill no registers, then for few instructions; not by measured time."""
SMALL = Config(64, 32, 4, 1)
"""On AMD, where it compiles without spills from gfx90a to gfx1201."""
FLOAT32 = Config(64, 16, 4, 1)
"""For checks rather than for speed: each product is three of TF32."""
INTERPRETED = Config(32, 16, 1, 1)
"""In Triton's interpreter: several iterations even over a short range."""


@triton.jit
def attend(
    q_at, k_at, v_at, out_at, tiles_at, heads, scale,
    q_batch, q_row, k_batch, k_row, v_batch, v_row, out_batch, out_row,
    Q_HEAD: tl.constexpr, K_HEAD: tl.constexpr, V_HEAD: tl.constexpr, OUT_HEAD: tl.constexpr,
    CHANNELS: tl.constexpr, MAIN: tl.constexpr, TAIL: tl.constexpr,
    ROWS: tl.constexpr, KEYS: tl.constexpr, STAGES: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """Attend from ROWS queries of one head to the range that they are in.

    Program (tile * heads + head, sample). Heads are adjacent, so that programs that run at the
    same time read the same rows of k and v. `tiles_at` has (start, stop, first query) per tile;
    `*_row`, `*_batch`, `*_HEAD` are strides in elements, of channels 1; `scale` includes log2(e).
    """
    tile = tl.program_id(0) // heads
    head = (tl.program_id(0) % heads).to(tl.int64)
    batch = tl.program_id(1).to(tl.int64)
    start = tl.load(tiles_at + 3 * tile)
    stop = tl.load(tiles_at + 3 * tile + 1)
    first = tl.load(tiles_at + 3 * tile + 2)

    rows = tl.arange(0, ROWS)
    keys = tl.arange(0, KEYS)
    main = tl.arange(0, MAIN)
    # The tail's last channel is the head's last: of 72, the 16 from 56 on. The 8 that `main` has
    # too are zero in q and not stored, so k and v are read without a mask on channels.
    tail = CHANNELS - TAIL + tl.arange(0, TAIL if TAIL else 16)
    fresh = tail >= MAIN
    mine = (first + rows < stop)[:, None]

    # 64-bit up to here: a packed 4K clip has more than 2**31 elements.
    q_at += batch * q_batch + first.to(tl.int64) * q_row + head * Q_HEAD
    k_at += batch * k_batch + head * K_HEAD
    v_at += batch * v_batch + head * V_HEAD
    out_at += batch * out_batch + first.to(tl.int64) * out_row + head * OUT_HEAD

    q_here = q_at + rows[:, None] * q_row
    q = tl.load(q_here + main, mask=mine, other=0.0)
    total = tl.zeros((ROWS,), tl.float32)
    peak = tl.full((ROWS,), float("-inf"), tl.float32)
    acc = tl.zeros((ROWS, MAIN), tl.float32)
    if TAIL:
        q_tail = tl.load(q_here + tail, mask=mine & fresh, other=0.0)
        acc_tail = tl.zeros((ROWS, TAIL), tl.float32)

    # Full iterations need no mask on the keys; the remainder is one with a mask.
    whole = start + (stop - start) // KEYS * KEYS
    for RAGGED in tl.static_range(2):
        for n in tl.range(
            whole if RAGGED else start, stop if RAGGED else whole, KEYS,
            num_stages=1 if RAGGED else STAGES,
        ):  # fmt: skip
            inside = n + keys < stop if RAGGED else tl.full((KEYS,), True, tl.int1)
            k_here = k_at + tl.cast(n, tl.int64) * k_row + keys * k_row
            v_here = (v_at + tl.cast(n, tl.int64) * v_row + keys * v_row)[:, None]
            k = tl.load(k_here + main[:, None], mask=inside[None, :], other=0.0)
            scores = tl.dot(q, k, input_precision=PRECISION)
            if TAIL:
                k_tail = tl.load(k_here + tail[:, None], mask=inside[None, :], other=0.0)
                scores = tl.dot(q_tail, k_tail, scores, input_precision=PRECISION)
            scores = tl.where(inside[None, :], scores, float("-inf"))
            higher = tl.maximum(peak, tl.max(scores, 1) * scale)
            kept = tl.exp2(peak - higher)
            p = tl.exp2(scores * scale - higher[:, None])
            total = total * kept + tl.sum(p, 1)
            peak = higher
            v = tl.load(v_here + main, mask=inside[:, None], other=0.0)
            p = p.to(v.dtype)
            acc = tl.dot(p, v, acc * kept[:, None], input_precision=PRECISION)
            if TAIL:
                v_tail = tl.load(v_here + tail, mask=inside[:, None], other=0.0)
                acc_tail = tl.dot(p, v_tail, acc_tail * kept[:, None], input_precision=PRECISION)

    out_here = out_at + rows[:, None] * out_row
    tl.store(out_here + main, (acc / total[:, None]).to(q.dtype), mask=mine)
    if TAIL:
        tl.store(out_here + tail, (acc_tail / total[:, None]).to(q.dtype), mask=mine & fresh)


def attention(q: Tensor, k: Tensor, v: Tensor, bounds: Bounds) -> Tensor:
    """Attend within each range of tokens, all ranges in one launch; a `Packed`.

    Args:
        q, k, v: [B, S, H, K] of one shape and dtype: bfloat16, float16 or float32; K even, 16 to
            128. Views, as of a packed qkv, are read in place; rows that begin at multiples of 16
            elements are read several times faster.
        bounds: may be ragged, with ranges of one token and empty ones.

    Returns:
        [B, S, H, K], a new tensor.

    Raises:
        ValueError: ranges that do not cover the tokens, tensors that require a gradient, that lie
            on the CPU (but for Triton's interpreter), or of other shapes or dtypes.

    Source: the online softmax of FlashAttention-2; ranges and the split of K are ours.
    """
    _check(q, k, v)
    bounds = tuple((start, stop) for start, stop in bounds)
    check_bounds(bounds, q.shape[1])
    out = torch.empty_like(q)
    config = config_of(q)
    tiles = _tiles(bounds, config.rows, q.device)
    if out.numel():
        # Triton launches on the current device, which need not be that of q.
        with torch.cuda.device_of(q):
            attend[(len(tiles) * q.shape[2], len(q))](
                q, k, v, out, tiles, q.shape[2], log2(e) / q.shape[3] ** 0.5,
                *(stride for x in (q, k, v, out) for stride in x.stride()[:2]),
                *(x.stride(2) for x in (q, k, v, out)),
                **constants(q.shape[3], q.dtype, config),
                num_warps=config.warps, num_stages=config.stages, enable_fp_fusion=True,
            )  # fmt: skip
    return out


def split(channels: int) -> tuple[int, int]:
    """Split a head's channels into the largest power of two and a tail: 72 -> (64, 16).

    The tail is a power of two of at least 16, the least that a matrix product takes, and overlaps
    the main part; or it is 0.
    """
    main = 1 << (channels.bit_length() - 1)
    rest = channels - main
    return main, max(16, 1 << (rest - 1).bit_length()) if rest else 0


def constants(channels: int, dtype: torch.dtype, config: Config) -> dict[str, int | str]:
    """Return the kernel's compile-time arguments except the strides of the heads."""
    main, tail = split(channels)
    exact = dtype == torch.float32 and torch.version.hip is None
    return {
        "CHANNELS": channels,
        "MAIN": main,
        "TAIL": tail,
        "ROWS": config.rows,
        "KEYS": config.keys,
        "STAGES": config.stages,
        "PRECISION": "tf32x3" if exact else "ieee",
    }


def config_of(q: Tensor) -> Config:
    """Return the configuration for a tensor, by its device."""
    if _interpreted():
        return INTERPRETED
    if torch.version.hip is not None:
        return SMALL
    return choose(torch.cuda.get_device_capability(q.device), q.shape[-1], q.dtype)


def choose(capability: tuple[int, int], channels: int, dtype: torch.dtype) -> Config:
    """Return the configuration for an NVIDIA GPU; for one newer than the table, the newest."""
    if capability < min(CONFIGS):
        raise ValueError(
            f"Triton attention: expected compute capability 8.0 or newer, got {capability=}; "
            "choose another backend."
        )
    if dtype == torch.float32:
        return FLOAT32
    by_width = CONFIGS[max(known for known in CONFIGS if known <= capability)]
    return by_width[min(widest for widest in by_width if widest >= sum(split(channels)))]


@lru_cache(maxsize=16)
def _tiles(bounds: Bounds, rows: int, device: torch.device) -> Tensor:
    """Return (start, stop, first query) of every program: int32 [tiles, 3].

    Cached, since the copy to a GPU synchronises and every layer needs the same. Programs of long
    ranges come first, so that none of them starts when the others are done.
    """
    ranges = sorted(bounds, key=lambda pair: pair[0] - pair[1])
    listed = [(start, stop, q) for start, stop in ranges for q in range(start, stop, rows)]
    return torch.tensor(listed, dtype=torch.int32, device=device)


def _interpreted() -> bool:
    """Whether triton was imported with its interpreter on (TRITON_INTERPRET=1)."""
    return not isinstance(attend, triton.JITFunction)


def _check(q: Tensor, k: Tensor, v: Tensor) -> None:
    """Raise for tensors that the kernel does not support."""
    shapes, dtypes = [tuple(x.shape) for x in (q, k, v)], [x.dtype for x in (q, k, v)]
    if q.ndim != 4 or len(set(shapes)) > 1 or len(set(dtypes)) > 1 or q.dtype not in DTYPES:
        raise ValueError(
            "Triton attention: expected q, k, v [B, S, H, K] of one shape and one dtype (bfloat16, "
            f"float16 or float32), got {shapes=}, {dtypes=}; pass self-attention's heads."
        )
    width = q.shape[-1]
    if width % 2 or not FEWEST <= width <= MOST:
        raise ValueError(
            f"Triton attention: head widths are even, {FEWEST} to {MOST}, got {width}; "
            "choose another backend."
        )
    if any(x.numel() and x.stride(-1) != 1 for x in (q, k, v)):
        strides = [x.stride() for x in (q, k, v)]
        raise ValueError(
            "Triton attention: expected the channels of a head side by side (last stride 1), got "
            f"{strides=}; pass contiguous tensors."
        )
    if torch.is_grad_enabled() and any(x.requires_grad for x in (q, k, v)):
        raise ValueError(
            "Triton attention has no backward pass, and q, k or v requires a gradient; "
            "call it under torch.no_grad(), or choose another backend to train."
        )
    devices = [str(x.device) for x in (q, k, v)]
    if len(set(devices)) > 1 or not (q.is_cuda or _interpreted()):
        raise ValueError(
            f"Triton attention: expected tensors on one GPU, got {devices=}; "
            "move them, or choose another backend."
        )
