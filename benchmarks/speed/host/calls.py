"""The calls of the flow: the host's sampler, and the nodes of the pack, recorded by a profiler."""

from dataclasses import dataclass, replace
from typing import Any

import torch

from surf_core import cost

from .models import prompts
from .plans import FlowSetting, StageCall
from .profiler import StageProfiler
from .stages import TimedStage

CFG = {"on": 5.0, "off": 1.0}
TO_SIZE = {"resolution": "by size", "scale": 2.0}
"""Inputs of the nodes that leave the size to width and height."""


@dataclass(kw_only=True, slots=True)
class HostCalls:
    """The models of a run, and how they are called; one profiler records them all."""

    profiler: StageProfiler
    setting: FlowSetting
    base: Any | None
    """None where only refiners run."""
    refiners: dict[str, Any]
    """Name -> MODEL."""
    vae: Any | None
    width: int
    """Channels of the VAE."""
    upsample: str
    """Of Surf Refiner."""

    def run(self, case: StageCall) -> None:
        """Make a call; its stages keep what was recorded."""
        more = {"coding": case.coding} if case.coding else {}
        getattr(self, case.call)(*case.stages, **more)

    def latent(self, side: str, noise: bool = False) -> dict:
        rows, columns = (pixels // 8 for pixels in self.setting.sides[side])
        count = cost.latent_frames(self.setting.base, self.setting.frames)
        size = (1, 16, count, rows, columns)
        drawn = torch.randn(size, generator=torch.Generator().manual_seed(2))
        return {"samples": drawn if noise else torch.zeros(size)}

    def plain(self, stage: TimedStage) -> None:
        """The host's own sampler at the target, its first evaluations."""
        import comfy.sample

        zeros, texts = self.latent(stage.target)["samples"], prompts(self.setting.base)
        began = self.profiler.start()
        comfy.sample.sample(
            self.base, comfy.sample.prepare_noise(zeros, 0), stage.full, CFG[stage.cfg], "euler",
            "simple", *texts, zeros, start_step=0, last_step=stage.planned,
            force_full_denoise=True, disable_pbar=True, seed=0,
        )  # fmt: skip
        stage.take(self.profiler.evaluations, began, self.profiler.now())

    def preview(self, first: TimedStage, second: TimedStage) -> None:
        """Surf Reshift KSampler: both legs in one call."""
        high, low = first.planned, second.planned
        latent, texts = self.latent("480p"), prompts(self.setting.base)
        began = self.profiler.start()
        reshift(
            self.base, texts, latent, self.setting.sides["240p"], (high, high + low),
            (CFG[first.cfg], CFG[second.cfg]),
        )  # fmt: skip
        ended, evaluations = self.profiler.now(), self.profiler.evaluations
        cut = evaluations[high - 1].ended
        first.take(evaluations[:high], began, cut)
        second.take(evaluations[high:], cut, ended)

    def refine(
        self, stage: TimedStage, coding: TimedStage | None = None, upsample: str | None = None
    ) -> None:
        """Surf Refiner from 240p to the target; what is done before the latent is `coding`.

        With a mask, Surf Skip Mask goes first: it enlarges the preview, scores it and hands both
        over.
        """
        from surf.nodes.host.refine.run import refine
        from surf.nodes.host.refine.traits import RefineSettings

        model, (_, window) = self.refiners[stage.refiner], self.setting.refiners[stage.refiner]
        settings = RefineSettings(
            seed=0, sigma_start=0.65, steps=stage.planned, cfg=CFG[stage.cfg], window=window,
            low_band_lock=0.0, colour_match=False,
        )  # fmt: skip
        height, width = self.setting.sides[stage.target]
        target = {"width": width, "height": height, "upsample": upsample or self.upsample,
                  "vae": self.vae, **TO_SIZE}  # fmt: skip
        latent = self.latent("240p", noise=True)
        texts = prompts(cost.WAN_14B if self.vae else self.setting.base)
        began = self.profiler.start()
        mask = None if stage.keep == 1 else self.mask(stage, model, latent, target)
        masked_at = self.profiler.now()
        refine(model, *texts, latent, settings, mask=mask, **target)
        ended = self.profiler.now()
        if coding and self.profiler.coding:
            coded = masked_at if mask else self.profiler.coding[-1].ended
            self.keep_coding(coding, coded - began)
            began = coded
        stage.take(self.profiler.evaluations, began, ended)

    def mask(self, stage: TimedStage, model: Any, latent: dict, target: dict) -> Any:
        """Surf Skip Mask by keep ratio; the stage's operations are then those of this mask."""
        from surf.nodes.host.skip.make_mask import Choice, make_mask
        from surf.surf_core.skip import packing

        choice = Choice(predictor="detail", choose="keep ratio", keep=stage.keep, tau=3.0)
        skip, _ = make_mask(model, latent, choice, **target)
        stage.work = replace(stage.work, kept=packing(skip.mask.tokens).counts)
        return skip

    def decode(self, stage: TimedStage) -> None:
        """The VAE of the host, from the target's latent to frames."""
        latent = self.latent(stage.target, noise=True)["samples"]
        began = self.profiler.start()
        self.vae.decode(latent)
        self.keep_coding(stage, self.profiler.now() - began)

    def keep_coding(self, stage: TimedStage, spent: float) -> None:
        """Keep the seconds of what the VAE does, and its peak."""
        stage.calls.append(([spent], 0.0))
        stage.alone.append(spent)
        stage.peak = max(stage.peak, *(each.peak for each in self.profiler.coding))


def reshift(model: Any, texts: tuple, latent: dict, low: tuple[int, int], steps, cfg) -> dict:
    """Run Surf Reshift KSampler, both legs in one call.

    Args:
        low: pixels of the second leg, height and width.
        steps: evaluations before the switch, and of both legs.
        cfg: of both legs.
    """
    from surf.nodes.preview import SurfReshiftKSampler

    return SurfReshiftKSampler.execute(
        model, *texts, latent, seed=0, switch_step=steps[0], steps=steps[1], cfg=cfg[0],
        cfg_low=cfg[1], shift=3.0, shift_low=3.0, sampler_name="euler", scheduler="simple",
        denoise=1.0, low_resolution="by size", low_scale=0.5, low_width=low[1], low_height=low[0],
        sigma_policy="same", noise_policy="fresh", handover="reuse",
    ).args[0]  # fmt: skip
