"""The fake host's comfy.sd: a file of its own, because the pack runs a second copy of it."""

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


def load_diffusion_model(unet_path, model_options={}):  # noqa: B006
    """A MODEL that notes its file; the fake reads no weights of other makes."""
    patcher = host_stub.Patcher()
    patcher.path = unet_path
    return patcher


class ModelPatcher(SimpleNamespace):
    def __init__(self, model, load_device, offload_device, size=0, weight_inplace_update=False):
        super().__init__(model=model, load_device=load_device, offload_device=offload_device)


class VAE:
    """The host's VAE of pixel space, with the host's way from frames to the network and back."""

    def __init__(self, sd=None, device=None, config=None, dtype=None, metadata=None):
        assert list(sd) == ["pixel_space_vae"]
        self.device = self.output_device = torch.device("cpu")
        self.first_stage_model, self.vae_dtype = torch.nn.Identity(), dtype
        self.patcher = ModelPatcher(self.first_stage_model, self.device, self.device)
        self.latent_channels, self.latent_dim = 3, 2
        self.upscale_ratio = self.downscale_ratio = 1

    def decode(self, samples_in, vae_options={}):  # noqa: B006 as the host's
        out = self.first_stage_model.decode(samples_in.to(self.vae_dtype))
        return out.add_(1.0).div_(2.0).clamp_(0.0, 1.0).movedim(1, -1)

    def encode(self, pixel_samples):
        pixels = pixel_samples.movedim(-1, 1)
        pixels = pixels.movedim(1, 0)[None] if self.latent_dim == 3 else pixels
        return self.first_stage_model.encode((pixels * 2.0 - 1.0).to(self.vae_dtype))

    def spacial_compression_decode(self):
        return self.upscale_ratio[-1]

    def spacial_compression_encode(self):
        return self.downscale_ratio[-1]

    def temporal_compression_decode(self):
        return round(self.upscale_ratio[0](8192) / 8192)
