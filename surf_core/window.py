"""Temporal windows that shift from layer to layer: which latent frames see which.

Tokens are frame-major, so a window over the full height and width is a contiguous run of
tokens: shifted windows need no roll and no mask.

Dims: B batch, T latent frames, N spatial tokens per frame, D width of all heads together.
"""

from collections.abc import Callable
from itertools import pairwise

import torch
from torch import Tensor


def segments(frames: int, window: int, shifted: bool) -> list[tuple[int, int]]:
    """Cut a clip into the half-open frame ranges that attend among themselves.

    Segments are clipped to [0, frames): the last one may be shorter, and with `shifted` the first
    one is `window // 2` long. One window holds everything when `frames <= window`.

    Args:
        frames: latent frames of the clip, >= 1.
        window: latent frames of a window, >= 2; 0 stands for full attention.
        shifted: True on every second layer.

    Returns:
        Ranges (start, stop) in latent frames, in order, that cover every frame once.

    Raises:
        ValueError: frames < 1, or window is 1 or negative.

    Source: SURF 3.3; clipped boundaries as in SeedVR, without a wrapped window.
    """
    if frames < 1:
        raise ValueError(f"expected at least one latent frame, got {frames=}; pass a video latent.")
    if window < 0 or window == 1:
        raise ValueError(
            f"window must be 0 (full attention) or at least 2 latent frames, got {window=}; "
            "a window of 1 would cut the video into still images."
        )
    if window == 0 or frames <= window:
        return [(0, frames)]
    first = window // 2 if shifted else window
    return list(pairwise([0, *range(first, frames, window), frames]))


def attend_in_windows(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    *,
    frames: int,
    window: int,
    shifted: bool,
    attention: Callable[[Tensor, Tensor, Tensor], Tensor],
) -> Tensor:
    """Call `attention` once per segment and lay the results side by side again.

    Args:
        q, k, v: [B, T*N, ...], tokens frame-major with T = `frames`; slices of dim 1 are views.
        frames, window, shifted: as in `segments`.
        attention: dense attention over dim 1, without a mask.

    Returns:
        Like the result of `attention` on the whole sequence: a new tensor.

    Raises:
        ValueError: the tokens are not a multiple of `frames`.

    Source: SURF 3.3; segments instead of roll and mask are ours.
    """
    tokens = q.shape[1]
    if tokens % frames:
        raise ValueError(
            f"expected the same number of tokens in each of {frames} latent frames, got {tokens=}; "
            "pass the video tokens only, frame by frame."
        )
    cuts = segments(frames, window, shifted)
    if len(cuts) == 1:
        return attention(q, k, v)
    per_frame = tokens // frames
    runs = [slice(start * per_frame, stop * per_frame) for start, stop in cuts]
    return torch.cat([attention(q[:, run], k[:, run], v[:, run]) for run in runs], dim=1)
