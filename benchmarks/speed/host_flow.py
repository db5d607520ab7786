"""What does the whole flow take in the host itself, against its plain run, and where is the gap?

    python -m benchmarks.speed.host_flow --dry-run
    export COMFYUI_PATH=/path/to/ComfyUI
    python -m benchmarks.speed.host_flow --size 720p 1080p --minutes 8
    python -m benchmarks.speed.host_flow --cfg first --keep 1 0.5
    python -m benchmarks.speed.host_flow --base hunyuan
    python -m benchmarks.speed.host_flow --only-memory --limit-gb 12 16 24

Wan 2.1 14B's architecture, the host's own, with random weights: its sampler at the target, against
Reshift KSampler from 480p to 240p and Surf Refiner at the target, with surf_1b and, without
training, with Wan 2.1 1.3B in windows. Everything is called as the nodes are, in turns. What does
not fit the minutes is cut: first repetitions, then steps of a run, which count with the median of
those that ran; then whole stages. The page is written after every call, so what ends a run early
costs what was to come. On a CPU, or with --toy, everything is toy-sized. --dry-run needs neither
GPU nor host: it prices every plan.

Dims: T latent frames, H, W latent cells.
"""

import argparse
import os
import shlex
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from benchmarks.page import command_line, place, provenance
from benchmarks.speed.host import models
from benchmarks.speed.host.calls import Kit
from benchmarks.speed.host.memory import memory_table
from benchmarks.speed.host.minutes import VAE_WIDTH, guess, plan, profile, turn
from benchmarks.speed.host.plans import DRY_LEGEND, GUIDANCE, Layout, Setting, priced
from benchmarks.speed.host.stages import UPSAMPLE, Machine
from benchmarks.speed.host.tables import (
    floor_table,
    flow_table,
    goal_table,
    share_table,
    stage_table,
)
from benchmarks.speed.host.watch import ELEMENTWISE, KINDS, Watch
from benchmarks.timing import bandwidth, ceilings
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
BASES = ("wan", "hunyuan")
PLANNED = 0.8
"""Of the minutes, for the calls; the rest is for profiles, and for what takes longer."""
NEEDS = "host_flow: not run: set COMFYUI_PATH to a ComfyUI checkout, and use the Python of it."
LEGEND = f"""`guidance` of a stage is whether it runs the network twice; of a plan, where it does:
`on` everywhere, `first` until the switch, `off` nowhere. The plain run of all but `off` has it.
`plans` are those that a stage is part of. `keep` in a refiner's name is the share of tokens that a
mask was asked to leave to it, `kept` what it left.

`evaluations` are those of a full run. Guided ones run the network twice. `measured` is calls x
evaluations that ran, in turns with all other stages. `first` is the time until the first
one ever was over, with everything before it; `later` the median of the others, or of the only one,
without what came before it; `rest` what follows the last of a call; `stage` the median of a call,
with `later` for each evaluation that it lacks. `peak` is what was allocated at most, the weights of
every model on the device among it.

TFLOP/s count the operations of `surf_core.cost`. A floor is its linear operations at the measured
rate of matrix products and its self-attention's at that of dense attention of that head width; or
its weights, read once at the measured rate of a copy. `gap` is the stage less its floors.

`networks` is both legs and the refiner, `share` its gain in time over that in operations, `at the
floors` the gain if every evaluation took its floor. `all` is with upsampling and the decode of the
result, on both sides. `{UPSAMPLE}` is all that Surf Refiner does before its latent is there; with a
mask, all of Surf Skip Mask, which does it instead. Kernels are told by their names."""


def setting(args: argparse.Namespace, base: str, switch_step: int | None = None) -> Setting:
    """What the command line compares, on one base; its first --switch-step if none is given."""
    toy, wan, real = args.toy, base == "wan", 129 if base == "hunyuan" else 81
    surf = surf_config(args)
    shape = {"wan": (cost.WAN_14B, TOY_WAN), "hunyuan": (cost.HUNYUAN_VIDEO, TOY_HUNYUAN)}[base][
        toy
    ]
    small = (cost.WAN_1_3B, TOY_SMALL)[toy]
    refiners = {"surf_1b": (cost.ModelShape.of(surf), surf.window),
                "wan_1_3b": (small, args.window)}  # fmt: skip
    return Setting(
        sides=TOY_SIDES if toy else SIDES, frames=args.frames or (9 if toy else real), base=shape,
        refiners=refiners if wan else {"hunyuan": (shape, args.window)},
        steps=args.steps, switch_step=switch_step or args.switch_step[0],
        refine_steps=args.refine_steps,
        upsample=wan and args.upsample == "pixel", decode=wan,
    )  # fmt: skip


def surf_config(args: argparse.Namespace) -> RefinerConfig:
    return replace(RefinerConfig.surf_1b(window=args.window), **(TOY_SURF if args.toy else {}))


def plans(args: argparse.Namespace, base: str, switch_step: int | None = None) -> Layout:
    """All plans on one base; HunyuanVideo knows no guidance that runs twice, and no mask."""
    guidance, keeps = (args.cfg, args.keep) if base == "wan" else (["off"], [1.0])
    return Layout(setting(args, base, switch_step)).lay_out(guidance, args.size, keeps)


def build(args: argparse.Namespace, like: torch.Tensor) -> Kit:
    """Every model of the run, on the device."""
    watch, given = Watch(like.is_cuda), setting(args, args.base)
    coder, width, base = None, TOY_VAE_WIDTH if args.toy else VAE_WIDTH, None
    if args.base == "hunyuan":
        base = watch.over(models.hunyuan(given.base, like.dtype))
        refiners = {"hunyuan": base}
    else:
        if not args.only_memory:
            base = watch.over(models.wan(given.base, like.dtype))
        refiners = {
            "surf_1b": watch.over(models.surf(surf_config(args), like.dtype)),
            "wan_1_3b": watch.over(models.wan(given.refiners["wan_1_3b"][0], like.dtype)),
        }
        coder = models.vae(width)
        watch.over_vae(coder)
    return Kit(
        watch=watch, setting=given, base=base, refiners=refiners, vae=coder, width=width,
        upsample=args.upsample if coder else "latent",
    )  # fmt: skip


def weights(model: Any) -> str:
    """How many a network has, in billions."""
    return f"{sum(each.numel() for each in model.model.diffusion_model.parameters()) / 1e9:.4g} B"


def parser() -> argparse.ArgumentParser:
    made = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    made.add_argument("--size", nargs="+", default=["720p"], choices=("720p", "1080p"))
    made.add_argument("--base", choices=BASES, help="wan; a dry run: both")
    made.add_argument("--cfg", nargs="+", choices=GUIDANCE, help="wan: on off; hunyuan only off")
    made.add_argument("--keep", nargs="+", type=float, default=[1.0], help="0..1, of Wan's tokens")
    made.add_argument("--frames", type=int, help="81, 129 for hunyuan")
    made.add_argument("--steps", type=int)
    made.add_argument("--switch-step", type=int, nargs="+", help="several: in a dry run")
    made.add_argument("--refine-steps", type=int)
    made.add_argument("--window", type=int, help="latent frames, of both refiners")
    made.add_argument("--upsample", default="pixel", choices=("pixel", "latent"))
    made.add_argument("--minutes", type=float, default=8.0, help="for all of it")
    made.add_argument("--reps", type=int, default=3, help="calls of each stage, at most")
    made.add_argument("--most", type=int, default=1000, help="evaluations of a call, at most")
    made.add_argument("--limit-gb", nargs="+", type=float, default=[], help="sizes of cards")
    made.add_argument("--limit-size", nargs="+", default=["720p", "1080p", "4k"], choices=SIDES)
    made.add_argument("--only-memory", action="store_true", help="no flow")
    made.add_argument("--dry-run", action="store_true", help="operations of every plan, no run")
    made.add_argument("--toy", action="store_true", help="as on a CPU")
    made.add_argument("--host", default="", help="options of the host, in one string")
    made.add_argument("--out", type=Path, help="a Markdown file for the tables, or a folder")
    return made


def arguments() -> argparse.Namespace:
    """The command line, with what a size leaves open filled in."""
    made = parser()
    args = made.parse_args()
    # A dry run is of the real sizes wherever it is made.
    args.toy = args.toy or not (args.dry_run or torch.cuda.is_available())
    for name, toy, value in (("steps", 4, 50), ("switch_step", [2], [10]), ("refine_steps", 2, 10),
                             ("window", 2, 4)):  # fmt: skip
        if getattr(args, name) is None:
            setattr(args, name, toy if args.toy else value)
    args.bases = [args.base] if args.base or not args.dry_run else BASES
    args.base = args.base or "wan"
    hunyuan = args.base == "hunyuan"
    args.cfg = args.cfg or (["off"] if hunyuan else ["on", "off"])
    if hunyuan and (args.cfg != ["off"] or args.keep != [1.0]):
        made.error("HunyuanVideo's guidance is distilled, and it takes no mask: --cfg off --keep 1")
    if not all(0 < keep <= 1 for keep in args.keep):
        made.error(f"--keep must lie above 0 and be at most 1, got {args.keep}.")
    if len(args.switch_step) > 1 and not args.dry_run:
        made.error("several --switch-step are for --dry-run; run them one after the other.")
    if not all(0 < step < args.steps for step in args.switch_step):
        made.error(f"--switch-step must lie between 0 and {args.steps}, got {args.switch_step}.")
    return args


def measure(
    kit: Kit, args: argparse.Namespace, machine: Machine, deadline: float, tell: Callable
) -> None:
    """Call all stages in turns, and tell the tables after each call."""
    made = plans(args, args.base)
    stages = [stage for stage in made.stages.values() if stage.times]
    every = sorted(made.stages.values(), key=lambda stage: stage.work is None)
    kinds = [*(name for name, _ in KINDS), ELEMENTWISE]
    size = " (TOY SIZE)" if args.toy else ""

    def told() -> None:
        tables = {
            "Goals": goal_table(made.flows, machine),
            "The whole flow": flow_table(made.flows, machine),
            "Stages": stage_table(every),
            "Floors, largest gap first": floor_table(every, machine),
            "One evaluation, by kernels": share_table(every, kinds),
        }
        tell([line for name, lines in tables.items() for line in (f"## {name}{size}", "", *lines)])

    guess(stages, kit, machine)
    now = time.perf_counter()
    calls_end = now + PLANNED * (deadline - now)
    told()
    for index in range(args.reps):
        # Each turn is planned with what the earlier ones have shown.
        plan(stages, calls_end - time.perf_counter(), args.most)
        for case in made.cases:
            turn(case, kit, calls_end if index else deadline)
            told()
    profile(made.cases, kit, deadline, told)


def header(args: argparse.Namespace, kit: Kit, command: str, version: str) -> list[str]:
    """What was run."""
    given, base = kit.setting, {} if kit.base is None else {kit.setting.base.name: kit.base}
    networks = base | {f"refiner {name}": model for name, model in kit.refiners.items()}
    sizes = ", ".join(f"{name} of {weights(each)} weights" for name, each in networks.items())
    what = f"ComfyUI {version} with random weights: {sizes}"
    if args.toy:
        what = f"TOY SIZE: says nothing about real models. {what}"
    return [
        "# The whole flow in the host, against its plain run", "", f"    {command}", "",
        f"{what}; {given.frames} frames, {args.steps} steps, {given.switch_step} of them at 480p, "
        f"{args.refine_steps} of the refiner, windows of {args.window}, euler; without the text "
        f"encoder. Within {args.minutes:g} minutes, at most {args.reps} calls of each stage.", "",
        LEGEND, "",
    ]  # fmt: skip


def footer(machine: Machine, like: torch.Tensor, origin: str) -> str:
    """Where it was run."""
    from comfy.ldm.modules.attention import optimized_attention

    widths = ", ".join(f"heads of {k}: {rate / 1e12:.3g}" for k, rate in machine.attention.items())
    return (
        f"Ceilings of the same run: matrix products {machine.matmul / 1e12:.3g} TFLOP/s; "
        f"attention, {widths} TFLOP/s; copies {machine.copy / 1e9:.4g} GB/s. The host's attention "
        f"is {optimized_attention.__name__}. {like.dtype}. {origin}"
    )


def benchmark(
    args: argparse.Namespace, command: str, version: str, write: Callable[[str], None]
) -> None:
    """Measure, and write the page as often as it grows."""
    deadline = time.perf_counter() + 60 * args.minutes
    cuda = torch.cuda.is_available()
    like = torch.zeros((), dtype=torch.bfloat16 if cuda else torch.float32)
    like, origin = like.to("cuda" if cuda else "cpu"), provenance()
    kit = build(args, like)
    shapes = [kit.setting.base, *(shape for shape, _ in kit.setting.refiners.values())]
    rate, attention = ceilings(like, {shape.dim // shape.heads: shape.heads for shape in shapes})
    machine = Machine(
        matmul=rate, attention=attention, copy=bandwidth(like), itemsize=like.itemsize
    )
    parts = {"flow": [], "memory": ["not run: --limit-gb was not given", ""]}
    first, last = header(args, kit, command, version), footer(machine, like, origin)

    def tell(part: str, lines: list[str]) -> None:
        parts[part] = lines
        cards = ["## The refiner on smaller cards", "", *parts["memory"]]
        write("\n".join([*first, *parts["flow"], *cards, last, ""]))

    if not args.only_memory:
        measure(kit, args, machine, deadline, lambda lines: tell("flow", lines))
    if args.limit_gb:
        memory_table(kit, args, machine, deadline, lambda lines: tell("memory", lines))


def dry_run(args: argparse.Namespace, command: str) -> str:
    """Price every plan."""
    names = {"wan": "Wan 2.1 14B, 81 frames", "hunyuan": "HunyuanVideo, 129 frames"}
    toy = "TOY SIZE. " if args.toy else ""
    flows = [
        (names[base], step, plans(args, base, step).flows)
        for base in args.bases for step in args.switch_step
    ]  # fmt: skip
    return "\n".join([
        "# Operations of every plan, against its plain run", "", f"    {command}", "",
        f"{toy}{args.steps} steps, at 480p until the switch, then at 240p, "
        f"{args.refine_steps} of the refiner, windows of {args.window}.", "", DRY_LEGEND, "",
        *priced(flows), provenance(), "",
    ])  # fmt: skip


def main() -> None:
    args, command = arguments(), command_line("speed.host_flow")
    page, sizes = {}, "-".join(args.size)
    name = f"flow-{args.base}-{sizes}"
    if args.dry_run or args.only_memory:
        name = "plans" if args.dry_run else f"cards-{args.base}"
    out = place(args.out, name)

    def write(text: str) -> None:
        page["text"] = text
        if out:
            out.write_text(text, encoding="utf-8")

    if args.dry_run:
        write(dry_run(args, command))
        print(page["text"])
        return
    folder = os.environ.get("COMFYUI_PATH")
    if not folder:
        print(NEEDS)
        return
    options = shlex.split(args.host)
    if not torch.cuda.is_available():
        # As on a GPU; by itself the host takes another attention on a CPU.
        options = ["--cpu", "--use-pytorch-cross-attention", *options]
    version = models.enter(Path(folder), options)
    try:
        with torch.inference_mode():
            benchmark(args, command, version, write)
    finally:
        print(page.get("text", "host_flow: nothing was measured."))


if __name__ == "__main__":
    main()
