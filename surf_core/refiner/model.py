"""The refiner: a video DiT whose self-attention stays inside shifted windows.

One class for both blocks. With Wan's, module and parameter names are Wan 2.1's, so weights move
between both without conversion.

Dims: B batch, C latent channels, T latent frames, H, W latent cells, N tokens, K kept ones, L text
tokens, D width.
"""

from collections.abc import Iterable
from functools import partial
from math import prod
from types import SimpleNamespace

import torch
from einops import rearrange
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from ..skip import Packing, check_keep, pack, packing, unpack
from ..window import Bounds, Dense, Packed, grouped, sdpa, segments, token_bounds
from .config import RefinerConfig
from .fused import Fused, eager
from .layers import KINDS, Kernels, feed_forward, timestep_features
from .rope import rotary_table

Grid = tuple[int, int, int]


class SurfRefinerDiT(nn.Module):
    """Predict the velocity of a latent, given its timestep and a text.

    Args:
        config: sizes, block and time.
        operations: where Linear, LayerNorm, RMSNorm and Conv3d come from (torch.nn by default).
        attention: dense attention, (q [n, L, H, K], k, v [n, M, H, K]) -> [n, L, H, K].
        fused: the steps around attention, see `fused.kitchen`.
    """

    window: int
    """Latent frames of a window, 0 for full attention; may be changed between calls."""
    packed: Packed
    """Self-attention within token ranges; by default `attention`, in few calls."""
    segmentwise: bool = True
    """One segment after the other, whenever gradients are off; False runs each layer whole."""
    checkpointing: bool = False
    """Keep one tensor per block for the backward pass, and compute the rest again."""
    rows: int = 16384
    """Tokens that embedding, cross-attention, feed-forward and head take at once, when gradients
    are off; enough of them to fill a large GPU."""

    def __init__(
        self, config: RefinerConfig, operations=nn, attention: Dense = sdpa, fused: Fused = eager
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
        if config.start_range is not None:
            self.start_embedding = feed_forward(config.freq_dim, dim, dim, ops, nn.SiLU())
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
        start: Tensor | None = None,
        keep: Tensor | None = None,
    ) -> Tensor:
        """Predict the velocity, see `RefinerConfig.time` for which.

        With `keep`, all layers run on the kept tokens alone, at their own positions. At the others
        the result is zero, which is no prediction: `surf_core.skip.Skipping` fills in what is.

        Args:
            z: [B, C, T, H, W]; T, H, W multiples of the patch; not changed.
            t: [B], timestep 0..1000.
            context: [B, L, text_dim].
            start: [B], noise s of the start, 0..1; None for the config's. Read by a model with a
                start_range alone.
            keep: [T, h, w] bool over the tokens, best on the CPU: which of them are computed, for
                all samples alike; None, or all of them, is the plain model.

        Returns:
            [B, C, T, H, W], dtype of z.

        Raises:
            ValueError: a size that the patch does not divide, or a mask of another grid or of
                nothing.
        """
        grid = self._grid(z)
        kept = self._packing(keep, grid, z.device)
        cuts = [self._layout(grid, shifted, kept) for shifted in (False, True)]
        table = self._table(grid, z)
        kernels = self.kernels()
        segmentwise = self.segmentwise and not torch.is_grad_enabled()
        x = self._embed(z, grid, kept)
        time, time_head = self._times(t, start, x.dtype)
        context = self.text_embedding(context)
        for index, block in enumerate(self.blocks):
            bounds, positions = cuts[index % 2]
            given = (x, time, context, bounds, table, kernels, segmentwise, positions)
            if self.checkpointing and torch.is_grad_enabled():
                x = checkpoint(block, *given, use_reentrant=False)
            else:
                x = block(*given)
        if kept is not None:
            return self._read_kept(x, time_head, kept, kernels)
        return self._read(x, time_head, grid, kernels)

    def _grid(self, z: Tensor) -> Grid:
        patch = self.config.patch
        if any(size % step for size, step in zip(z.shape[2:], patch, strict=True)):
            raise ValueError(
                f"latent frames, rows and columns must be multiples of {patch}, "
                f"got {tuple(z.shape[2:])}; choose a size that fits."
            )
        return tuple(size // step for size, step in zip(z.shape[2:], patch, strict=True))

    def _packing(self, keep: Tensor | None, grid: Grid, device: torch.device) -> Packing | None:
        """Where the kept tokens are; None where nothing is skipped."""
        if keep is None:
            return None
        check_keep(keep, grid)
        return None if keep.all() else packing(keep).to(device)

    def _layout(
        self, grid: Grid, shifted: bool, kept: Packing | None
    ) -> tuple[Bounds, Tensor | None]:
        """Ranges that attend among themselves, and rows of the table if they have gaps."""
        if kept is not None:
            return kept.bounds(self.window, shifted), kept.positions(self.window, shifted)
        return token_bounds(grid[1] * grid[2], segments(grid[0], self.window, shifted)), None

    def _table(self, grid: Grid, z: Tensor) -> Tensor:
        frames = min(grid[0], self.window or grid[0])
        dtype = torch.float64 if z.dtype == torch.float64 else torch.float32
        return rotary_table((frames, *grid[1:]), self.config.head_dim, z.device, dtype)

    def kernels(self) -> Kernels:
        """What the layers compute with, as things stand; plain torch with gradients on."""
        fused = eager if torch.is_grad_enabled() else self.fused
        return Kernels(packed=self.packed, dense=self.attention, fused=fused, rows=self.rows)

    def _times(self, t: Tensor, start: Tensor | None, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
        """What the blocks and what the head see of the timestep, and of the start."""
        features = timestep_features(t, self.config.freq_dim).to(dtype)
        time = self.time_embedding(features)
        if self.config.start_range is not None:
            s = torch.full_like(t, self.config.sigma_start) if start is None else start
            time = time + self.start_embedding(
                timestep_features(1000 * s, self.config.freq_dim).to(dtype)
            )
        if self.config.block == "wan":
            return self.time_projection(time).unflatten(1, (6, -1)), time
        time = nn.functional.silu(time)
        return time, time

    def _spans(self, grid: Grid) -> list[tuple[int, int]]:
        """Frame ranges for embedding and head; one range when gradients are on."""
        step = grid[0] if torch.is_grad_enabled() else max(1, self.rows // (grid[1] * grid[2]))
        return [(start, min(start + step, grid[0])) for start in range(0, grid[0], step)]

    def _embed(self, z: Tensor, grid: Grid, kept: Packing | None) -> Tensor:
        """Make tokens [B, N, D] of a latent, or [B, K, D]."""
        depth = self.config.patch[0]
        parts = (
            self.patch_embedding(z[:, :, a * depth : b * depth]).flatten(2).transpose(1, 2)
            for a, b in self._spans(grid)
        )
        if kept is None:
            return _laid(parts, 1, prod(grid)).contiguous()
        spans = (kept.within(a, b) for a, b in self._spans(grid))
        chosen = (pack(part, span) for part, span in zip(parts, spans, strict=True))
        return _laid(chosen, 1, len(kept.indices))

    def _read(self, x: Tensor, time: Tensor, grid: Grid, kernels: Kernels) -> Tensor:
        """Make a velocity [B, C, T, H, W] of tokens."""
        frame, (p, q, r) = grid[1] * grid[2], self.config.patch
        parts = (
            rearrange(
                self.head(x[:, a * frame : b * frame], time, kernels.fused),
                "b (t h w) (p q r c) -> b c (t p) (h q) (w r)",
                h=grid[1], w=grid[2], p=p, q=q, r=r,
            )
            for a, b in self._spans(grid)
        )  # fmt: skip
        return _laid(parts, 2, grid[0] * p)

    def _read_kept(self, x: Tensor, time: Tensor, kept: Packing, kernels: Kernels) -> Tensor:
        """Make a velocity [B, C, T, H, W] of kept tokens [B, K, D], zero elsewhere."""
        rows = x.shape[1] if torch.is_grad_enabled() else self.rows
        parts = (self.head(part, time, kernels.fused) for part in x.split(rows, dim=1))
        (t, h, w), (p, q, r) = kept.grid, self.config.patch
        return rearrange(
            unpack(_laid(parts, 1, x.shape[1]), kept),
            "b (t h w) (p q r c) -> b c (t p) (h q) (w r)",
            t=t, h=h, w=w, p=p, q=q, r=r,
        )  # fmt: skip

    @torch.no_grad()
    def initialise(self, generator: torch.Generator) -> None:
        """Draw fresh weights: Xavier everywhere, small embeddings, a head and scales of zeros.

        The embedding of s begins at zero: weights of a model without one keep their meaning.
        """
        for module in self.modules():
            if isinstance(module, nn.Linear | nn.Conv3d):
                fan = module.weight.flatten(1)
                bound = (6 / sum(fan.shape)) ** 0.5
                module.weight.uniform_(-bound, bound, generator=generator)
                module.bias.zero_()
        for embedding in (self.text_embedding, self.time_embedding):
            for layer in (embedding[0], embedding[2]):
                layer.weight.normal_(std=0.02, generator=generator)
        for module in (*self.blocks, self.head):
            if self.config.block == "wan":
                module.modulation.normal_(std=self.config.dim**-0.5, generator=generator)
            else:
                module.scale.weight.zero_()
        self.head.head.weight.zero_()
        if self.config.start_range is not None:
            self.start_embedding[2].weight.zero_()


def _laid(parts: Iterable[Tensor], dim: int, size: int) -> Tensor:
    """Lay tensors side by side, each as it comes; one that fills `size` is returned as it is."""
    out, start = None, 0
    for part in parts:
        if part.shape[dim] == size:
            return part
        if out is None:
            out = part.new_empty(*part.shape[:dim], size, *part.shape[dim + 1 :])
        out.narrow(dim, start, part.shape[dim]).copy_(part)
        start += part.shape[dim]
    return out


def outline(config: RefinerConfig, **options) -> SurfRefinerDiT:
    """Build a model without memory, on the meta device: for its names, shapes and costs.

    Args:
        options: of SurfRefinerDiT, but the operations.
    """
    kinds = ("Linear", "LayerNorm", "RMSNorm", "Conv3d")
    layers = {kind: partial(getattr(nn, kind), device="meta") for kind in kinds}
    return SurfRefinerDiT(config, SimpleNamespace(**layers), **options).to("meta")
