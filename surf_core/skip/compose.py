"""Compose a refined latent with the upsampled preview, which skipped tokens keep bit for bit.

Dims: B batch, C channels, T latent frames, H, W latent cells; tokens as in `mask`.
"""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from ..checks import check_range
from ..flow import Refiner, refine_with
from .mask import Mask, check_keep


def weight(keep: Tensor, patch: tuple[int, int, int], seam: int = 0) -> Tensor:
    """Compute the weight of the refined latent in each latent cell: [T, H, W] fp32, 0..1.

    Args:
        keep: [T, h, w] bool, tokens.
        patch: latent cells of a token.
        seam: cells over which the weight falls to zero, within kept tokens and within a frame:
            skipped cells have zero at any seam. 0 is a hard edge.
    """
    check_range(seam, "seam", 0, 64, "use 0 for a hard edge, or 2")
    cells = keep.float()
    for axis, size in enumerate(patch):
        cells = cells.repeat_interleave(size, dim=axis)
    out, near = cells.clone(), cells
    for _ in range(int(seam)):
        near = 1 - F.max_pool2d(1 - near[:, None], 3, 1, 1)[:, 0]
        out += near
    return out / (1 + int(seam))


def compose(refined: Tensor, start: Tensor, share: Tensor) -> Tensor:
    """Blend by `weight`: bit for bit `start` where it is 0 and `refined` where it is 1.

    Args:
        refined, start: [B, C, T, H, W], one shape.
        share: [T, H, W].
    """
    share = share.to(refined)
    blend = torch.lerp(start.to(refined), refined, share)
    blend = torch.where(share == 0, start.to(refined), blend)
    return torch.where(share == 1, refined, blend)


class Skipping:
    """Wrap a refiner so that it computes the kept tokens alone and still returns a whole velocity.

    At skipped cells the velocity is (z - start) / level, so that the clean estimate
    z - level * velocity is `start` at every step, in sigma and in t alike; at a seam it is blended.
    Guidance leaves it as it is, since it is the same with and without text.

    Args:
        model: takes `keep`, such as SurfRefinerDiT.
        start: [B, C, T, H, W], clean, at the target size.
        mask: of the clip's grid.
        seam: see `weight`.

    Raises:
        ValueError: a mask of another clip, or one that skips everything.
    """

    def __init__(self, model: Any, start: Tensor, mask: Mask, seam: int = 0):
        patch = model.config.patch
        check_keep(mask.tokens, token_grid(start, patch))
        self.model, self.config, self.start, self.mask = model, model.config, start, mask
        self.share = weight(mask.tokens, patch, seam).to(start.device)

    def __call__(
        self, z: Tensor, t: Tensor, context: Tensor, sigma_start: Tensor | None = None
    ) -> Tensor:
        if self.mask.tokens.all():
            return self.model(z, t, context, sigma_start)
        velocity = self.model(z, t, context, sigma_start, keep=self.mask.tokens)
        level = (t / 1000).view(-1, *[1] * (z.ndim - 1))
        return compose(velocity, ((z - self.start) / level).to(z.dtype), self.share)


def token_grid(latent: Tensor, patch: tuple[int, int, int]) -> tuple[int, int, int]:
    """Count the whole tokens of a latent [B, C, T, H, W] along time, rows and columns."""
    (frames, rows, columns), (depth, height, width) = latent.shape[2:], patch
    return frames // depth, rows // height, columns // width


def refine_skipping(
    model: Any, start: Tensor, context: Tensor, mask: Mask, *, seam: int = 0, **options: Any
) -> Tensor:
    """Refine the kept tokens of a mask; the others are those of `start`, bit for bit.

    Args:
        model: takes `keep`.
        start: [B, C, T, H, W], clean, at the target size.
        context: [B, L, text_dim].
        mask: of the clip's grid, one for all samples, all steps, with and without text.
        seam: latent cells of blending, within kept tokens.
        options: of `flow.refine_with`.

    Returns:
        A clean latent, shape and dtype of start. With nothing skipped, bit for bit that of
        `flow.refine_with`.

    Raises:
        ValueError: a mask of another clip or one that skips everything, or as `flow.refine_with`.
    """
    skipping: Refiner = Skipping(model, start, mask, seam)
    refined = refine_with(skipping, start, context, **options)
    hard = weight(mask.tokens, model.config.patch).to(start.device)
    return compose(refined, start, hard)
