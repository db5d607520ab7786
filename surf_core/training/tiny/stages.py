"""Train the embedded models, a stage after the other.

    python -m surf_core.training.tiny.stages vae --out runs/second --stills 900 --steps 6000
    python -m surf_core.training.tiny.stages vae-check --out runs/second
    python -m surf_core.training.tiny.stages bank --out runs/second
    python -m surf_core.training.tiny.stages t2v --out runs/second --stills 2000 --steps 21300
    python -m surf_core.training.tiny.stages controls --out runs/second
    python -m surf_core.training.tiny.stages refiner --out runs/second --scenes 512 --steps 2000

`python -m surf_core.training.tiny` runs them all, with the settings of one of FORMS.

The same command resumes a stage that was stopped. With `--seconds` in place of `--steps` a few
steps are timed and the number of steps follows, so that a run is not the same every time.
"""

import argparse
import logging
import math
import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import cast

import torch
import torch._dynamo

from ... import checkpoint
from ...tiny import vae
from ...tiny.caption import PHRASES, WORDS
from ..distributed import processes
from ..lock import locked_by_first
from ..loop import TrainingLoop
from ..task import Batch, Recipe, Task
from . import autoencoder, controls, enlarge, videos
from .bank import EncodedScenes, ScenePlan, encode_scenes

log = logging.getLogger(__name__)
VAE, T2V, REFINER = "tiny_vae", "tiny_t2v", "tiny_refiner"
"""Stems of the files."""
SCENES, HELD_OUT = 11, 90_002
"""Seeds of the scenes that are trained on, and of those of the held-out loss."""
_SPARE = 0.97
"""Share of the seconds that steps are planned for."""


@dataclass(frozen=True, kw_only=True, slots=True)
class StageSettings:
    """What a stage is run with; the command line has one option for each field."""

    out: Path
    """Folder of all stages."""
    device: str = "cpu"
    """Where everything is computed, `cpu` or `cuda`."""
    steps: int | None = None
    """Steps of the stage; None takes as many as `seconds` have room for."""
    seconds: float | None = None
    """Seconds of the stage, with those for its scenes."""
    fill: float | None = None
    """Seconds for encoding scenes, at most."""
    scenes: int = 2048
    """Scenes that are encoded, at most."""
    batch: int | None = None
    """Videos of a step; None for the stage's usual number."""
    stills: int = 0
    """First steps of VAE and text-to-video model, which see single frames."""
    start: Path | None = None
    """Weights that text to video starts from, of other scenes or heads; None draws them."""
    lr: float | None = None
    """Peak learning rate; None for the stage's usual one."""
    layers: int = 2
    """Blocks of the refiner."""
    precision: str = "fp32"
    """`fp32` or `bf16`."""
    wait: float = 0.0
    """Seconds to wait for the VAE's file."""
    compile: bool = False
    """Compile the blocks of text-to-video model and refiner."""
    graph: bool = False
    """Record the VAE's step as a CUDA graph."""
    save_every: int = 50
    """Steps between checkpoints."""
    log_every: int = 50
    """Steps between lines of the log."""
    prompts: int = 128
    """Held-out prompts of the controls."""
    cfg: float = 7.5
    """Guidance of the controls."""
    shift: float = 3.0
    """Timestep shift of the controls."""

    @property
    def on_gpu(self) -> bool:
        return self.device == "cuda"

    @property
    def folder(self) -> Path | None:
        """Folder of encoded scenes; a GPU encodes them again in less time than it reads them."""
        return None if self.on_gpu else self.out / "bank"

    def after(self, began: float) -> "StageSettings":
        """Take the time since `began` off the seconds."""
        if self.seconds is None:
            return self
        return replace(self, seconds=self.seconds - (time.monotonic() - began))


def paced(
    task: Task,
    recipe: Recipe,
    out: Path,
    settings: StageSettings,
    turns: int,
    before: int = 0,
    blocks: bool = False,
) -> Path:
    """Train or resume for the steps or seconds of the settings, and export; returns the file.

    Args:
        task: what is trained.
        recipe: its hyperparameters, without the number of steps.
        out: folder of the run.
        settings: how long, and on what.
        turns: steps after which the kinds of steps repeat, for the timing.
        before: steps of another kind at the beginning, which are not timed.
        blocks: whether the model has blocks that `compile` applies to.
    """
    began = time.monotonic()
    out.mkdir(parents=True, exist_ok=True)
    with (
        processes(settings.device) as world,
        locked_by_first(out / "run.lock", f"the folder {out}", world),
    ):
        run = TrainingLoop(task, replace(recipe, steps=settings.steps or 10**7), out, world)
        if blocks and settings.compile:
            compile_blocks(run.model)
        minutes = None
        if settings.seconds is not None:
            while run.step < before:
                run.advance()
                run.report()
            steps = _planned(run, settings.seconds, began, turns)
            run.recipe = replace(recipe, steps=steps)
            log.info("%s: %d steps planned", recipe.name, steps)
            minutes = (settings.seconds * 1.04 - (time.monotonic() - began)) / 60
        return run.to_the_end(minutes) or run.export()


def compile_blocks(model: torch.nn.Module) -> None:
    """Compile each block of a model, once for every shape of latents that it sees."""
    torch._dynamo.config.recompile_limit = 64
    for block in cast(Iterable[torch.nn.Module], model.blocks):
        block.compile(dynamic=False)


def _planned(run: TrainingLoop, seconds: float, began: float, turns: int) -> int:
    """Take some steps, time them, and return the number of steps that the seconds have room for."""
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


def recipe_of(
    settings: StageSettings,
    name: str,
    batch: int,
    lr: float,
    warmup: int,
    ema: float,
    held_out_every: int,
) -> Recipe:
    """Return the recipe of a stage: Muon, a cooldown, averaged weights."""
    return Recipe(
        name=name, steps=1, lr=settings.lr or lr, warmup=warmup, cooldown=0.4, betas=(0.9, 0.99),
        optimizer="muon", ema=ema, precision=settings.precision, batch=batch,
        save_every=settings.save_every, log_every=settings.log_every,
        held_out_every=held_out_every,
    )  # fmt: skip


def train_vae(settings: StageSettings) -> None:
    """Train the VAE and write its file."""
    batch = settings.batch or 2
    task = autoencoder.Autoencode(
        batch_size=batch, device=settings.device, graph=settings.graph,
        ahead=8 if settings.on_gpu else 1, still_steps=settings.stills, stills=4 * batch,
    )  # fmt: skip
    recipe = recipe_of(settings, VAE, batch, 8e-3, 50, 0.995, settings.log_every * 5)
    paced(task, recipe, settings.out / "vae", settings, 1, before=settings.stills)


def load_vae(settings: StageSettings) -> vae.TinyVAE:
    """Load the file of the VAE's stage, on the device."""
    path, began = settings.out / "vae" / f"{VAE}.safetensors", time.monotonic()
    while not path.exists() and time.monotonic() - began < settings.wait:
        time.sleep(0.2)
    return vae.load(path).to(settings.device)


def check_vae(settings: StageSettings) -> None:
    """Print what is read of held-out scenes after the VAE: no model's videos can be read better."""
    table = controls.AnswerTable(load_vae(settings), settings.prompts)
    table.codec_rows()
    print(controls.report(table, settings.out / "vae-check", {}))


def encode_bank(settings: StageSettings) -> dict[str, EncodedScenes]:
    """Encode the scenes that the text-to-video model is trained on, by kind, or read them."""
    model, began = load_vae(settings), time.monotonic()

    def encoded(
        count: int, size: int, frames: int, share: float = 0, seed: int = SCENES
    ) -> EncodedScenes:
        plan = ScenePlan(size=size, frames=frames, seed=seed)
        seconds = share * settings.fill if settings.fill and share else None
        group = 64 if settings.on_gpu else 8
        return encode_scenes(model, plan, count, settings.device, settings.folder, group, seconds)

    count = settings.scenes
    scenes = {
        "held_out": encoded(max(4, min(256, count // 32)), videos.SIZE, 13, seed=HELD_OUT),
        "low": encoded(max(1, count // 4), videos.LOW, 13, 0.1),
        "still": encoded(4 * count, videos.SIZE, 1, 0.2),
        "video": encoded(count, videos.SIZE, 13, 0.7),
    }
    log.info("%s", {kind: len(some) for kind, some in scenes.items()})
    log.info("encoded scenes took %.1f s", time.monotonic() - began)
    return scenes


def compiles(task: videos.Videos, shapes: Sequence[tuple[int, ...]], half: bool) -> bool:
    """Compile blocks for latents of these shapes, into the compiler's cache; say whether it works.

    A compiler that fails would else fail in the middle of the training.
    """
    model = task.build().to(task.device)
    compile_blocks(model)
    try:
        for shape in shapes:
            latent = torch.randn(shape, device=task.device)
            count = len(latent)
            tensors = {
                "clean": latent, "noise": latent, "sigma": torch.rand(count, device=task.device),
                "words": torch.zeros(count, PHRASES, len(WORDS), device=task.device),
            }  # fmt: skip
            with torch.autocast(task.device, torch.bfloat16, enabled=half):
                loss = task.loss(model, Batch(tensors=tensors, keys=()))
            loss.backward()
    except (RuntimeError, OSError, ImportError):
        log.exception("no compiler: training goes on without")
        return False
    return True


def train_t2v(settings: StageSettings) -> None:
    """Train the text-to-video model on encoded scenes and write its file."""
    began = time.monotonic()
    batch = settings.batch or 16
    task = videos.Videos(
        scenes={}, batch_size=batch, still_steps=settings.stills, device=settings.device,
        start=settings.start,
    )  # fmt: skip
    if settings.compile:
        stills = batch * task.stills
        shapes = [(batch, 16, 4, 16, 16), (batch, 16, 4, 8, 8), (stills, 16, 1, 16, 16)]
        settings = replace(settings, compile=compiles(task, shapes, settings.precision == "bf16"))
    task = replace(task, scenes=encode_bank(settings))
    recipe = recipe_of(settings, T2V, batch, 2e-3, 100, 0.998, settings.log_every * 10)
    paced(
        task, recipe, settings.out / "t2v", settings.after(began), len(videos.TURNS),
        before=settings.stills, blocks=True,
    )  # fmt: skip


def train_refiner(settings: StageSettings) -> None:
    """Train the refiner on pairs of previews and videos, and write its file."""
    began, model = time.monotonic(), load_vae(settings)
    seed, device, folder = SCENES + 1, settings.device, settings.folder
    count = settings.scenes
    training_pairs = enlarge.pairs(model, 0, count, seed, device, folder, settings.fill)
    held_out_pairs = enlarge.pairs(model, 10**9, min(16, count), seed, device, folder)
    log.info("%d pairs took %.1f s", len(training_pairs), time.monotonic() - began)
    batch = settings.batch or 4
    task = enlarge.task(training_pairs, held_out_pairs, batch, settings.layers, device)
    recipe = recipe_of(settings, REFINER, batch, 2e-3, 50, 0.995, settings.log_every * 10)
    paced(task, recipe, settings.out / "refiner", settings.after(began), 1, blocks=True)


def _controls(settings: StageSettings, cfg: float, shift: float) -> controls.Controls:
    model = checkpoint.load(settings.out / "t2v" / f"{T2V}.safetensors").to(settings.device)
    return controls.Controls(
        model, load_vae(settings), settings.prompts, cfg, shift, 128 if settings.on_gpu else 16,
        settings.precision == "bf16", None if settings.on_gpu else settings.out / "controls",
    )  # fmt: skip


def run_controls(settings: StageSettings) -> None:
    """Sample held-out prompts in every way of the table, and print and write the table."""
    cfg, shift = settings.cfg, settings.shift
    table = _controls(settings, cfg, shift)
    try:
        table.usual()
    finally:
        shown = tuple(name for name in controls.SHOWN if name in table.latents)
        out = settings.out / f"controls-cfg{cfg:g}-shift{shift:g}"
        print(controls.report(table, out, {"cfg": cfg, "shift": shift}, shown))


STAGES = {
    "vae": train_vae, "vae-check": check_vae, "bank": encode_bank, "t2v": train_t2v,
    "controls": run_controls, "refiner": train_refiner,
}  # fmt: skip
TRAINED = ("vae", "t2v", "refiner")
"""Stages that take steps."""
FULL: dict[str, dict[str, int | str | bool]] = {
    "vae": {"stills": 900, "steps": 6000},
    "vae-check": {},
    "t2v": {"stills": 2000, "steps": 21_300, "precision": "bf16", "compile": True},
    "controls": {"precision": "bf16"},
    "refiner": {"scenes": 512, "steps": 2000, "precision": "bf16", "compile": True},
}
"""How the shipped models were trained."""
SHORT: dict[str, dict[str, int | str | bool]] = {
    "vae": {"stills": 20, "steps": 30, "log_every": 10},
    "vae-check": {"prompts": 4},
    "t2v": {"stills": 8, "steps": 24, "scenes": 16, "batch": 4, "log_every": 8},
    "refiner": {"scenes": 4, "steps": 4, "batch": 2, "log_every": 2},
}
"""Shows that every stage runs; its models draw nothing worth looking at."""
FORMS = {"short": SHORT, "full": FULL}
"""Stages in order, with the settings that differ from the defaults."""


def train_all(settings: StageSettings, form: dict[str, dict[str, int | str | bool]]) -> None:
    """Run or resume every stage of a form."""
    for stage, changes in form.items():
        log.info("%s ...", stage)
        STAGES[stage](replace(settings, **cast(dict, changes)))


def parser() -> argparse.ArgumentParser:
    """Return the command line: an option for each field of `StageSettings`."""
    words = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    words.add_argument("stage", choices=STAGES)
    words.add_argument("--out", type=Path, required=True, help="folder of all stages")
    words.add_argument("--threads", type=int, default=1)
    words.add_argument("--device", choices=("cpu", "cuda"))
    words.add_argument("--precision", choices=("fp32", "bf16"))
    length = words.add_mutually_exclusive_group()
    length.add_argument("--steps", type=int, help="of the whole stage")
    length.add_argument("--seconds", type=float, help="of the stage, encoding of scenes included")
    words.add_argument("--fill", type=float, help="seconds for encoding scenes, at most")
    words.add_argument("--scenes", type=int, help="that are encoded, at most")
    words.add_argument("--batch", type=int, help="videos of a step")
    words.add_argument("--stills", type=int, help="first steps, on single frames")
    words.add_argument("--start", type=Path, help="weights that text to video starts from")
    words.add_argument("--lr", type=float, help="peak learning rate")
    words.add_argument("--layers", type=int, help="blocks of the refiner")
    words.add_argument("--wait", type=float, help="seconds to wait for the VAE's file")
    words.add_argument("--compile", action="store_true", help="compile blocks")
    words.add_argument("--graph", action="store_true", help="record the VAE's step, on a GPU")
    words.add_argument("--save-every", type=int, help="steps between checkpoints")
    words.add_argument("--log-every", type=int, help="steps between lines of the log")
    words.add_argument("--prompts", type=int, help="of the controls")
    words.add_argument("--cfg", type=float, help="guidance of the controls")
    words.add_argument("--shift", type=float, help="timestep shift of the controls")
    return words


def main() -> None:
    words = parser()
    options = {name: value for name, value in vars(words.parse_args()).items() if value is not None}
    stage, threads = options.pop("stage"), options.pop("threads")
    settings = StageSettings(**options)
    if stage in TRAINED and settings.seconds is None and settings.steps is None:
        words.error("expected --seconds or --steps")
    logging.basicConfig(level=logging.INFO, format="%(relativeCreated)d %(message)s")
    torch.set_num_threads(threads)
    if settings.on_gpu:
        torch.backends.cudnn.benchmark = True
        torch.set_float32_matmul_precision("high")
    STAGES[stage](settings)


if __name__ == "__main__":
    main()
