"""Protocols of the clips that tasks train on; `data.Shards` reads them from a prepared folder.

Dims: C latent channels, T latent frames, H, W latent cells, h, w cells of the degraded clip, L text
tokens, D their width.
"""

from collections.abc import Mapping
from typing import Protocol

from torch import Tensor


class PreparedClip(Protocol):
    """Latents and text of one clip."""

    @property
    def hr(self) -> Tensor:
        """[C, T, H, W] latent of the clip."""

    @property
    def start(self) -> Tensor:
        """[C, T, H, W] latent of the degraded clip, enlarged."""

    @property
    def text(self) -> Tensor | None:
        """[L, D] tokens of the caption, or None."""


class ClipSource(Protocol):
    """Clips by key, grouped into buckets of one size."""

    @property
    def held_out(self) -> tuple[str, ...]:
        """Keys of the clips that are not trained on."""

    def buckets(self) -> Mapping[str, str]:
        """Return the bucket of each clip to train on, by key."""

    def load(self, key: str) -> PreparedClip:
        """Read a clip."""


class NoClips:
    """An empty source, for dry runs and for tasks that draw their own samples."""

    held_out: tuple[str, ...] = ()

    def buckets(self) -> dict[str, str]:
        return {}

    def load(self, key: str) -> PreparedClip:
        raise ValueError(f"expected no clips on disk, got {key!r}; this task draws its own.")
