"""Layers of the refiner: timestep features, attention, the two blocks, the two heads.

With gradients off a block works in place, one segment after the other, and its token-wise parts
take `Kernels.rows` tokens at a time: memory beyond the tokens is that of one segment.

Dims: B batch, N video tokens, L text tokens, D width, H heads, K channels of a head.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

import torch
from einops import rearrange
from torch import Tensor, nn

from ..window import Bounds, Dense, Packed
from .fused import EPS, Fused, by_rows, eager, out_of_place

Norm = Callable[[Tensor], Tensor]
"""Norm before a module, modulated or with weights: [B, N, D] -> [B, N, D]."""
Modulation = tuple[Tensor, Tensor | None, Tensor | None] | None
"""Scale, shift and gate [B, 1, D] of a module at one timestep; shift and gate are optional. None
for a norm with weights."""
Modulations = tuple[Modulation, Modulation, Modulation]
"""Those of self-attention, cross-attention and feed-forward."""


class Operations(Protocol):
    """The layer classes to build a model from: `torch.nn`, or a host's own."""

    @property
    def Linear(self) -> Callable[..., nn.Module]: ...  # noqa: N802

    @property
    def LayerNorm(self) -> Callable[..., nn.Module]: ...  # noqa: N802

    @property
    def RMSNorm(self) -> Callable[..., nn.Module]: ...  # noqa: N802

    @property
    def Conv3d(self) -> Callable[..., nn.Module]: ...  # noqa: N802


@dataclass(frozen=True, kw_only=True, slots=True)
class Kernels:
    """The attention and fused functions of a forward pass."""

    packed: Packed
    """Self-attention within segments."""
    dense: Dense
    """Cross-attention."""
    fused: Fused
    """Modulated norm, norm and rotation, rotation."""
    rows: int
    """Tokens that the token-wise parts take at once when gradients are off."""

    @property
    def fused_ops(self) -> Fused:
        """`fused`, or plain torch in compiled code, which the compiler fuses itself."""
        return eager if torch.compiler.is_compiling() else self.fused


def timestep_features(timestep: Tensor, width: int) -> Tensor:
    """Embed timesteps [B] (0..1000) as cosines, then sines: [B, width] fp32."""
    half = width // 2
    exponent = torch.arange(half, device=timestep.device, dtype=torch.float32) / half
    angles = timestep.float()[:, None] * 10000.0**-exponent
    return torch.cat([angles.cos(), angles.sin()], dim=1)


def feed_forward(
    dim: int, hidden: int, out: int, ops: Operations, activation: nn.Module
) -> nn.Sequential:
    return nn.Sequential(ops.Linear(dim, hidden), activation, ops.Linear(hidden, out))


class Attention(nn.Module):
    """Query, key, value and output projections, with RMSNorm over the width or over each head."""

    def __init__(self, dim: int, heads: int, ops: Operations, per_head: bool):
        super().__init__()
        self.heads, self.per_head = heads, per_head
        self.q, self.k, self.v, self.o = (ops.Linear(dim, dim) for _ in range(4))
        self.norm_q, self.norm_k = (
            ops.RMSNorm(dim // heads if per_head else dim, eps=EPS) for _ in range(2)
        )

    def split_heads(self, x: Tensor) -> Tensor:
        return rearrange(x, "b n (h k) -> b n h k", h=self.heads)

    def project(self, x: Tensor) -> Tensor:
        """Join heads [B, N, H, K] and apply the output projection."""
        return self.o(rearrange(x, "b n h k -> b n (h k)"))

    def norm_heads(self, x: Tensor, norm: nn.Module) -> Tensor:
        """Norm and split [B, N, D] into heads [B, N, H, K]; in place when gradients are off."""
        if self.per_head:
            return by_rows(norm, self.split_heads(x))
        return self.split_heads(by_rows(norm, x))


class SelfAttention(Attention):
    """Attention within segments, with rotary position embedding."""

    def forward(
        self,
        x: Tensor,
        norm: Norm,
        bounds: Bounds | None,
        table: Tensor,
        kernels: Kernels,
        positions: Tensor | None = None,
    ) -> Tensor:
        """Attend within segments of x [B, N, D]; x is normed here, so that the copy is freed here.

        Args:
            bounds: the segments; None where all of x is one, of whatever length.
            table: [1, M, 1, K/2, 2, 2], positions of the longest segment or more.
            positions: [N], row of the table for every token; None where segments have no gaps.
        """
        bounds = bounds or ((0, x.shape[1]),)
        if positions is not None:
            table = table[:, positions]
        y = norm(x)
        q, k, v = self.q(y), self.k(y), self.split_heads(self.v(y))
        del y
        tables = [table[:, a:b] if positions is not None else table[:, : b - a] for a, b in bounds]
        q, k = self._norm_rotate(q, k, bounds, tables, kernels.fused_ops)
        out = kernels.packed(q, k, v, bounds)
        del q, k, v
        return self.project(out)

    def _norm_rotate(
        self, q: Tensor, k: Tensor, bounds: Bounds, tables: list[Tensor], fused: Fused
    ) -> tuple[Tensor, Tensor]:
        """Norm queries and keys and rotate them, each segment by its own table."""
        if len(bounds) == 1 and self.per_head:
            q, k = self.split_heads(q), self.split_heads(k)
            return fused.norm_rotate(q, k, self.norm_q, self.norm_k, tables[0])
        q = _rotate_segments(self.norm_heads(q, self.norm_q), bounds, tables, fused)
        return q, _rotate_segments(self.norm_heads(k, self.norm_k), bounds, tables, fused)


def _rotate_segments(x: Tensor, bounds: Bounds, tables: list[Tensor], fused: Fused) -> Tensor:
    parts = [fused.rotate(x[:, a:b], table) for (a, b), table in zip(bounds, tables, strict=True)]
    if not out_of_place():
        return x
    return parts[0] if len(parts) == 1 else torch.cat(parts, dim=1)


class CrossAttention(Attention):
    """Attention to the text, without positions."""

    def keys_values(self, context: Tensor) -> tuple[Tensor, Tensor]:
        """Compute keys and values of a text [B, L, D]: [B, L, H, K] each."""
        return self.norm_heads(self.k(context), self.norm_k), self.split_heads(self.v(context))

    def forward(
        self, x: Tensor, norm: Norm, keys_values: tuple[Tensor, Tensor], dense: Dense
    ) -> Tensor:
        q = self.norm_heads(self.q(norm(x)), self.norm_q)
        return self.project(dense(q, *keys_values))


def _add(x: Tensor, y: Tensor, gate: Tensor | None) -> Tensor:
    """Compute x + gate * y, in place when gradients are off."""
    if torch.is_grad_enabled():
        return x + y if gate is None else torch.addcmul(x, y, gate)
    return x.add_(y) if gate is None else x.addcmul_(y, gate)


class Block(nn.Module):
    """Transformer block with timestep-modulated (adaLN) norms.

    `attend` and `cross_attend_and_mlp` do all of its arithmetic, on any number of tokens: compile
    these two and one graph serves every block, window and size.
    """

    per_head = False
    """Whether queries and keys are normed over each head."""
    norm3: nn.Module
    """Norm with weights before the cross-attention, in blocks that do not modulate it."""

    def __init__(self, dim: int, heads: int, ffn_dim: int, ops: Operations):
        super().__init__()
        self.self_attn = SelfAttention(dim, heads, ops, self.per_head)
        self.cross_attn = CrossAttention(dim, heads, ops, self.per_head)
        self.ffn = feed_forward(dim, ffn_dim, dim, ops, nn.GELU(approximate="tanh"))

    def modulations_at(self, time: Tensor) -> Modulations:
        """Compute the modulations of the three modules from the timestep embedding."""
        raise NotImplementedError

    def forward(
        self,
        x: Tensor,
        time: Tensor,
        context: Tensor,
        bounds: Bounds,
        table: Tensor,
        kernels: Kernels,
        segmentwise: bool,
        positions: Tensor | None = None,
    ) -> Tensor:
        """Apply the block to tokens [B, N, D]; in place when gradients are off.

        Args:
            time: timestep embedding, as `modulations_at` takes it.
            context: [B, L, D].
            bounds: token ranges that attend among themselves.
            table: rotary positions of the longest of them.
            segmentwise: one range after the other; needs gradients off.
            positions: [N], row of the table for every token; None where ranges have no gaps.
        """
        modulations = self.modulations_at(time)
        keys_values = self.cross_attn.keys_values(context)
        pieces = bounds if segmentwise else ((0, x.shape[1]),)
        for start, stop in pieces:
            if segmentwise and start == stop:
                continue
            part = x[:, start:stop]
            if segmentwise:
                # Only the rows of this segment, so that one compiled graph takes every length.
                at = slice(stop - start) if positions is None else positions[start:stop]
                part = self.attend(part, modulations[0], None, table[:, at], kernels)
            else:
                part = self.attend(part, modulations[0], bounds, table, kernels, positions)
            count = part.shape[1] if torch.is_grad_enabled() else kernels.rows
            for row in range(0, part.shape[1], count):
                rows = self.cross_attend_and_mlp(
                    part[:, row : row + count], modulations[1:], keys_values, kernels
                )
        return rows if torch.is_grad_enabled() else x

    def attend(
        self, x: Tensor, modulation: Modulation, bounds: Bounds | None, table: Tensor,
        kernels: Kernels, positions: Tensor | None = None,
    ) -> Tensor:  # fmt: skip
        """Add self-attention to tokens [B, N, D]; in place when gradients are off."""
        norm = self._norm(modulation, kernels)
        return _add(
            x, self.self_attn(x, norm, bounds, table, kernels, positions), _gate(modulation)
        )

    def cross_attend_and_mlp(
        self, x: Tensor, modulations: tuple[Modulation, Modulation],
        keys_values: tuple[Tensor, Tensor], kernels: Kernels,
    ) -> Tensor:  # fmt: skip
        """Add cross-attention and feed-forward to tokens [B, N, D]; in place as `attend`."""
        cross, mlp = modulations
        # Not bound to a name, so that it is freed before the feed-forward network.
        norm = self._norm(cross, kernels)
        x = _add(x, self.cross_attn(x, norm, keys_values, kernels.dense), _gate(cross))
        return _add(x, self.ffn(self._norm(mlp, kernels)(x)), _gate(mlp))

    def _norm(self, modulation: Modulation, kernels: Kernels) -> Norm:
        if modulation is None:
            return self.norm3
        scale, shift, _ = modulation
        return lambda x: kernels.fused_ops.modulated_norm(x, scale, shift)


def _gate(modulation: Modulation) -> Tensor | None:
    return None if modulation is None else modulation[2]


class WanBlock(Block):
    """The block of Wan 2.1, with its key names."""

    def __init__(self, dim: int, heads: int, ffn_dim: int, ops: Operations):
        super().__init__(dim, heads, ffn_dim, ops)
        self.norm3 = ops.LayerNorm(dim, eps=EPS)
        self.modulation = nn.Parameter(torch.randn(1, 6, dim) * dim**-0.5)

    def modulations_at(self, time: Tensor) -> Modulations:
        """Shift, scale and gate from time [B, 6, D]; cross-attention's norm has weights instead."""
        m = (self.modulation.to(time) + time).chunk(6, dim=1)
        return (m[1], m[0], m[2]), None, (m[4], m[3], m[5])


class ScaleBlock(Block):
    """The block of SURF B.1: an RMSNorm scaled by the timestep before each module."""

    per_head = True

    def __init__(self, dim: int, heads: int, ffn_dim: int, ops: Operations):
        super().__init__(dim, heads, ffn_dim, ops)
        self.scale = ops.Linear(dim, 3 * dim)

    def modulations_at(self, time: Tensor) -> Modulations:
        """A scale for each module from time [B, D]; no shift, no gate."""
        one, two, three = self.scale(time)[:, None].chunk(3, dim=-1)
        return (one, None, None), (two, None, None), (three, None, None)


class WanHead(nn.Module):
    """Project every token to a patch of velocity, as Wan 2.1 does."""

    def __init__(self, dim: int, patch_values: int, ops: Operations):
        super().__init__()
        self.head = ops.Linear(dim, patch_values)
        self.modulation = nn.Parameter(torch.randn(1, 2, dim) * dim**-0.5)

    def forward(self, x: Tensor, time: Tensor, fused: Fused) -> Tensor:
        shift, scale = (self.modulation.to(time) + time[:, None]).chunk(2, dim=1)
        return self.head(fused.modulated_norm(x, scale, shift))


class ScaleHead(nn.Module):
    """`WanHead` with a scale alone; its key names are ours, so that no loader takes it for Wan."""

    def __init__(self, dim: int, patch_values: int, ops: Operations):
        super().__init__()
        self.head = ops.Linear(dim, patch_values)
        self.scale = ops.Linear(dim, dim)

    def forward(self, x: Tensor, time: Tensor, fused: Fused) -> Tensor:
        return self.head(fused.modulated_norm(x, self.scale(time)[:, None], None))


KINDS: dict[str, tuple[type[Block], type[WanHead] | type[ScaleHead]]] = {
    "wan": (WanBlock, WanHead),
    "scale": (ScaleBlock, ScaleHead),
}
"""Block and head by `RefinerConfig.block`."""
