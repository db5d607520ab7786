"""Prepare a refinement: check its inputs, upsample the preview, clone the model.

Dims: B batch, C latent channels, T latent frames, H, W latent cells.
"""

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ....surf_core.checks import check_choice
from ..attention import with_windows
from ..audio_length import check_frame_rate, check_length
from ..bound_patches import check_bound
from ..conditioning import (
    Conditioning,
    Pixels,
    SizeChange,
    carry,
    check_areas,
    check_frames_beside,
    check_text_width,
    source_cells,
)
from ..finite import check_conditioning
from ..input_channels import takes_control
from ..latents import open_parts
from ..leftover_noise import warn_of_noise
from ..models import cell_side, check_flow, target_cells, target_of
from ..nested import Parts, has_audio, join_mask, split_mask
from ..refiner import TRAITS_KEY, RefinerTraits
from ..skip import CellWeights, SkipMask, cell_weights, with_mask
from ..vae import UPSAMPLE_METHODS, check_vae
from .control import check_control, with_control
from .frames import FramesIn, check_preview
from .joint import check_joint, guide_frames, masks_of, upsample_clips, why_whole
from .low_band import check_lock, with_low_band_lock
from .start_frames import check_start, held_frames, with_kept, with_start, without_kept
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
    clean: Parts
    """VAE space: the preview at the target size [B, C, T, H, W], and its audio."""
    settings: RefineSettings
    """What a trained refiner fixes is set."""
    weights: CellWeights | None
    """Which cells are refined; None: all."""
    noise_mask: Any
    """Which cells of the video, and of its audio, may change; None: all."""
    pixels: tuple[int, int]
    """Height and width that the user chose."""
    frames: FramesIn | None = None
    """The user's frames that the preview was made of."""

    @property
    def keeps_audio(self) -> bool:
        """Whether the audio comes out as it is: not to be refined, or masked altogether."""
        audio = split_mask(self.noise_mask)[1]
        return audio is not None and not audio.any()


def prepare(
    model: Any,
    conds: dict[str, Conditioning],
    latent: dict | None,
    settings: RefineSettings,
    *,
    upsample: str,
    vae: Any,
    mask: SkipMask | None,
    seam: int,
    made_for: Pixels,
    start_image: Tensor | None,
    image: Tensor | None = None,
    **target: Any,
) -> RefineRun:
    """Check the inputs, upsample the preview and clone the model; arguments as in `refine`.

    What does not fit is refused before the VAE works.
    """
    check_flow(model)
    check_conditioning(conds)
    check_text_width(model, conds)
    frames, parts = _open(model, latent, image, vae)
    samples = parts.video
    check_joint(parts, conds)
    traits: RefinerTraits | None = model.get_attachment(TRAITS_KEY)
    settings = apply_traits(traits, settings)
    check_prompts(traits, conds, settings.cfg)
    own_size = frames.size if frames and latent is None else None
    size, pixels = _target(model, samples, own_size, **target)
    if frames and latent is not None:
        frames.check_beside(samples, cell_side(model), size, pixels)
    check_lock(settings, samples, size)
    controlled = takes_control(model)
    if controlled:
        check_control(samples, frames is not None)
    check_choice(upsample, "upsample", UPSAMPLE_METHODS)
    shape = torch.empty((*samples.shape[:-2], *size), device="meta")
    weights = _weights(mask, model, shape, seam, conds)
    source = source_cells(model, conds, latent or {}, samples, made_for)
    check_bound(model, shape.shape, {source, tuple(samples.shape[-2:])})
    check_areas(conds, (*samples.shape[2:-2], *source))
    check_frames_beside(conds, model, tuple(samples.shape[2:-2]))
    guides = guide_frames(conds, source)
    check_length(model, parts)
    check_frame_rate(model, parts, conds, sum(guides))
    change = SizeChange.of(model, source, size)
    conds = carry(conds, change, MADE_AT_TARGET)
    check_areas(conds, (*samples.shape[2:-2], *size), change.grid)
    upsampled = None if frames else _given(mask, samples, shape, upsample)
    noise_mask, audio_mask = masks_of(latent or {}, parts, settings.refine_audio)
    if start_image is not None:
        kept = held_frames(noise_mask, shape.shape)
        check_start(start_image, vae, samples, kept)
        noise_mask = with_kept(noise_mask, shape.shape, kept)
    elif upsampled is not samples:
        noise_mask = without_kept(noise_mask, shape.shape)
    if upsampled is None and upsample == "pixel" and not frames:
        check_vae(vae, samples)
    clone = (
        with_sigma_start(traits, model, settings)
        if traits
        else with_windows(model, settings.window)
    )
    audio = None if parts.audio is None else parts.audio.shape
    whole = why_whole(parts, settings, guides)
    clone = with_tiles(
        clone, shape, settings.tile, audio, whole, conds, chunk_frames=settings.chunk_frames,
        window=traits.window if traits else settings.window,
        preview=samples if latent else _frames_of(image, samples.shape[2]),
    )  # fmt: skip
    if frames:
        upsampled = frames.encode(samples, size, pixels)
    elif upsampled is None:
        upsampled = upsample_clips(samples, size, upsample, vae, guides)
    if start_image is not None:
        upsampled = with_start(upsampled, vae, start_image, source)
    clean = parts.with_video(upsampled)
    if controlled:
        conds = with_control(conds, upsampled)
    clone = with_low_band_lock(clone, samples, clean, settings)
    if weights is not None:
        clone = with_mask(clone, upsampled, weights)
    return RefineRun(
        model=clone, conds=conds, clean=clean, settings=settings, weights=weights, pixels=pixels,
        noise_mask=join_mask(noise_mask, audio_mask, clean), frames=frames,
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


def _open(
    model: Any, latent: dict | None, image: Tensor | None, vae: Any
) -> tuple[FramesIn | None, Parts]:
    """Take the preview out of a LATENT; zeros of its shape where frames alone stand for it."""
    check_preview(latent is not None, image is not None)
    frames = None if image is None else FramesIn(image, vae)
    if latent is None:
        return frames, frames.stand_in(model)
    parts = open_parts(model, latent, "latent")
    warn_of_noise(parts.video, "latent")
    return frames, parts


def _frames_of(image: Tensor, count: int) -> Tensor:
    """Take one frame for each latent frame of a video, small, to look for scenes: [1, 3, T, h, w].

    Args:
        image: [F, height, width, 3].
    """
    places = torch.linspace(0, len(image) - 1, count).round().long()
    return image[:, ::8, ::8][places].movedim(-1, 0)[None]


def _target(
    model: Any, samples: Tensor, own_size: Pixels | None, **target: Any
) -> tuple[tuple[int, int], tuple[int, int]]:
    """Find the size as `target_cells`; at scale 1, video that audio belongs to keeps odd sizes.

    Args:
        own_size: height and width of frames in place of a latent.
    """
    if own_size is not None:
        return target_of(model, own_size, **target)
    if has_audio(model) and target["resolution"] == "by scale" and target["scale"] == 1:
        rows, columns = samples.shape[-2:]
        cell = cell_side(model)
        return (rows, columns), (rows * cell, columns * cell)
    return target_cells(model, samples, **target)


def _given(mask: SkipMask | None, samples: Tensor, shape: Tensor, upsample: str) -> Tensor | None:
    """Return the upsampled preview where it is at hand: from a mask, or enlarged before.

    Some models have upsamplers of their own for latents; what has the target's size is taken as it
    is, `samples` itself.
    """
    reusable = _reusable(mask, samples, shape, upsample)
    if reusable is None and samples.shape == shape.shape:
        return samples
    return reusable


def _reusable(
    mask: SkipMask | None, samples: Tensor, shape: Tensor, upsample: str
) -> Tensor | None:
    """Return the upsampled preview of a mask, if it is of these samples and this method."""
    upsampled = None if mask is None else mask.upsampled
    if upsampled is None or mask.upsample != upsample or upsampled.shape != shape.shape:
        return None
    same = mask.samples.shape == samples.shape and torch.equal(mask.samples.to(samples), samples)
    return upsampled if same else None
