"""The parts of a block: timestep features, attention, block, head.

Dims: B batch, N video tokens, L text tokens, D width.
"""

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .rope import rotate

Attention = Callable[[Tensor, Tensor, Tensor, int], Tensor]
"""(q, k, v, heads) -> out, all [B, N, D]."""


def sdpa(q: Tensor, k: Tensor, v: Tensor, heads: int) -> Tensor:
    """Dense attention of [B, N, D] tensors by torch's own kernels."""
    q, k, v = (x.unflatten(-1, (heads, -1)).transpose(1, 2) for x in (q, k, v))
    return F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(-2)


def timestep_features(timestep: Tensor, width: int) -> Tensor:
    """Embed timesteps [B] (0..1000) as cosines, then sines: [B, width] fp32."""
    half = width // 2
    exponent = torch.arange(half, device=timestep.device, dtype=torch.float32) / half
    angles = timestep.float()[:, None] * 10000.0**-exponent
    return torch.cat([angles.cos(), angles.sin()], dim=1)


class SelfAttention(nn.Module):
    """Attention with RMS-normed queries and keys and rotary positions."""

    def __init__(self, dim: int, heads: int, ops):
        super().__init__()
        self.heads = heads
        self.q, self.k, self.v, self.o = (ops.Linear(dim, dim) for _ in range(4))
        self.norm_q = ops.RMSNorm(dim, eps=1e-6)
        self.norm_k = ops.RMSNorm(dim, eps=1e-6)

    def forward(self, x: Tensor, table: Tensor, attention: Attention) -> Tensor:
        q = rotate(self.norm_q(self.q(x)).unflatten(-1, (self.heads, -1)), table).flatten(-2)
        k = rotate(self.norm_k(self.k(x)).unflatten(-1, (self.heads, -1)), table).flatten(-2)
        return self.o(attention(q, k, self.v(x), self.heads))


class CrossAttention(SelfAttention):
    """The same weights, looking at the text; without positions."""

    def forward(self, x: Tensor, context: Tensor, attention: Attention) -> Tensor:
        q, k = self.norm_q(self.q(x)), self.norm_k(self.k(context))
        return self.o(attention(q, k, self.v(context), self.heads))


class Block(nn.Module):
    """Self-attention, cross-attention, feed-forward; the timestep scales, shifts and gates."""

    def __init__(self, dim: int, heads: int, ffn_dim: int, ops):
        super().__init__()
        self.norm1 = ops.LayerNorm(dim, eps=1e-6, elementwise_affine=False)
        self.self_attn = SelfAttention(dim, heads, ops)
        self.norm3 = ops.LayerNorm(dim, eps=1e-6)
        self.cross_attn = CrossAttention(dim, heads, ops)
        self.norm2 = ops.LayerNorm(dim, eps=1e-6, elementwise_affine=False)
        self.ffn = nn.Sequential(
            ops.Linear(dim, ffn_dim), nn.GELU(approximate="tanh"), ops.Linear(ffn_dim, dim)
        )
        self.modulation = nn.Parameter(torch.randn(1, 6, dim) * dim**-0.5)

    def forward(
        self,
        x: Tensor,
        modulation: Tensor,
        table: Tensor,
        context: Tensor,
        self_attention: Attention,
        cross_attention: Attention,
    ) -> Tensor:
        """Map tokens [B, N, D] under modulation [B, 6, D] and context [B, L, D]."""
        m = (self.modulation.to(x.dtype) + modulation).chunk(6, dim=1)
        y = self.self_attn(torch.addcmul(m[0], self.norm1(x), 1 + m[1]), table, self_attention)
        x = torch.addcmul(x, y, m[2])
        x = x + self.cross_attn(self.norm3(x), context, cross_attention)
        y = self.ffn(torch.addcmul(m[3], self.norm2(x), 1 + m[4]))
        return torch.addcmul(x, y, m[5])


class Head(nn.Module):
    """Read a patch of velocity out of every token."""

    def __init__(self, dim: int, patch_values: int, ops):
        super().__init__()
        self.norm = ops.LayerNorm(dim, eps=1e-6, elementwise_affine=False)
        self.head = ops.Linear(dim, patch_values)
        self.modulation = nn.Parameter(torch.randn(1, 2, dim) * dim**-0.5)

    def forward(self, x: Tensor, time: Tensor) -> Tensor:
        shift, scale = (self.modulation.to(x.dtype) + time[:, None]).chunk(2, dim=1)
        return self.head(torch.addcmul(shift, self.norm(x), 1 + scale))
