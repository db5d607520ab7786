"""How fast are shifted windows, as segments and otherwise, and does the Triton kernel win?

    python -m benchmarks.speed.window_attention
    python -m benchmarks.speed.window_attention --size 480p 720p 1080p --minutes 8

Every way is held against the float64 reference on a small clip, and against exact rows at full
size; a wrong one is not timed. Then all are timed in turns, on two input sets that alternate, and
the median is shown. Windows of 4, 7 and 8 latent frames, both phases, all tokens and a random half
of them, and a quarter. What fails, or does not fit the minutes, is a row that says so.

Dims: T latent frames, N tokens of a frame, S tokens of a clip, H heads, K channels of a head.
"""

import argparse
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from statistics import median

import torch
from torch import Tensor

from benchmarks.page import provenance, publish_page
from benchmarks.speed.attention_ways import HEADS, WIDTH, Attention, Clip, Way, ways
from benchmarks.timing import FAILURES, reason
from surf_core.window.reference import reference_attention

FRAMES = 21
GRIDS = {"tiny": (2, 3), "small": (8, 14), "480p": (30, 52), "720p": (45, 80), "1080p": (68, 120)}
"""Tokens of a frame, rows and columns; 480p is 832 x 480."""
WARM_UPS, LEAST, ROWS = 2, 3, 64
LARGEST_ERROR = {torch.float32: 5e-5, torch.float16: 2e-2, torch.bfloat16: 1e-1}
"""Relative to the root mean square of the exact result; other windows would differ by about 1."""
HEAD = "| size | window | shifted | kept | way | first, ms | ms | useful TFLOP/s | ratio | error |"
WON = "| size | window | kept | triton, ms | best other | its ms | triton / other | wins by 5 % |"
WINS, NOT = 0.95, "not measured"
"""Time over that of the best other way, from which on the kernel would become the default."""
LEGEND = """`first` is the very first call at this size: plans, compilation, memory. `ratio` is to
segments in the same case. `useful TFLOP/s` counts 4 * sum(length^2) * heads * 72, the padding of
heads left out; for full attention the length is the clip's. `error` is the largest one against
exact float64 rows, in units of their root mean square. `sdpa, ...` are segments by one of torch's
kernels alone, `segments` by the one that torch chooses. Both phases together make the last table;
heads that were padded before are not in it, full attention neither."""


class Wrong(ArithmeticError):
    """A way whose result is not that of the reference."""


@dataclass(kw_only=True, slots=True, eq=False)
class Timed:
    """A way, what it took, and why it did not, if so."""

    way: Way
    first: float = 0.0
    """Milliseconds."""
    error: float = 0.0
    spent: list[float] = field(default_factory=list)
    """Milliseconds of each call, with warm-ups."""
    inputs: list = field(default_factory=list)
    why_not: str = ""

    @property
    def took(self) -> float | None:
        """Median in milliseconds, None if it failed."""
        return None if self.why_not else median(self.spent[WARM_UPS:])


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


def check(error: float, dtype: torch.dtype) -> float:
    """Refuse a wrong result."""
    allowed = LARGEST_ERROR[dtype]
    if not error <= allowed:
        raise Wrong(f"its relative error is {error:.2g}, allowed is {allowed:.2g}")
    return error


def gate(name: str, clip: Clip, like: Tensor) -> None:
    """Hold a way against the reference, on few tokens with the same windows and phase."""
    counts = tuple(1 + 2 * count // max(clip.counts) for count in clip.counts)
    small = Clip(counts=counts, window=clip.window, shifted=clip.shifted)
    qkv = small.qkv(0, like)
    way = next(way for way in ways(small, like) if way.name == name)
    if way.attend is None:
        return
    exact = reference_attention(
        *(x.cpu() for x in qkv), counts=counts, shifted=clip.shifted,
        window=0 if way.whole else clip.window,
    )  # fmt: skip
    out = way.attend(*way.prepare(qkv))[..., :WIDTH]
    check(relative_error(out.cpu(), exact), like.dtype)


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


def begin(each: Timed, clip: Clip, sets: list, like: Tensor) -> None:
    """Make the first call of a way, and see that its results are right."""
    rows = torch.linspace(0, sum(clip.counts) - 1, ROWS).long().unique().tolist()
    each.inputs = [each.way.prepare(qkv) for qkv in sets]
    if like.is_cuda:
        torch.cuda.synchronize()
    began = time.perf_counter()
    out = each.way.attend(*each.inputs[0])
    if like.is_cuda:
        torch.cuda.synchronize()
    each.first = 1000 * (time.perf_counter() - began)
    exact = exact_rows(sets[0], each.way.bounds(clip), rows)
    each.error = check(relative_error(out[0, rows][..., :WIDTH], exact), like.dtype)
    gate(each.way.name, clip, like)


def measure(clip: Clip, like: Tensor, reps: int, seconds: float) -> list[Timed]:
    """Call every way that can run, in turns, for about some seconds."""
    deadline = time.perf_counter() + seconds
    sets = [clip.qkv(seed, like) for seed in (1, 2)]
    tried = [Timed(way=way) for way in ways(clip, like) if way.attend]

    def attempt(each: Timed, run) -> None:
        try:
            run()
        except FAILURES as error:
            each.why_not, each.inputs = reason(error), []

    for each in tried:
        attempt(each, lambda: begin(each, clip, sets, like))  # noqa: B023
    for turn in range(WARM_UPS + reps):
        if turn >= WARM_UPS + LEAST and time.perf_counter() > deadline:
            break
        for each in (each for each in tried if not each.why_not):
            call = lambda: milliseconds(each.way.attend, each.inputs[turn % 2])  # noqa: B023, E731
            attempt(each, lambda: each.spent.append(call()))  # noqa: B023
    return tried


def lines_of(tried: list[Timed], clip: Clip) -> Iterator[str]:
    """Yield the columns of every way that was tried."""
    base = tried[0].took
    for each in tried:
        if each.took is None:
            yield f"{each.way.name} | {NOT}: {each.why_not} | - | - | - | -"
            continue
        work = 4 * HEADS * WIDTH * sum((b - a) ** 2 for a, b in each.way.bounds(clip))
        rate, ratio = work / each.took / 1e9, f"{each.took / base:.2f}" if base else "-"
        yield (
            f"{each.way.name} | {each.first:.4g} | {each.took:.4g} | {rate:.3g} | {ratio} "
            f"| {each.error:.1e}"
        )


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


def verdict(found: dict[tuple, list[dict[str, float]]]) -> list[str]:
    """Whether the Triton kernel would become the default.

    Args:
        found: (size, window, kept) -> for each phase, milliseconds of the ways that ran.
    """
    lines, wins = ["", WON, "| --- " * WON[1:].count("|") + "|"], []
    for case, phases in found.items():
        names = set.intersection(*(set(phase) for phase in phases)) if len(phases) == 2 else set()
        took = {name: sum(phase[name] for phase in phases) for name in names}
        ours = took.pop("triton", None)
        place = " | ".join(map(str, case))
        if ours is None or not took:
            lines.append(f"| {place} | {NOT} | - | - | - | - |")
            continue
        best = min(took, key=took.get)
        ratio = ours / took[best]
        lines.append(
            f"| {place} | {ours:.4g} | {best} | {took[best]:.4g} | {ratio:.3f} "
            f"| {'yes' if ratio <= WINS else 'no'} |"
        )
        if ratio <= WINS:
            wins.append(f"{case[0]} in windows of {case[1]} at {case[2]:g} of the tokens")
    ran = any("| yes |" in line or "| no |" in line for line in lines)
    said = f"wins by 5 % at: {'; '.join(wins) or 'none of these'}" if ran else f"is {NOT}"
    return [*lines, "", f"The Triton kernel {said}. It stays opt-in where it does not win.", ""]


def main() -> None:
    cuda = torch.cuda.is_available()
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--size", nargs="+", default=["small"], choices=GRIDS)
    parser.add_argument("--window", nargs="+", type=int, default=[4, 7, 8])
    parser.add_argument("--reps", type=int, default=20 if cuda else 9)
    parser.add_argument("--minutes", type=float, default=60.0, help="for all of it")
    parser.add_argument("--out", type=Path, help="a Markdown file for the tables, or a folder")
    args = parser.parse_args()
    deadline = time.perf_counter() + 60 * args.minutes
    dtype = torch.bfloat16 if cuda else torch.float32
    like = torch.zeros((), dtype=dtype, device="cuda" if cuda else "cpu")
    lines, reasons, found, wrong = [HEAD, "| --- " * HEAD[1:].count("|") + "|"], {}, {}, False
    cases = [(size, *case) for size in args.size for case in clips(size, args.window)]
    origin = (
        f"{FRAMES} latent frames, {HEADS} heads of {WIDTH}, {dtype}, batch 1, median of up to "
        f"{args.reps} interleaved calls. {provenance()}"
    )

    def publish(final: bool) -> None:
        said = [f"- {name}: not run: {why}" for name, why in reasons.items()]
        page = [*lines, *verdict(found), *said, "", origin]
        title = "Attention in windows: segments, torch's kernels, roll + mask, full, padded heads"
        publish_page(title, LEGEND, page, args.out, final=final)

    try:
        for index, (size, keep, clip) in enumerate(cases):
            place = f"| {size} | {clip.window} | {'yes' if clip.shifted else 'no'} | {keep:g}"
            left = deadline - time.perf_counter()
            phases = found.setdefault((size, clip.window, keep), [])
            if left <= 0:
                lines.append(f"{place} | all | {NOT}: the minutes were over | - | - | - | - |")
                continue
            reasons |= {way.name: way.reason for way in ways(clip, like) if way.reason}
            tried = measure(clip, like, args.reps, left / (len(cases) - index))
            wrong |= any(Wrong.__name__ in each.why_not for each in tried)
            phases.append({
                each.way.name: each.took for each in tried
                if each.took is not None and not each.way.whole and each.way.width == WIDTH
            })  # fmt: skip
            lines += [f"{place} | {columns} |" for columns in lines_of(tried, clip)]
            print(*lines[-len(tried) :], sep="\n", file=sys.stderr, flush=True)
            publish(final=False)
    finally:
        publish(final=True)
    if wrong:
        sys.exit("some way was wrong: see its row.")


if __name__ == "__main__":
    main()
