"""Train the second generation of the embedded models, a stage after the other.

    python -m surf_core.training.tiny.stages vae --out runs/second
    python -m surf_core.training.tiny.stages t2v --out runs/second
    python -m surf_core.training.tiny.stages refiner --out runs/second
    python -m surf_core.training.tiny.stages controls --out runs/second

Each takes as long as `--seconds` says: a few steps are timed, and the number of steps follows.
With `--steps` a run is the same every time. On a GPU everything is computed there.
"""

import argparse
import logging
import math
import time
from collections.abc import Iterable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import cast

import torch
import torch._dynamo

from ... import checkpoint
from ...tiny import vae
from ...tiny.caption import PHRASES, WORDS
from ..distributed import processes
from ..loop import TrainingLoop
from ..task import Batch, Recipe, Task
from . import autoencoder, bank, controls, enlarge, videos

log = logging.getLogger(__name__)
VAE, T2V, REFINER = "tiny_vae", "tiny_t2v", "tiny_refiner"
"""Stems of the files."""
_SCENES, _HELD_OUT = 11, 90_002
"""Seeds of the scenes that are trained on, and of the held-out loss."""
_SPARE = 0.97
"""Share of the seconds that steps are planned for."""


def paced(
    task: Task,
    recipe: Recipe,
    out: Path,
    args: argparse.Namespace,
    turns: int,
    before: int = 0,
    blocks: bool = False,
) -> Path:
    """Train for `--seconds`, or `--steps`; export also where the time was too short.

    Args:
        turns: steps after which the kinds of steps repeat, for the timing.
        before: steps of another kind at the beginning, which are not timed.
        blocks: compile the model's blocks, if `--compile` says so.
    """
    began = time.monotonic()
    out.mkdir(parents=True, exist_ok=True)
    with processes(args.device) as world:
        run = TrainingLoop(task, replace(recipe, steps=args.steps or 10**7), out, world)
        if blocks and args.compile:
            for block in cast(Iterable[torch.nn.Module], run.model.blocks):
                block.compile(dynamic=False)
        if args.steps is None:
            for _ in range(before):
                run.advance()
                run.report()
            steps = _planned(run, args.seconds, began, turns)
            run.recipe = replace(recipe, steps=steps)
            log.info("%s: %d steps planned", recipe.name, steps)
        left = None
        if args.seconds is not None:
            left = (args.seconds * 1.04 - (time.monotonic() - began)) / 60
        return run.to_the_end(left) or run.export()


def _planned(run: TrainingLoop, seconds: float, began: float, turns: int) -> int:
    """Take some steps, time them, and say how many the seconds have room for."""
    for _ in range(turns):
        run.advance()
        run.report()
    first = time.monotonic()
    count = turns * max(1, math.ceil(16 / turns))
    for _ in range(count):
        run.advance()
        run.report()
    each = (time.monotonic() - first) / count
    log.info("%.1f ms a step", 1000 * each)
    left = seconds * _SPARE - (time.monotonic() - began)
    return run.step + max(turns, int(left / each))


def train_vae(args: argparse.Namespace) -> None:
    task = autoencoder.Autoencode(
        batch_size=args.batch or 4, device=args.device, graph=args.graph,
        ahead=8 if args.device == "cuda" else 1, still_steps=args.stills,
        stills=4 * (args.batch or 4),
    )  # fmt: skip
    recipe = Recipe(
        name=VAE, steps=1, lr=args.lr or 8e-3, warmup=50, cooldown=0.4, betas=(0.9, 0.99),
        optimizer="muon", ema=0.995, precision=args.precision, batch=task.batch_size,
        save_every=args.save_every, log_every=args.log_every, held_out_every=args.log_every * 5,
    )  # fmt: skip
    paced(task, recipe, args.out / "vae", args, 1, before=args.stills)


def warmed(task: videos.Videos, shapes: Sequence[tuple[int, ...]], half: bool) -> bool:
    """Compile blocks for these shapes of latents, into the compiler's cache; whether it can.

    A compiler that fails here would fail in the middle of the training.
    """
    model = task.build().to(task.device)
    for block in model.blocks:
        block.compile(dynamic=False)
    try:
        for shape in shapes:
            clean = torch.randn(shape, device=task.device)
            given = {
                "clean": clean, "noise": clean, "sigma": torch.rand(len(clean), device=task.device),
                "words": torch.zeros(len(clean), PHRASES, len(WORDS), device=task.device),
            }  # fmt: skip
            with torch.autocast(task.device, torch.bfloat16, enabled=half):
                loss = task.loss(model, Batch(tensors=given, keys=()))
            loss.backward()
    except (RuntimeError, OSError, ImportError):
        log.exception("no compiler: training goes on without")
        return False
    return True


def codec(args: argparse.Namespace) -> vae.TinyVAE:
    """The VAE of the stage before, on the device."""
    path, began = args.out / "vae" / f"{VAE}.safetensors", time.monotonic()
    while not path.exists() and time.monotonic() - began < args.wait:
        time.sleep(0.2)
    return vae.load(path).to(args.device)


def train_t2v(args: argparse.Namespace) -> None:
    task = videos.Videos(banks={}, batch_size=args.batch or 16, device=args.device)
    if args.compile:
        large, low, stills = task.batch_size, task.batch_size, task.batch_size * task.stills
        shapes = [(large, 16, 4, 16, 16), (low, 16, 4, 8, 8), (stills, 16, 1, 16, 16)]
        args.compile = warmed(task, shapes, args.precision == "bf16")
    model, cuda = codec(args), args.device == "cuda"
    began = time.monotonic()
    folder = None if cuda else args.out / "bank"
    group = 64 if cuda else 8

    def filled(
        count: int, size: int, frames: int, seconds: float | None, seed: int = _SCENES
    ) -> bank.Bank:
        plan = bank.Plan(count=count, size=size, frames=frames, seed=seed)
        return bank.fill(model, plan, args.device, folder, group, seconds)

    share = args.fill
    found = {
        "held_out": filled(max(4, min(256, args.scenes // 16)), videos.SIZE, 13, None, _HELD_OUT),
        "low": filled(args.scenes // 4, videos.LOW, 13, share and 0.1 * share),
        "still": filled(args.scenes * 2, videos.SIZE, 1, share and 0.2 * share),
        "video": filled(args.scenes, videos.SIZE, 13, share and 0.7 * share),
    }
    log.info("%s", {kind: len(b) for kind, b in found.items()})
    log.info("banks took %.1f s", time.monotonic() - began)
    if args.seconds is not None:
        args.seconds -= time.monotonic() - began
    task = replace(task, banks=found)
    recipe = Recipe(
        name=T2V, steps=1, lr=args.lr or 2e-3, warmup=100, cooldown=0.4, betas=(0.9, 0.99),
        optimizer="muon", ema=0.998, precision=args.precision, batch=task.batch_size,
        save_every=args.save_every, log_every=args.log_every,
        held_out_every=0 if args.compile else args.log_every * 10,
    )  # fmt: skip
    paced(task, recipe, args.out / "t2v", args, len(videos.TURNS), blocks=True)


def train_refiner(args: argparse.Namespace) -> None:
    model = codec(args)
    began = time.monotonic()

    def made(first: int, count: int) -> enlarge.Pairs:
        index = torch.arange(first, first + count, device=args.device)
        return enlarge.pairs(model, index, _SCENES + 1)

    parts: list[enlarge.Pairs] = []
    share = args.fill
    for first in range(0, args.scenes, 64):
        if parts and share and time.monotonic() - began > share:
            break
        parts.append(made(first, min(64, args.scenes - first)))
    names = ("sharp", "start", "words")
    known = enlarge.Pairs(**{n: torch.cat([getattr(p, n) for p in parts]) for n in names})
    log.info("%d pairs took %.1f s", len(known.sharp), time.monotonic() - began)
    if args.seconds is not None:
        args.seconds -= time.monotonic() - began
    task = enlarge.task(
        known, made(10**9, min(16, args.scenes)), args.batch or 4, args.layers, args.device
    )
    recipe = Recipe(
        name=REFINER, steps=1, lr=args.lr or 2e-3, warmup=50, cooldown=0.4, betas=(0.9, 0.99),
        optimizer="muon", ema=0.995, precision=args.precision, batch=task.batch_size,
        save_every=args.save_every, log_every=args.log_every, held_out_every=args.log_every * 10,
    )  # fmt: skip
    paced(task, recipe, args.out / "refiner", args, 1, blocks=True)


def run_controls(args: argparse.Namespace) -> None:
    model = checkpoint.load(args.out / "t2v" / f"{T2V}.safetensors").to(args.device)
    half = args.precision == "bf16"
    found = controls.Controls(
        model, codec(args), args.prompts, args.cfg, args.shift,
        128 if args.device == "cuda" else 16, half,
    )  # fmt: skip
    print(controls.HEAD)
    try:
        found.usual()
    finally:
        keep = tuple(n for n in ("50 steps", "15 steps", "10 + 30, ours") if n in found.latents)
        name = f"controls-cfg{args.cfg:g}-shift{args.shift:g}"
        print(controls.write(found, args.out / name, keep))


def run_scan(args: argparse.Namespace) -> None:
    """The baseline, fewer steps and half resolution under other guidance and shifts."""
    model = checkpoint.load(args.out / "t2v" / f"{T2V}.safetensors").to(args.device)
    decoder, half = codec(args), args.precision == "bf16"
    for cfg, shift in ((7.5, 1.0), (7.5, 5.0), (7.5, 8.0), (5.0, 3.0), (10.0, 3.0), (3.0, 3.0)):
        found = controls.Controls(model, decoder, args.prompts, cfg, shift, args.prompts, half)
        for steps in (50, 15, 8):
            found.add(f"{steps} steps", found.full(steps))
        found.add("half resolution, 50 steps", found.direct(50))
        print(f"cfg {cfg:g}, shift {shift:g}")
        print(controls.write(found, args.out / f"scan-cfg{cfg:g}-shift{shift:g}"), flush=True)


STAGES = {
    "vae": train_vae, "t2v": train_t2v, "refiner": train_refiner, "controls": run_controls,
    "scan": run_scan,
}  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("stage", choices=STAGES)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--threads", type=int, default=1)
    length = parser.add_mutually_exclusive_group()
    length.add_argument("--seconds", type=float, help="of the stage, scenes included")
    length.add_argument("--steps", type=int)
    parser.add_argument("--fill", type=float, help="seconds for scenes, at most")
    parser.add_argument("--scenes", type=int, default=4096, help="that are encoded, at most")
    parser.add_argument("--batch", type=int)
    parser.add_argument("--stills", type=int, default=0, help="first steps of the VAE, on frames")
    parser.add_argument("--lr", type=float)
    parser.add_argument("--layers", type=int, default=2, help="of the refiner")
    parser.add_argument("--precision", choices=("fp32", "bf16"), default="fp32")
    parser.add_argument("--wait", type=float, default=0, help="seconds for the VAE to be there")
    parser.add_argument("--compile", action="store_true")
    parser.add_argument("--graph", action="store_true", help="record the VAE's step, on a GPU")
    parser.add_argument("--save-every", type=int, default=250)
    parser.add_argument("--log-every", type=int, default=50)
    parser.add_argument("--prompts", type=int, default=128)
    parser.add_argument("--cfg", type=float, default=7.5)
    parser.add_argument("--shift", type=float, default=3.0)
    args = parser.parse_args()
    if args.stage not in ("controls", "scan") and args.seconds is None and args.steps is None:
        parser.error("expected --seconds or --steps")
    logging.basicConfig(level=logging.INFO, format="%(relativeCreated)d %(message)s")
    torch.set_num_threads(args.threads)
    torch._dynamo.config.recompile_limit = 64
    if args.device == "cuda":
        torch.backends.cudnn.benchmark = True
        torch.set_float32_matmul_precision("high")
    STAGES[args.stage](args)


if __name__ == "__main__":
    main()
