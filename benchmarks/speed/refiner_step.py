"""How long does the refiner take, whole and segment by segment, plain and on comfy-kitchen?

    python -m benchmarks.speed.refiner_step
    python -m benchmarks.speed.refiner_step --size 720p 1080p 4k --window 4 8 --minutes 8

One forward of surf_1b (a step without guidance) and its first block, with random weights. Every
way is first held against the plain, whole one in float32 on a small clip; a wrong one is not timed.
Then all are timed in turns and the median is shown. What fails, or does not fit the minutes, is a
row that says so. On a CPU the model has few layers.

Dims: B batch, T latent frames, H, W latent cells, N tokens.
"""

import argparse
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from statistics import median

import torch
from torch import Tensor

from benchmarks.page import provenance, publish_page
from benchmarks.timing import FAILURES, reason, seconds
from surf_core.cost import SURF_1B, ModelShape, activation_bytes, forward_flops, weight_bytes
from surf_core.refiner import RefinerConfig, SurfRefinerDiT, kitchen
from surf_core.refiner.fused import eager, why_not_kitchen
from surf_core.training.live_bytes import LiveBytes
from surf_core.window import BACKENDS, backend, why_not

SIZES = {"tiny": (48, 80), "small": (96, 160), "240p": (240, 416), "480p": (480, 832),
         "720p": (720, 1280), "1080p": (1088, 1920), "4k": (2160, 3840)}  # fmt: skip
FRAMES, LATENT_FRAMES, WARM_UPS = 81, 21, 2
INPUTS = 5
"""First arguments of a block: tokens, time, text, ranges and positions; then comes how it runs."""
LARGEST_ERROR = {torch.float32: 1e-4, torch.bfloat16: 6e-2}
"""Relative to the root mean square of the reference; other windows differ by more than this."""
HEAD = (
    "| size | W_t | way | first, s | block, ms | TFLOP/s | step, ms | TFLOP/s | ratio | GiB "
    "| cost, GiB |"
)
NOT, LEAST = "not measured", 2

LEGEND = """`first` is the first forward: plans, compilation, memory. `ratio` is to the first row of
the same case. TFLOP/s count the matrix products of
`surf_core.cost`. GiB is the peak of one forward beyond weights and inputs, as the allocator saw it
on a GPU, of live tensors on a CPU; `cost` is the estimate."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Way:
    """How the model runs."""

    segmentwise: bool
    kitchen: bool
    backend: str

    @property
    def name(self) -> str:
        order = "segment-wise" if self.segmentwise else "whole"
        return f"{order}, {'kitchen' if self.kitchen else 'eager'}, {self.backend}"

    def apply(self, model: SurfRefinerDiT) -> None:
        model.segmentwise = self.segmentwise
        model.fused = kitchen() if self.kitchen else eager
        model.packed = backend(self.backend)


def ways(like: Tensor) -> Iterator[tuple[Way, str | None]]:
    """Yield every way, and why it cannot run here; the first is the reference."""
    q = like.expand(1, 1, SURF_1B.heads, SURF_1B.dim // SURF_1B.heads)
    for name in BACKENDS:
        for kitchened in (False, True):
            for segmentwise in (False, True):
                way = Way(segmentwise=segmentwise, kitchen=kitchened, backend=name)
                yield way, why_not(name, q) or (why_not_kitchen() if kitchened else None)


def build(layers: int, like: Tensor) -> SurfRefinerDiT:
    """surf_1b with random weights, none of them zero."""
    with torch.device(like.device):
        model = SurfRefinerDiT(replace(RefinerConfig.surf_1b(), layers=layers)).to(like.dtype)
    generator = torch.Generator(like.device).manual_seed(0)
    for weight in model.parameters():
        weight.data.normal_(std=0.7 * weight.shape[-1] ** -0.5, generator=generator)
    return model.requires_grad_(False)


def inputs(frames: int, side: tuple[int, int], like: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Latent, timestep and text, the same on every device; sides in pixels."""
    generator = torch.Generator().manual_seed(1)
    z = torch.randn(1, 16, frames, side[0] // 8, side[1] // 8, generator=generator)
    text = torch.randn(1, 512, 4096, generator=generator)
    return z.to(like), torch.tensor([500.0], device=like.device), text.to(like)


def gate(window: int, like: Tensor) -> dict[Way, str]:
    """Hold every way against the plain, whole one in float32; full attention must fail.

    Returns:
        What is wrong with those that do not pass.
    """
    model = build(2, like)
    model.window, given = window, inputs(window + 3, (64, 96), like)
    exact = build(2, like).float()
    exact.load_state_dict(model.state_dict())
    exact.window, exact.segmentwise = window, False
    with torch.inference_mode():
        expected = exact(given[0].float(), given[1], given[2].float())

        def error() -> float:
            difference = (model(*given).float() - expected).abs().max()
            return (difference / expected.square().mean().sqrt()).item()

        allowed, wrong = LARGEST_ERROR[like.dtype], {}
        for way, why_not_here in ways(like):
            if why_not_here is not None:
                continue
            try:
                way.apply(model)
                found = error()
                if not found <= allowed:
                    wrong[way] = f"wrong by {found:.2g}, allowed is {allowed:.2g}"
            except FAILURES as failure:
                wrong[way] = reason(failure)
        model.window = 0
        Way(segmentwise=False, kitchen=False, backend="sdpa").apply(model)
        if error() <= allowed:
            sys.exit(f"the check cannot fail: full attention passes it at window {window}.")
    return wrong


def peak_bytes(model: SurfRefinerDiT, given: tuple[Tensor, ...]) -> int:
    """Memory of one forward beyond weights and inputs: the allocator's on a GPU, else tensors'."""
    if not given[0].is_cuda:
        with LiveBytes(model, *given) as live:
            model(*given)
        return live.peak
    torch.cuda.synchronize()
    before = torch.cuda.memory_allocated()
    torch.cuda.reset_peak_memory_stats()
    model(*given)
    torch.cuda.synchronize()
    return torch.cuda.max_memory_allocated() - before


def block_input(model: SurfRefinerDiT, given: tuple[Tensor, ...]) -> list:
    """What the first block gets, its tokens copied: without gradients it writes into them."""
    caught = []

    def catch(_, args):
        caught[:] = [args[0].clone(), *args[1:]]

    hook = model.blocks[0].register_forward_pre_hook(catch)
    model(*given)
    hook.remove()
    return caught


@dataclass(kw_only=True, slots=True, eq=False)
class Timed:
    """What a way took, and why it did not, if so."""

    way: Way
    why_not: str = ""
    first: float = 0.0
    """Seconds."""
    peak: int = 0
    """Bytes."""
    block: list[float] = field(default_factory=list)
    """Milliseconds of the first block, with warm-ups."""
    step: list[float] = field(default_factory=list)
    """Milliseconds of the whole forward."""


def measure(
    model: SurfRefinerDiT, given, wrong: dict[Way, str], reps: int, deadline: float
) -> list[Timed]:
    """Call every way in turns, as long as there is time."""
    cuda = given[0].is_cuda
    tried = [Timed(way=way, why_not=wrong.get(way, "")) for way, reason in
             ways(given[0].flatten()[0]) if reason is None]  # fmt: skip
    inner: list = []

    def begin(each: Timed) -> None:
        each.first = seconds(lambda: model(*given), cuda)
        each.peak = peak_bytes(model, given)
        inner[:] = inner or block_input(model, given)[:INPUTS]

    def call(each: Timed) -> None:
        last = (model.kernels(), each.way.segmentwise)
        each.block.append(1000 * seconds(lambda: model.blocks[0](*inner, *last), cuda))
        each.step.append(1000 * seconds(lambda: model(*given), cuda))

    for turn in range(1 + WARM_UPS + reps):
        if turn > WARM_UPS + LEAST and time.perf_counter() > deadline:
            break
        for each in (each for each in tried if not each.why_not):
            each.way.apply(model)
            try:
                call(each) if turn else begin(each)
            except FAILURES as error:
                each.why_not = reason(error)
    return tried


def lines_of(tried: list[Timed], shape: ModelShape, side, window: int, itemsize: int):
    """Yield the columns of every way."""
    work = [
        forward_flops(replace(shape, layers=layers), FRAMES, *side, window)
        for layers in (1, shape.layers)
    ]
    base = None if tried[0].why_not else median(tried[0].step[WARM_UPS:])
    for each in tried:
        if each.why_not:
            yield f"{each.way.name} | {NOT}: {each.why_not} | {' | '.join('-' * 7)}"
            continue
        took = [median(spent[WARM_UPS:]) for spent in (each.block, each.step)]
        rates = [flops / spent / 1e9 for flops, spent in zip(work, took, strict=True)]
        estimate = activation_bytes(
            shape, FRAMES, *side, window, itemsize=itemsize, segmentwise=each.way.segmentwise
        )
        columns = [f"{ms:.4g} | {rate:.3g}" for ms, rate in zip(took, rates, strict=True)]
        columns += [f"{took[1] / base:.2f}" if base else "-"]
        columns += [f"{each.peak / 2**30:.3f}", f"{estimate / 2**30:.3f}"]
        yield " | ".join([each.way.name, f"{each.first:.4g}", *columns])


def main() -> None:
    cuda = torch.cuda.is_available()
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--size", nargs="+", default=["720p" if cuda else "small"], choices=SIZES)
    parser.add_argument("--window", nargs="+", type=int, default=[4, 8] if cuda else [4])
    parser.add_argument("--layers", type=int, default=40 if cuda else 2)
    parser.add_argument("--reps", type=int, default=5 if cuda else 3)
    parser.add_argument("--minutes", type=float, default=60.0, help="for all of it")
    parser.add_argument("--out", type=Path, help="a Markdown file for the table, or a folder")
    args = parser.parse_args()
    deadline = time.perf_counter() + 60 * args.minutes
    like = torch.zeros((), dtype=torch.bfloat16 if cuda else torch.float32)
    like = like.to("cuda" if cuda else "cpu")
    lines, cases = [HEAD, "| --- " * (HEAD.count("|") - 1) + "|"], []
    reasons = {way.backend: reason for way, reason in ways(like) if reason and not way.kitchen}
    if kitchen() is None:
        reasons["kitchen"] = why_not_kitchen()
    weights = weight_bytes(replace(SURF_1B, layers=args.layers), like.itemsize) / 2**30
    origin = (
        f"surf_1b, {args.layers} layers ({weights:.2f} GiB of weights, not in the peak), {FRAMES} "
        f"frames, {like.dtype}, batch 1, median of up to {args.reps} interleaved calls. "
        f"{provenance()}"
    )

    def publish(final: bool) -> None:
        said = ["", *(f"- {name}: not run: {reason}" for name, reason in reasons.items()), ""]
        title = "One step of the refiner, whole and segment by segment, plain and on comfy-kitchen"
        publish_page(title, LEGEND, [*lines, *said, origin], args.out, final=final)

    wrong = {window: gate(window, like) for window in args.window}
    model = build(args.layers, like)
    shape = replace(ModelShape.of(model.config), layers=args.layers)
    cases = [(size, window) for size in args.size for window in args.window]
    try:
        for index, (size, window) in enumerate(cases):
            now = time.perf_counter()
            if now > deadline:
                lines.append(
                    f"| {size} | {window} | all | {NOT}: the minutes were over |" + 7 * " - |"
                )
                continue
            given, model.window = inputs(LATENT_FRAMES, SIZES[size], like), window
            share = now + (deadline - now) / (len(cases) - index)
            with torch.inference_mode():
                tried = measure(model, given, wrong[window], args.reps, share)
            found = lines_of(tried, shape, SIZES[size], window, like.itemsize)
            lines += [f"| {size} | {window} | {line} |" for line in found]
            print(*lines[-len(tried) :], sep="\n", file=sys.stderr, flush=True)
            publish(final=False)
    finally:
        publish(final=True)
    if any(wrong.values()):
        sys.exit("some way was wrong: see its row.")


if __name__ == "__main__":
    main()
