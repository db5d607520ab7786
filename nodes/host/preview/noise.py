"""Draw the noise after a switch, each item's from a seed that is a hash of its first noise.

A GUIDER is called without `batch_index`, so the place in the batch does not identify an item. Its
first noise does: an item alone gets the noise that it gets in a batch.

Dims: B batch, C channels, T latent frames, H, W latent cells.
"""

import hashlib

import comfy.sample
import torch
from torch import Tensor

from ....surf_core.reshift import implied_noise


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


def noise_of(evaluation: tuple[Tensor, Tensor, Tensor]) -> Tensor:
    """Solve one evaluation, (x, sigma, x0), for the noise in x."""
    x, sigma, x0 = evaluation
    return implied_noise(x, x0, sigma.flatten()[0].item())


def _hash(seed: int, more: bytes = b"") -> int:
    digest = hashlib.sha256(b"surf reshift" + (seed % 2**64).to_bytes(8, "little") + more).digest()
    return int.from_bytes(digest[:8], "little") >> 1
