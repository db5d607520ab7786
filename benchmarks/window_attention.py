"""How fast are shifted windows, as segments and otherwise?

    python -m benchmarks.window_attention
    python -m benchmarks.window_attention --size 480p 720p 1080p

Every way is first held against the float64 reference on a small clip, and against exact rows at
full size; a wrong one ends the run. Then all are timed in turns, on two input sets that alternate,
and the median is shown. Windows of 4, 7 and 8 latent frames, both phases, all tokens and a random
half of them, and a quarter.

Dims: T latent frames, N tokens of a frame, S tokens of a clip, H heads, K channels of a head.
"""

import argparse
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from statistics import median

import torch
import torch.nn.functional as F
from torch import Tensor

from benchmarks.provenance import provenance
from surf_core.window import BACKENDS, backend, grouped, sdpa, segments, token_bounds, why_not
from surf_core.window.reference import reference_attention

FRAMES, HEADS, WIDTH = 21, 16, 72
GRIDS = {"small": (8, 14), "480p": (30, 52), "720p": (45, 80), "1080p": (68, 120)}
"""Tokens of a frame, rows and columns; 480p is 832 x 480."""
PADDED = (80, 96, 128)
"""Widths to which kernels pad a head of 72."""
WARM_UPS, ROWS = 2, 64
LARGEST_ERROR = {torch.float32: 5e-5, torch.float16: 2e-2, torch.bfloat16: 1e-1}
"""Relative to the root mean square of the exact result; other windows would differ by about 1."""
HEAD = "| size | window | shifted | kept | way | ms | useful TFLOP/s | ratio | max error |"
Attention = Callable[[Tensor, Tensor, Tensor], Tensor]


@dataclass(frozen=True, kw_only=True, slots=True)
class Clip:
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
        """Random q, k, v [1, S, H, K], the same on every device."""
        generator = torch.Generator().manual_seed(seed)
        shape = (1, sum(self.counts), HEADS, WIDTH)
        return tuple(torch.randn(shape, generator=generator).to(like) for _ in range(3))


@dataclass(frozen=True, kw_only=True, slots=True)
class Way:
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

    def bounds(self, clip: Clip):
        return ((0, sum(clip.counts)),) if self.whole else clip.bounds


def roll_and_mask(clip: Clip, device: torch.device) -> Attention:
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
    mask = (fine[:, None, :, None] == fine[:, None, None, :]) if mixed else None

    def attend(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        def windows(x: Tensor) -> Tensor:
            x = F.pad(x[0].unflatten(0, (frames, per_frame)), (0, 0, 0, 0, 0, 0, 0, extra))
            return x.roll(-shift, dims=0).unflatten(0, (-1, window)).flatten(1, 2).transpose(1, 2)

        q, k, v = (windows(x) for x in (q, k, v))
        out = torch.empty_like(v)
        if plain:
            out[plain] = F.scaled_dot_product_attention(q[plain], k[plain], v[plain])
        if mixed:
            out[mixed] = F.scaled_dot_product_attention(q[mixed], k[mixed], v[mixed], mask)
        out = out.transpose(1, 2).unflatten(1, (window, per_frame)).flatten(0, 1)
        return out.roll(shift, dims=0)[:frames].flatten(0, 1)[None]

    return attend


def ways(clip: Clip, like: Tensor) -> Iterator[Way]:
    """Yield every way to attend in this clip, the segments first."""
    dense, bounds = grouped(sdpa), clip.bounds
    yield Way(name="segments", attend=lambda q, k, v: dense(q, k, v, bounds))
    if len(set(clip.counts)) == 1:
        yield Way(name="roll + mask", attend=roll_and_mask(clip, like.device))
    else:
        yield Way(
            name="roll + mask", reason="frames with different numbers of tokens would need padding"
        )
    yield Way(name="full", attend=sdpa, whole=True)
    for name in BACKENDS[1:]:
        if reason := why_not(name, like.expand(1, 1, HEADS, WIDTH)):
            yield Way(name=name, reason=reason)
        else:
            packed = backend(name)
            yield Way(name=name, attend=lambda q, k, v, p=packed: p(q, k, v, bounds))
    for width in PADDED:
        yield Way(
            name=f"segments, heads of {width}",
            attend=lambda q, k, v: dense(q, k, v, bounds),
            width=width,
        )


def relative_error(out: Tensor, exact: Tensor) -> float:
    """Largest difference in units of the exact result's root mean square."""
    return ((out.double() - exact).abs().max() / exact.square().mean().sqrt()).item()


def exact_rows(qkv: tuple[Tensor, ...], bounds, rows: list[int]) -> Tensor:
    """Float64 results [rows, H, K] of some tokens."""
    q, k, v = (x[0] for x in qkv)
    parts = []
    for start, stop in bounds:
        mine = q[[row for row in rows if start <= row < stop]].double()
        scores = torch.einsum("qhk,mhk->hqm", mine, k[start:stop].double()) / WIDTH**0.5
        parts.append(torch.einsum("hqm,mhk->qhk", scores.softmax(-1), v[start:stop].double()))
    return torch.cat(parts)


def check(name: str, error: float, dtype: torch.dtype) -> float:
    """End the run if a result is wrong."""
    allowed = LARGEST_ERROR[dtype]
    if not error <= allowed:
        sys.exit(f"{name} is wrong: its relative error is {error:.2g}, allowed is {allowed:.2g}.")
    return error


def gate(clip: Clip, like: Tensor) -> None:
    """Hold every way against the reference, on few tokens with the same windows and phase."""
    counts = tuple(1 + 2 * count // max(clip.counts) for count in clip.counts)
    small = Clip(counts=counts, window=clip.window, shifted=clip.shifted)
    qkv = small.qkv(0, like)
    for way in ways(small, like):
        if way.attend is None:
            continue
        exact = reference_attention(
            *(x.cpu() for x in qkv), counts=counts, shifted=clip.shifted,
            window=0 if way.whole else clip.window,
        )  # fmt: skip
        out = way.attend(*way.prepare(qkv))[..., :WIDTH]
        check(way.name, relative_error(out.cpu(), exact), like.dtype)


def milliseconds(attend: Attention, qkv: tuple[Tensor, ...]) -> float:
    """Time one call."""
    if not qkv[0].is_cuda:
        began = time.perf_counter()
        attend(*qkv)
        return 1000 * (time.perf_counter() - began)
    start, stop = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    start.record()
    attend(*qkv)
    stop.record()
    stop.synchronize()
    return start.elapsed_time(stop)


def measure(clip: Clip, like: Tensor, reps: int) -> Iterator[tuple[str, list[str]]]:
    """Yield (name, columns) for each way: ms, useful TFLOP/s, ratio to segments, error."""
    gate(clip, like)
    sets = [clip.qkv(seed, like) for seed in (1, 2)]
    running = [way for way in ways(clip, like) if way.attend]
    inputs = [[way.prepare(qkv) for qkv in sets] for way in running]
    rows = torch.linspace(0, sum(clip.counts) - 1, ROWS).long().unique().tolist()
    errors = []
    for way, prepared in zip(running, inputs, strict=True):
        out = way.attend(*prepared[0])[0, rows][..., :WIDTH]
        exact = exact_rows(sets[0], way.bounds(clip), rows)
        errors.append(check(way.name, relative_error(out, exact), like.dtype))
    times = [[] for _ in running]
    for turn in range(WARM_UPS + reps):
        for way, prepared, spent in zip(running, inputs, times, strict=True):
            spent.append(milliseconds(way.attend, prepared[turn % 2]))
    base = median(times[0][WARM_UPS:])
    for way, spent, error in zip(running, times, errors, strict=True):
        took = median(spent[WARM_UPS:])
        work = 4 * HEADS * WIDTH * sum((b - a) ** 2 for a, b in way.bounds(clip))
        rate = work / took / 1e9
        yield way.name, [f"{took:.4g}", f"{rate:.3g}", f"{took / base:.2f}", f"{error:.1e}"]


def clips(size: str, windows: list[int]) -> Iterator[tuple[float, Clip]]:
    """Yield (share of tokens kept, clip) for every window, phase and share."""
    rows, columns = GRIDS[size]
    drawn = 0.5 + torch.rand(FRAMES, generator=torch.Generator().manual_seed(0))
    shares = {1: torch.ones(FRAMES), 0.5: 0.5 * drawn, 0.25: 0.25 * drawn}
    for window in windows:
        for keep, share in shares.items():
            counts = tuple((share * rows * columns).long().tolist())
            for shifted in (False, True):
                yield keep, Clip(counts=counts, window=window, shifted=shifted)


def main() -> None:
    cuda = torch.cuda.is_available()
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--size", nargs="+", default=["small"], choices=GRIDS)
    parser.add_argument("--window", nargs="+", type=int, default=[4, 7, 8])
    parser.add_argument("--reps", type=int, default=20 if cuda else 9)
    parser.add_argument("--out", type=Path, help="a Markdown file to write the table to")
    args = parser.parse_args()
    dtype = torch.bfloat16 if cuda else torch.float32
    like = torch.zeros((), dtype=dtype, device="cuda" if cuda else "cpu")
    lines, reasons = [HEAD, "| --- " * HEAD[1:].count("|") + "|"], {}
    for size in args.size:
        for keep, clip in clips(size, args.window):
            reasons |= {way.name: way.reason for way in ways(clip, like) if way.reason}
            for name, columns in measure(clip, like, args.reps):
                place = [size, str(clip.window), "yes" if clip.shifted else "no", str(keep)]
                lines.append(f"| {' | '.join([*place, name, *columns])} |")
                print(lines[-1], file=sys.stderr, flush=True)
    device = f"{torch.cuda.get_device_name()}, " if cuda else ""
    lines += ["", *(f"- {name}: not run: {reason}" for name, reason in reasons.items()), ""]
    lines.append(
        f"{FRAMES} latent frames, {HEADS} heads of {WIDTH}, {dtype}, {device}batch 1, median of "
        f"{args.reps} interleaved calls. {provenance()}"
    )
    text = "\n".join([*lines, ""])
    if args.out:
        args.out.write_text(text)
    print(text)


if __name__ == "__main__":
    main()
