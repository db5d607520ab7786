"""What does the whole flow take in the host itself, against its plain run, and where is the gap?

    COMFYUI_PATH=/path/to/ComfyUI python -m benchmarks.host_flow --size 720p 1080p --minutes 8
    COMFYUI_PATH=/path/to/ComfyUI python -m benchmarks.host_flow --base hunyuan --cfg off
    COMFYUI_PATH=/path/to/ComfyUI python -m benchmarks.host_flow --only-memory --limit-gb 12 16 24

Wan 2.1 14B's architecture, the host's own, with random weights: its sampler at the target, against
Reshift KSampler from 480p to 240p and Surf Refiner at the target, with surf_1b and, without
training, with Wan 2.1 1.3B in windows. Everything is called as the nodes are, in turns. What does
not fit the minutes is cut: first repetitions, then steps of a run, which count with the median of
those that ran; then whole stages. On a CPU, or with --toy, everything is toy-sized.

Dims: T latent frames, H, W latent cells.
"""

import argparse
import os
import shlex
import shutil
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from benchmarks.ceilings import bandwidth, ceilings
from benchmarks.host import models
from benchmarks.host.calls import CFG, Kit
from benchmarks.host.memory import memory_table
from benchmarks.host.minutes import VAE_WIDTH, Case, guess, plan, profile, turn
from benchmarks.host.stages import DECODE, FIRST, PLAIN, SECOND, UPSAMPLE, Flow, Machine, Stage
from benchmarks.host.tables import floor_table, flow_table, goal_table, share_table, stage_table
from benchmarks.host.watch import ELEMENTWISE, KINDS, Watch
from benchmarks.provenance import provenance
from surf_core import cost
from surf_core.refiner import RefinerConfig

SIDES = {"240p": (240, 416), "480p": (480, 832), "720p": (720, 1280), "1080p": (1088, 1920),
         "4k": (2160, 3840)}  # fmt: skip
TOY_SIDES = {"240p": (32, 48), "480p": (64, 96), "720p": (80, 128), "1080p": (96, 144),
             "4k": (128, 192)}  # fmt: skip
TOY_WAN = replace(cost.WAN_14B, name="toy Wan", dim=256, layers=3, heads=2, ffn_dim=512)
TOY_SMALL = replace(cost.WAN_1_3B, name="toy small Wan", dim=128, layers=2, heads=1, ffn_dim=256)
TOY_HUNYUAN = replace(cost.HUNYUAN_VIDEO, name="toy HunyuanVideo", dim=256, layers=3, heads=2,
                      ffn_dim=1024, text_tokens=8)  # fmt: skip
TOY_SURF = {"dim": 144, "heads": 2, "layers": 2, "ffn_dim": 288}
TOY_VAE_WIDTH = 4
PLANNED = 0.8
"""Of the minutes, for the calls; the rest is for profiles, and for what takes longer."""
NEEDS = "host_flow: not run: set COMFYUI_PATH to a ComfyUI checkout, and use the Python of it."
LEGEND = f"""`evaluations` are those of a full run, guided ones run the network twice; `measured`
is calls x evaluations that ran, in turns with all other stages. `first` is the time until the first
one ever was over, with everything before it; `later` the median of the others, or of the only one,
without what came before it; `rest` what follows the last of a call; `stage` the median of a call,
with `later` for each evaluation that it lacks. `peak` is what was allocated at most, the weights of
every model on the device among it.

TFLOP/s count the operations of `surf_core.cost`. A floor is its linear operations at the measured
rate of matrix products and its self-attention's at that of dense attention of that head width; or
its weights, read once at the measured rate of a copy. `gap` is the stage less its floors.

`networks` is both legs and the refiner, `share` its gain in time over that in operations, `at the
floors` the gain if every evaluation took its floor. `all` is with upsampling and the decode of the
result, on both sides. `{UPSAMPLE}` is all that Surf Refiner does before its
latent is there. Kernels are told by their names."""


def build(args: argparse.Namespace, like: torch.Tensor) -> Kit:
    """Every model of the run, on the device."""
    toy, watch = args.toy, Watch(like.is_cuda)
    surf = replace(RefinerConfig.surf_1b(window=args.window), **(TOY_SURF if toy else {}))
    if args.base == "wan":
        base, small = (TOY_WAN, TOY_SMALL) if toy else (cost.WAN_14B, cost.WAN_1_3B)
        model = models.wan(base, like.dtype)
        refiners = {
            "surf_1b": (models.surf(surf, like.dtype), cost.ModelShape.of(surf), surf.window),
            "wan_1_3b": (models.wan(small, like.dtype), small, args.window),
        }
    else:
        base = TOY_HUNYUAN if toy else cost.HUNYUAN_VIDEO
        model = models.hunyuan(base, like.dtype)
        refiners = {"hunyuan": (model, base, args.window)}
    width = TOY_VAE_WIDTH if toy else VAE_WIDTH
    coder = models.vae(width) if args.base == "wan" else None
    if coder:
        watch.over_vae(coder)
    return Kit(
        watch=watch, sides=TOY_SIDES if toy else SIDES, frames=args.frames,
        base=watch.over(model), base_shape=base,
        refiners={name: (watch.over(each), *rest) for name, (each, *rest) in refiners.items()},
        vae=coder, width=width, upsample=args.upsample if coder else "latent",
    )  # fmt: skip


def lay_out(kit: Kit, args: argparse.Namespace) -> tuple[list[Case], list[Flow]]:
    """The calls of one turn, in their order, and how their stages make up flows."""
    cases, flows, coding = [], [], {}

    def stage(target: str, cfg: str, name: str, shape=None, steps=1, side="", window=0) -> Stage:
        work = shape and cost.Stage(
            shape=shape, steps=steps, frames=kit.frames, height=kit.sides[side][0],
            width=kit.sides[side][1], window=window, guided=cfg == "on",
        )  # fmt: skip
        return Stage(target=target, cfg=cfg, name=name, work=work)

    def add(run: Callable, *stages: Stage, **more) -> None:
        cases.append(Case(stages=stages, run=lambda: run(*stages, **more)))

    for cfg in args.cfg:
        low = args.steps - args.switch_step
        legs = (stage("-", cfg, FIRST, kit.base_shape, args.switch_step, "480p"),
                stage("-", cfg, SECOND, kit.base_shape, low, "240p"))  # fmt: skip
        for size in args.size:
            plain = stage(size, cfg, PLAIN, kit.base_shape, args.steps, size)
            add(kit.plain, plain)
            if size == args.size[0]:
                add(kit.preview, *legs)
            if size not in coding:
                up = stage(size, "-", UPSAMPLE) if kit.upsample == "pixel" else None
                coding[size] = up, stage(size, "-", DECODE) if kit.vae else None
            for name, (_, shape, window) in kit.refiners.items():
                refine = stage(size, cfg, name, shape, args.refine_steps, size, window)
                add(kit.refine, refine, coding=coding[size][0])
                flows.append(Flow(plain=plain, legs=legs, refine=refine, coding=coding[size]))
            if kit.vae and cfg == args.cfg[0]:
                add(kit.decode, coding[size][1])
    return cases, flows


def weights(model: Any) -> str:
    """How many a network has, in billions."""
    return f"{sum(each.numel() for each in model.model.diffusion_model.parameters()) / 1e9:.4g} B"


def driver() -> str:
    """Version of the NVIDIA driver, as far as it can be asked."""
    tool = shutil.which("nvidia-smi")
    if tool is None:
        return "unknown"
    command = [tool, "--query-gpu=driver_version", "--format=csv,noheader"]
    found = subprocess.run(command, capture_output=True, text=True, check=False).stdout.split()
    return found[0] if found else "unknown"


def arguments() -> argparse.Namespace:
    """The command line, with what a size leaves open filled in."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--size", nargs="+", default=["720p"], choices=("720p", "1080p"))
    parser.add_argument("--base", default="wan", choices=("wan", "hunyuan"))
    parser.add_argument("--cfg", nargs="+", choices=CFG, help="hunyuan knows only off")
    parser.add_argument("--frames", type=int, help="81, 129 for hunyuan")
    parser.add_argument("--steps", type=int)
    parser.add_argument("--switch-step", type=int)
    parser.add_argument("--refine-steps", type=int)
    parser.add_argument("--window", type=int, help="latent frames, of both refiners")
    parser.add_argument("--upsample", default="pixel", choices=("pixel", "latent"))
    parser.add_argument("--minutes", type=float, default=8.0, help="for all of it")
    parser.add_argument("--reps", type=int, default=3, help="calls of each stage, at most")
    parser.add_argument("--most", type=int, default=1000, help="evaluations of a call, at most")
    parser.add_argument("--limit-gb", nargs="+", type=float, default=[], help="sizes of cards")
    parser.add_argument("--limit-size", nargs="+", default=["720p", "1080p", "4k"], choices=SIDES)
    parser.add_argument("--only-memory", action="store_true", help="no flow")
    parser.add_argument("--toy", action="store_true", default=not torch.cuda.is_available())
    parser.add_argument("--host", default="", help="options of the host, in one string")
    parser.add_argument("--out", type=Path, help="a Markdown file to write the tables to")
    args = parser.parse_args()
    real = 129 if args.base == "hunyuan" else 81
    for name, toy, value in (("frames", 9, real), ("steps", 4, 50), ("switch_step", 2, 10),
                             ("refine_steps", 2, 10), ("window", 2, 4)):  # fmt: skip
        if getattr(args, name) is None:
            setattr(args, name, toy if args.toy else value)
    args.cfg = args.cfg or (["off"] if args.base == "hunyuan" else ["on", "off"])
    if args.base == "hunyuan" and args.cfg != ["off"]:
        parser.error("HunyuanVideo's guidance is distilled: --cfg off.")
    if not 0 < args.switch_step < args.steps:
        parser.error(f"--switch-step must lie between 0 and {args.steps}, got {args.switch_step}.")
    return args


def measure(kit: Kit, args: argparse.Namespace, machine: Machine, deadline: float) -> list[str]:
    """Call all stages in turns, and lay the tables out."""
    cases, flows = lay_out(kit, args)
    stages = list(dict.fromkeys(stage for case in cases for stage in case.stages))
    coding = [stage for flow in flows for stage in flow.coding if stage and stage not in stages]
    every = stages + list(dict.fromkeys(coding))
    guess(stages, kit, machine)
    now = time.perf_counter()
    calls_end = now + PLANNED * (deadline - now)
    for index in range(args.reps):
        # Each turn is planned with what the earlier ones have shown.
        plan(stages, calls_end - time.perf_counter(), args.most)
        for case in cases:
            turn(case, calls_end if index else deadline)
    profile(cases, kit, deadline)
    kinds = [*(name for name, _ in KINDS), ELEMENTWISE]
    tables = {
        "Goals": goal_table(flows, machine),
        "The whole flow": flow_table(flows, machine),
        "Stages": stage_table(every),
        "Floors, largest gap first": floor_table(every, machine),
        "One evaluation, by kernels": share_table(every, kinds),
    }
    size = " (TOY SIZE)" if args.toy else ""
    return [line for name, lines in tables.items() for line in (f"## {name}{size}", "", *lines)]


def benchmark(args: argparse.Namespace, command: str, version: str) -> str:
    """Measure, and write the page."""
    deadline = time.perf_counter() + 60 * args.minutes
    cuda = torch.cuda.is_available()
    like = torch.zeros((), dtype=torch.bfloat16 if cuda else torch.float32)
    like, commit = like.to("cuda" if cuda else "cpu"), provenance()
    kit = build(args, like)
    shapes = [kit.base_shape, *(shape for _, shape, _ in kit.refiners.values())]
    rate, attention = ceilings(like, {shape.dim // shape.heads: shape.heads for shape in shapes})
    machine = Machine(
        matmul=rate, attention=attention, copy=bandwidth(like), itemsize=like.itemsize
    )
    lines = [] if args.only_memory else measure(kit, args, machine, deadline)
    memory = ["not run: --limit-gb was not given", ""]
    if args.limit_gb:
        memory = memory_table(kit, args, machine, deadline)
    from comfy.ldm.modules.attention import optimized_attention

    networks = {kit.base_shape.name: kit.base} | {
        f"refiner {name}": model for name, (model, *_) in kit.refiners.items()
    }
    sizes = ", ".join(f"{name} of {weights(each)} weights" for name, each in networks.items())
    what = f"ComfyUI {version} with random weights: {sizes}"
    if args.toy:
        what = f"TOY SIZE: says nothing about real models. {what}"
    widths = ", ".join(f"heads of {k}: {rate / 1e12:.3g}" for k, rate in machine.attention.items())
    device = f"{torch.cuda.get_device_name()}, driver {driver()}, " if cuda else ""
    return "\n".join([
        "# The whole flow in the host, against its plain run", "", f"    {command}", "",
        f"{what}; {args.frames} frames, {args.steps} steps, {args.switch_step} of them at 480p, "
        f"{args.refine_steps} of the refiner, windows of {args.window}, euler; without the text "
        f"encoder. Within {args.minutes:g} minutes, at most {args.reps} calls of each stage.", "",
        LEGEND, "", *lines, "## The refiner on smaller cards", "", *memory,
        f"Ceilings of the same run: matrix products {machine.matmul / 1e12:.3g} TFLOP/s; "
        f"attention, {widths} TFLOP/s; copies {machine.copy / 1e9:.4g} GB/s. The host's attention "
        f"is {optimized_attention.__name__}. {device}{like.dtype}. {commit}", "",
    ])  # fmt: skip


def main() -> None:
    args, command = arguments(), shlex.join(["python", "-m", "benchmarks.host_flow", *sys.argv[1:]])
    folder = os.environ.get("COMFYUI_PATH")
    if not folder:
        print(NEEDS)
        return
    options = shlex.split(args.host)
    if not torch.cuda.is_available():
        # As on a GPU; by itself the host takes another attention on a CPU.
        options = ["--cpu", "--use-pytorch-cross-attention", *options]
    version = models.enter(Path(folder), options)
    with torch.inference_mode():
        text = benchmark(args, command, version)
    if args.out:
        args.out.write_text(text, encoding="utf-8")
    print(text)


if __name__ == "__main__":
    main()
