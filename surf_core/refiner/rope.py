"""Rotary positions over time, height and width.

Dims: B batch, N tokens, H heads, K channels per head.
"""

import torch
from torch import Tensor


def split_axes(head_dim: int) -> tuple[int, int, int]:
    """Share the channels of a head between time, height and width, as Wan does."""
    side = 2 * (head_dim // 6)
    return head_dim - 2 * side, side, side


def rotary_table(grid: tuple[int, int, int], head_dim: int, device: torch.device) -> Tensor:
    """Tabulate cosine and sine of every token's position.

    Args:
        grid: tokens along (time, height, width).
        head_dim: channels per head, even.

    Returns:
        [2, 1, N, 1, K/2] fp32: cosines, then sines; N is frame-major.

    Source: RoPE (Su et al.), base 10000; axis split of Wan 2.1.
    """
    angles = []
    positions = torch.meshgrid(*(torch.arange(n, device=device) for n in grid), indexing="ij")
    for position, width in zip(positions, split_axes(head_dim), strict=True):
        exponent = torch.arange(0, width, 2, device=device, dtype=torch.float64) / width
        angles.append(position.reshape(-1, 1) * 10000.0**-exponent)
    table = torch.cat(angles, dim=1)
    return torch.stack([table.cos(), table.sin()]).float()[:, None, :, None, :]


def rotate(x: Tensor, table: Tensor) -> Tensor:
    """Turn neighbouring channel pairs of x [B, N, H, K] by the angles of `rotary_table`."""
    cos, sin = table.to(x.dtype)
    even, odd = x.unflatten(-1, (-1, 2)).unbind(-1)
    return torch.stack([even * cos - odd * sin, even * sin + odd * cos], dim=-1).flatten(-2)
