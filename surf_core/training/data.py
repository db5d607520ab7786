"""Read the clips of a prepared folder by key, without state.

    shards = Shards("shards")
    sampler = BucketSampler(shards.buckets(), batch=24, seed=0)
    batch = shards.batch(sampler.at(step, rank, world).keys)

Dims: B clips, C channels, T latent frames, H, W latent cells, h, w cells of the degraded clip, L
text tokens, D their width.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from hashlib import blake2b
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor

from ..resample import resize
from .prepare.manifest import Folder, Row, read
from .prepare.options import from_identity
from .prepare.stages import read_shard

HELD_OUT = 0.02
"""Share of the videos whose clips are kept from training."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Sample:
    """A clip."""

    key: str
    """Its name."""
    hr: Tensor
    """[C, T, H, W] latent of the clip, fp32."""
    lr: Tensor
    """[C, T, h, w] latent of the degraded clip, fp32."""
    start: Tensor
    """[C, T, H, W] latent of the degraded clip, enlarged: in pixels if stored so, else `lr`."""
    text: Tensor | None
    """[L, D] tokens of the caption, fp32, or None if prepared without."""
    caption: str
    """Words that belong to it."""


def _is_held_out(row: Row, share: float) -> bool:
    """Decide by the hash of the video, so that its clips, which look alike, go together."""
    hashed = blake2b(f"held out/{row.content}".encode(), digest_size=8).digest()
    return int.from_bytes(hashed, "big") < share * 2**64


class Shards:
    """The accepted clips of a prepared folder, a few of them held out.

    Reading is stateless: a sample is a function of its key, so a batch is one of seed and step.

    Args:
        root: the folder that surf_core.training.prepare wrote.
        held_out: share of the videos whose clips are not trained on, chosen by a hash of their
            bytes: the same ones on any machine, and more of them as it grows.

    Raises:
        FileNotFoundError: the folder has no manifest.
        ValueError: a share outside 0 to 1, a damaged manifest, or no clip at all.

    Source: ours.
    """

    def __init__(self, root: Path, held_out: float = HELD_OUT):
        if not 0 <= held_out < 1:
            raise ValueError(f"expected a share of 0 up to 1, got {held_out=}; use {HELD_OUT}.")
        self._folder = Folder(root)
        self._rows = {row.key: row for row in read(root) if row.accepted}
        self.options = from_identity(self._folder.identity())
        """What the folder was prepared with."""
        if not self._rows:
            raise ValueError(f"expected clips in {root}, got none accepted; see its manifest.")
        self.held_out = tuple(
            sorted(key for key, row in self._rows.items() if _is_held_out(row, held_out))
        )
        """Keys of the clips kept from training, sorted."""

    def __len__(self) -> int:
        """Clips, held out or not."""
        return len(self._rows)

    def buckets(self) -> dict[str, str]:
        """Bucket of each clip to train on, by key."""
        out = set(self.held_out)
        return {key: row.bucket for key, row in self._rows.items() if key not in out}

    def row(self, key: str) -> Row:
        """Return the manifest's row of a clip.

        Raises:
            KeyError: no such clip.
        """
        if key not in self._rows:
            raise KeyError(
                f"expected a key of {self._folder.root}, got {key!r}; take it from buckets()."
            )
        return self._rows[key]

    def load(self, key: str) -> Sample:
        """Read a clip; where no start is stored, enlarge the degraded latent, bilinear.

        Raises:
            KeyError: no such clip.
            FileNotFoundError: its shard is gone.
            ValueError: its shard is damaged.
        """
        row = self.row(key)
        tensors, _ = read_shard(self._folder, row)
        hr, lr = tensors["hr"].float(), tensors["lr"].float()
        if "start" in tensors:
            start = tensors["start"].float()
        else:
            start = resize(lr[None], (hr.shape[-2], hr.shape[-1]), "bilinear")[0]
        text = tensors["text"].float() if "text" in tensors else None
        return Sample(key=key, hr=hr, lr=lr, start=start, text=text, caption=row.caption)

    def batch(self, keys: Sequence[str]) -> dict[str, Tensor]:
        """Read clips of one bucket and stack them: hr, lr, start, and text if there is any.

        Returns:
            [B, ...] each, fp32; text is [B, L, D] with L of the options, filled up with zeros.

        Raises:
            ValueError: no keys, or clips of several buckets.
        """
        if len(sizes := {self.row(key).bucket for key in keys}) != 1:
            raise ValueError(
                f"expected clips of one bucket, got {sorted(sizes)}; draw them with BucketSampler."
            )
        samples = [self.load(key) for key in keys]
        stacked = {
            name: torch.stack([getattr(sample, name) for sample in samples])
            for name in ("hr", "lr", "start")
        }
        texts = [sample.text for sample in samples if sample.text is not None]
        if len(texts) == len(samples):
            stacked["text"] = torch.stack([self._pad(text) for text in texts])
        return stacked

    def _pad(self, text: Tensor) -> Tensor:
        """Fill up [L, D] with zeros to the text length of the options."""
        return F.pad(text, (0, 0, 0, self.options.text_length - len(text)))
