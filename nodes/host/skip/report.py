"""Draw a mask over its preview, and report what it saves, before anything is refined.

Dims: B batch, C latent channels, T latent frames, H, W latent cells, F pixel frames.
"""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from ....surf_core import cost
from ....surf_core.skip import packing, weight
from ..models import cell_side, patch_side
from ..refiner import TRAITS_KEY
from .shapes import shape_of
from .skip_mask import SkipMask

DIMMED = 0.35
"""Brightness of what is skipped."""
TINT = (1.0, 0.55, 0.1)
TINTED = 0.25
"""How much of the tint is over what is refined."""
WINDOWS = (4, 0)
"""Priced for a model whose window is chosen later: the default of Surf Refiner, and none."""
UNITS = ((1e15, "PFLOPs"), (1e12, "TFLOPs"), (1e9, "GFLOPs"))


def picture(model: Any, skip: SkipMask, frames: Tensor | None) -> Tensor:
    """Draw the mask over the preview: what is refined is tinted, what is skipped is dark.

    Args:
        frames: [B * F, 3, height, width] in 0..1, or None: then in the rough colours that the host
            shows while it samples, a frame for each latent frame.

    Returns:
        IMAGE [B * F, height, width, 3].
    """
    canvas = rough(model, skip.samples) if frames is None else frames
    batch, latent_frames = skip.samples.shape[0], skip.samples.shape[2]
    side, (rows, columns) = patch_side(model), skip.size
    shares = weight(skip.mask.tokens, (1, side, side))[:, :rows, :columns]
    shares = F.interpolate(shares[None], canvas.shape[-2:], mode="nearest-exact")[0]
    count = len(canvas) // batch
    # The first latent frame holds one frame, each other one `ratio` frames.
    ratio = max(1, (count - 1) // max(1, latent_frames - 1))
    tint = canvas.new_tensor(TINT).view(3, 1, 1)
    out = torch.empty_like(canvas.movedim(1, -1), memory_format=torch.contiguous_format)
    # Frame by frame, so that the frames of a long preview are in memory twice and no more.
    for i, frame in enumerate(canvas):
        share = shares[min((i % count + ratio - 1) // ratio, latent_frames - 1)].to(canvas)
        drawn = torch.lerp(frame * (DIMMED + (1 - DIMMED) * share), tint, TINTED * share)
        out[i] = drawn.movedim(0, -1)
    return out


def rough(model: Any, samples: Tensor) -> Tensor:
    """Colour latents [B, C, T, H, W] without a VAE: [B * T, 3, height, width]; grey if unknown."""
    latent_format = model.get_model_object("latent_format")
    factors = getattr(latent_format, "latent_rgb_factors", None)
    clean = model.model.process_latent_in(samples.float())
    if factors is None or len(factors) != samples.shape[1]:
        colours = torch.full_like(clean[:, :3], 0.5)
    else:
        colours = torch.einsum("bcthw,cr->brthw", clean, clean.new_tensor(factors))
        bias = getattr(latent_format, "latent_rgb_factors_bias", None)
        colours = colours if bias is None else colours + clean.new_tensor(bias).view(3, 1, 1, 1)
        colours = colours.add(1).div(2).clamp(0, 1)
    return F.interpolate(colours.transpose(1, 2).flatten(0, 1), scale_factor=cell_side(model))


def report(model: Any, skip: SkipMask) -> str:
    """Report in a few lines what is refined, why, and what a forward of the model costs."""
    mask, (latent_frames, rows, columns) = skip.mask, skip.mask.grid
    count = int(mask.tokens.sum())
    lines = [
        f"refined: {mask.keep_ratio:.1%} of the tokens, {count} of {mask.tokens.numel()} "
        f"({latent_frames} x {rows} x {columns})",
        f"changes from one latent frame to the next: {mask.flip_rate:.1%} of the tokens",
        f"source: {mask.source}, tau {mask.tau:.4g}",
    ]
    shape = shape_of(model)
    if shape is None:
        network = type(model.get_model_object("diffusion_model")).__name__
        return "\n".join([*lines, f"cost: not known for a {network}"])
    return "\n".join([*lines, *(_saving(shape, skip, w) for w in windows_of(model))])


def _saving(shape: cost.ModelShape, skip: SkipMask, window: int) -> str:
    clip = (skip.mask.grid[0], *skip.size)
    counts = packing(skip.mask.tokens).counts
    full = cost.forward_flops(shape, *clip, window)
    less = cost.forward_flops(shape, *clip, window, counts)
    how = f"windows of {window}" if window else "full attention"
    return (
        f"cost of an evaluation, {how}: {flops_text(less)} instead of {flops_text(full)}, "
        f"{1 - less / full:.1%} saved"
    )


def flops_text(count: int) -> str:
    """Write a number of operations with its unit."""
    size, unit = next((pair for pair in UNITS if count >= pair[0]), UNITS[-1])
    return f"{float(f'{count / size:.3g}'):g} {unit}"


def windows_of(model: Any) -> tuple[int, ...]:
    """Return the attention windows that will run, or those to choose from."""
    traits = model.get_attachment(TRAITS_KEY)
    return WINDOWS if traits is None else (traits.window,)
