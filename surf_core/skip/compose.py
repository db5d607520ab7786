"""Put refined and skipped tokens together: a skipped one is the start, exactly.

Dims: B batch, C channels, T latent frames, H, W latent cells; tokens as in `mask`.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

from ..checks import check_range
from ..flow import refine_with
from .mask import Mask, check_keep


def weight(keep: Tensor, patch: tuple[int, int, int], seam: int = 0) -> Tensor:
    """How much of each latent cell is the refiner's: [T, H, W] fp32, 0..1.

    Args:
        keep: [T, h, w] bool, tokens.
        patch: latent cells of a token.
        seam: cells over which the weight falls to zero, inside of what is refined and within a
            frame: skipped cells have zero whatever the seam. 0 is a hard edge.
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
    """Blend by `weight`; where it is 0 the result is bit for bit the start, where 1 the refined.

    Args:
        refined, start: [B, C, T, H, W], one shape.
        share: [T, H, W].
    """
    share = share.to(refined)
    blend = torch.lerp(start.to(refined), refined, share)
    blend = torch.where(share == 0, start.to(refined), blend)
    return torch.where(share == 1, refined, blend)


class Skipping:
    """A refiner that runs on the tokens of a mask, as a model that knows all of the clip.

    Called like a model. At skipped cells the velocity is (z - start) / level, so that the clean
    estimate z - level * velocity is the start at every step, in sigma and in t alike; at a seam it
    is blended. Guidance keeps it: with and without text it is the same.

    Args:
        model: takes `keep`, such as SurfRefinerDiT.
        start: [B, C, T, H, W], clean, at the target size.
        mask: of the clip's grid.
        seam: see `weight`.

    Raises:
        ValueError: a mask of another clip, or one that skips everything.
    """

    def __init__(self, model, start: Tensor, mask: Mask, seam: int = 0):
        patch = model.config.patch
        check_keep(mask.tokens, token_grid(start, patch))
        self.model, self.config, self.start, self.mask = model, model.config, start, mask
        self.share = weight(mask.tokens, patch, seam).to(start.device)

    def __call__(
        self, z: Tensor, t: Tensor, context: Tensor, start: Tensor | None = None
    ) -> Tensor:
        if self.mask.tokens.all():
            return self.model(z, t, context, start)
        velocity = self.model(z, t, context, start, keep=self.mask.tokens)
        level = (t / 1000).view(-1, *[1] * (z.ndim - 1))
        return compose(velocity, ((z - self.start) / level).to(z.dtype), self.share)


def token_grid(latent: Tensor, patch: tuple[int, int, int]) -> tuple[int, int, int]:
    """Tokens of a latent [B, C, T, H, W] along time, rows and columns, whole ones."""
    return tuple(size // step for size, step in zip(latent.shape[2:], patch, strict=True))


def refine_skipping(
    model, start: Tensor, context: Tensor, mask: Mask, *, seam: int = 0, **options
) -> Tensor:
    """Refine the tokens of a mask; the others are the start, bit for bit.

    Args:
        model: takes `keep`.
        start: [B, C, T, H, W], clean, at the target size.
        context: [B, L, text_dim].
        mask: of the clip's grid, one for all samples, all steps, with and without text.
        seam: latent cells of blending inside of what is refined.
        options: of `flow.refine_with`.

    Returns:
        A clean latent, shape and dtype of start. With nothing skipped, bit for bit what
        `flow.refine_with` gives.

    Raises:
        ValueError: a mask of another clip or one that skips everything, or as `flow.refine_with`.
    """
    skipping = Skipping(model, start, mask, seam)
    refined = refine_with(skipping, start, context, **options)
    hard = weight(mask.tokens, model.config.patch).to(start.device)
    return compose(refined, start, hard)
