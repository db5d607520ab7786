"""The parts of the model: timestep features, attention, the two blocks, the two heads.

With gradients off a block writes into the tokens that it is given, one segment after the other,
and what treats every token alone takes `Kernels.rows` of them at a time: memory beyond the tokens
themselves is that of one segment.

Dims: B batch, N video tokens, L text tokens, D width, H heads, K channels of a head.
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from ..window import Bounds, Dense, Packed
from .fused import EPS, Fused, by_rows, eager, out_of_place

Norm = Callable[[Tensor], Tensor]
"""[B, N, D] -> what a module gets to see, [B, N, D]."""
Modulation = tuple[Tensor, Tensor | None, Tensor | None] | None
"""Scale, shift and gate [B, 1, D] of a module at a time, the last two if any; None for a norm with
weights instead."""
Modulations = tuple[Modulation, Modulation, Modulation]
"""Those of self-attention, cross-attention and feed-forward."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Kernels:
    """What a layer computes with."""

    packed: Packed
    """Self-attention within segments."""
    dense: Dense
    """Cross-attention."""
    fused: Fused
    """Modulated norm, norm and rotation, rotation."""
    rows: int
    """Tokens that the row-wise parts take at once when gradients are off."""

    @property
    def fused_ops(self) -> Fused:
        """`fused`; for a compiler, which fuses by itself, plain torch."""
        return eager if torch.compiler.is_compiling() else self.fused


def timestep_features(timestep: Tensor, width: int) -> Tensor:
    """Embed timesteps [B] (0..1000) as cosines, then sines: [B, width] fp32."""
    half = width // 2
    exponent = torch.arange(half, device=timestep.device, dtype=torch.float32) / half
    angles = timestep.float()[:, None] * 10000.0**-exponent
    return torch.cat([angles.cos(), angles.sin()], dim=1)


def feed_forward(dim: int, hidden: int, out: int, ops, activation: nn.Module) -> nn.Sequential:
    return nn.Sequential(ops.Linear(dim, hidden), activation, ops.Linear(hidden, out))


class Attention(nn.Module):
    """Four linear maps; queries and keys RMS-normed over the whole width, or over each head."""

    def __init__(self, dim: int, heads: int, ops, per_head: bool):
        super().__init__()
        self.heads, self.per_head = heads, per_head
        self.q, self.k, self.v, self.o = (ops.Linear(dim, dim) for _ in range(4))
        self.norm_q, self.norm_k = (
            ops.RMSNorm(dim // heads if per_head else dim, eps=EPS) for _ in range(2)
        )

    def split(self, x: Tensor) -> Tensor:
        """[B, N, D] -> [B, N, H, K]."""
        return x.unflatten(-1, (self.heads, -1))

    def normed(self, x: Tensor, norm: nn.Module) -> Tensor:
        """[B, N, D] -> [B, N, H, K]; into x itself when gradients are off."""
        return by_rows(norm, self.split(x)) if self.per_head else self.split(by_rows(norm, x))


class SelfAttention(Attention):
    """Attention within segments, with rotary positions."""

    def forward(
        self,
        x: Tensor,
        norm: Norm,
        bounds: Bounds | None,
        table: Tensor,
        kernels: Kernels,
        positions: Tensor | None = None,
    ) -> Tensor:
        """Map tokens [B, N, D] whose segments are `bounds`; x is normed here, to be freed here.

        Args:
            bounds: None where all of x is one segment; its length is then known from x alone.
            table: [1, M, 1, K/2, 2, 2], positions of the longest segment or more.
            positions: [N], row of the table for every token; None where segments have no gaps.
        """
        bounds = bounds or ((0, x.shape[1]),)
        if positions is not None:
            table = table[:, positions]
        y = norm(x)
        q, k, v = self.q(y), self.k(y), self.split(self.v(y))
        del y
        turns = [table[:, a:b] if positions is not None else table[:, : b - a] for a, b in bounds]
        q, k = self._placed(q, k, bounds, turns, kernels.fused_ops)
        out = kernels.packed(q, k, v, bounds)
        del q, k, v
        return self.o(out.flatten(-2))

    def _placed(
        self, q: Tensor, k: Tensor, bounds: Bounds, turns: list[Tensor], fused: Fused
    ) -> tuple[Tensor, Tensor]:
        """Norm and turn queries and keys, each segment by its own rows; they start anew in each."""
        if len(bounds) == 1 and self.per_head:
            q, k = self.split(q), self.split(k)
            return fused.norm_rotate(q, k, self.norm_q, self.norm_k, turns[0])
        q = _turned(self.normed(q, self.norm_q), bounds, turns, fused)
        return q, _turned(self.normed(k, self.norm_k), bounds, turns, fused)


def _turned(x: Tensor, bounds: Bounds, turns: list[Tensor], fused: Fused) -> Tensor:
    parts = [fused.rotate(x[:, a:b], turn) for (a, b), turn in zip(bounds, turns, strict=True)]
    if not out_of_place():
        return x
    return parts[0] if len(parts) == 1 else torch.cat(parts, dim=1)


class CrossAttention(Attention):
    """Attention to the text, without positions."""

    def keys(self, context: Tensor) -> tuple[Tensor, Tensor]:
        """Keys and values of a text [B, L, D]: [B, L, H, K] each."""
        return self.normed(self.k(context), self.norm_k), self.split(self.v(context))

    def forward(self, x: Tensor, norm: Norm, keys: tuple[Tensor, Tensor], dense: Dense) -> Tensor:
        q = self.normed(self.q(norm(x)), self.norm_q)
        return self.o(dense(q, *keys).flatten(-2))


def _add(x: Tensor, y: Tensor, gate: Tensor | None) -> Tensor:
    """x + gate * y, in x itself when gradients are off."""
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

    def __init__(self, dim: int, heads: int, ffn_dim: int, ops):
        super().__init__()
        self.self_attn = SelfAttention(dim, heads, ops, self.per_head)
        self.cross_attn = CrossAttention(dim, heads, ops, self.per_head)
        self.ffn = feed_forward(dim, ffn_dim, dim, ops, nn.GELU(approximate="tanh"))

    def modulations_at(self, time: Tensor) -> Modulations:
        """What the time does to the three modules, see the two kinds of block."""
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
        """Map tokens [B, N, D]; into x itself when gradients are off.

        Args:
            time: what `modulations_at` reads.
            context: [B, L, D].
            bounds: token ranges that attend among themselves.
            table: rotary positions of the longest of them.
            segmentwise: one range after the other; needs gradients off.
            positions: [N], row of the table for every token; None where ranges have no gaps.
        """
        modulations, keys = self.modulations_at(time), self.cross_attn.keys(context)
        pieces = bounds if segmentwise else ((0, x.shape[1]),)
        for start, stop in pieces:
            if segmentwise and start == stop:
                continue
            part = x[:, start:stop]
            if segmentwise:
                # The rows of this segment alone: two lengths of one call are one for a compiler.
                at = slice(stop - start) if positions is None else positions[start:stop]
                part = self.attend(part, modulations[0], None, table[:, at], kernels)
            else:
                part = self.attend(part, modulations[0], bounds, table, kernels, positions)
            step = part.shape[1] if torch.is_grad_enabled() else kernels.rows
            for row in range(0, part.shape[1], step):
                rows = self.cross_attend_and_mlp(
                    part[:, row : row + step], modulations[1:], keys, kernels
                )
        return rows if torch.is_grad_enabled() else x

    def attend(
        self, x: Tensor, modulation: Modulation, bounds: Bounds | None, table: Tensor,
        kernels: Kernels, positions: Tensor | None = None,
    ) -> Tensor:  # fmt: skip
        """Add self-attention to tokens [B, N, D]; in x itself when gradients are off."""
        norm = self._norm(modulation, kernels)
        return _add(
            x, self.self_attn(x, norm, bounds, table, kernels, positions), _gate(modulation)
        )

    def cross_attend_and_mlp(
        self, x: Tensor, modulations: tuple[Modulation, Modulation], keys: tuple[Tensor, Tensor],
        kernels: Kernels,
    ) -> Tensor:  # fmt: skip
        """Add cross-attention and feed-forward to tokens [B, N, D]; in x itself as above."""
        cross, mlp = modulations
        x = _add(
            x, self.cross_attn(x, self._norm(cross, kernels), keys, kernels.dense), _gate(cross)
        )
        return _add(x, self.ffn(self._norm(mlp, kernels)(x)), _gate(mlp))

    def _norm(self, modulation: Modulation, kernels: Kernels) -> Norm:
        if modulation is None:
            return self.norm3
        return lambda x: kernels.fused_ops.modulated_norm(x, *modulation[:2])


def _gate(modulation: Modulation) -> Tensor | None:
    return None if modulation is None else modulation[2]


class WanBlock(Block):
    """The block of Wan 2.1, with its key names."""

    def __init__(self, dim: int, heads: int, ffn_dim: int, ops):
        super().__init__(dim, heads, ffn_dim, ops)
        self.norm3 = ops.LayerNorm(dim, eps=EPS)
        self.modulation = nn.Parameter(torch.randn(1, 6, dim) * dim**-0.5)

    def modulations_at(self, time: Tensor) -> Modulations:
        """Shift, scale and gate from time [B, 6, D]; cross-attention has weights instead."""
        m = (self.modulation.to(time) + time).chunk(6, dim=1)
        return (m[1], m[0], m[2]), None, (m[4], m[3], m[5])


class ScaleBlock(Block):
    """The block of SURF B.1: the timestep is a scale on an RMSNorm before each module."""

    per_head = True

    def __init__(self, dim: int, heads: int, ffn_dim: int, ops):
        super().__init__(dim, heads, ffn_dim, ops)
        self.scale = ops.Linear(dim, 3 * dim)

    def modulations_at(self, time: Tensor) -> Modulations:
        """A scale each from time [B, D]; no shift, no gate."""
        one, two, three = self.scale(time)[:, None].chunk(3, dim=-1)
        return (one, None, None), (two, None, None), (three, None, None)


class WanHead(nn.Module):
    """Read a patch of velocity out of every token, as Wan 2.1 does."""

    def __init__(self, dim: int, patch_values: int, ops):
        super().__init__()
        self.head = ops.Linear(dim, patch_values)
        self.modulation = nn.Parameter(torch.randn(1, 2, dim) * dim**-0.5)

    def forward(self, x: Tensor, time: Tensor, fused: Fused) -> Tensor:
        shift, scale = (self.modulation.to(time) + time[:, None]).chunk(2, dim=1)
        return self.head(fused.modulated_norm(x, scale, shift))


class ScaleHead(nn.Module):
    """The same with a scale alone; its names are ours, so that no loader takes it for Wan."""

    def __init__(self, dim: int, patch_values: int, ops):
        super().__init__()
        self.head = ops.Linear(dim, patch_values)
        self.scale = ops.Linear(dim, dim)

    def forward(self, x: Tensor, time: Tensor, fused: Fused) -> Tensor:
        return self.head(fused.modulated_norm(x, self.scale(time)[:, None], None))


KINDS = {"wan": (WanBlock, WanHead), "scale": (ScaleBlock, ScaleHead)}
"""Block and head by `RefinerConfig.block`."""
