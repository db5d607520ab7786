"""The fake host's latents: their formats, their noise and masks, empty ones made to fit.

Installed by host_stub.py.
"""

import torch
from torch.nn import functional as F


class Wan21:
    """Statistics of one number in place of sixteen."""

    latent_channels, latent_dimensions = 16, 3
    spacial_downscale_ratio, temporal_downscale_ratio = 8, 4

    def process_in(self, latent):
        return (latent - 0.25) * 2

    def process_out(self, latent):
        return latent / 2 + 0.25


class Wan22(Wan21):
    latent_channels, spacial_downscale_ratio = 48, 16


FORMATS = {16: Wan21, 48: Wan22}


def prepare_noise(latent_image, seed, noise_inds=None):
    generator, like = torch.manual_seed(seed), latent_image.dtype
    if noise_inds is None:
        return torch.randn(latent_image.shape, generator=generator).to(like)
    one = (1, *latent_image.shape[1:])
    drawn = [torch.randn(one, generator=generator).to(like) for _ in range(max(noise_inds) + 1)]
    return torch.cat([drawn[i] for i in noise_inds])


def repeated(x, count, dim):
    """Repeat or cut along an axis until it is `count` long."""
    return x.index_select(dim, torch.arange(count) % x.shape[dim])


def prepare_mask(noise_mask, shape, device):
    rows, columns = noise_mask.shape[-2:]
    video = len(shape) == 5
    if not video:
        noise_mask = noise_mask.reshape(-1, 1, rows, columns)
    elif noise_mask.ndim < 5:
        noise_mask = noise_mask.reshape(1, 1, -1, rows, columns)
    mask = F.interpolate(noise_mask, shape[2:], mode="trilinear" if video else "bilinear")
    if mask.shape[1] < shape[1]:
        mask = repeated(mask, shape[1], 1)
    return repeated(mask, shape[0], 0).to(device)


def fix_empty_latent_channels(
    model, latent_image, downscale_ratio_spacial=None, downscale_ratio_temporal=None
):
    kind, empty = model.get_model_object("latent_format"), not torch.count_nonzero(latent_image)
    if empty:
        if latent_image.shape[1] != kind.latent_channels:
            latent_image = repeated(latent_image, kind.latent_channels, 1)
        factor = (downscale_ratio_spacial or 0) / kind.spacial_downscale_ratio or 1
        size = [round(side * factor) for side in latent_image.shape[-2:]]
        latent_image = latent_image.new_zeros(*latent_image.shape[:-2], *size)
    if kind.latent_dimensions == 3 and latent_image.ndim == 4:
        latent_image = latent_image.unsqueeze(2)
    if empty and downscale_ratio_temporal is not None:
        frames = latent_image.shape[2] * downscale_ratio_temporal / kind.temporal_downscale_ratio
        latent_image = repeated(latent_image, max(1, round(frames)), 2)
    return latent_image
