"""Score tokens by the preview's own detail, without weights: of its pixels, or of its latent.

Dims: B batch, C latent channels, F pixel frames, T latent frames, H, W latent cells; T, h, w
tokens.
"""

from functools import reduce

import torch
import torch.nn.functional as F
from torch import Tensor

from ..checks import check_latent, check_range
from ..resample import resize
from .oracle import PATCH, UNIT, largest

GAIN = 0.53
"""What enlarging `ratio` times has lost is about GAIN * ratio**2 times the detail that is left: the
median over tokens that lose 2 to 16, of clips that no table shows, at ratios of 2 to 6."""

TEMPORAL = 0.03
"""Share of the detail over time. Of rendered scenes enlarged four times, detail in space alone
ranks best, and all of the detail over time mistakes motion of flat parts for texture."""


def detail(
    start: Tensor, patch: tuple[int, int, int] = PATCH, temporal: float = TEMPORAL
) -> Tensor:
    """Score tokens by the energy that a local mean removes.

    Squared differences of every latent cell to the mean of the 3x3 cells around it, plus `temporal`
    times those to the mean of the three frames around it; averaged over a token, square root.

    Args:
        start: [B, C, T, H, W], clean, at the target size.
        patch: latent cells of a token.
        temporal: 0..1.

    Returns:
        [B, T, h, w], >= 0, times `UNIT`. It ranks tokens; its scale is not that of the oracle, so
        choose by keep ratio, or find tau by trial.

    Raises:
        ValueError: a bad latent, or a size that tokens do not divide.

    Source: ours.
    """
    check_latent(start, "the start latent")
    check_range(temporal, "temporal", 0.0, 1.0, "use 0.03")
    if start.ndim != 5 or any(
        size % cells for size, cells in zip(start.shape[2:], patch, strict=True)
    ):
        raise ValueError(
            f"expected a latent [B, C, T, H, W] of whole tokens of {patch}, got "
            f"{tuple(start.shape)}; choose a size that fits."
        )
    wide = torch.promote_types(start.dtype, torch.float32)
    channels = (_energy(x.to(wide), temporal) for x in start.split(1, dim=1))
    # Summed in this order, and not by torch, whose order depends on where in memory a cell is.
    energy = reduce(torch.Tensor.add_, channels)
    return UNIT * F.avg_pool3d(energy[:, 0] / start.shape[1], patch).sqrt()


def _energy(x: Tensor, temporal: float) -> Tensor:
    """Square what a local mean removes in space, and a share of what one removes over time."""
    energy = (x - _local_mean(x, (1, 3, 3))).square()
    if temporal:
        energy += temporal * (x - _local_mean(x, (3, 1, 1))).square()
    return energy


def _local_mean(x: Tensor, size: tuple[int, int, int]) -> Tensor:
    """Average x [B, C, T, H, W] over the neighbourhood of each cell; edges repeat."""
    reach = [side // 2 for side in reversed(size) for _ in range(2)]
    return F.avg_pool3d(F.pad(x, reach, mode="replicate"), size, 1)


def pixel_detail(
    frames: Tensor,
    size: tuple[int, int],
    ratio: float,
    *,
    cell: tuple[int, int],
    patch: tuple[int, int, int] = PATCH,
) -> Tensor:
    """Score tokens by the energy that a local mean removes from the frames of an enlarged clip.

    Squared differences of every pixel to the mean of the 3x3 pixels around it, averaged over a
    token, square root, the largest over the pixel frames of the token; frame by frame, so that
    motion of a flat part counts nothing. In the unit of `oracle.scores`, and about as large.

    Args:
        frames: [B, 3, F, height, width] in 0..1: the preview, which is enlarged here a frame at a
            time, or the preview as something else has enlarged it.
        size: rows and columns of pixels at the target size.
        ratio: enlargement of the preview per side, 1..64.
        cell: pixel frames and pixels a side of a latent cell, as in `oracle.scores`.
        patch: latent cells of a token; rows and columns of pixels beyond whole tokens are padded
            with the edge.

    Returns:
        [B, T, h, w], >= 0.

    Raises:
        ValueError: no clip, a ratio out of range, or frames that tokens do not divide.

    Source: ours.
    """
    check_frames(frames, ratio, cell, patch)
    sides = patch[1] * cell[1], patch[2] * cell[1]
    padding = (0, -size[1] % sides[1], 0, -size[0] % sides[0])
    kept = []
    for frame in frames.unbind(dim=2):
        large = F.pad(resize(frame.float(), size, "bicubic").clamp(0, 1), padding, mode="replicate")
        mean = F.avg_pool2d(F.pad(large, (1, 1, 1, 1), mode="replicate"), 3, 1)
        kept.append(F.avg_pool2d((large - mean).square().mean(dim=1), sides).sqrt())
    # UNIT is for pixels in -1..1.
    return 2 * UNIT * GAIN * ratio**2 * largest(torch.stack(kept, dim=1), cell[0], patch[0])


def check_frames(
    frames: Tensor, ratio: float, cell: tuple[int, int], patch: tuple[int, int, int]
) -> None:
    """Raise for what `pixel_detail` cannot score.

    Raises:
        ValueError: no clip, a ratio out of range, or frames that tokens do not divide.
    """
    check_range(ratio, "ratio", 1.0, 64.0, "pass the upscale of the refiner, e.g. 4")
    if frames.ndim != 5 or frames.shape[1] != 3:
        raise ValueError(
            f"expected frames [B, 3, F, height, width], got {tuple(frames.shape)}; decode the "
            "preview."
        )
    later, rest = divmod(frames.shape[2] - 1, cell[0])
    if rest or (later + 1) % patch[0]:
        raise ValueError(
            f"expected frames of whole tokens for {patch=}, {cell=}, got {frames.shape[2]}; pass "
            "all frames of the preview and no other."
        )
