"""Reference of shifted windows, as the paper writes them, in float64.

Pad the clip to a multiple of the window, roll it cyclically by half a window, cut it into windows,
mask padding and wrapped tokens, count rotary positions within each window, roll back.

Dims: B batch, S tokens of a clip, T latent frames, P frames after padding, M most tokens of a
frame, W latent frames of a window, n windows, H heads, K channels of a head.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

INSIDE, WRAPPED, PADDING = 0, 1, 2
"""Labels of a token in its rolled window: only tokens of one label attend to each other."""


def reference_attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    *,
    counts: Sequence[int],
    window: int,
    shifted: bool,
    positions: Tensor | None = None,
) -> Tensor:
    """Attend inside shifted windows by padding, rolling and masking.

    Args:
        q, k, v: [B, S, H, K], tokens frame-major, queries and keys not yet rotated.
        counts: tokens of each latent frame, which may differ and may be 0.
        window: latent frames, >= 2; 0, or as many as there are, for one window without a shift.
        shifted: True on every second layer.
        positions: [S, 2], row and column of each token in its frame, for the rotation of queries
            and keys by (frame within the rolled window, row, column); None leaves them as given.

    Returns:
        [B, S, H, K] float64.

    Source: SURF 3.3 eq. 3; the mask as in Swin (Liu et al. 2021); RoPE (Su et al.), base 10000.
    """
    frames = len(counts)
    whole = window == 0 or frames <= window
    window, shift = (frames, 0) if whole else (window, window // 2 if shifted else 0)
    slots, padded = max(max(counts), 1), -(-frames // window) * window

    # Frame and slot of each token in the padded clip [P, M].
    frame = torch.repeat_interleave(torch.arange(frames), torch.tensor(counts))
    slot = torch.cat([torch.arange(count) for count in counts])

    def windows(x: Tensor) -> Tensor:
        """Arrange tokens x [B, S, ...] in rolled windows: [B, n, W * M, ...]."""
        grid = x.new_zeros((len(x), padded, slots, *x.shape[2:]))
        grid = grid.index_put((torch.arange(len(x))[:, None], frame, slot), x)
        return grid.roll(-shift, dims=1).unflatten(1, (-1, window)).flatten(2, 3)

    label = torch.full((padded, slots), PADDING)
    label[frame, slot] = torch.where(frame < shift, WRAPPED, INSIDE)
    label = label.roll(-shift, dims=0).unflatten(0, (-1, window)).flatten(1, 2)
    allowed = label[:, :, None] == label[:, None, :]

    q, k, v = (windows(x.double()) for x in (q, k, v))
    if positions is not None:
        time = torch.arange(window).repeat_interleave(slots).expand(label.shape)
        row, column = windows(positions[None])[0].unbind(-1)
        q, k = (rotated(x, torch.stack([time, row, column])) for x in (q, k))
    scores = torch.einsum("bnqhk,bnmhk->bnhqm", q, k) / q.shape[-1] ** 0.5
    weights = scores.masked_fill(~allowed[:, None], -torch.inf).softmax(dim=-1)
    out = torch.einsum("bnhqm,bnmhk->bnqhk", weights, v)
    out = out.unflatten(2, (window, slots)).flatten(1, 2).roll(shift, dims=1)
    return out[:, frame, slot]


def rotated(x: Tensor, positions: Tensor) -> Tensor:
    """Rotate channel pairs of x [..., L, H, K] by positions [3, ..., L] along time, row, column.

    Rows and columns get 2 * (K // 6) channels each, time the rest, as in Wan.
    """
    side = 2 * (x.shape[-1] // 6)
    angles = []
    for position, width in zip(positions, (x.shape[-1] - 2 * side, side, side), strict=True):
        rate = 10000.0 ** (-torch.arange(0, width, 2, dtype=torch.float64) / width)
        angles.append(position[..., None] * rate)
    angle = torch.cat(angles, dim=-1)[..., None, :]
    turned = torch.view_as_complex(x.unflatten(-1, (-1, 2)).contiguous()) * torch.exp(1j * angle)
    return torch.view_as_real(turned).flatten(-2)
