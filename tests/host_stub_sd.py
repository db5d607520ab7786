"""The fake host's comfy.sd: a file of its own, because the pack runs a second copy of it."""

import functools
import sys
from types import SimpleNamespace

import host_stub
import torch

model_detection = sys.modules["comfy.model_detection"]


def load_diffusion_model_state_dict(sd, model_options={}, metadata=None):  # noqa: B006
    assert model_detection.unet_prefix_from_state_dict(sd) == "model."
    config = model_detection.model_config_from_unet(sd, "", metadata=metadata)
    if config is None:
        return None
    dtype = model_options.get("dtype", torch.float32)
    config.set_inference_dtype(dtype, torch.float32 if dtype.itemsize == 1 else None)
    model = config.get_model(sd, "")
    model.load_model_weights(sd, "")
    return host_stub.LoadedPatcher(model)


class ModelPatcher(SimpleNamespace):
    def __init__(self, model, load_device, offload_device, size=0, weight_inplace_update=False):
        super().__init__(model=model, load_device=load_device, offload_device=offload_device)


class VAE:
    """The host's VAE of Wan 2.1, with the host's way from frames to the network and back.

    The network is our own, which gives and takes what the host's does: latents as files have them.
    """

    def __init__(self, sd=None, device=None, config=None, dtype=None, metadata=None):
        self.device = self.output_device = torch.device("cpu")
        network = wan_vae()(len(sd["decoder.head.0.gamma"]))
        network.load_state_dict(sd)
        self.first_stage_model, self.vae_dtype = network.to(dtype).eval(), dtype
        self.patcher = ModelPatcher(self.first_stage_model, self.device, self.device)
        self.latent_channels, self.latent_dim = 16, 3
        self.upscale_ratio = (lambda a: max(0, a * 4 - 3), 8, 8)
        self.downscale_ratio = (lambda a: max(0, (a + 3) // 4), 8, 8)
        self.upscale_index_formula = self.downscale_index_formula = (4, 8, 8)
        self.memory_used_decode = lambda shape, dtype: (
            (2200 if shape[2] <= 4 else 7000) * shape[3] * shape[4] * 64 * dtype.itemsize
        )
        self.memory_used_encode = lambda shape, dtype: (
            (1500 if shape[2] <= 4 else 6000) * shape[3] * shape[4] * dtype.itemsize
        )

    def decode(self, samples_in, vae_options={}):  # noqa: B006 as the host's
        with torch.no_grad():
            out = self.first_stage_model.decode(samples_in.to(self.vae_dtype))
        return out.add_(1.0).div_(2.0).clamp_(0.0, 1.0).movedim(1, -1)

    def encode(self, pixel_samples):
        pixels = pixel_samples.movedim(-1, 0)[None]
        with torch.no_grad():
            return self.first_stage_model.encode((pixels * 2.0 - 1.0).to(self.vae_dtype))

    def spacial_compression_decode(self):
        return self.upscale_ratio[-1]

    def spacial_compression_encode(self):
        return self.downscale_ratio[-1]

    def temporal_compression_decode(self):
        return round(self.upscale_ratio[0](8192) / 8192)


@functools.cache
def wan_vae():
    """The class of its network, with the host's calls."""
    # The pack is loaded after this file.
    from surf.surf_core.tiny.vae import TinyVAE

    class WanVAE(TinyVAE):
        def encode(self, x):
            return self.moments(x)[0]

        def decode(self, z):
            return self.decoder(self.conv2(z))

    return WanVAE
