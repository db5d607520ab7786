"""The samplers of the fake host: Euler, one that draws noise, and faulty ones as the real.

Installed by host_stub.py.
"""

from types import SimpleNamespace

import torch


class KSamplerX0Inpaint:
    """What a sampler calls: the guider, with what a noise mask keeps blended in."""

    def __init__(self, model, sigmas):
        self.inner_model, self.sigmas = model, sigmas

    def __call__(self, x, sigma):
        guider, mask = self.inner_model, self.mask
        if mask is None:
            return guider.outer_predict_noise(x, sigma, {}, None)
        flow = guider.inner_model.model_sampling
        kept = flow.noise_scaling(sigma, self.noise, self.latent_image)
        out = guider.outer_predict_noise(x * mask + kept * (1 - mask), sigma, {}, None)
        return out * mask + self.latent_image * (1 - mask)


def euler(model, x, sigmas, seed, callback):
    for i in range(len(sigmas) - 1):
        denoised = model(x, sigmas[i].expand(len(x)))
        callback(i, denoised, x)
        x = x + (x - denoised) / sigmas[i] * (sigmas[i + 1] - sigmas[i])
    return x


def euler_ancestral(model, x, sigmas, seed, callback):
    generator = torch.Generator().manual_seed(seed + 1)
    for i in range(len(sigmas) - 1):
        now, after = sigmas[i], sigmas[i + 1]
        denoised = model(x, now.expand(len(x)))
        callback(i, denoised, x)
        if after == 0:
            return denoised
        down = after * after / now
        lift = (1 - after) / (1 - down)
        x = lift * torch.lerp(denoised, x, down / now)
        noise = torch.randn(x.shape, generator=generator)
        x = x + (after**2 - (down * lift) ** 2).sqrt() * noise
    return x


def sample_unipc(model, x, sigmas, seed, callback):
    """Keeps the two faults of the real one: blind on one interval, writes into its sigmas."""
    sigmas[-1] = 0.001 if sigmas[-1] == 0 else sigmas[-1]
    return x if len(sigmas) == 2 else euler(model, x, sigmas, seed, callback)


def sample_unipc_bh2(model, x, sigmas, seed, callback):
    return sample_unipc(model, x, sigmas, seed, callback)


def dpm_fast_function(model, x, sigmas, seed, callback):
    raise AssertionError("reached the sampler")


def dpm_adaptive_function(model, x, sigmas, seed, callback):
    raise AssertionError("reached the sampler")


FUNCTIONS = {"euler": euler, "euler_ancestral": euler_ancestral, "dpm_2": euler,
             "uni_pc": sample_unipc, "uni_pc_bh2": sample_unipc_bh2, "dpm_fast": dpm_fast_function,
             "dpm_adaptive": dpm_adaptive_function}  # fmt: skip


def sampler_object(name):
    return SimpleNamespace(sampler_function=FUNCTIONS[name])
