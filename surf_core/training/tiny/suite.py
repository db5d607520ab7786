"""The path of a user's own clips at toy scale: prepare, train, export, refine, report.

Dims: B clips, T frames.
"""

import json
import logging
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import torch

from ... import checkpoint
from ...flow import refine_with
from ...signature import psnr
from ...tiny.pictures import contact_sheet
from .. import loop
from ..data import Shards
from ..prepare import local
from ..prepare.job import PrepareJob, prepare
from ..prepare.options import tiny as tiny_options
from ..recipes import mask, tiny
from ..task import Recipe
from . import codec
from .clips import write_clips

log = logging.getLogger(__name__)

HELD_OUT = 0.05
"""Share of the clips that nothing is trained on."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Form:
    """Steps and clips of a run."""

    clips: int
    """Drawn scenes for refiner and mask predictor."""
    refiner_steps: int
    """Steps of the refiner."""
    mask_steps: int
    """Steps of the mask predictor."""
    shown: int = 16
    """Held-out clips that are refined for the report, at most."""


SHORT = Form(clips=160, refiner_steps=80, mask_steps=120)
"""Shows that everything runs and learns; its models draw nothing worth looking at."""


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
    """

    def __init__(self, form: Form, out: Path):
        self.form, self.out = form, out
        self.seconds: dict[str, float] = {}

    def timed(self, name: str, stage: Callable[[], object]) -> None:
        """Run a stage, and note how long it took."""
        log.info("%s ...", name)
        began = time.monotonic()
        stage()
        self.seconds[name] = round(time.monotonic() - began, 1)

    def __call__(self) -> Outcome:
        began = time.monotonic()
        self.timed("clips", self._clips)
        self.timed("refiner", self._refiner)
        self.timed("mask", self._mask)
        self.timed("report", self._refine)
        self.seconds["all"] = round(time.monotonic() - began, 1)
        outcome = Outcome(
            losses={name: self._losses(name) for name in ("refiner", "mask")},
            psnr=self.psnr,
            seconds=self.seconds,
            clips=self.shown,
        )
        (self.out / "report.json").write_text(json.dumps(asdict(outcome), indent=2) + "\n")
        return outcome

    def _clips(self) -> None:
        drawn, data = self.out / "clips", self.out / "data"
        if len(list(drawn.glob("*.mp4"))) < self.form.clips:
            write_clips(drawn, self.form.clips, seed=1)
        prepare(PrepareJob(given=drawn, out=data, options=tiny_options()), local.run)

    @property
    def shards(self) -> Shards:
        return Shards(self.out / "data", HELD_OUT)

    def _refiner(self) -> None:
        job = tiny(self.shards, steps=self.form.refiner_steps)
        loop.run(job.task, self._brief(job.recipe), self.out / "refiner")

    def _mask(self) -> None:
        job = mask(
            self.shards, steps=self.form.mask_steps, decode=codec.decode, cell=(1, codec.CELL)
        )
        loop.run(job.task, self._brief(job.recipe), self.out / "mask")

    def _brief(self, recipe: Recipe) -> Recipe:
        """Warm up and log often enough for a short run."""
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
        pixels = {
            name: codec.decode(latent).add(1).div(2).clamp(0, 1) for name, latent in videos.items()
        }
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
