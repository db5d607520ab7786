"""The config of a refiner: sizes, block, time parametrisation and window, as a frozen record."""

from dataclasses import dataclass

from ..checks import check_choice, check_range
from ..flow import TIMES

BLOCKS = ("wan", "scale")
"""Wan 2.1's block, or the paper's (SURF B.1)."""


@dataclass(frozen=True, kw_only=True, slots=True)
class RefinerConfig:
    """Sizes, block and time of a video DiT, as stored in the metadata of its file."""

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
    block: str = "wan"
    """`wan`: LayerNorm with shift, scale and gate, queries and keys normed over the whole width,
    Wan's key names. `scale`: RMSNorm and a scale before each module, norms over each head."""
    time: str = "sigma"
    """`sigma`: fed 1000 * s * t, predicts noise - x0. `t`: fed 1000 * t, predicts z_lr - z_hr."""
    sigma_start: float | None = None
    """Noise s on the upsampled preview that it was trained for; None: untrained, s is free."""
    sigma_start_range: tuple[float, float] | None = None
    """Least and greatest s of its training, with s as an input of the network; None: s is fixed."""

    def __post_init__(self) -> None:
        for name in ("dim", "heads", "ffn_dim", "latent_channels", "text_dim", "freq_dim"):
            _check_count(getattr(self, name), name, 1)
        _check_count(self.layers, "layers", 0)
        _check_count(self.window, "window", 0)
        if len(self.patch) != 3:
            raise ValueError(f"patch must hold frames, rows and columns, got {self.patch}.")
        for side in self.patch:
            _check_count(side, "patch", 1)
        if self.dim % self.heads or (self.dim // self.heads) % 2:
            raise ValueError(
                f"dim must be an even multiple of heads, got dim={self.dim}, heads={self.heads}; "
                "rotary positions turn pairs of channels."
            )
        if self.freq_dim % 2:
            raise ValueError(
                f"freq_dim must be even, got {self.freq_dim}; it holds as many sines as cosines."
            )
        if self.window == 1:
            raise ValueError("window must be 0 (full attention) or at least 2, got 1; use 4.")
        check_choice(self.block, "block", BLOCKS)
        check_choice(self.time, "time", TIMES)
        self._check_start()

    def _check_start(self) -> None:
        if self.sigma_start is not None:
            low = 1e-4 if self.time == "sigma" else 0.0
            check_range(self.sigma_start, "sigma_start", low, 1.0, "use the noise of its training")
        elif self.time == "t":
            raise ValueError(
                "time t is for a refiner that was trained for its start, got sigma_start=None; "
                "give the noise of its training, 0 for none."
            )
        if self.sigma_start_range is not None:
            self._check_range(*self.sigma_start_range)

    def _check_range(self, least: float, greatest: float) -> None:
        if self.sigma_start is None or not 0 <= least <= self.sigma_start <= greatest <= 1:
            raise ValueError(
                f"sigma_start must lie within sigma_start_range, got {self.sigma_start} and "
                f"{self.sigma_start_range}; give what it was trained with, 0..1."
            )

    @property
    def head_dim(self) -> int:
        return self.dim // self.heads

    @classmethod
    def tiny(cls, window: int = 0) -> "RefinerConfig":
        """The embedded models' widths: 2.3 M parameters; one head of 128 as Wan's loader wants."""
        return cls(dim=128, heads=1, layers=6, ffn_dim=512, window=window)

    @classmethod
    def wan_1_3b(cls, window: int = 0) -> "RefinerConfig":
        """The shape of Wan 2.1 T2V 1.3B."""
        return cls(dim=1536, heads=12, layers=30, ffn_dim=8960, window=window)

    @classmethod
    def surf_1b(
        cls, window: int = 4, time: str = "sigma", sigma_start: float | None = None
    ) -> "RefinerConfig":
        """A refiner of the paper's width, heads and block: 1.02 B parameters.

        Source: SURF Tab. R6 (width, heads), B.1 (block). The paper gives neither depth nor width
        of the feed-forward nor window: those are ours, the first two to reach its 1 B.
        """
        return cls(
            dim=1152, heads=16, layers=40, ffn_dim=4608, window=window, block="scale",
            time=time, sigma_start=sigma_start,
        )  # fmt: skip


def _check_count(value: int, name: str, least: int) -> None:
    # A bool is no number.
    if type(value) is not int or value < least:
        raise ValueError(f"{name} must be a whole number from {least}, got {value!r}.")
