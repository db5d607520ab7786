"""What does the whole flow take against the plain run, and how far is each stage from its floor?

    python -m benchmarks.flow
    python -m benchmarks.flow --target 720p 1080p --steps 40 --reps 3

Wan 2.1 14B's shape with random weights plain at the target; SURF: its first steps at 480p, the rest
at 240p, then 10 steps of a refiner at the target. One evaluation of every stage is timed, in turns,
and multiplied by the evaluations of the stage: no run is timed as a whole. These are surf_core's
networks, not a host's, and neither VAE nor text encoder is in it. On a CPU everything is toy-sized.

Dims: B batch, T latent frames, H, W latent cells.
"""

import argparse
import sys
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import median

import torch
from torch import Tensor

from benchmarks.ceilings import ceilings, operations
from benchmarks.clock import seconds
from benchmarks.provenance import provenance
from surf_core.cost import ModelShape, latent_frames
from surf_core.refiner import RefinerConfig, SurfRefinerDiT, kitchen
from surf_core.refiner.fused import eager

Side = tuple[int, int]
WAN_14B = RefinerConfig(dim=5120, heads=40, layers=40, ffn_dim=13824)
REFINERS = {"surf_1b": RefinerConfig.surf_1b(), "wan_1_3b": RefinerConfig.wan_1_3b(window=4)}
SIDES = {"240p": (240, 416), "480p": (480, 832), "720p": (720, 1280), "1080p": (1088, 1920)}
TOY_BASE = RefinerConfig(dim=256, heads=2, layers=4, ffn_dim=768)
TOY_REFINERS = {
    "surf_1b": replace(RefinerConfig.surf_1b(), dim=144, heads=2, layers=4, ffn_dim=576),
    "wan_1_3b": RefinerConfig.tiny(window=4),
}
TOY_SIDES = {"240p": (64, 96), "480p": (128, 192), "720p": (192, 288), "1080p": (288, 432)}
WARM_UPS, REFINER_STEPS = 1, 10
HEAD = (
    "| target | stage | evaluations | ms | s | attention | TFLOP/s | floor, ms | floor / time "
    "| peak, GiB |"
)
LEGEND = """`ms` is one evaluation, `s` all of the stage. `attention` is the share of the time that
self-attention takes: what is saved when it returns its values untouched. `floor` is the linear
operations at the measured rate of matrix products and the attention's at the measured rate of dense
attention with heads of that width, nothing else. `peak` is beyond weights and inputs, on a GPU."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Stage:
    """Evaluations of one network at one size."""

    name: str
    """As the table calls it."""
    model: SurfRefinerDiT
    """Shared between stages."""
    side: Side
    """Pixels, height and width."""
    evaluations: int
    """Forwards of the network, both of a guided step."""

    def shape(self) -> ModelShape:
        return ModelShape.of(self.model.config)

    def work(self, frames: int) -> tuple[int, int]:
        """Linear operations of a forward, and those of its self-attention."""
        return operations(self.shape(), frames, *self.side, self.model.window)


def build(config: RefinerConfig, like: Tensor) -> SurfRefinerDiT:
    """A network with random weights on the device of `like`; layer by layer in its dtype."""
    before = torch.get_default_dtype()
    torch.set_default_dtype(like.dtype)
    try:
        with torch.device(like.device):
            model = SurfRefinerDiT(config)
    finally:
        torch.set_default_dtype(before)
    model.fused = kitchen() or eager
    return model.requires_grad_(False)


def inputs(stage: Stage, frames: int, like: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Latent, timestep and text."""
    generator = torch.Generator(like.device).manual_seed(0)
    rows, columns = (pixels // 8 for pixels in stage.side)
    count = latent_frames(stage.shape(), frames)
    made = {"generator": generator, "device": like.device, "dtype": like.dtype}
    z = torch.randn(1, 16, count, rows, columns, **made)
    return z, torch.tensor([500.0], device=like.device), torch.randn(1, 512, 4096, **made)


def measure(stages: list[Stage], frames: int, like: Tensor, reps: int) -> list[tuple]:
    """(seconds of an evaluation, of one without self-attention, peak bytes) of every stage."""
    given = [inputs(stage, frames, like) for stage in stages]
    spent = [([], []) for _ in stages]
    peaks = [0] * len(stages)
    for round_ in range(WARM_UPS + reps):
        for index, stage in enumerate(stages):
            attention, before = stage.model.packed, 0
            if like.is_cuda:
                torch.cuda.reset_peak_memory_stats()
                before = torch.cuda.memory_allocated()
            took = [seconds(lambda: stage.model(*given[index]), like.is_cuda)]  # noqa: B023
            if like.is_cuda:
                peaks[index] = torch.cuda.max_memory_allocated() - before
            stage.model.packed = lambda q, k, v, bounds: v
            took.append(seconds(lambda: stage.model(*given[index]), like.is_cuda))  # noqa: B023
            stage.model.packed = attention
            if round_ >= WARM_UPS:
                for times, value in zip(spent[index], took, strict=True):
                    times.append(value)
    return [(*map(median, both), peak) for both, peak in zip(spent, peaks, strict=True)]


def rows(target: str, stages: list[Stage], results: list[tuple], frames: int, rates) -> list[str]:
    """A line for each stage."""
    lines = []
    for stage, (took, without, peak) in zip(stages, results, strict=True):
        linear, attention = stage.work(frames)
        floor = linear / rates[0] + attention / rates[1][stage.model.config.head_dim]
        columns = [
            target, stage.name, stage.evaluations, f"{1000 * took:.4g}",
            f"{took * stage.evaluations:.4g}", f"{max(0.0, 1 - without / took):.2f}",
            f"{(linear + attention) / took / 1e12:.3g}", f"{1000 * floor:.4g}",
            f"{floor / took:.2f}", f"{peak / 2**30:.2f}" if peak else "-",
        ]  # fmt: skip
        lines.append(f"| {' | '.join(map(str, columns))} |")
    return lines


def verdict(target: str, stages: list[Stage], results: list[tuple], frames: int) -> list[str]:
    """Plain run over SURF for each refiner, in time and in operations: a line each."""
    time_of = [result[0] * stage.evaluations for stage, result in zip(stages, results, strict=True)]
    work_of = [sum(stage.work(frames)) * stage.evaluations for stage in stages]
    lines = []
    for index, stage in enumerate(stages[3:], start=3):
        total = sum(time_of[1:3]) + time_of[index]
        work = sum(work_of[1:3]) + work_of[index]
        faster, fewer = time_of[0] / total, work_of[0] / work
        lines.append(
            f"| {target} | {stage.name} | {time_of[0]:.4g} | {total:.4g} | {faster:.2f} "
            f"| {fewer:.2f} | {faster / fewer:.2f} |"
        )
    return lines


def main() -> None:
    cuda = torch.cuda.is_available()
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--target", nargs="+", default=["720p"], choices=("720p", "1080p"))
    parser.add_argument("--frames", type=int, default=81 if cuda else 17)
    parser.add_argument("--steps", type=int, default=50)
    parser.add_argument("--switch-step", type=int, default=10)
    parser.add_argument("--cfg", action=argparse.BooleanOptionalAction, default=True)
    parser.add_argument("--reps", type=int, default=3)
    parser.add_argument("--out", type=Path, help="a Markdown file to write the tables to")
    args = parser.parse_args()
    like = torch.zeros((), dtype=torch.bfloat16 if cuda else torch.float32)
    like = like.to("cuda" if cuda else "cpu")
    sides, refiners = (SIDES, REFINERS) if cuda else (TOY_SIDES, TOY_REFINERS)
    base = build(WAN_14B if cuda else TOY_BASE, like)
    small = {name: build(config, like) for name, config in refiners.items()}
    configs = [base.config, *(model.config for model in small.values())]
    rates = ceilings(like, {config.head_dim: config.heads for config in configs})
    per_step, table, ratios = 2 if args.cfg else 1, [], []
    for target in args.target:
        stages = [
            Stage(name=name, model=model, side=sides[side], evaluations=steps * per_step)
            for name, model, side, steps in (
                ("plain, base", base, target, args.steps),
                ("base, 480p", base, "480p", args.switch_step),
                ("base, 240p", base, "240p", args.steps - args.switch_step),
                *((name, model, target, REFINER_STEPS) for name, model in small.items()),
            )
        ]
        with torch.inference_mode():
            results = measure(stages, args.frames, like, args.reps)
        table += rows(target, stages, results, args.frames, rates)
        ratios += verdict(target, stages, results, args.frames)
    what = "Wan 2.1 14B's shape" if cuda else "TOY SIZE on a CPU: says nothing about real models"
    attention = ", ".join(f"heads of {k}: {rate / 1e12:.3g}" for k, rate in rates[1].items())
    text = "\n".join([
        "# The whole flow against the plain run", "",
        f"    {' '.join(['python -m benchmarks.flow', *sys.argv[1:]])}", "",
        f"{what}, {args.frames} frames, {args.steps} steps, "
        f"guidance {'on' if args.cfg else 'off'}; surf_core's networks "
        "with random weights, without VAE and text encoder.", "", LEGEND, "",
        HEAD, "| --- " * (HEAD.count("|") - 1) + "|", *table, "",
        "| target | refiner | plain, s | SURF, s | times faster | times fewer operations | share |",
        "| --- | --- | --- | --- | --- | --- | --- |", *ratios, "",
        f"Ceilings of the same run: matrix products {rates[0] / 1e12:.3g} TFLOP/s; attention, "
        f"{attention} TFLOP/s. {torch.cuda.get_device_name() + ', ' if cuda else ''}{like.dtype}, "
        f"median of {args.reps}. {provenance()}", "",
    ])  # fmt: skip
    if args.out:
        args.out.write_text(text)
    print(text)


if __name__ == "__main__":
    main()
