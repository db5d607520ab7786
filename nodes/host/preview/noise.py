"""Make the noise after a switch: of the video drawn or averaged, of the audio as it was.

It is drawn from a seed that is a hash of an item's first noise: a GUIDER is called without
`batch_index`, so the place in the batch does not identify an item. Its first noise does: an item
alone gets the noise that it gets in a batch. Audio has no resolution: its noise goes on unchanged,
not even its deviation, or the audio would leave its path.

Dims: B batch, C channels, T latent frames, H, W latent cells.
"""

import hashlib
from typing import Any

import comfy.sample
import torch
from torch import Tensor

from ....surf_core.reshift import implied_noise, inherit_noise
from .samples import like_samples, parts_of


def second_seed(seed: int) -> int:
    """Derive the sampler's seed for the leg after a switch: a hash, 0..2**63 - 1.

    The next integer would repeat the noise stream that stochastic samplers draw from on a CPU,
    and does not exist for 2**64 - 1.
    """
    return _hash(seed)


def sampler_seed(seed: int, device: torch.device) -> int:
    """Return the seed for a stochastic sampler of the host.

    On a CPU these add 1 to it, which does not exist for 2**64 - 1.
    """
    largest = seed == 2**64 - 1 and device.type == "cpu"
    return second_seed(seed) if largest else seed


def item_seeds(seed: int, noise: Any) -> list[int]:
    """Derive the seed of each item's noise after a switch.

    Args:
        noise: plain or nested, of the run.
    """
    return [item_seed(seed, video) for video in parts_of(noise).video]


def item_seed(seed: int, noise: Tensor) -> int:
    """Derive the seed of an item's noise after a switch, 0..2**63 - 1.

    A stock sampler with this seed draws the same noise for a batch of one.

    Args:
        seed: of the run.
        noise: [C, (T,) H, W], the item's first noise.
    """
    return _hash(seed, noise.detach().float().cpu().contiguous().numpy().tobytes())


def fresh_noise(x: Tensor, seeds: list[int]) -> Tensor:
    """Draw noise of the shape of x, [B, C, (T,) H, W], each item from its own seed."""
    items = zip(x.split(1), seeds, strict=True)
    return torch.cat([comfy.sample.prepare_noise(item, seed) for item, seed in items])


def noise_after(noise: Any, size: tuple[int, int], seeds: list[int] | None, like: Any) -> Any:
    """Make the noise of a leg from that before it, plain or nested.

    Args:
        noise: that of the leg before.
        size: (rows, columns) of the leg.
        seeds: of the items, for fresh noise of the video; None or empty to average it down.
        like: what the noise will be added to.
    """
    parts = parts_of(noise)
    if not seeds:
        return parts.with_video(inherited_noise(parts.video, size)).joined()
    return parts.with_video(fresh_noise(parts_of(like).video, seeds)).joined()


def inherited_noise(noise: Tensor, size: tuple[int, int]) -> Tensor:
    """Average noise down to (rows, columns); at its own size it stays as it is."""
    return noise if tuple(noise.shape[-2:]) == size else inherit_noise(noise, size)


def noise_of(evaluation: tuple[Tensor, Tensor, Tensor], samples: Any) -> Any:
    """Solve one evaluation, (x, sigma, x0), for the noise in x: plain or nested, as `samples`."""
    x, sigma, x0 = evaluation
    return like_samples(implied_noise(x, x0, sigma.flatten()[0].item()), samples)


def _hash(seed: int, more: bytes = b"") -> int:
    digest = hashlib.sha256(b"surf reshift" + (seed % 2**64).to_bytes(8, "little") + more).digest()
    return int.from_bytes(digest[:8], "little") >> 1
