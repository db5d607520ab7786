"""How fast are shifted windows, as segments and otherwise, and does the Triton kernel win?

    python -m benchmarks.speed.window_attention
    python -m benchmarks.speed.window_attention --size 480p 720p 1080p --minutes 8

Every way is compared with exact float64 rows; a wrong one is not timed. Then all are timed in
turns, on two input sets that alternate, and the median is shown. Windows of 4, 7 and 8 latent
frames, both phases, all tokens and a random half of them, and a quarter. What fails, or does not
fit the minutes, is a row that says so.

Dims: T latent frames, N tokens of a frame, S tokens of a clip, H heads, K channels of a head.
"""

import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import cycle

import torch
from torch import Tensor

from benchmarks.page import NOT_MEASURED, Page, parser, table
from benchmarks.speed.attention_ways import HEADS, WIDTH, AttentionWay, WindowedClip, ways
from benchmarks.timing import OVER, TimedCall, device_scalar, in_turns

FRAMES = 21
GRIDS = {"tiny": (2, 3), "small": (8, 14), "480p": (30, 52), "720p": (45, 80), "1080p": (68, 120)}
"""Tokens of a frame, rows and columns; 480p is 832 x 480."""
ROWS = 64
LARGEST_ERROR = {torch.float32: 5e-5, torch.float16: 2e-2, torch.bfloat16: 1e-1}
"""Relative to the root mean square of the exact result; other windows would differ by about 1."""
COLUMNS = "size | window | shifted | kept | way | first, ms | ms | useful TFLOP/s | ratio | error"
WON = "size | window | kept | triton, ms | best other | its ms | triton / other | wins by 5 %"
WINS = 0.95
"""Time over that of the best other way, from which on the kernel would become the default."""
LEGEND = """`first` is the very first call at this size: plans, compilation, memory. `ratio` is to
segments in the same case. `useful TFLOP/s` counts 4 * sum(length^2) * heads * 72, the padding of
heads left out; for full attention the length is the clip's. `error` is the largest one against
exact float64 rows, in units of their root mean square. `sdpa, ...` are segments by one of torch's
kernels alone, `segments` by the one that torch chooses. Both phases together make the last table;
heads that were padded before are not in it, full attention neither."""


class WrongResult(ArithmeticError):
    """A result that is not that of the reference."""


@dataclass(kw_only=True, slots=True, eq=False)
class TimedWay(TimedCall):
    """Calls of one way."""

    way: AttentionWay
    error: float = 0.0
    """Relative, of the first call."""


def relative_error(out: Tensor, exact: Tensor, dtype: torch.dtype) -> float:
    """Return the largest difference in units of the exact root mean square, if it is allowed."""
    error = ((out.double() - exact).abs().max() / exact.square().mean().sqrt()).item()
    allowed = LARGEST_ERROR[dtype]
    if not error <= allowed:
        raise WrongResult(f"its relative error is {error:.2g}, allowed is {allowed:.2g}")
    return error


def exact_rows(qkv: tuple[Tensor, ...], bounds, rows: list[int]) -> Tensor:
    """Compute float64 results [rows, H, K] of some tokens."""
    q, k, v = (x[0] for x in qkv)
    parts = []
    for start, stop in bounds:
        mine = q[[row for row in rows if start <= row < stop]].double()
        scores = torch.einsum("qhk,mhk->hqm", mine, k[start:stop].double()) / WIDTH**0.5
        parts.append(torch.einsum("hqm,mhk->qhk", scores.softmax(-1), v[start:stop].double()))
    return torch.cat(parts)


def measure(clip: WindowedClip, like: Tensor, reps: int, deadline: float) -> list[TimedWay]:
    """Call every way that can run, in turns."""
    sets = [clip.qkv(seed, like) for seed in (1, 2)]
    rows = torch.linspace(0, sum(clip.counts) - 1, ROWS).long().unique().tolist()

    def begin(way: AttentionWay) -> TimedWay:
        inputs = cycle([way.prepare(qkv) for qkv in sets])
        timed = TimedWay(
            name=way.name, way=way, cuda=like.is_cuda, call=lambda: way.attend(*next(inputs))
        )

        def verify(out: Tensor) -> None:
            exact = exact_rows(sets[0], way.bounds(clip), rows)
            timed.error = relative_error(out[0, rows][..., :WIDTH], exact, like.dtype)

        timed.start(verify)
        return timed

    timed = [begin(way) for way in ways(clip, like) if way.attend]
    in_turns(timed, reps, deadline)
    return timed


def rows_of(timed: list[TimedWay], clip: WindowedClip) -> Iterator[list]:
    """Yield the columns of every way, from its name on."""
    base = timed[0].took
    for each in timed:
        if each.took is None:
            yield [each.name, f"{NOT_MEASURED}: {each.why_not}", *"----"]
            continue
        work = 4 * HEADS * WIDTH * sum((b - a) ** 2 for a, b in each.way.bounds(clip))
        rate, ratio = f"{work / each.took / 1e12:.3g}", f"{each.took / base:.2f}" if base else "-"
        yield [each.name, 1000 * each.first, 1000 * each.took, rate, ratio, f"{each.error:.1e}"]


def clips(size: str, windows: list[int]) -> Iterator[tuple[float, WindowedClip]]:
    """Yield (share of tokens kept, clip) for every window, phase and share."""
    rows, columns = GRIDS[size]
    drawn = 0.5 + torch.rand(FRAMES, generator=torch.Generator().manual_seed(0))
    shares = {1: torch.ones(FRAMES), 0.5: 0.5 * drawn, 0.25: 0.25 * drawn}
    for window in windows:
        for keep, share in shares.items():
            counts = tuple((share * rows * columns).long().tolist())
            for shifted in (False, True):
                yield keep, WindowedClip(counts=counts, window=window, shifted=shifted)


def verdict(phases_of: dict[tuple, list[dict[str, float]]]) -> list[str]:
    """Say whether the Triton kernel would become the default.

    Args:
        phases_of: (size, window, kept) -> for each phase, seconds of the ways that ran.
    """
    rows, wins = [], []
    for case, phases in phases_of.items():
        names = set.intersection(*map(set, phases)) if len(phases) == 2 else set()
        took = {name: 1000 * sum(phase[name] for phase in phases) for name in names}
        ours = took.pop("triton", None)
        if ours is None or not took:
            rows.append([*case, NOT_MEASURED, *"----"])
            continue
        best = min(took, key=took.get)
        ratio = ours / took[best]
        rows.append(
            [*case, ours, best, took[best], f"{ratio:.3f}", "no" if ratio > WINS else "yes"]
        )
        if ratio <= WINS:
            wins.append(f"{case[0]} in windows of {case[1]} at {case[2]:g} of the tokens")
    ran = any(row[-1] != "-" for row in rows)
    result = (
        f"wins by 5 % at: {'; '.join(wins) or 'none of these'}" if ran else f"is {NOT_MEASURED}"
    )
    end = f"The Triton kernel {result}. It stays opt-in where it does not win."
    return ["", *table(WON, rows), "", end, ""]


def main() -> None:
    like = device_scalar()
    line = parser(__doc__, minutes=60.0)
    line.add_argument("--size", nargs="+", default=["small"], choices=GRIDS)
    line.add_argument("--window", nargs="+", type=int, default=[4, 7, 8])
    line.add_argument("--reps", type=int, default=20 if like.is_cuda else 9)
    args = line.parse_args()
    deadline = time.perf_counter() + 60 * args.minutes
    rows, reasons, phases, wrong = [], {}, {}, False
    cases = [(size, *case) for size in args.size for case in clips(size, args.window)]
    title = "Attention in windows: segments, torch's kernels, roll + mask, full, padded heads"
    how = (
        f"{FRAMES} latent frames, {HEADS} heads of {WIDTH}, {like.dtype}, batch 1, median of up to "
        f"{args.reps} interleaved calls"
    )
    with Page(__spec__.name, title, args.out, LEGEND) as page:
        for index, (size, keep, clip) in enumerate(cases):
            now, place = time.perf_counter(), [size, clip.window, "no", f"{keep:g}"]
            place[2] = "yes" if clip.shifted else "no"
            if now > deadline:
                rows.append([*place, "all", f"{NOT_MEASURED}: {OVER}", *"----"])
            else:
                reasons |= {way.name: way.reason for way in ways(clip, like) if way.reason}
                share = now + (deadline - now) / (len(cases) - index)
                timed = measure(clip, like, args.reps, share)
                wrong |= any(WrongResult.__name__ in each.why_not for each in timed)
                phases.setdefault((size, clip.window, keep), []).append({
                    each.name: each.took for each in timed
                    if each.took is not None and not each.way.whole and each.way.width == WIDTH
                })  # fmt: skip
                rows += [[*place, *columns] for columns in rows_of(timed, clip)]
            missing = [f"- {name}: not run: {why}" for name, why in reasons.items()]
            page.write([*table(COLUMNS, rows), *verdict(phases), *missing, "", page.origin(how)])
            print(f"{size}, window {clip.window}, {keep:g}", file=sys.stderr, flush=True)
    if wrong:
        sys.exit("some way was wrong: see its row.")


if __name__ == "__main__":
    main()
