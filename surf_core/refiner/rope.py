"""Rotary position embedding over time, height and width.

Rotary scores depend on the distance of two tokens alone, so one table, counted from a window's own
first frame, serves all windows of a clip.

Dims: B batch, N tokens, H heads, K channels per head.
"""

import torch
from torch import Tensor


def split_axes(head_dim: int) -> tuple[int, int, int]:
    """Split the channels of a head between time, height and width, as Wan does."""
    side = 2 * (head_dim // 6)
    return head_dim - 2 * side, side, side


def rotary_table(
    grid: tuple[int, int, int],
    head_dim: int,
    device: torch.device,
    dtype: torch.dtype = torch.float32,
) -> Tensor:
    """Build the rotation matrices of every token's channel pairs.

    Args:
        grid: tokens along (time, height, width).
        head_dim: channels per head, even.
        dtype: float32, or float64 where the stream is.

    Returns:
        [1, N, 1, K/2, 2, 2], matrices ((cos, -sin), (sin, cos)); N is frame-major.

    Source: RoPE (Su et al.), base 10000; axis split of Wan 2.1; layout of comfy-kitchen.
    """
    rotations = []
    for axis, (size, width) in enumerate(zip(grid, split_axes(head_dim), strict=True)):
        # On the CPU, since not every device has float64.
        exponent = torch.arange(0, width, 2, dtype=torch.float64, device="cpu") / width
        angle = torch.arange(size, device="cpu")[:, None] * 10000.0**-exponent
        rotation = torch.stack([angle.cos(), -angle.sin(), angle.sin(), angle.cos()], dim=-1)
        shape = [size if other == axis else 1 for other in range(3)]
        rotation = rotation.to(device, dtype).view(*shape, width // 2, 2, 2)
        rotations.append(rotation.expand(*grid, width // 2, 2, 2))
    return torch.cat(rotations, dim=3).flatten(0, 2)[None, :, None]


def rotate(x: Tensor, table: Tensor) -> Tensor:
    """Rotate neighbouring channel pairs of x [B, N, H, K] by `rotary_table`; a new tensor.

    Half precision is rotated in the table's float32.
    """
    wide = x.to(torch.promote_types(x.dtype, table.dtype))
    cos, sin = table[..., 0, 0], table[..., 1, 0]
    even, odd = wide.unflatten(-1, (-1, 2)).unbind(-1)
    return torch.stack([even * cos - odd * sin, even * sin + odd * cos], dim=-1).flatten(-2).to(x)
