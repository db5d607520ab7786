"""What does the whole flow take in the host itself, against its plain run, and where is the gap?

    python -m benchmarks.speed.host_flow --dry-run
    export COMFYUI_PATH=/path/to/ComfyUI
    python -m benchmarks.speed.host_flow --size 720p 1080p --minutes 8
    python -m benchmarks.speed.host_flow --cfg first --keep 1 0.5
    python -m benchmarks.speed.host_flow --base hunyuan
    python -m benchmarks.speed.host_flow --only-memory --limit-gb 12 16 24

Wan 2.1 14B's architecture, the host's own, with random weights: its sampler at the target, against
Surf Reshift KSampler from 480p to 240p and Surf Refiner at the target, with surf_1b and, without
training, with Wan 2.1 1.3B in windows. Everything is called as the nodes are, in turns. What does
not fit the minutes is cut: first repetitions, then steps of a run, which count with the median of
those that ran; then whole stages. The page is written after every call, so what ends a run early
costs what was to come. On a CPU, or with --toy, everything is toy-sized. --dry-run needs neither
GPU nor host: it prices every plan.

Dims: T latent frames, H, W latent cells.
"""

import argparse
import time
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import torch

from benchmarks.page import TOY, Page, parser
from benchmarks.speed.host import models
from benchmarks.speed.host.budget import VAE_WIDTH, guess, plan, turn
from benchmarks.speed.host.calls import HostCalls
from benchmarks.speed.host.cards import memory_table
from benchmarks.speed.host.plans import (
    CARD_LEGEND,
    DRY_LEGEND,
    GUIDANCE,
    FlowSetting,
    PlanLayout,
    card_table,
    operations_table,
)
from benchmarks.speed.host.profiler import StageProfiler
from benchmarks.speed.host.stages import UPSAMPLE, Machine
from benchmarks.speed.host.tables import floor_table, flow_table, stage_table
from benchmarks.timing import ceilings, device_scalar
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
FRAMES = {"wan": 81, "hunyuan": 129}
PLANNED = 0.9
"""Of the minutes, for the calls; the rest is for what takes longer."""
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
rate of matrix products and its self-attention's at that of dense attention of that head width.
`gap` is the stage less its floors.

`networks` is both legs and the refiner, `share` its gain in time over that in operations, `at the
floors` the gain if every evaluation took its floor. `all` is with upsampling and the decode of the
result, on both sides. `{UPSAMPLE}` is all that Surf Refiner does before its latent is there; with a
mask, all of Surf Skip Mask, which does it instead."""


def setting(
    args: argparse.Namespace, base: str, switch_step: int | None = None, preview: int | None = None
) -> FlowSetting:
    """Return what the command line compares, on one base.

    Args:
        switch_step: default: the first --switch-step.
        preview: steps of both legs; default: the first --preview-steps.
    """
    toy, wan, surf = args.toy, base == "wan", surf_config(args)
    shapes = {"wan": (cost.WAN_14B, TOY_WAN), "hunyuan": (cost.HUNYUAN_VIDEO, TOY_HUNYUAN)}[base]
    small = (cost.WAN_1_3B, TOY_SMALL)[toy]
    refiners = {"surf_1b": (cost.ModelShape.of(surf), surf.window),
                "wan_1_3b": (small, args.window)}  # fmt: skip
    return FlowSetting(
        sides=TOY_SIDES if toy else SIDES, frames=args.frames or (9 if toy else FRAMES[base]),
        base=shapes[toy], refiners=refiners if wan else {"hunyuan": (shapes[toy], args.window)},
        steps=args.steps, preview_steps=preview or args.preview_steps[0],
        switch_step=switch_step or args.switch_step[0],
        refine_steps=args.refine_steps, upsample=wan and args.upsample == "pixel", decode=wan,
    )  # fmt: skip


def surf_config(args: argparse.Namespace) -> RefinerConfig:
    return replace(RefinerConfig.surf_1b(window=args.window), **(TOY_SURF if args.toy else {}))


def plans(
    args: argparse.Namespace, base: str, switch_step: int | None = None, preview: int | None = None
) -> PlanLayout:
    """Lay out all plans on one base; HunyuanVideo has no guidance that runs twice, and no mask."""
    guidance, keeps = (args.cfg, args.keep) if base == "wan" else (["off"], [1.0])
    given = setting(args, base, switch_step, preview)
    return PlanLayout(given).lay_out(guidance, args.size, keeps)


def build(args: argparse.Namespace, like: torch.Tensor) -> HostCalls:
    """Build every model of the run, on the device."""
    profiler, given = StageProfiler(like.is_cuda), setting(args, args.base)
    coder, width, base = None, TOY_VAE_WIDTH if args.toy else VAE_WIDTH, None
    if args.base == "hunyuan":
        base = profiler.over(models.hunyuan(given.base, like.dtype))
        refiners = {"hunyuan": base}
    else:
        if not args.only_memory:
            base = profiler.over(models.wan(given.base, like.dtype))
        refiners = {
            "surf_1b": profiler.over(models.surf(surf_config(args), like.dtype)),
            "wan_1_3b": profiler.over(models.wan(given.refiners["wan_1_3b"][0], like.dtype)),
        }
        coder = models.vae(width)
        profiler.over_vae(coder)
    return HostCalls(
        profiler=profiler, setting=given, base=base, refiners=refiners, vae=coder, width=width,
        upsample=args.upsample if coder else "latent",
    )  # fmt: skip


def command() -> argparse.ArgumentParser:
    line = parser(__doc__, minutes=8.0)
    line.add_argument("--size", nargs="+", default=["720p"], choices=("720p", "1080p"))
    line.add_argument("--base", choices=BASES, help="wan; a dry run: both")
    line.add_argument("--cfg", nargs="+", choices=GUIDANCE, help="wan: on off; hunyuan only off")
    line.add_argument("--keep", nargs="+", type=float, default=[1.0], help="0..1, of Wan's tokens")
    line.add_argument("--frames", type=int, help="81, 129 for hunyuan")
    line.add_argument("--steps", type=int)
    line.add_argument("--switch-step", type=int, nargs="+", help="several: in a dry run")
    line.add_argument(
        "--preview-steps", type=int, nargs="+", help="of both legs: those of the plain run"
    )
    line.add_argument("--refine-steps", type=int)
    line.add_argument("--window", type=int, help="latent frames, of both refiners")
    line.add_argument("--upsample", default="pixel", choices=("pixel", "latent"))
    line.add_argument("--reps", type=int, default=3, help="calls of each stage, at most")
    line.add_argument("--most", type=int, default=1000, help="evaluations of a call, at most")
    line.add_argument("--limit-gb", nargs="+", type=float, default=[], help="sizes of cards")
    line.add_argument("--limit-size", nargs="+", default=["720p", "1080p", "4k"], choices=SIDES)
    line.add_argument("--only-memory", action="store_true", help="no flow")
    line.add_argument("--dry-run", action="store_true", help="operations of every plan, no run")
    line.add_argument("--toy", action="store_true", help="as on a CPU")
    line.add_argument("--host", default="", help="options of the host, in one string")
    return line


def arguments() -> argparse.Namespace:
    """Read the command line, and fill in what a size leaves open."""
    line = command()
    args = line.parse_args()
    # A dry run is of the real sizes wherever it is line.
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
        line.error("HunyuanVideo's guidance is distilled, and it takes no mask: --cfg off --keep 1")
    if not all(0 < keep <= 1 for keep in args.keep):
        line.error(f"--keep must lie above 0 and be at most 1, got {args.keep}.")
    args.preview_steps = args.preview_steps or [args.steps]
    if len(args.switch_step) * len(args.preview_steps) > 1 and not args.dry_run:
        line.error(
            "several --switch-step or --preview-steps are for --dry-run; run one after the other."
        )
    least = min(args.preview_steps)
    if not all(0 < step < least for step in args.switch_step):
        line.error(f"--switch-step must lie between 0 and {least}, got {args.switch_step}.")
    return args


def measure(
    calls: HostCalls, args: argparse.Namespace, machine: Machine, deadline: float, publish: Callable
) -> None:
    """Call all stages in turns, and publish the tables after each call."""
    layout = plans(args, args.base)
    stages = [stage for stage in layout.stages.values() if stage.times]
    every = sorted(layout.stages.values(), key=lambda stage: stage.work is None)
    size = " (TOY SIZE)" if args.toy else ""

    def show() -> None:
        tables = {
            "The whole flow": flow_table(layout.flows, machine),
            "Stages": stage_table(every),
            "Floors, largest gap first": floor_table(every, machine),
        }
        publish(sum(([f"## {name}{size}", "", *lines, ""] for name, lines in tables.items()), []))

    guess(stages, calls, machine)
    now = time.perf_counter()
    calls_end = now + PLANNED * (deadline - now)
    show()
    for index in range(args.reps):
        # Each turn is planned with what the earlier ones have shown.
        plan(stages, calls_end - time.perf_counter(), args.most)
        for case in layout.cases:
            turn(case, calls, calls_end if index else deadline)
            show()


def models_line(args: argparse.Namespace, calls: HostCalls, version: str) -> str:
    """Say what was run."""

    def weights(model: Any) -> str:
        count = sum(each.numel() for each in model.model.diffusion_model.parameters())
        return f"{count / 1e9:.4g} B weights"

    given, base = calls.setting, {} if calls.base is None else {calls.setting.base.name: calls.base}
    networks = base | {f"refiner {name}": model for name, model in calls.refiners.items()}
    sizes = ", ".join(f"{name} of {weights(each)}" for name, each in networks.items())
    return (
        f"{TOY if args.toy else ''}ComfyUI {version} with random weights: {sizes}; {given.frames} "
        f"frames, {args.steps} plain steps, {given.switch_step} of {given.preview_steps} at 480p, "
        f"{args.refine_steps} of the refiner, windows of {args.window}, euler; without the text "
        f"encoder. Within {args.minutes:g} minutes, at most {args.reps} calls of each stage.\n"
    )


def ceilings_line(machine: Machine, like: torch.Tensor) -> str:
    """Say what the machine did at best."""
    from comfy.ldm.modules.attention import optimized_attention

    widths = ", ".join(f"heads of {k}: {rate / 1e12:.3g}" for k, rate in machine.attention.items())
    return (
        f"Ceilings of the same run: matrix products {machine.matmul / 1e12:.3g} TFLOP/s; "
        f"attention, {widths} TFLOP/s; the host's attention "
        f"is {optimized_attention.__name__}, {like.dtype}"
    )


@torch.inference_mode()
def benchmark(args: argparse.Namespace, version: str, page: Page) -> None:
    """Measure, and write the page as often as it grows."""
    deadline, like = time.perf_counter() + 60 * args.minutes, device_scalar()
    calls = build(args, like)
    shapes = [calls.setting.base, *(shape for shape, _ in calls.setting.refiners.values())]
    rate, attention = ceilings(like, {shape.dim // shape.heads: shape.heads for shape in shapes})
    machine = Machine(matmul=rate, attention=attention)
    parts = {"flow": [], "memory": ["not run: --limit-gb was not given"]}
    first, last = models_line(args, calls, version), ceilings_line(machine, like)

    def publish(part: str, lines: list[str]) -> None:
        parts[part] = lines
        cards = ["## The refiner on smaller cards", "", *parts["memory"], ""]
        page.write([first, LEGEND, "", *parts["flow"], *cards, page.origin(last)])

    if not args.only_memory:
        measure(calls, args, machine, deadline, lambda lines: publish("flow", lines))
    if args.limit_gb:
        memory_table(calls, args, machine, deadline, lambda lines: publish("memory", lines))


def dry_run(args: argparse.Namespace) -> None:
    """Price every plan."""
    names = {"wan": "Wan 2.1 14B, 81 frames", "hunyuan": "HunyuanVideo, 129 frames"}
    flows = [(names[base], plans(args, base, step, preview).flows)
             for base in args.bases for preview in args.preview_steps
             for step in args.switch_step]  # fmt: skip
    legend = (
        f"{TOY if args.toy else ''}{args.steps} plain steps; at 480p until the switch, then at "
        f"240p; windows of {args.window} in the refiner.\n\n{DRY_LEGEND}"
    )
    title = "Operations of every plan, against its plain run"
    cards = ["## The smallest card", "", CARD_LEGEND, "", *card_table(setting(args, "wan")), ""]
    with Page(__spec__.name, title, args.out, legend, "plans") as page:
        page.write([*operations_table(flows), "", *cards, page.where])


def main() -> None:
    args = arguments()
    if args.dry_run:
        dry_run(args)
        return
    version = models.enter("host_flow", args.host)
    if version is None:
        return
    subject = (
        f"cards-{args.base}" if args.only_memory else f"flow-{args.base}-{'-'.join(args.size)}"
    )
    title = "The whole flow in the host, against its plain run"
    with Page(
        __spec__.name, title, args.out, "Everything is called as the nodes are.", subject
    ) as page:
        benchmark(args, version, page)


if __name__ == "__main__":
    main()
