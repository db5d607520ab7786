"""The calls of the flow: the host's sampler, and the nodes of the pack, with a watch on each."""

from dataclasses import dataclass
from typing import Any

import torch

from surf_core import cost

from .models import prompts
from .stages import Stage
from .watch import Watch

CFG = {"on": 5.0, "off": 1.0}
Side = tuple[int, int]
"""Pixels, height and width."""


@dataclass(kw_only=True, slots=True)
class Kit:
    """The models of a run, and how they are called; one watch sees them all."""

    watch: Watch
    sides: dict[str, Side]
    frames: int
    base: Any
    base_shape: cost.ModelShape
    refiners: dict[str, tuple[Any, cost.ModelShape, int]]
    """Name -> MODEL, its shape, its window."""
    vae: Any | None
    width: int
    """Channels of the VAE."""
    upsample: str
    """Of Surf Refiner."""

    def latent(self, side: str, noise: bool = False) -> dict:
        rows, columns = (pixels // 8 for pixels in self.sides[side])
        count = cost.latent_frames(self.base_shape, self.frames)
        size = (1, 16, count, rows, columns)
        made = torch.randn(size, generator=torch.Generator().manual_seed(2))
        return {"samples": made if noise else torch.zeros(size)}

    def plain(self, stage: Stage) -> None:
        """The host's own sampler at the target, its first evaluations."""
        import comfy.sample

        zeros, texts = self.latent(stage.target)["samples"], prompts(self.base_shape)
        began = self.watch.start(self.watch.profiling)
        comfy.sample.sample(
            self.base, comfy.sample.prepare_noise(zeros, 0), stage.full, CFG[stage.cfg], "euler",
            "simple", *texts, zeros, start_step=0, last_step=stage.planned,
            force_full_denoise=True, disable_pbar=True, seed=0,
        )  # fmt: skip
        self.keep(stage, self.watch.evaluations, began, self.watch.now())

    def preview(self, first: Stage, second: Stage) -> None:
        """Reshift KSampler: both legs in one call."""
        from surf.nodes.preview import SurfReshiftKSampler

        high, low = first.planned, second.planned
        latent, texts = self.latent("480p"), prompts(self.base_shape)
        height, width = self.sides["240p"]
        began = self.watch.start(self.watch.profiling)
        SurfReshiftKSampler.execute(
            self.base, *texts, latent, 0, high, CFG[first.cfg], CFG[first.cfg], steps=high + low,
            shift=3.0, shift_low=3.0, sampler_name="euler", scheduler="simple", denoise=1.0,
            low_resolution="by size", low_scale=0.5, low_width=width, low_height=height,
            sigma_policy="same", noise_policy="fresh", handover="reuse",
        )  # fmt: skip
        ended, seen = self.watch.now(), self.watch.evaluations
        cut = seen[high - 1].ended
        self.keep(first, seen[:high], began, cut)
        self.keep(second, seen[high:], cut, ended)

    def refine(
        self, stage: Stage, coding: Stage | None = None, upsample: str | None = None
    ) -> None:
        """Surf Refiner from 240p to the target; what is done before the latent is `coding`."""
        from surf.nodes.host.refining import RefineSettings, refine

        model, _, window = self.refiners[stage.name]
        settings = RefineSettings(
            seed=0, sigma_start=0.65, steps=stage.planned, cfg=CFG[stage.cfg], window=window,
            low_band_lock=0.0, colour_match=False,
        )  # fmt: skip
        (height, width), latent = self.sides[stage.target], self.latent("240p", noise=True)
        texts = prompts(cost.WAN_14B if self.vae else self.base_shape)
        began = self.watch.start(self.watch.profiling)
        refine(model, *texts, latent, settings, upsample=upsample or self.upsample, vae=self.vae,
               resolution="by size", scale=2.0, width=width, height=height)  # fmt: skip
        ended = self.watch.now()
        if coding and self.watch.coding:
            encoded = self.watch.coding[-1].ended
            self.keep_coding(coding, encoded - began)
            began = encoded
        self.keep(stage, self.watch.evaluations, began, ended)

    def decode(self, stage: Stage) -> None:
        """The VAE of the host, from the target's latent to frames."""
        latent = self.latent(stage.target, noise=True)["samples"]
        began = self.watch.start(self.watch.profiling)
        self.vae.decode(latent)
        self.keep_coding(stage, self.watch.now() - began)

    def keep(self, stage: Stage, seen: list, began: float, ended: float) -> None:
        if self.watch.profiling:
            stage.shares = seen[-1].shares
        else:
            stage.take(seen, began, ended)

    def keep_coding(self, stage: Stage, spent: float) -> None:
        seen = self.watch.coding
        if self.watch.profiling:
            times = [each.ended - each.began for each in seen]
            stage.shares = {
                kind: sum(each.shares[kind] * took for each, took in zip(seen, times, strict=True))
                / sum(times) for kind in seen[0].shares
            }  # fmt: skip
            return
        stage.calls.append(([spent], 0.0))
        stage.alone.append(spent)
        stage.peak = max(stage.peak, *(each.peak for each in seen))
