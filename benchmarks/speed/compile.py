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
import signal
import sys
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from itertools import chain
from pathlib import Path
from statistics import median
from typing import Any

import torch

from benchmarks.page import provenance, publish_page
from benchmarks.speed.host import models
from benchmarks.speed.host.settings import Setting, settings_of
from benchmarks.speed.host.tables import NOT, table
from benchmarks.speed.host.watch import Watch
from benchmarks.speed.host_flow import TOY_HUNYUAN, TOY_SURF, TOY_WAN
from benchmarks.timing import FAILURES, reason
from surf_core import cost
from surf_core.refiner import RefinerConfig

NEEDS = "compile: not run: set COMFYUI_PATH to a ComfyUI checkout, and use the Python of it."
MODES = ("eager", "surf", "host")
COLUMNS = ("model | setting | mode | first, s | later, s | times eager | compiled | breaks "
           "| differs by | peak, GiB")  # fmt: skip
LEGEND = """`first` is the first evaluation of a setting, which compiles what is not there yet;
`later` the median of those of a second call, `times eager` the plain model's time over it.
`compiled` counts the graphs that were new in a setting, `breaks` the places where one was cut.
`differs by` is the largest difference of the result from the plain model's, over the largest value
in that; above 0.01 it is WRONG. The settings of a model run in this order; inductor, no cache."""
WRONG, NOT_REACHED = 0.01, "not reached"
AGAIN = 5.0
"""Seconds after which Over is raised once more: what compiles takes it for a failure at times."""


@dataclass(kw_only=True, slots=True, eq=False)
class Tried:
    """A setting in a mode, and what came of it."""

    setting: Setting
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

    def row(self, name: str, plain: "Tried") -> list:
        start = [name, self.setting.name, self.mode]
        if self.out is None:
            return [*start, f"{NOT}: {self.why_not}", *["-"] * 6]
        peak = f"{self.peak / 2**30:.2f}" if self.peak else f"{NOT}: needs CUDA"
        faster, gap = "-", "-"
        if plain.out is not None:
            faster = f"{plain.later / self.later:.2f}"
            away = (self.out - plain.out).abs().max() / plain.out.abs().max()
            gap = f"{away:.1e}" + ("" if away <= WRONG else ", WRONG")
        times = f"{self.first:.3g}", f"{self.later:.3g}"
        return [*start, *times, faster, self.compiled, self.breaks, gap, peak]


class Over(BaseException):
    """The minutes are over: no failure of the call that it ends."""


@contextmanager
def at_most(seconds: float) -> Iterator[None]:
    """Raise Over after so many seconds: compiling takes minutes, and looks at no clock."""

    def ring(*_: Any) -> None:
        raise Over

    if seconds == math.inf:
        yield
        return
    signal.signal(signal.SIGALRM, ring)
    # Zero would mean never.
    signal.setitimer(signal.ITIMER_REAL, max(seconds, 0.001), AGAIN)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)


def compiled(model: Any, mode: str) -> Any:
    """The model as one of MODES gives it."""
    if mode == "host":
        from comfy_extras.nodes_torch_compile import TorchCompileModel

        return TorchCompileModel.execute(model, "inductor").args[0]
    if mode == "surf":
        from surf.nodes.compile import SurfCompile

        return SurfCompile.execute(model).args[0]
    return model


def counted() -> tuple[int, int]:
    """Graphs and breaks so far."""
    from torch._dynamo.utils import counters

    return counters["stats"]["unique_graphs"], sum(counters["graph_break"].values())


def attempt(tried: Tried, model: Any, watch: Watch) -> None:
    """Run a setting twice."""
    before, began = counted(), time.perf_counter()
    watch.start()
    out = tried.setting.run(model)
    tried.first = watch.evaluations[0].ended - watch.evaluations[0].began
    # A second call: the second size of a preview is compiled in the first.
    watch.start()
    tried.setting.run(model)
    tried.later = median(each.ended - each.began for each in watch.evaluations)
    after, tried.peak, tried.out = counted(), watch.peak(), out.cpu()
    tried.compiled, tried.breaks = after[0] - before[0], after[1] - before[1]
    spent = time.perf_counter() - began
    print(f"{tried.mode}: {tried.setting.name}: {spent:.1f} s", file=sys.stderr, flush=True)


def give_up(planned: Iterable[Tried], why: str) -> None:
    """Say why those that were not reached will not be."""
    for tried in planned:
        if tried.out is None and tried.why_not == NOT_REACHED:
            tried.why_not = why


def measure(
    model: Any, planned: list[Tried], watch: Watch, deadline: float, tell: Callable[[], None]
) -> None:
    """Run the settings of a mode with one compiled model; one that fails leaves the others."""
    torch._dynamo.reset()
    try:
        given = watch.over(compiled(model, planned[0].mode))
    except FAILURES as error:
        give_up(planned, reason(error))
        return
    for tried in planned:
        try:
            attempt(tried, given, watch)
        except FAILURES as error:
            tried.why_not = reason(error)
        if time.perf_counter() > deadline:
            # Over was raised and got lost: neither a result nor a failure of this setting.
            tried.out, tried.why_not = None, NOT_REACHED
            raise Over
        tell()


def shape_of(name: str, toy: bool) -> cost.ModelShape:
    """The shape of a model, or the one whose prompts the refiner takes."""
    real, small = {
        "wan": (cost.WAN_14B, TOY_WAN),
        "hunyuan": (cost.HUNYUAN_VIDEO, TOY_HUNYUAN),
        "surf": (cost.WAN_14B, cost.WAN_14B),
    }[name]
    return small if toy else real


def build(name: str, toy: bool, dtype: torch.dtype) -> Any:
    """A random model."""
    if name == "surf":
        config = replace(RefinerConfig.surf_1b(window=4), **(TOY_SURF if toy else {}))
        return models.surf(config, dtype)
    make = {"wan": models.wan, "hunyuan": models.hunyuan}[name]
    return make(shape_of(name, toy), dtype)


Plan = dict[str, dict[str, list[Tried]]]
"""Model -> mode -> its settings in their order."""


def lay_out(args: argparse.Namespace) -> Plan:
    plan: Plan = {}
    for name in args.models:
        settings = settings_of(name, shape_of(name, args.toy), args.toy)
        plan[name] = {mode: [Tried(setting=s, mode=mode) for s in settings] for mode in args.modes}
    return plan


def rows(plan: Plan) -> Iterator[list]:
    """Yield a row for every setting in every mode."""
    for name, modes in plan.items():
        for each in zip(*modes.values(), strict=True):
            yield from (tried.row(name, each[0]) for tried in each)


def run(plan: Plan, toy: bool, deadline: float, tell: Callable[[], None]) -> None:
    """Measure all, mode by mode, as long as there is time."""
    cuda = torch.cuda.is_available()
    watch, dtype = Watch(cuda), torch.bfloat16 if cuda else torch.float32
    try:
        with at_most(deadline - time.perf_counter()), torch.inference_mode():
            for name, modes in plan.items():
                try:
                    model = build(name, toy, dtype)
                except FAILURES as error:
                    give_up(chain(*modes.values()), reason(error))
                    continue
                for planned in modes.values():
                    measure(model, planned, watch, deadline, tell)
    except Over:
        for modes in plan.values():
            give_up(chain(*modes.values()), "the minutes were over")


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--models", nargs="+", default=["wan", "surf", "hunyuan"],
                        choices=("wan", "surf", "hunyuan"))  # fmt: skip
    parser.add_argument("--modes", nargs="+", default=list(MODES), choices=MODES)
    parser.add_argument("--toy", action="store_true", default=not torch.cuda.is_available())
    parser.add_argument("--minutes", type=float, default=math.inf, help="for all of it")
    parser.add_argument("--out", type=Path, help="a Markdown file for the table, or a folder")
    args = parser.parse_args()
    args.deadline = time.perf_counter() + 60 * args.minutes
    args.modes = ["eager", *(mode for mode in args.modes if mode != "eager")]
    return args


def main() -> None:
    args, folder = arguments(), os.environ.get("COMFYUI_PATH")
    if not folder:
        print(NEEDS)
        return
    os.environ["TORCHINDUCTOR_FORCE_DISABLE_CACHES"] = "1"
    cuda = torch.cuda.is_available()
    # As on a GPU; by itself the host takes another attention on a CPU.
    options = [] if cuda else ["--cpu", "--use-pytorch-cross-attention"]
    command = sys.argv
    version = models.enter(Path(folder), options)
    sys.argv = command
    plan = lay_out(args)
    size = "TOY SIZE: the times say nothing about real models. " if args.toy else ""
    about = f"{size}ComfyUI {version}, random weights, {'bfloat16' if cuda else 'float32'}."
    legend = f"{about} {provenance()}\n\n{LEGEND}"

    def publish(final: bool = False) -> None:
        publish_page("Compiled blocks", legend, table(COLUMNS, rows(plan)), args.out, final=final)

    try:
        run(plan, args.toy, args.deadline, publish)
    finally:
        publish(final=True)


if __name__ == "__main__":
    main()
