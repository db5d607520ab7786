"""The calls of the flow: the host's sampler, and the nodes of the pack, with a watch on each."""

from dataclasses import dataclass, replace
from typing import Any

import torch

from surf_core import cost

from .models import prompts
from .plans import Case, Setting
from .stages import Stage
from .watch import Watch

CFG = {"on": 5.0, "off": 1.0}
UNSEEN = "the profiler saw no kernels"
TO_SIZE = {"resolution": "by size", "scale": 2.0}
"""Inputs of the nodes that leave the size to width and height."""


@dataclass(kw_only=True, slots=True)
class Kit:
    """The models of a run, and how they are called; one watch sees them all."""

    watch: Watch
    setting: Setting
    base: Any | None
    """None where only refiners run."""
    refiners: dict[str, Any]
    """Name -> MODEL."""
    vae: Any | None
    width: int
    """Channels of the VAE."""
    upsample: str
    """Of Surf Refiner."""

    def run(self, case: Case) -> None:
        """Make a call; its stages keep what the watch saw."""
        more = {"coding": case.coding} if case.coding else {}
        getattr(self, case.call)(*case.stages, **more)

    def latent(self, side: str, noise: bool = False) -> dict:
        rows, columns = (pixels // 8 for pixels in self.setting.sides[side])
        count = cost.latent_frames(self.setting.base, self.setting.frames)
        size = (1, 16, count, rows, columns)
        made = torch.randn(size, generator=torch.Generator().manual_seed(2))
        return {"samples": made if noise else torch.zeros(size)}

    def plain(self, stage: Stage) -> None:
        """The host's own sampler at the target, its first evaluations."""
        import comfy.sample

        zeros, texts = self.latent(stage.target)["samples"], prompts(self.setting.base)
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
        latent, texts = self.latent("480p"), prompts(self.setting.base)
        height, width = self.setting.sides["240p"]
        began = self.watch.start(self.watch.profiling)
        SurfReshiftKSampler.execute(
            self.base, *texts, latent, 0, switch_step=high, cfg=CFG[first.cfg],
            cfg_low=CFG[second.cfg], steps=high + low, shift=3.0, shift_low=3.0,
            sampler_name="euler", scheduler="simple", denoise=1.0,
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
        wanted = {"width": width, "height": height, "upsample": upsample or self.upsample,
                  "vae": self.vae, **TO_SIZE}  # fmt: skip
        latent = self.latent("240p", noise=True)
        texts = prompts(cost.WAN_14B if self.vae else self.setting.base)
        began = self.watch.start(self.watch.profiling)
        mask = None if stage.keep == 1 else self.mask(stage, model, latent, wanted)
        made = self.watch.now()
        refine(model, *texts, latent, settings, mask=mask, **wanted)
        ended = self.watch.now()
        if coding and self.watch.coding:
            coded = made if mask else self.watch.coding[-1].ended
            self.keep_coding(coding, coded - began)
            began = coded
        self.keep(stage, self.watch.evaluations, began, ended)

    def mask(self, stage: Stage, model: Any, latent: dict, wanted: dict) -> Any:
        """Surf Skip Mask by keep ratio; the stage's operations are then those of this mask."""
        from surf.nodes.host.skip.make_mask import Choice, make_mask
        from surf.surf_core.skip import packing

        choice = Choice(predictor="detail", choose="keep ratio", keep=stage.keep, tau=3.0)
        made, _ = make_mask(model, latent, choice, **wanted)
        stage.work = replace(stage.work, kept=packing(made.mask.tokens).counts)
        return made

    def decode(self, stage: Stage) -> None:
        """The VAE of the host, from the target's latent to frames."""
        latent = self.latent(stage.target, noise=True)["samples"]
        began = self.watch.start(self.watch.profiling)
        self.vae.decode(latent)
        self.keep_coding(stage, self.watch.now() - began)

    def keep(self, stage: Stage, seen: list, began: float, ended: float) -> None:
        if self.watch.profiling:
            stage.shares = seen[-1].shares
            stage.no_shares = stage.no_shares if stage.shares else UNSEEN
        else:
            stage.take(seen, began, ended)

    def keep_coding(self, stage: Stage, spent: float) -> None:
        seen = self.watch.coding
        if self.watch.profiling:
            times = [each.ended - each.began for each in seen]
            seen = [(each.shares, took) for each, took in zip(seen, times, strict=True)
                    if each.shares]  # fmt: skip
            whole = sum(took for _, took in seen)
            stage.shares = {
                kind: sum(shares[kind] * took for shares, took in seen) / whole
                for kind in seen[0][0]
            } if seen else None  # fmt: skip
            stage.no_shares = stage.no_shares if seen else UNSEEN
            return
        stage.calls.append(([spent], 0.0))
        stage.alone.append(spent)
        stage.peak = max(stage.peak, *(each.peak for each in seen))
