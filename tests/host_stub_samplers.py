"""The samplers of the fake host: Euler, one that draws noise, and faulty ones as the real.

Installed by host_stub.py.
"""

from types import SimpleNamespace

import torch


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
