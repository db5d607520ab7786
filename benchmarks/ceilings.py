"""What a machine can do at best, measured, and what a forward asks of it: the ends of a roofline.

Dims: N video tokens, D width.
"""

from collections.abc import Callable, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from benchmarks.clock import seconds
from surf_core.cost import ModelShape, forward_flops, latent_frames, tokens
from surf_core.window import segments, token_bounds

TIMES = 5


def ceilings(like: Tensor, heads: dict[int, int]) -> tuple[float, dict[int, float]]:
    """Rates of matrix products, and of dense attention by head width, operations a second.

    Args:
        heads: head width -> number of heads.
    """
    rows, wide = (16384, 5120) if like.is_cuda else (1024, 512)
    a, b = (torch.randn(*size, dtype=like.dtype, device=like.device)
            for size in ((rows, wide), (wide, wide)))  # fmt: skip
    rate = 2 * rows * wide**2 / best(lambda: a @ b, like)
    attention = {}
    for width, count in heads.items():
        q = torch.randn(1, count, rows, width, dtype=like.dtype, device=like.device)
        took = best(lambda: F.scaled_dot_product_attention(q, q, q), like)  # noqa: B023
        attention[width] = 4 * rows**2 * width * count / took
    return rate, attention


def bandwidth(like: Tensor) -> float:
    """Bytes a second of a large copy, those read and those written."""
    source = torch.ones(2**30 if like.is_cuda else 2**26, dtype=torch.uint8, device=like.device)
    target = torch.empty_like(source)
    return 2 * source.numel() / best(lambda: target.copy_(source), like)


def best(run: Callable[[], object], like: Tensor) -> float:
    """Seconds of the fastest of some calls."""
    return min(seconds(run, like.is_cuda) for _ in range(TIMES))


def operations(
    shape: ModelShape,
    frames: int,
    height: int,
    width: int,
    window: int = 0,
    kept: Sequence[int] | None = None,
) -> tuple[int, int]:
    """Linear operations of a forward, and those of its self-attention.

    Their sum is `cost.forward_flops`. That prices no windows of a model whose text passes through
    the same blocks; here its windows attend to the text too, and the text to everything.

    Args:
        frames: pixel frames.
        height, width: pixels.
        window: latent frames of a self-attention window; 0 is full attention.
        kept: tokens of each latent frame that a mask keeps; None for all.
    """
    count, text = latent_frames(shape, frames), shape.text_tokens if shape.joint_text else 0
    counts = kept or [tokens(shape, frames, height, width) // count] * count
    video = sum(counts)
    whole = forward_flops(shape, frames, height, width, kept=kept)
    linear = whole - shape.layers * 4 * shape.dim * (video + text) ** 2
    attention = 0
    for layers, shifted in (((shape.layers + 1) // 2, False), (shape.layers // 2, True)):
        runs = [b - a for a, b in token_bounds(counts, segments(count, window, shifted))]
        pairs = sum(run * (run + text) for run in runs) + text * (video + text)
        attention += layers * 4 * shape.dim * pairs
    return linear, attention
