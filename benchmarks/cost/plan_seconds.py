"""Does a run take the seconds that Surf Plan says before it?

    export COMFYUI_PATH=/path/to/ComfyUI
    python -m benchmarks.cost.plan_seconds

Wan's architecture in the host itself, small, with random weights: each plan is priced by Surf Plan
with `calibrate`, from two evaluations of each of its sizes, and of the plain run where that at most
doubles them; then Surf Reshift KSampler, Surf Refiner and the host's own sampler at the target run
what was priced, in turns. With --toy everything is so small that the seconds mean nothing.
"""

import argparse
from collections.abc import Callable
from dataclasses import dataclass, replace
from statistics import median
from typing import Any

import torch

from benchmarks.page import TOY, Page, parser, table
from benchmarks.speed.host import models
from benchmarks.timing import seconds
from surf_core import cost

SMALL = replace(cost.WAN_1_3B, name="small Wan", dim=512, layers=4, heads=4, ffn_dim=2048)
TINY = replace(SMALL, name="tiny Wan", dim=128, layers=1, heads=1, ffn_dim=256)
GOAL = 0.15
LEGEND = f"""Seconds of the sampling calls alone: no text encoder, no VAE. `predicted` is what Surf
Plan said before anything ran, from two evaluations of each size and, where they take no longer
than those together, two of the plain run; else the price of that follows from one rate for linear
maps and one for self-attention, and reads "about". `measured` is the median of the runs. The goal
is that predicted lies within {GOAL:.0%} of measured."""


@dataclass(frozen=True, kw_only=True, slots=True)
class PricedRun:
    """Settings of a plan; its fields are inputs of Surf Plan and of the nodes that it prices."""

    name: str
    frames: int
    """Latent frames."""
    rows: int
    """Latent cells at the high resolution."""
    columns: int
    steps: int
    switch_step: int
    cfg: float
    refine_steps: int
    scale: float
    """From the preview to the target."""
    window: int

    @property
    def inputs(self) -> dict[str, Any]:
        """What Surf Plan takes beside models and latent."""
        return {
            "steps": self.steps, "switch_step": self.switch_step, "cfg": self.cfg,
            "cfg_low": self.cfg, "low_resolution": "by scale", "low_scale": 0.5, "low_width": 16,
            "low_height": 16, "refine_steps": self.refine_steps, "resolution": "by scale",
            "scale": self.scale, "width": 16, "height": 16, "refine_cfg": self.cfg,
            "window": self.window,
        }  # fmt: skip


RUNS = (
    PricedRun(name="guided, windows of 2", frames=5, rows=24, columns=40, steps=12, switch_step=3,
              cfg=5.0, refine_steps=4, scale=3.0, window=2),
    PricedRun(name="guided, full attention", frames=3, rows=28, columns=44, steps=10,
              switch_step=3, cfg=5.0, refine_steps=3, scale=3.0, window=0),
    PricedRun(name="distilled, 8 steps", frames=5, rows=28, columns=48, steps=8, switch_step=2,
              cfg=1.0, refine_steps=4, scale=2.5, window=2),
)  # fmt: skip


class PlanCalls:
    """The sampling calls of a plan, each as its node makes it."""

    def __init__(self, model: Any, texts: tuple[list, list], run: PricedRun):
        self.model, self.texts, self.run = model, texts, run
        shape = (1, 16, run.frames, run.rows, run.columns)
        self.latent = {"samples": torch.zeros(shape)}
        self.made: dict[str, dict] = {}

    def priced(self) -> Any:
        """Price the plan: the table's stages, and the plain run."""
        from surf.nodes.host.plan import PlanInputs, make_plan

        positive, negative = self.texts
        return make_plan(
            self.model, self.latent, PlanInputs(**self.run.inputs), calibrate=True,
            positive=positive, negative=negative,
        )  # fmt: skip

    def preview(self) -> None:
        from surf.nodes.preview import SurfReshiftKSampler

        run, (positive, negative) = self.run, self.texts
        out = SurfReshiftKSampler.execute(
            model=self.model, positive=positive, negative=negative, latent_image=self.latent,
            seed=1, steps=run.steps, switch_step=run.switch_step, cfg=run.cfg, cfg_low=run.cfg,
            shift=0.0, shift_low=0.0, sampler_name="euler", scheduler="simple", denoise=1.0,
            low_resolution="by scale", low_scale=0.5, low_width=16, low_height=16,
            sigma_policy="same", noise_policy="fresh", handover="reuse",
        )  # fmt: skip
        self.made["preview"] = out.args[0]

    def refinement(self) -> None:
        from surf.nodes.refine import SurfRefiner

        run, (positive, negative) = self.run, self.texts
        out = SurfRefiner.execute(
            model=self.model, positive=positive, negative=negative, latent=self.made["preview"],
            seed=1, resolution="by scale", scale=run.scale, width=16, height=16,
            upsample="latent", sigma_start=0.65, steps=run.refine_steps, cfg=run.cfg,
            window=run.window, low_band_lock=0.0, colour_match=False,
        )  # fmt: skip
        self.made["refinement"] = out.args[0]

    def plain(self) -> None:
        """The host's own sampler at the target."""
        import comfy.sample

        zeros = torch.zeros_like(self.made["refinement"]["samples"])
        comfy.sample.sample(
            self.model, comfy.sample.prepare_noise(zeros, 0), self.run.steps, self.run.cfg,
            "euler", "simple", *self.texts, zeros, disable_pbar=True, seed=0,
        )  # fmt: skip


def took(calls: list[Callable[[], None]], reps: int) -> list[float]:
    """Run calls in turns, after one turn that does not count: median seconds of each."""
    cuda, spent = torch.cuda.is_available(), [[] for _ in calls]
    for turn in range(1 + reps):
        for call, times in zip(calls, spent, strict=True):
            spent_now = seconds(call, cuda)
            times += [spent_now] if turn else []
    return [median(times) for times in spent]


def rows_of(shape: cost.ModelShape, run: PricedRun, reps: int) -> list[list]:
    """Price a plan, run it, and set both side by side."""
    dtype = torch.bfloat16 if torch.cuda.is_available() else torch.float32
    model = models.wan(shape, dtype)
    calls = PlanCalls(model, models.prompts(shape), run)
    plan = calls.priced()
    before, after, refined = (price.seconds for price in plan.prices)
    predicted = [before + after, refined, plan.plain_price.seconds]
    predicted.insert(2, sum(predicted[:2]))
    measured = took([calls.preview, calls.refinement, calls.plain], reps)
    measured.insert(2, sum(measured[:2]))
    names = (
        "preview",
        "refinement",
        "plan",
        f"plain run{'' if plan.plain_price.timed else ', about'}",
    )
    return [
        [run.name, name, said, found, f"{said / found:.3f}"]
        for name, said, found in zip(names, predicted, measured, strict=True)
    ]  # fmt: skip


def toy(run: PricedRun) -> PricedRun:
    """Shrink a plan to what takes a second."""
    return replace(run, frames=2, rows=8, columns=12, steps=3, switch_step=1, refine_steps=1)


def arguments() -> argparse.Namespace:
    line = parser(__doc__)
    line.add_argument("--toy", action="store_true", help="so small that seconds mean nothing")
    line.add_argument("--reps", type=int, default=3, help="runs of each plan that count")
    return line.parse_args()


def main() -> None:
    args = arguments()
    version = models.enter("plan_seconds")
    if version is None:
        return
    shape, runs = (TINY, [toy(run) for run in RUNS]) if args.toy else (SMALL, RUNS)
    title = "Seconds that Surf Plan predicts, and those that a run takes"
    with Page(__spec__.name, title, args.out, (TOY if args.toy else "") + LEGEND) as page:
        rows: list[list] = []
        for run in runs:
            rows += rows_of(shape, run, args.reps)
            lines = table("plan | part | predicted, s | measured, s | ratio", rows)
            page.write([*lines, "", page.origin(f"ComfyUI {version}, {shape.name}")])


if __name__ == "__main__":
    main()
