"""The refiner: a video DiT with self-attention in shifted temporal windows.

One class for both blocks. With Wan's block, module and parameter names are those of Wan 2.1, so
weights move between both without conversion.

Dims: B batch, C latent channels, T latent frames, H, W latent cells, N tokens, K kept ones, L text
tokens, D width.
"""

from collections.abc import Iterable
from functools import partial
from math import prod
from types import SimpleNamespace
from typing import Any

import torch
from einops import rearrange
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from ..skip import Packing, check_keep, pack, packing, unpack
from ..window import Bounds, Dense, Packed, grouped, sdpa, segments, token_bounds
from .config import RefinerConfig
from .fused import Fused, eager
from .layers import KINDS, Kernels, Operations, feed_forward, timestep_features
from .rope import rotary_table

Grid = tuple[int, int, int]


class SurfRefinerDiT(nn.Module):
    """Predict the velocity of a latent from its timestep and a text.

    Args:
        config: sizes, block and time.
        operations: source of Linear, LayerNorm, RMSNorm and Conv3d (torch.nn by default).
        attention: dense attention, (q [n, L, H, K], k, v [n, M, H, K]) -> [n, L, H, K].
        fused: fused operations around attention, see `fused.kitchen`.
    """

    window: int
    """Latent frames of a window, 0 for full attention; may be changed between calls."""
    packed: Packed
    """Self-attention within token ranges; by default `attention`, in few calls."""
    segmentwise: bool = True
    """Run a layer segment by segment when gradients are off; False runs all segments at once."""
    checkpointing: bool = False
    """Keep one tensor per block for the backward pass, and recompute the rest."""
    rows: int = 16384
    """Tokens that embedding, cross-attention, feed-forward and head take at once when gradients
    are off; enough to fill a large GPU."""

    def __init__(
        self,
        config: RefinerConfig,
        operations: Operations = nn,
        attention: Dense = sdpa,
        fused: Fused = eager,
    ):
        super().__init__()
        self.config = config
        self.window = config.window
        self.attention, self.packed, self.fused = attention, grouped(attention), fused
        dim, ops = config.dim, operations
        block, head = KINDS[config.block]
        self.patch_embedding = ops.Conv3d(config.latent_channels, dim, config.patch, config.patch)
        self.text_embedding = feed_forward(
            config.text_dim, dim, dim, ops, nn.GELU(approximate="tanh")
        )
        self.time_embedding = feed_forward(config.freq_dim, dim, dim, ops, nn.SiLU())
        if config.sigma_start_range is not None:
            self.sigma_start_embedding = feed_forward(config.freq_dim, dim, dim, ops, nn.SiLU())
        if config.block == "wan":
            self.time_projection = nn.Sequential(nn.SiLU(), ops.Linear(dim, 6 * dim))
        self.blocks = nn.ModuleList(
            block(dim, config.heads, config.ffn_dim, ops) for _ in range(config.layers)
        )
        self.head = head(dim, config.latent_channels * prod(config.patch), ops)

    def forward(
        self,
        z: Tensor,
        t: Tensor,
        context: Tensor,
        sigma_start: Tensor | None = None,
        keep: Tensor | None = None,
    ) -> Tensor:
        """Predict the velocity in the parametrisation of `RefinerConfig.time`.

        With `keep`, all layers run on the kept tokens alone, at their own positions. The result
        at the others is zero, not a prediction: `surf_core.skip.Skipping` fills in their velocity.

        Args:
            z: [B, C, T, H, W]; T, H, W multiples of the patch; not changed.
            t: [B], timestep 0..1000.
            context: [B, L, text_dim].
            sigma_start: [B], noise s of the upsampled preview, 0..1; None for the config's. Only a
                model with a sigma_start_range reads it.
            keep: [T, h, w] bool, preferably on the CPU: the tokens to compute, in all samples;
                None, or all of them, is the plain model.

        Returns:
            [B, C, T, H, W], dtype of z.

        Raises:
            ValueError: a size that the patch does not divide, or a mask of another grid or without
                tokens.
        """
        grid = self._grid(z)
        packed = self._packing(keep, grid, z.device)
        cuts = [self._layout(grid, shifted, packed) for shifted in (False, True)]
        table = self._table(grid, z)
        kernels = self.kernels()
        segmentwise = self.segmentwise and not torch.is_grad_enabled()
        x = self._embed(z, grid, packed)
        time, time_head = self._times(t, sigma_start, x.dtype)
        context = self.text_embedding(context)
        for index, block in enumerate(self.blocks):
            bounds, positions = cuts[index % 2]
            inputs = (x, time, context, bounds, table, kernels, segmentwise, positions)
            if self.checkpointing and torch.is_grad_enabled():
                x = checkpoint(block, *inputs, use_reentrant=False)
            else:
                x = block(*inputs)
        if packed is not None:
            return self._unpatch_kept(x, time_head, packed, kernels)
        return self._unpatch(x, time_head, grid, kernels)

    def _grid(self, z: Tensor) -> Grid:
        """Return the tokens of z along time, rows and columns."""
        (t, h, w), (p, q, r) = z.shape[2:], self.config.patch
        if t % p or h % q or w % r:
            raise ValueError(
                f"latent frames, rows and columns must be multiples of {self.config.patch}, "
                f"got {tuple(z.shape[2:])}; choose a size that fits."
            )
        return t // p, h // q, w // r

    def _packing(self, keep: Tensor | None, grid: Grid, device: torch.device) -> Packing | None:
        """Return the indices of the kept tokens; None where nothing is skipped."""
        if keep is None:
            return None
        check_keep(keep, grid)
        return None if keep.all() else packing(keep).to(device)

    def _layout(
        self, grid: Grid, shifted: bool, kept: Packing | None
    ) -> tuple[Bounds, Tensor | None]:
        """Return token ranges that attend among themselves, and table rows if they have gaps."""
        if kept is not None:
            return kept.bounds(self.window, shifted), kept.positions(self.window, shifted)
        return token_bounds(grid[1] * grid[2], segments(grid[0], self.window, shifted)), None

    def _table(self, grid: Grid, z: Tensor) -> Tensor:
        frames = min(grid[0], self.window or grid[0])
        dtype = torch.float64 if z.dtype == torch.float64 else torch.float32
        return rotary_table((frames, *grid[1:]), self.config.head_dim, z.device, dtype)

    def kernels(self) -> Kernels:
        """Collect the functions that the layers compute with; plain torch with gradients on."""
        fused = eager if torch.is_grad_enabled() else self.fused
        return Kernels(packed=self.packed, dense=self.attention, fused=fused, rows=self.rows)

    def _times(
        self, t: Tensor, sigma_start: Tensor | None, dtype: torch.dtype
    ) -> tuple[Tensor, Tensor]:
        """Embed timestep and sigma_start, for the blocks and for the head."""
        features = timestep_features(t, self.config.freq_dim).to(dtype)
        time = self.time_embedding(features)
        if self.config.sigma_start_range is not None:
            # The config has a sigma_start wherever it has a range.
            own = self.config.sigma_start or 0.0
            s = torch.full_like(t, own) if sigma_start is None else sigma_start
            time = time + self.sigma_start_embedding(
                timestep_features(1000 * s, self.config.freq_dim).to(dtype)
            )
        if self.config.block == "wan":
            return rearrange(self.time_projection(time), "b (m d) -> b m d", m=6), time
        time = nn.functional.silu(time)
        return time, time

    def _spans(self, grid: Grid) -> list[tuple[int, int]]:
        """Cut the token frames into ranges of about `rows` tokens; one range with gradients on."""
        count = grid[0] if torch.is_grad_enabled() else max(1, self.rows // (grid[1] * grid[2]))
        return [(start, min(start + count, grid[0])) for start in range(0, grid[0], count)]

    def _embed(self, z: Tensor, grid: Grid, kept: Packing | None) -> Tensor:
        """Patchify a latent into tokens [B, N, D], or the kept ones [B, K, D]."""
        depth = self.config.patch[0]
        parts = (
            self.patch_embedding(z[:, :, a * depth : b * depth]).flatten(2).transpose(1, 2)
            for a, b in self._spans(grid)
        )
        if kept is None:
            return _concatenate(parts, 1, prod(grid)).contiguous()
        spans = (kept.within(a, b) for a, b in self._spans(grid))
        chosen = (pack(part, span) for part, span in zip(parts, spans, strict=True))
        return _concatenate(chosen, 1, len(kept.indices))

    def _unpatch(self, x: Tensor, time: Tensor, grid: Grid, kernels: Kernels) -> Tensor:
        """Project tokens to a velocity [B, C, T, H, W]."""
        frame, (p, q, r) = grid[1] * grid[2], self.config.patch
        parts = (
            rearrange(
                self.head(x[:, a * frame : b * frame], time, kernels.fused),
                "b (t h w) (p q r c) -> b c (t p) (h q) (w r)",
                h=grid[1], w=grid[2], p=p, q=q, r=r,
            )
            for a, b in self._spans(grid)
        )  # fmt: skip
        return _concatenate(parts, 2, grid[0] * p)

    def _unpatch_kept(self, x: Tensor, time: Tensor, kept: Packing, kernels: Kernels) -> Tensor:
        """Project kept tokens [B, K, D] to a velocity [B, C, T, H, W], zero elsewhere."""
        rows = x.shape[1] if torch.is_grad_enabled() else self.rows
        parts = (self.head(part, time, kernels.fused) for part in x.split(rows, dim=1))
        (t, h, w), (p, q, r) = kept.grid, self.config.patch
        return rearrange(
            unpack(_concatenate(parts, 1, x.shape[1]), kept),
            "b (t h w) (p q r c) -> b c (t p) (h q) (w r)",
            t=t, h=h, w=w, p=p, q=q, r=r,
        )  # fmt: skip

    @torch.no_grad()
    def initialise(self, generator: torch.Generator) -> None:
        """Draw fresh weights: Xavier for linear maps, small embeddings, zero head and scales.

        The embedding of s starts at zero, so that weights of a model without one act as before.
        """
        for module in self.modules():
            if isinstance(module, nn.Linear | nn.Conv3d):
                fan = module.weight.flatten(1)
                bound = (6 / sum(fan.shape)) ** 0.5
                module.weight.uniform_(-bound, bound, generator=generator)
                module.get_parameter("bias").zero_()
        for embedding in (self.text_embedding, self.time_embedding):
            for name in ("0.weight", "2.weight"):
                embedding.get_parameter(name).normal_(std=0.02, generator=generator)
        for module in (*self.blocks, self.head):
            if self.config.block == "wan":
                modulation = module.get_parameter("modulation")
                modulation.normal_(std=self.config.dim**-0.5, generator=generator)
            else:
                module.get_parameter("scale.weight").zero_()
        self.head.get_parameter("head.weight").zero_()
        if self.config.sigma_start_range is not None:
            self.sigma_start_embedding.get_parameter("2.weight").zero_()


def _concatenate(parts: Iterable[Tensor], dim: int, size: int) -> Tensor:
    """Concatenate tensors one by one, so that few exist at once; a sole one is not copied."""
    out, start = torch.empty(0), 0
    for part in parts:
        if part.shape[dim] == size:
            return part
        if not start:
            out = part.new_empty(*part.shape[:dim], size, *part.shape[dim + 1 :])
        out.narrow(dim, start, part.shape[dim]).copy_(part)
        start += part.shape[dim]
    return out


def outline(config: RefinerConfig, **options: Any) -> SurfRefinerDiT:
    """Build a model on the meta device, without memory: for its names, shapes and costs.

    Args:
        options: of SurfRefinerDiT, but the operations.
    """
    kinds = ("Linear", "LayerNorm", "RMSNorm", "Conv3d")
    layers = {kind: partial(getattr(nn, kind), device="meta") for kind in kinds}
    return SurfRefinerDiT(config, SimpleNamespace(**layers), **options).to("meta")
