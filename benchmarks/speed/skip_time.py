"""How much time do skipped tokens save, of what their operations promise?

    python -m benchmarks.speed.skip_time
    python -m benchmarks.speed.skip_time --size 720p 1080p --keep 100 75 50 25 --minutes 5

One forward of surf_1b with random weights, on masks that look like those of videos: blobs that
drift. Without a mask, with one that keeps everything, and with smaller ones, all in turns, on
every attention that runs here; the median is shown. What fails, or does not fit the minutes, is a
row that says so. On a CPU the model has few layers.

Dims: T, h, w tokens of the clip along time, rows and columns.
"""

import argparse
import sys
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from statistics import median

import torch
from torch import Tensor

from benchmarks.page import provenance, publish_page
from benchmarks.speed.refiner_step import FRAMES, LATENT_FRAMES, SIZES, WARM_UPS, build, inputs
from benchmarks.timing import FAILURES, reason, seconds
from surf_core.cost import ModelShape, forward_flops
from surf_core.refiner import SurfRefinerDiT
from surf_core.skip import choose, packing
from surf_core.window import BACKENDS, backend, why_not

NOT, LEAST = "not measured", 2
HEAD = "| size | W_t | attention | kept, % | step, ms | operations, % | time, % | promise kept |"

LEGEND = """Operations (of `surf_core.cost`) and time are relative to the run without a mask, in the
same turns. `promise kept` is the one over the other: 1 where time falls as operations do. The row
of 100 % has a mask that keeps everything; what it adds to 100 % of the time is the overhead."""


def blobs(grid: tuple[int, int, int], keep: float) -> Tensor:
    """Draw a mask [T, h, w] of bool: smooth noise, coarse in space and time, above a threshold."""
    coarse = [max(2, size // step) for size, step in zip(grid, (6, 8, 8), strict=True)]
    noise = torch.rand(1, 1, *coarse, generator=torch.Generator().manual_seed(0))
    smooth = torch.nn.functional.interpolate(noise, size=grid, mode="trilinear")[0, 0]
    return choose(smooth, source="drawn", keep=keep, hysteresis=1.0).tokens


def measure(
    model: SurfRefinerDiT,
    size: str,
    window: int,
    name: str,
    keeps: list[float],
    reps: int,
    deadline: float,
) -> Iterator[str]:
    """Yield a line for every share that is kept; fewer calls where the time is over."""
    like = model.patch_embedding.weight.new_zeros(())
    given, side = inputs(LATENT_FRAMES, SIZES[size], like), SIZES[size]
    model.window, model.packed = window, backend(name)
    shape = replace(ModelShape.of(model.config), layers=len(model.blocks))
    sizes = zip(given[0].shape[2:], model.config.patch, strict=True)
    grid = tuple(cells // step for cells, step in sizes)
    masks = [blobs(grid, keep) for keep in keeps]
    times: list[list[float]] = [[] for _ in range(len(masks) + 1)]
    for turn in range(WARM_UPS + reps):
        if turn >= WARM_UPS + LEAST and time.perf_counter() > deadline:
            break
        for keep, spent in zip([None, *masks], times, strict=True):
            call = lambda: model(*given, keep=keep)  # noqa: B023, E731
            spent.append(1000 * seconds(call, like.is_cuda))
    whole, *parts = (median(spent[WARM_UPS:]) for spent in times)
    full = forward_flops(shape, FRAMES, *side, window)
    yield f"{name} | no mask | {whole:.4g} | 100 | 100 | 1"
    for tokens, took in zip(masks, parts, strict=True):
        flops = forward_flops(shape, FRAMES, *side, window, packing(tokens).counts) / full
        share = tokens.float().mean().item()
        yield (
            f"{name} | {100 * share:.1f} | {took:.4g} | {100 * flops:.1f} | "
            f"{100 * took / whole:.1f} | {flops * whole / took:.3f}"
        )


def main() -> None:
    cuda = torch.cuda.is_available()
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--size", nargs="+", default=["720p" if cuda else "small"], choices=SIZES)
    parser.add_argument("--window", nargs="+", type=int, default=[4])
    parser.add_argument("--keep", nargs="+", type=float, default=[100, 75, 50, 25], help="in %%")
    parser.add_argument("--layers", type=int, default=40 if cuda else 2)
    parser.add_argument("--reps", type=int, default=5 if cuda else 9)
    parser.add_argument("--minutes", type=float, default=60.0, help="for all of it")
    parser.add_argument("--out", type=Path, help="a Markdown file for the table, or a folder")
    args = parser.parse_args()
    deadline = time.perf_counter() + 60 * args.minutes
    like = torch.zeros((), dtype=torch.bfloat16 if cuda else torch.float32)
    like = like.to("cuda" if cuda else "cpu")
    model, lines = build(args.layers, like), [HEAD, "| --- " * (HEAD.count("|") - 1) + "|"]
    probe = like.expand(1, 1, model.config.heads, model.config.dim // model.config.heads)
    reasons = {name: why_not(name, probe) for name in BACKENDS}
    keeps = [share / 100 for share in args.keep]
    running = [name for name, why in reasons.items() if why is None]
    cases = [(size, window, name) for size in args.size for window in args.window
             for name in running]  # fmt: skip
    origin = (
        f"surf_1b, {args.layers} layers, {FRAMES} frames, {like.dtype}, batch 1, median of up to "
        f"{args.reps} interleaved calls. {provenance()}"
    )

    def publish(final: bool) -> None:
        said = ["", *(f"- {name}: not run: {why}" for name, why in reasons.items() if why), ""]
        title = "What skipped tokens save of the time of a refiner's step"
        publish_page(title, LEGEND, [*lines, *said, origin], args.out, final=final)

    def found(index: int, size: str, window: int, name: str) -> Iterator[str]:
        now = time.perf_counter()
        if now > deadline:
            yield f"{name} | {NOT}: the minutes were over | - | - | - | -"
            return
        share = now + (deadline - now) / (len(cases) - index)
        try:
            with torch.inference_mode():
                yield from measure(model, size, window, name, keeps, args.reps, share)
        except FAILURES as error:
            yield f"{name} | {NOT}: {reason(error)} | - | - | - | -"

    try:
        for index, case in enumerate(cases):
            for line in found(index, *case):
                lines.append(f"| {case[0]} | {case[1]} | {line} |")
                print(lines[-1], file=sys.stderr, flush=True)
            publish(final=False)
    finally:
        publish(final=True)


if __name__ == "__main__":
    main()
