"""Prepare a refinement: check its inputs, upsample the preview, clone the model.

Dims: B batch, C latent channels, T latent frames, H, W latent cells.
"""

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ....surf_core.checks import check_choice
from ..attention import with_windows
from ..bound_patches import check_bound
from ..conditioning import (
    Conditioning,
    Pixels,
    SizeChange,
    carry,
    check_areas,
    source_cells,
)
from ..finite import check_conditioning
from ..latents import open_latent
from ..leftover_noise import warn_of_noise
from ..models import check_flow, target_cells
from ..refiner import TRAITS_KEY, RefinerTraits
from ..skip import CellWeights, SkipMask, cell_weights, with_mask
from ..vae import UPSAMPLE_METHODS, check_vae, upsample_latent
from .low_band import with_low_band_lock
from .start_frames import check_start, kept_frames, with_start, without_kept
from .tiling import with_tiles
from .traits import RefineSettings, apply_traits, check_prompts, with_sigma_start

MADE_AT_TARGET = (
    "connect a positive and negative that their node made at that size, to have it encoded there"
)


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class RefineRun:
    """Arguments of sampling and composing."""

    model: Any
    """Clone of the MODEL, with windows, tiles, the low-band lock and the mask."""
    conds: dict[str, Conditioning]
    """"positive" and "negative", at the target size."""
    upsampled: Tensor
    """[B, C, T, H, W], VAE space: the preview at the target size."""
    settings: RefineSettings
    """What a trained refiner fixes is set."""
    weights: CellWeights | None
    """Which cells are refined; None: all."""
    noise_mask: Tensor | None
    """Which cells of the latent may change; None: all."""
    pixels: tuple[int, int]
    """Height and width that the user chose."""


def prepare(
    model: Any,
    conds: dict[str, Conditioning],
    latent: dict,
    settings: RefineSettings,
    *,
    upsample: str,
    vae: Any,
    mask: SkipMask | None,
    seam: int,
    made_for: Pixels,
    start_image: Tensor | None,
    **target: Any,
) -> RefineRun:
    """Check the inputs, upsample the preview and clone the model; arguments as in `refine`.

    What does not fit is refused before the VAE works.
    """
    check_flow(model)
    check_conditioning(conds)
    samples = open_latent(model, latent, "latent")
    warn_of_noise(samples, "latent")
    traits: RefinerTraits | None = model.get_attachment(TRAITS_KEY)
    settings = apply_traits(traits, settings)
    check_prompts(traits, conds, settings.cfg)
    size, pixels = target_cells(model, samples, **target)
    check_choice(upsample, "upsample", UPSAMPLE_METHODS)
    shape = torch.empty((*samples.shape[:-2], *size), device="meta")
    weights = _weights(mask, model, shape, seam, conds)
    source = source_cells(model, conds, latent, samples, made_for)
    check_bound(model, shape.shape, {source, tuple(samples.shape[-2:])})
    check_areas(conds, (*samples.shape[2:-2], *source))
    conds = carry(conds, SizeChange.of(model, source, size), MADE_AT_TARGET)
    noise_mask = latent.get("noise_mask")
    kept = kept_frames(noise_mask, shape.shape)
    if start_image is not None:
        check_start(start_image, vae, samples, kept)
    elif kept:
        noise_mask = without_kept(noise_mask, shape.shape, kept)
    upsampled = _reusable(mask, samples, shape, upsample)
    if upsampled is None and upsample == "pixel":
        check_vae(vae, samples)
    clone = (
        with_sigma_start(traits, model, settings)
        if traits
        else with_windows(model, settings.window)
    )
    clone = with_tiles(clone, shape, settings.tile)
    if upsampled is None:
        upsampled = upsample_latent(samples, size, upsample, vae)
    if start_image is not None:
        upsampled = with_start(upsampled, vae, start_image, source)
    clone = with_low_band_lock(clone, samples, upsampled, settings)
    if weights is not None:
        clone = with_mask(clone, upsampled, weights)
    return RefineRun(
        model=clone, conds=conds, upsampled=upsampled, settings=settings, weights=weights,
        noise_mask=noise_mask, pixels=pixels,
    )  # fmt: skip


def _weights(
    mask: SkipMask | None, model: Any, shape: Tensor, seam: int, conds: dict[str, Conditioning]
) -> CellWeights | None:
    """Return the weights of the cells under a mask; None where everything is refined.

    Raises:
        ValueError: a mask that does not fit, or a prompt with an area beside it: for one, the model
            is called with a part of the picture.
    """
    weights = None if mask is None else cell_weights(mask.mask, model, shape, seam)
    areas = (entry[1].get("area") for cond in conds.values() for entry in cond)
    if weights is not None and any(area is not None for area in areas):
        raise ValueError(
            "a prompt with an area and a mask do not go together, got both; confine the "
            "prompt with Conditioning (Set Mask), or disconnect the mask."
        )
    return weights


def _reusable(
    mask: SkipMask | None, samples: Tensor, shape: Tensor, upsample: str
) -> Tensor | None:
    """Return the upsampled preview of a mask, if it is of these samples and this method."""
    upsampled = None if mask is None else mask.upsampled
    if upsampled is None or mask.upsample != upsample or upsampled.shape != shape.shape:
        return None
    same = mask.samples.shape == samples.shape and torch.equal(mask.samples.to(samples), samples)
    return upsampled if same else None
