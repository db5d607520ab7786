"""How long does the refiner take, whole and segment by segment, plain and on comfy-kitchen?

    python -m benchmarks.refiner_step
    python -m benchmarks.refiner_step --size 720p 1080p 4k --window 4 8

One forward of surf_1b (a step without guidance) and its first block, with random weights. Every
way is first held against the plain, whole one in float32 on a small clip; a wrong one ends the
run. Then all are timed in turns and the median is shown. On a CPU the model has few layers.

Dims: B batch, T latent frames, H, W latent cells, N tokens.
"""

import argparse
import sys
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import median

import torch
from torch import Tensor

from benchmarks.clock import seconds
from benchmarks.provenance import provenance, publish_page
from surf_core.cost import SURF_1B, ModelShape, activation_bytes, forward_flops, weight_bytes
from surf_core.refiner import RefinerConfig, SurfRefinerDiT, kitchen
from surf_core.refiner.fused import eager, why_not_kitchen
from surf_core.training.live_bytes import LiveBytes
from surf_core.window import BACKENDS, backend, why_not

SIZES = {"small": (96, 160), "240p": (240, 416), "480p": (480, 832), "720p": (720, 1280),
         "1080p": (1088, 1920), "4k": (2160, 3840)}  # fmt: skip
FRAMES, LATENT_FRAMES, WARM_UPS = 81, 21, 2
INPUTS = 5
"""First arguments of a block: tokens, time, text, ranges and positions; then comes how it runs."""
LARGEST_ERROR = {torch.float32: 1e-4, torch.bfloat16: 6e-2}
"""Relative to the root mean square of the reference; other windows differ by more than this."""
HEAD = "| size | W_t | way | block, ms | TFLOP/s | step, ms | TFLOP/s | ratio | GiB | cost, GiB |"

LEGEND = """`ratio` is to the first row of the same case. TFLOP/s count the matrix products of
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


def gate(window: int, like: Tensor) -> None:
    """Hold every way against the plain, whole one in float32; full attention must fail."""
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

        allowed = LARGEST_ERROR[like.dtype]
        for way, reason in ways(like):
            if reason is None:
                way.apply(model)
                if not error() <= allowed:
                    sys.exit(f"{way.name} is wrong by {error():.2g}, allowed is {allowed:.2g}.")
        model.window = 0
        if error() <= allowed:
            sys.exit(f"the check cannot fail: full attention passes it at window {window}.")


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


def measure(model: SurfRefinerDiT, given, side, window: int, reps: int) -> Iterator[str]:
    """Yield a line for each way."""
    model.window, cuda = window, given[0].is_cuda
    shape = replace(ModelShape.of(model.config), layers=len(model.blocks))
    work = [
        forward_flops(replace(shape, layers=layers), FRAMES, *side, window)
        for layers in (1, shape.layers)
    ]
    running = [way for way, reason in ways(given[0].flatten()[0]) if reason is None]
    times, peaks = [([], []) for _ in running], []
    for way in running:
        way.apply(model)
        peaks.append(peak_bytes(model, given))
    inner = block_input(model, given)[:INPUTS]
    for _ in range(WARM_UPS + reps):
        for way, (blocks, whole) in zip(running, times, strict=True):
            way.apply(model)
            last = (model.kernels(), way.segmentwise)
            blocks.append(1000 * seconds(lambda: model.blocks[0](*inner, *last), cuda))  # noqa: B023
            whole.append(1000 * seconds(lambda: model(*given), cuda))
    first = median(times[0][1][WARM_UPS:])
    for way, both, peak in zip(running, times, peaks, strict=True):
        took = [median(spent[WARM_UPS:]) for spent in both]
        rates = [flops / spent / 1e9 for flops, spent in zip(work, took, strict=True)]
        estimate = activation_bytes(
            shape, FRAMES, *side, window,
            itemsize=given[0].itemsize, segmentwise=way.segmentwise,
        )  # fmt: skip
        columns = [f"{ms:.4g} | {rate:.3g}" for ms, rate in zip(took, rates, strict=True)]
        columns += [f"{took[1] / first:.2f}", f"{peak / 2**30:.3f}", f"{estimate / 2**30:.3f}"]
        yield " | ".join([way.name, *columns])


def main() -> None:
    cuda = torch.cuda.is_available()
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--size", nargs="+", default=["720p" if cuda else "small"], choices=SIZES)
    parser.add_argument("--window", nargs="+", type=int, default=[4, 8] if cuda else [4])
    parser.add_argument("--layers", type=int, default=40 if cuda else 2)
    parser.add_argument("--reps", type=int, default=5 if cuda else 3)
    parser.add_argument("--out", type=Path, help="a Markdown file to write the table to")
    args = parser.parse_args()
    like = torch.zeros((), dtype=torch.bfloat16 if cuda else torch.float32)
    like = like.to("cuda" if cuda else "cpu")
    for window in args.window:
        gate(window, like)
    model, lines = build(args.layers, like), [HEAD, "| --- " * (HEAD.count("|") - 1) + "|"]
    for size in args.size:
        given = inputs(LATENT_FRAMES, SIZES[size], like)
        for window in args.window:
            with torch.inference_mode():
                for line in measure(model, given, SIZES[size], window, args.reps):
                    lines.append(f"| {size} | {window} | {line} |")
                    print(lines[-1], file=sys.stderr, flush=True)
    reasons = {way.backend: reason for way, reason in ways(like) if reason and not way.kitchen}
    if kitchen() is None:
        reasons["kitchen"] = why_not_kitchen()
    weights = weight_bytes(replace(SURF_1B, layers=args.layers), like.itemsize) / 2**30
    device = f"{torch.cuda.get_device_name()}, " if cuda else ""
    lines += ["", *(f"- {name}: not run: {reason}" for name, reason in reasons.items()), ""]
    lines.append(
        f"surf_1b, {args.layers} layers ({weights:.2f} GiB of weights, not in the peak), {FRAMES} "
        f"frames, {like.dtype}, {device}batch 1, median of {args.reps} interleaved calls. "
        f"{provenance()}"
    )
    title = "One step of the refiner, whole and segment by segment, plain and on comfy-kitchen"
    publish_page(title, LEGEND, lines, args.out)


if __name__ == "__main__":
    main()
