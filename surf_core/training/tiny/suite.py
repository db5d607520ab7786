"""The whole path at toy scale: draw clips, prepare them, train, export, refine, report.

Dims: B clips, T frames.
"""

import json
import logging
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from multiprocessing import get_context
from pathlib import Path

import torch

from ... import checkpoint
from ...flow import refine_with
from ...signature import psnr
from ...tiny import codec
from ...tiny.demo import to_pixels
from ...tiny.pictures import contact_sheet
from .. import loop
from ..data import Shards
from ..prepare import local
from ..prepare.job import PrepareJob, prepare
from ..prepare.local import end_with_parent
from ..prepare.options import tiny as tiny_options
from ..recipes import mask, tiny
from ..task import Recipe
from . import t2v
from .clips import write_clips

log = logging.getLogger(__name__)

HELD_OUT = 0.05
"""Share of the clips that nothing is trained on."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Form:
    """Steps and clips of a run."""

    image_steps: int
    """Steps of the text-to-video model on single frames."""
    video_steps: int
    """Steps of the same on videos."""
    clips: int
    """Drawn scenes for refiner and mask predictor."""
    refiner_steps: int
    """Steps of the refiner."""
    mask_steps: int
    """Steps of the mask predictor."""
    shown: int = 16
    """Held-out clips that are refined for the report, at most."""


SHORT = Form(image_steps=60, video_steps=40, clips=160, refiner_steps=80, mask_steps=120)
"""Shows that everything runs and learns; its models draw nothing worth looking at."""
FIRST = Form(image_steps=1500, video_steps=5000, clips=1500, refiner_steps=1500, mask_steps=800)
"""What the shipped weights were trained with: the first generation of embedded models."""
FORMS = {"short": SHORT, "first": FIRST}


@dataclass(frozen=True, kw_only=True, slots=True)
class Outcome:
    """Losses, PSNR and seconds of a run."""

    losses: dict[str, tuple[float, float]]
    """First and last mean loss in the log of each model."""
    psnr: dict[str, float]
    """Of held-out clips, decibels against the sharp clip: the enlarged start, and refined."""
    seconds: dict[str, float]
    """Of each stage."""
    clips: int
    """Held-out clips that were refined."""


class Suite:
    """One run of the path in a folder; called again, it goes on where it was.

    Args:
        form: how much of it.
        out: the folder.
        precision: of both large models, "fp32" or "bf16".
        jobs: 1, or 2 to train the text-to-video model in a process of its own beside the rest, with
            as many threads as the rest has.
    """

    def __init__(self, form: Form, out: Path, precision: str = "fp32", jobs: int = 1):
        if jobs not in (1, 2):
            raise ValueError(f"expected 1 or 2 jobs, got {jobs=}; the suite has two halves.")
        self.form, self.out, self.precision, self.jobs = form, out, precision, jobs
        self.seconds: dict[str, float] = {}

    def timed(self, name: str, stage: Callable[[], object]) -> None:
        """Run a stage, and note how long it took."""
        log.info("%s ...", name)
        began = time.monotonic()
        stage()
        self.seconds[name] = round(time.monotonic() - began, 1)

    def __call__(self) -> Outcome:
        began = time.monotonic()
        with self._text_to_video_beside() if self.jobs == 2 else self._text_to_video_first():
            self.timed("clips", self._clips)
            self.timed("refiner", self._refiner)
            self.timed("mask", self._mask)
        self.timed("report", self._refine)
        self.seconds["all"] = round(time.monotonic() - began, 1)
        outcome = Outcome(
            losses={name: self._losses(name) for name in ("t2v", "refiner", "mask")},
            psnr=self.psnr,
            seconds=self.seconds,
            clips=self.shown,
        )
        (self.out / "report.json").write_text(json.dumps(asdict(outcome), indent=2) + "\n")
        return outcome

    @contextmanager
    def _text_to_video_first(self) -> Iterator[None]:
        self.timed("text to video", self.text_to_video)
        yield

    @contextmanager
    def _text_to_video_beside(self) -> Iterator[None]:
        """Train it in another process, and wait for that at the end."""
        arguments = self, torch.get_num_threads()
        other = get_context("spawn").Process(target=_alone, args=arguments, daemon=True)
        other.start()
        try:
            yield
            self.timed("text to video, after the others", other.join)
        finally:
            other.terminate()
            other.join()
        if other.exitcode:
            raise RuntimeError(
                f"expected a trained text-to-video model, got exit code {other.exitcode} from the "
                "process that trains it; its own message is above."
            )

    def text_to_video(self) -> None:
        """Train the text-to-video model."""
        form = self.form
        recipe = t2v.T2VRecipe(
            image_steps=form.image_steps, video_steps=form.video_steps, precision=self.precision
        )
        task = t2v.TextToVideo(recipe=recipe)
        loop.run(task, self._brief(recipe.loop()), self.out / "t2v")

    def _clips(self) -> None:
        drawn, data = self.out / "clips", self.out / "data"
        if len(list(drawn.glob("*.mp4"))) < self.form.clips:
            write_clips(drawn, self.form.clips, seed=1)
        prepare(PrepareJob(given=drawn, out=data, options=tiny_options()), local.run)

    @property
    def shards(self) -> Shards:
        return Shards(self.out / "data", HELD_OUT)

    def _refiner(self) -> None:
        job = tiny(self.shards, steps=self.form.refiner_steps, precision=self.precision)
        loop.run(job.task, self._brief(job.recipe), self.out / "refiner")

    def _mask(self) -> None:
        job = mask(
            self.shards, steps=self.form.mask_steps, decode=codec.decode, cell=(1, codec.CELL)
        )
        loop.run(job.task, self._brief(job.recipe), self.out / "mask")

    def _brief(self, recipe: Recipe) -> Recipe:
        """Warm up and log often enough for a short run."""
        if self.form == FIRST:
            return recipe
        return replace(recipe, warmup=min(10, recipe.steps), log_every=max(1, recipe.steps // 8))

    def _refine(self) -> None:
        """Refine held-out clips as a user would, with the exported file."""
        shards = self.shards
        keys = shards.held_out[: self.form.shown]
        batch, self.shown = shards.batch(keys), len(keys)
        model = checkpoint.load(self.out / "refiner" / "tiny_refiner.safetensors")
        noise = torch.randn(batch["start"].shape, generator=torch.Generator().manual_seed(0))
        with torch.inference_mode():
            refined = refine_with(model, batch["start"], batch["text"], noise=noise)
        videos = {"start": batch["start"], "refined": refined, "sharp": batch["hr"]}
        pixels = {name: to_pixels(latent) for name, latent in videos.items()}
        self.psnr = {
            name: round(psnr(pixels[name], pixels["sharp"]).mean().item(), 3)
            for name in ("start", "refined")
        }
        titles = [shards.row(key).caption for key in keys]
        contact_sheet(self.out / "refined.png", titles, pixels)

    def _losses(self, name: str) -> tuple[float, float]:
        lines = (self.out / name / "log.jsonl").read_text().splitlines()
        losses = [line["loss"] for line in map(json.loads, lines) if "loss" in line]
        return losses[0], losses[-1]


def _alone(suite: Suite, threads: int) -> None:
    """Train the text-to-video model of a suite in this process, and end when its parent does."""
    threading.Thread(target=end_with_parent, daemon=True).start()
    logging.basicConfig(level=logging.INFO, format="text to video: %(message)s")
    torch.set_num_threads(threads)
    suite.text_to_video()
