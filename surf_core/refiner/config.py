"""What shape a refiner has: one frozen record, and the named sizes."""

from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True, slots=True)
class RefinerConfig:
    """Sizes of a Wan-shaped video DiT."""

    dim: int
    """Width of the residual stream."""
    heads: int
    """Attention heads; dim / heads is the head width."""
    layers: int
    """Transformer blocks."""
    ffn_dim: int
    """Hidden width of the feed-forward network."""
    window: int = 0
    """Latent frames of a temporal self-attention window; 0 is full attention."""
    latent_channels: int = 16
    """Channels of the latent, in and out."""
    text_dim: int = 4096
    """Width of a text token."""
    freq_dim: int = 256
    """Width of the sinusoidal timestep embedding."""
    patch: tuple[int, int, int] = (1, 2, 2)
    """Latent cells in one token: frames, rows, columns."""

    def __post_init__(self):
        if self.dim % self.heads or (self.dim // self.heads) % 2:
            raise ValueError(
                f"dim must be an even multiple of heads, got dim={self.dim}, heads={self.heads}; "
                "rotary positions turn pairs of channels."
            )

    @property
    def head_dim(self) -> int:
        return self.dim // self.heads

    @classmethod
    def tiny(cls, window: int = 0) -> "RefinerConfig":
        """The embedded default: 2.3 M parameters, one head of 128 as Wan's loaders expect."""
        return cls(dim=128, heads=1, layers=6, ffn_dim=512, window=window)

    @classmethod
    def wan_1_3b(cls, window: int = 0) -> "RefinerConfig":
        """The shape of Wan 2.1 T2V 1.3B."""
        return cls(dim=1536, heads=12, layers=30, ffn_dim=8960, window=window)
