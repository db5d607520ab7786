"""Choose the clips of a batch as a function of the seed and the step, without state.

The order comes from hashes of the clips' keys: it is the same on every machine, in every version of
Python or torch, and for any order of the manifest.

Dims: B clips of a batch, over all ranks.
"""

import logging
from collections.abc import Mapping
from dataclasses import dataclass
from hashlib import blake2b

log = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True, slots=True)
class BucketBatch:
    """The clips of one step, all of one bucket."""

    step: int
    """Step it belongs to, from 0."""
    epoch: int
    """Complete passes over all clips before it."""
    bucket: str
    """Size and number of frames of the clips."""
    keys: tuple[str, ...]
    """B keys; of a rank, every world-th of them."""


def _order(seed: int, salt: str, keys: list[str]) -> list[str]:
    """Shuffle keys: sort them by a hash of seed, salt and key."""
    prefix = f"{seed}/{salt}/"
    return sorted(keys, key=lambda key: (blake2b((prefix + key).encode()).digest(), key))


class BucketSampler:
    """Samples batches from one bucket each: each clip once per epoch, buckets by their share.

    Clips that do not fill a batch are left out of the epoch: fewer than B of a bucket, others in
    the next epoch. A bucket with fewer than B clips is never sampled; `unused` has its clips.

    Args:
        clips: bucket of each clip, by the clip's key.
        batch: B, over all ranks.
        seed: 0 or more.

    Raises:
        ValueError: B below 1, or no bucket with B clips.

    Source: ours.
    """

    def __init__(self, clips: Mapping[str, str], batch: int, seed: int):
        if batch < 1:
            raise ValueError(f"expected a batch of at least 1 clip, got {batch=}; use 24.")
        members: dict[str, list[str]] = {}
        for key, bucket in clips.items():
            members.setdefault(bucket, []).append(key)
        self.batch, self.seed = batch, seed
        self.unused = tuple(
            sorted(key for keys in members.values() if len(keys) < batch for key in keys)
        )
        self._members = {
            bucket: _order(seed, "members", keys)
            for bucket, keys in members.items()
            if len(keys) >= batch
        }
        if not self._members:
            raise ValueError(
                f"expected a bucket with {batch} clips, got {len(clips)} clips in "
                f"{len(members)} buckets, none of that size; lower the batch or add clips."
            )
        if self.unused:
            log.warning("%d clips are in buckets too small for a batch", len(self.unused))
        self.steps_per_epoch = sum(len(keys) // batch for keys in self._members.values())
        self._kept: tuple[int, list[tuple[str, tuple[str, ...]]]] = (-1, [])

    def left_out(self, epoch: int, bucket: str) -> tuple[str, ...]:
        """Return the keys of a bucket that an epoch leaves out, which rotate with the epoch."""
        keys = self._members[bucket]
        rest = len(keys) % self.batch
        first = epoch * rest
        return tuple(keys[(first + i) % len(keys)] for i in range(rest))

    def _epoch(self, epoch: int) -> list[tuple[str, tuple[str, ...]]]:
        """Return all batches of an epoch, in order; the last epoch is cached."""
        if self._kept[0] == epoch:
            return self._kept[1]
        batches = {}
        for bucket, members in self._members.items():
            without = set(self.left_out(epoch, bucket))
            keys = _order(self.seed, f"{epoch}/{bucket}", [k for k in members if k not in without])
            for first in range(0, len(keys), self.batch):
                batches[keys[first]] = bucket, tuple(keys[first : first + self.batch])
        ordered = [batches[key] for key in _order(self.seed, f"{epoch}/batches", list(batches))]
        self._kept = epoch, ordered
        return ordered

    def at(self, step: int, rank: int = 0, world: int = 1) -> BucketBatch:
        """Return the batch of a step, or one rank's share of it.

        Args:
            step: 0 or more.
            rank: 0 to world - 1.
            world: ranks that share a batch; divides B.

        Raises:
            ValueError: a negative step, no such rank, or a batch that does not divide.
        """
        if step < 0:
            raise ValueError(f"expected a step of at least 0, got {step=}; count from 0.")
        if world < 1 or self.batch % world or not 0 <= rank < world:
            raise ValueError(
                f"expected a rank below a world that divides the batch of {self.batch}, "
                f"got {rank=}, {world=}; choose a batch that is a multiple of the world."
            )
        epoch, position = divmod(step, self.steps_per_epoch)
        bucket, keys = self._epoch(epoch)[position]
        return BucketBatch(step=step, epoch=epoch, bucket=bucket, keys=keys[rank::world])
