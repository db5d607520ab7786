"""Settings in which a user runs a model, through the samplers that the nodes call.

Dims: T latent frames, H, W latent cells.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch

from benchmarks.speed.host import models
from benchmarks.speed.host.calls import reshift
from surf_core import cost

SIZES = {False: {"high": (60, 104), "low": (30, 52), "target": (90, 160), "other": (60, 104)},
         True: {"high": (12, 16), "low": (8, 12), "target": (8, 12), "other": (12, 8)}}  # fmt: skip
"""Toy or not -> rows and columns of latents."""
STEPS = 4


@dataclass(frozen=True, kw_only=True, slots=True)
class SamplerSetting:
    """One call of a sampler."""

    name: str
    run: Callable[[Any], torch.Tensor]


def noise(frames: int, size: tuple[int, int], scale: float = 1.0) -> dict:
    """Draw a LATENT [1, 16, T, H, W]."""
    generator = torch.Generator().manual_seed(2)
    return {"samples": scale * torch.randn(1, 16, frames, *size, generator=generator)}


def preview(model: Any, shape: cost.ModelShape, frames: int, sizes: dict, cfg: float):
    """Run Surf Reshift KSampler, two legs of two sizes."""
    low = tuple(8 * cells for cells in sizes["low"])
    latent = noise(frames, sizes["high"], 0.0)
    steps = (STEPS // 2, STEPS)
    return reshift(model, models.prompts(shape), latent, low, steps, (cfg, cfg))["samples"]


def refined(
    model: Any, shape: cost.ModelShape, frames: int, size: tuple[int, int], *, cfg: float = 1.0,
    window: int = 4, tile: int = 0, keep: float = 1.0,
) -> torch.Tensor:  # fmt: skip
    """Run Surf Refiner to a size, through the latent; `keep` below 1 masks at random."""
    from surf.nodes.host.refine.run import refine
    from surf.nodes.host.refine.traits import RefineSettings
    from surf.nodes.host.skip.skip_mask import SkipMask
    from surf.surf_core.skip import Mask

    start, mask = noise(frames, (size[0] // 2, size[1] // 2)), None
    if keep < 1:
        grid = frames, size[0] // 2, size[1] // 2
        scores = torch.rand(grid, generator=torch.Generator().manual_seed(round(100 * keep)))
        chosen = Mask(tokens=scores < keep, scores=scores, source="random", tau=1.0)
        mask = SkipMask(
            mask=chosen, size=size, upsampled=None, upsample="latent", samples=start["samples"]
        )
    settings = RefineSettings(
        seed=0, sigma_start=0.65, steps=STEPS, cfg=cfg, window=window, low_band_lock=0.0,
        colour_match=False, tile=tile,
    )  # fmt: skip
    out, *_ = refine(
        model, *models.prompts(shape), start, settings, upsample="latent", mask=mask,
        resolution="by size", scale=2.0, width=8 * size[1], height=8 * size[0],
    )  # fmt: skip
    return out["samples"]


def settings_of(name: str, shape: cost.ModelShape, toy: bool) -> list[SamplerSetting]:
    """List what a model runs, in this order; previews are for the base alone."""
    sizes, (clip, other) = SIZES[toy], (9, 7) if toy else (21, 13)
    target, tile = sizes["target"], 256 if toy else 512
    tiles = (48, 80) if toy else target

    def previews(title: str, cfg: float) -> SamplerSetting:
        frames = 3 if toy else clip
        return SamplerSetting(name=title, run=lambda m: preview(m, shape, frames, sizes, cfg))

    def refiner(title: str, frames: int = clip, size: tuple[int, int] = target, **more):
        return SamplerSetting(name=title, run=lambda m: refined(m, shape, frames, size, **more))

    both = [previews("preview, two sizes", 1.0), previews("preview, two sizes, guided", 5.0)]
    return [
        *(both if name == "wan" else []),
        refiner("refine in windows"),
        refiner("refine, fewer frames, another size", other, sizes["other"]),
        refiner("refine, guided", cfg=4.0),
        refiner("refine half of the tokens", keep=0.5),
        refiner("refine a third of the tokens", keep=0.33),
        refiner("refine in tiles", 5 if toy else clip, tiles, tile=tile),
        refiner("refine in windows, again"),
    ]
