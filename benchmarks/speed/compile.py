"""What does torch.compile cost and bring in the host, and is what comes out still right?

    export COMFYUI_PATH=/path/to/ComfyUI
    python -m benchmarks.speed.compile --out FILE.md
    python -m benchmarks.speed.compile --models surf --modes eager surf

The host's own sampler and the nodes of the pack run random models, plain (eager), with Surf Compile
(surf) and with the host's TorchCompileModel (host), one setting after the other:
sizes, guidance, windows, masks and tiles change, the compiled model stays. The page is written
after every setting. What fails, or does not fit the minutes, is a row that says so. On a CPU, or
with --toy, everything is toy-sized.
"""

import argparse
import math
import os
import sys
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, replace
from itertools import chain
from statistics import median
from typing import Any

import torch

from benchmarks.page import NOT_MEASURED, TOY, Page, parser, table
from benchmarks.speed.compile_settings import SamplerSetting, settings_of
from benchmarks.speed.host import models
from benchmarks.speed.host.profiler import StageProfiler
from benchmarks.speed.host_flow import TOY_SURF, TOY_WAN
from benchmarks.timing import FAILURES, OVER, device_scalar, reason
from surf_core import cost
from surf_core.refiner import RefinerConfig

SHAPES = {"wan": (cost.WAN_14B, TOY_WAN), "surf": (cost.WAN_14B, cost.WAN_14B)}
"""Shape of a model, real and toy; for the refiner the one whose prompts it takes."""
MODES = ("eager", "surf", "host")
COLUMNS = (
    "model | setting | mode | first, s | later, s | times eager | compiled | breaks "
    "| differs by | peak, GiB"
)
LEGEND = """`first` is the first evaluation of a setting, which compiles what is not there yet;
`later` the median of those of a second call, `times eager` the plain model's time over it.
`compiled` counts the graphs that were new in a setting, `breaks` the places where one was cut.
`differs by` is the largest difference of the result from the plain model's, over the largest value
in that; above 0.01 it is WRONG. The settings of a model run in this order; inductor, no cache."""
WRONG, NOT_REACHED = 0.01, "not reached"


@dataclass(kw_only=True, slots=True, eq=False)
class CompiledRun:
    """A setting in a mode, and what came of it."""

    setting: SamplerSetting
    mode: str
    why_not: str = NOT_REACHED
    out: torch.Tensor | None = None
    first: float = 0.0
    """Seconds."""
    later: float = 0.0
    """Seconds."""
    compiled: int = 0
    breaks: int = 0
    peak: int = 0
    """Bytes."""

    def row(self, name: str, plain: "CompiledRun") -> list:
        start = [name, self.setting.name, self.mode]
        if self.out is None:
            return [*start, f"{NOT_MEASURED}: {self.why_not}", *["-"] * 6]
        peak = f"{self.peak / 2**30:.2f}" if self.peak else f"{NOT_MEASURED}: needs CUDA"
        faster, gap = "-", "-"
        if plain.out is not None:
            faster = f"{plain.later / self.later:.2f}"
            away = (self.out - plain.out).abs().max() / plain.out.abs().max()
            gap = f"{away:.1e}" + ("" if away <= WRONG else ", WRONG")
        times = f"{self.first:.3g}", f"{self.later:.3g}"
        return [*start, *times, faster, self.compiled, self.breaks, gap, peak]

    def measure(self, model: Any, profiler: StageProfiler) -> None:
        """Run the setting twice."""
        before = graph_counts()
        profiler.start()
        out = self.setting.run(model)
        self.first = profiler.evaluations[0].ended - profiler.evaluations[0].began
        # A second call: the second size of a preview is compiled in the first.
        profiler.start()
        self.setting.run(model)
        self.later = median(each.ended - each.began for each in profiler.evaluations)
        after, self.peak, self.out = graph_counts(), profiler.peak(), out.cpu()
        self.compiled, self.breaks = after[0] - before[0], after[1] - before[1]


def compiled(model: Any, mode: str) -> Any:
    """Return the model as one of MODES gives it."""
    if mode == "host":
        from comfy_extras.nodes_torch_compile import TorchCompileModel

        return TorchCompileModel.execute(model, "inductor").args[0]
    if mode == "surf":
        from surf.nodes.compile import SurfCompile

        return SurfCompile.execute(model).args[0]
    return model


def graph_counts() -> tuple[int, int]:
    """Count graphs and breaks so far."""
    from torch._dynamo.utils import counters

    return counters["stats"]["unique_graphs"], sum(counters["graph_break"].values())


def give_up(runs: Iterable[CompiledRun], why: str) -> None:
    """Say why runs are not made."""
    for each in runs:
        each.why_not = why


def measure(
    model: Any, runs: list[CompiledRun], profiler: StageProfiler, deadline: float,
    publish: Callable[[], None],
) -> None:  # fmt: skip
    """Run the settings of a mode with one compiled model; one that fails leaves the others."""
    if time.perf_counter() > deadline:
        give_up(runs, OVER)
        return
    torch._dynamo.reset()
    try:
        recorded = profiler.over(compiled(model, runs[0].mode))
    except FAILURES as error:
        give_up(runs, reason(error))
        return
    for each in runs:
        if time.perf_counter() > deadline:
            each.why_not = OVER
            continue
        try:
            each.measure(recorded, profiler)
        except FAILURES as error:
            each.why_not = reason(error)
        print(f"{each.mode}: {each.setting.name}", file=sys.stderr, flush=True)
        publish()


def build(name: str, toy: bool, dtype: torch.dtype) -> Any:
    """Build a random model."""
    if name == "wan":
        return models.wan(SHAPES[name][toy], dtype)
    config = replace(RefinerConfig.surf_1b(window=4), **(TOY_SURF if toy else {}))
    return models.surf(config, dtype)


Plan = dict[str, dict[str, list[CompiledRun]]]
"""Model -> mode -> its settings in their order."""


def lay_out(args: argparse.Namespace) -> Plan:
    plan: Plan = {}
    for name in args.models:
        settings = settings_of(name, SHAPES[name][args.toy], args.toy)
        plan[name] = {
            mode: [CompiledRun(setting=each, mode=mode) for each in settings] for mode in args.modes
        }
    return plan


def rows(plan: Plan) -> Iterator[list]:
    """Yield a row for every setting in every mode."""
    for name, modes in plan.items():
        for each in zip(*modes.values(), strict=True):
            yield from (run.row(name, each[0]) for run in each)


def arguments() -> argparse.Namespace:
    line = parser(__doc__, minutes=math.inf)
    line.add_argument("--models", nargs="+", default=list(SHAPES), choices=SHAPES)
    line.add_argument("--modes", nargs="+", default=list(MODES), choices=MODES)
    line.add_argument("--toy", action="store_true", default=not torch.cuda.is_available())
    args = line.parse_args()
    args.deadline = time.perf_counter() + 60 * args.minutes
    args.modes = ["eager", *(mode for mode in args.modes if mode != "eager")]
    return args


@torch.inference_mode()
def main() -> None:
    args, version = arguments(), models.enter("compile")
    if version is None:
        return
    os.environ["TORCHINDUCTOR_FORCE_DISABLE_CACHES"] = "1"
    like, plan = device_scalar(), lay_out(args)
    profiler = StageProfiler(like.is_cuda)
    about = f"{TOY if args.toy else ''}ComfyUI {version}, random weights, {like.dtype}."
    legend = f"{about}\n\n{LEGEND}"
    with Page(__spec__.name, "Compiled blocks", args.out, legend) as page:

        def publish() -> None:
            page.write([*table(COLUMNS, rows(plan)), "", page.where])

        publish()
        for name, modes in plan.items():
            try:
                over = time.perf_counter() > args.deadline
                model = None if over else build(name, args.toy, like.dtype)
            except FAILURES as error:
                give_up(chain(*modes.values()), reason(error))
                continue
            for runs in modes.values():
                measure(model, runs, profiler, args.deadline, publish)
        publish()


if __name__ == "__main__":
    main()
