"""Find noise that was left in a latent: whoever resizes one, or refines it, expects a clean one.

Dims: B batch, C channels, T latent frames, H, W latent cells.
"""

from torch import Tensor

from .node import NodeLog

log = NodeLog(__name__)

NOISY = 0.5
"""Share from which a latent counts as noisy. Of 8 videos of the embedded model clean latents have
.07 to .14, those at sigma .35 .41 to .63, at .5 .59 to .78; a clean picture of noise has .74."""
GAUSSIAN_MEDIAN = 0.6745
"""Median of the absolute values of a standard normal."""
MOST_CELLS = 2**21


def noise_share(samples: Tensor) -> float:
    """Estimate which part of a latent's deviation is white noise, 0 to about 1.

    The diagonal Haar differences of 2 x 2 cells are as large as white noise, and small for a
    picture. Their median tells the deviation of the noise, whatever a few edges do.

    Args:
        samples: [B, C, (T,) H, W], VAE or model space; the first item is read.

    Returns:
        0 for a constant latent, or one without 2 x 2 cells.

    Source: the median estimator of wavelet denoising (Donoho and Johnstone); the use is ours.
    """
    x = samples[0].flatten(1, -3) if samples.ndim == 5 else samples[0][:, None]
    x = x[:, :: max(1, x.numel() // MOST_CELLS)].float()
    x = x[..., : x.shape[-2] // 2 * 2, : x.shape[-1] // 2 * 2]
    if not x.numel():
        return 0.0
    quarters = [x[..., i::2, j::2] for i in (0, 1) for j in (0, 1)]
    diagonal = (quarters[0] - quarters[1] - quarters[2] + quarters[3]) / 2
    noise = diagonal.abs().median() / GAUSSIAN_MEDIAN
    return (noise / x.flatten(1).std(dim=1).square().mean().sqrt().clamp_min(1e-12)).item()


def warn_of_noise(samples: Tensor, what: str) -> None:
    """Warn, and never refuse, where a latent looks noisy: a picture of pure noise does as well.

    Args:
        what: the subject, e.g. "samples".
    """
    share = noise_share(samples)
    if share > NOISY:
        log.warning(
            "%s looks as if it still held noise (%.2f of it is white). Check that its sampler ran "
            "down to sigma 0: return_with_leftover_noise off, the last part of split sigmas.",
            what, share,
        )  # fmt: skip
