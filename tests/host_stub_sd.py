"""The fake host's comfy.sd: a file of its own, because the pack runs a second copy of it."""

import sys

import host_stub
import torch

model_detection = sys.modules["comfy.model_detection"]


def load_diffusion_model_state_dict(state, model_options={}, metadata=None):  # noqa: B006
    assert model_detection.unet_prefix_from_state_dict(state) == "model."
    config = model_detection.model_config_from_unet(state, "", metadata=metadata)
    if config is None:
        return None
    dtype = model_options.get("dtype", torch.float32)
    config.set_inference_dtype(dtype, torch.float32 if dtype.itemsize == 1 else None)
    model = config.get_model(state, "")
    model.load_model_weights(state, "")
    return host_stub.LoadedPatcher(model)
