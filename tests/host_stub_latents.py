"""The fake host's latents: their formats, their noise and masks, empty ones made to fit.

Installed by host_stub.py.
"""

import math

import torch
from torch.nn import functional as F


class NestedTensor:
    """Video and audio as one value: no tensor, and most functions of torch do not take it."""

    def __init__(self, tensors):
        self.tensors, self.is_nested = list(tensors), True

    def unbind(self):
        return self.tensors

    def to(self, *args, **kwargs):
        return NestedTensor([x.to(*args, **kwargs) for x in self.tensors])

    @property
    def shape(self):
        return self.tensors[0].shape

    @property
    def ndim(self):
        return max(x.ndim for x in self.tensors)

    @property
    def dtype(self):
        return self.tensors[0].dtype

    @property
    def device(self):
        return self.tensors[0].device


def pack_latents(latents):
    pack = torch.cat([x.reshape(x.shape[0], 1, -1) for x in latents], dim=-1)
    return pack, [x.shape for x in latents]


def unpack_latents(combined_latent, latent_shapes):
    if len(latent_shapes) < 2:
        return [combined_latent]
    parts = []
    for shape in latent_shapes:
        count = math.prod(shape[1:])
        part, combined_latent = combined_latent[..., :count], combined_latent[..., count:]
        parts.append(part.reshape(len(part), *shape[1:]))
    return parts


class Wan21:
    """Statistics of one number in place of sixteen."""

    latent_channels, latent_dimensions = 16, 3
    spacial_downscale_ratio, temporal_downscale_ratio = 8, 4
    latent_rgb_factors = latent_rgb_factors_bias = latent_rgb_factors_reshape = None

    def process_in(self, latent):
        return (latent - 0.25) * 2

    def process_out(self, latent):
        return latent / 2 + 0.25


class Wan22(Wan21):
    latent_channels, spacial_downscale_ratio = 48, 16


class LTXAV(Wan21):
    latent_channels, spacial_downscale_ratio, temporal_downscale_ratio = 128, 32, 8


FORMATS = {16: Wan21, 48: Wan22, 128: LTXAV}


def prepare_noise(latent_image, seed, noise_inds=None):
    generator = torch.manual_seed(seed)
    if latent_image.is_nested:
        parts = latent_image.unbind()
        return NestedTensor([_noise(part, generator, noise_inds) for part in parts])
    return _noise(latent_image, generator, noise_inds)


def _noise(latent_image, generator, noise_inds):
    like = latent_image.dtype
    if noise_inds is None:
        return torch.randn(latent_image.shape, generator=generator).to(like)
    one = (1, *latent_image.shape[1:])
    drawn = [torch.randn(one, generator=generator).to(like) for _ in range(max(noise_inds) + 1)]
    return torch.cat([drawn[i] for i in noise_inds])


def repeated(x, count, dim):
    """Repeat or cut along an axis until it is `count` long."""
    return x.index_select(dim, torch.arange(count) % x.shape[dim])


def common_upscale(samples, width, height, upscale_method, crop):
    assert crop == "disabled"
    return F.interpolate(samples, (height, width), mode=upscale_method)


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


def pack_mask(denoise_mask, shapes, device):
    """What a guider makes of a noise mask: one for all parts, ones for those without."""
    masks = list(denoise_mask.unbind()) if denoise_mask.is_nested else [denoise_mask]
    masks = masks[: len(shapes)] + [torch.ones(shape) for shape in shapes[len(masks) :]]
    masks = [prepare_mask(*each, device) for each in zip(masks, shapes, strict=True)]
    return pack_latents(masks)[0] if len(shapes) > 1 else masks[0]


def unpacked(x, shapes):
    """What a guider gives back: a plain latent as it is, else parts."""
    return NestedTensor(unpack_latents(x, shapes)) if len(shapes) > 1 else x


def fix_empty_latent_channels(
    model, latent_image, downscale_ratio_spacial=None, downscale_ratio_temporal=None
):
    if latent_image.is_nested:
        return latent_image
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
