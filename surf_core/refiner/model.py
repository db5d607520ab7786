"""The refiner: a Wan-shaped video DiT whose self-attention stays inside shifted windows.

Module and parameter names are Wan 2.1's, so weights move between both without conversion.

Dims: B batch, C latent channels, T latent frames, H, W latent cells, L text tokens, D width.
"""

from functools import partial
from math import prod

import torch
from einops import rearrange
from torch import Tensor, nn

from ..window import attend_in_windows
from .config import RefinerConfig
from .layers import Attention, Block, Head, sdpa, timestep_features
from .rope import rotary_table


class SurfRefinerDiT(nn.Module):
    """Predict the velocity of a noisy latent, given its timestep and a text.

    Args:
        config: sizes; `config.window` may be changed after construction through `window`.
        operations: where Linear, LayerNorm, RMSNorm and Conv3d come from (torch.nn by default).
        attention: dense attention, (q, k, v, heads) -> out on [B, N, D].
    """

    def __init__(self, config: RefinerConfig, operations=nn, attention: Attention = sdpa):
        super().__init__()
        self.config = config
        self.window = config.window
        self.attention = attention
        dim, ops = config.dim, operations
        self.patch_embedding = ops.Conv3d(config.latent_channels, dim, config.patch, config.patch)
        self.text_embedding = nn.Sequential(
            ops.Linear(config.text_dim, dim), nn.GELU(approximate="tanh"), ops.Linear(dim, dim)
        )
        self.time_embedding = nn.Sequential(
            ops.Linear(config.freq_dim, dim), nn.SiLU(), ops.Linear(dim, dim)
        )
        self.time_projection = nn.Sequential(nn.SiLU(), ops.Linear(dim, 6 * dim))
        self.blocks = nn.ModuleList(
            Block(dim, config.heads, config.ffn_dim, ops) for _ in range(config.layers)
        )
        self.head = Head(dim, config.latent_channels * prod(config.patch), ops)

    def forward(self, z: Tensor, t: Tensor, context: Tensor) -> Tensor:
        """Predict the velocity, noise minus clean.

        Args:
            z: [B, C, T, H, W], noisy latent; T, H, W multiples of the patch.
            t: [B], timestep, 1000 * sigma.
            context: [B, L, text_dim].

        Returns:
            [B, C, T, H, W], dtype of z.

        Raises:
            ValueError: a size that the patch does not divide.
        """
        patch = self.config.patch
        if any(size % step for size, step in zip(z.shape[2:], patch, strict=True)):
            raise ValueError(
                f"latent frames, rows and columns must be multiples of {patch}, "
                f"got {tuple(z.shape[2:])}; choose a size that fits."
            )
        grid = tuple(size // step for size, step in zip(z.shape[2:], patch, strict=True))
        table = rotary_table(grid, self.config.head_dim, z.device)
        x = self.patch_embedding(z).flatten(2).transpose(1, 2)
        time = self.time_embedding(timestep_features(t, self.config.freq_dim).to(x.dtype))
        modulation = self.time_projection(time).unflatten(1, (6, -1))
        context = self.text_embedding(context)
        for index, block in enumerate(self.blocks):
            windowed = partial(self._windowed, frames=grid[0], shifted=bool(index % 2))
            x = block(x, modulation, table, context, windowed, self.attention)
        x = self.head(x, time)
        return rearrange(
            x,
            "b (t h w) (p q r c) -> b c (t p) (h q) (w r)",
            t=grid[0], h=grid[1], w=grid[2], p=patch[0], q=patch[1], r=patch[2],
        )  # fmt: skip

    def _windowed(self, q: Tensor, k: Tensor, v: Tensor, heads: int, *, frames, shifted) -> Tensor:
        return attend_in_windows(
            q, k, v, frames=frames, window=self.window, shifted=shifted,
            attention=lambda q, k, v: self.attention(q, k, v, heads),
        )  # fmt: skip

    @torch.no_grad()
    def initialise(self, generator: torch.Generator) -> None:
        """Draw fresh weights: Xavier everywhere, small embeddings, a head of zeros."""
        for module in self.modules():
            if isinstance(module, nn.Linear | nn.Conv3d):
                fan = module.weight.flatten(1)
                bound = (6 / sum(fan.shape)) ** 0.5
                module.weight.uniform_(-bound, bound, generator=generator)
                module.bias.zero_()
        for embedding in (self.text_embedding, self.time_embedding):
            for layer in (embedding[0], embedding[2]):
                layer.weight.normal_(std=0.02, generator=generator)
        for block in self.blocks:
            block.modulation.normal_(std=self.config.dim**-0.5, generator=generator)
        self.head.modulation.normal_(std=self.config.dim**-0.5, generator=generator)
        self.head.head.weight.zero_()
