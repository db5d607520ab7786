"""A tiny random SeedVR2 3B and its VAE, as files. Run with the host's folder as working directory:

    python tests/host/seedvr2_files.py MODELS_DIR

The host knows a 3B by its number of blocks and gives it the real width, which the loaders of
stand_ins.py override. A host without SeedVR2 writes nothing.
"""

import importlib.util
import sys
from pathlib import Path
from unittest import mock

import checkpoints
import torch

WIDTHS = (32, 32, 32, 32)
"""Channels of the VAE at each resolution."""
SIZES = {"vid_dim": 48, "heads": 2, "head_dim": 16, "rope_dim": 12}
BLOCKS = {"num_layers": 32, "norm_eps": 1e-5, "mlp_type": "swiglu", "vid_out_norm": True}


def transformer():
    """The state dict of a 3B of 32 thin blocks; rotary frequencies are no weights."""
    import comfy.ldm.seedvr.model as seedvr
    import comfy.ops

    made = {"operations": comfy.ops.disable_weight_init, "dtype": torch.float32, "device": "cpu"}
    module = seedvr.NaDiT(**SIZES, **BLOCKS, **made)
    state = checkpoints.randomise(module, 400)
    for name, value in module.state_dict().items():
        if name.endswith("freqs"):
            state[name] = value
        elif ".ada." in name:
            state[name] = 1 + state[name]
    return state


def autoencoder():
    """The state dict of a thin VAE."""
    import comfy.ldm.seedvr.vae as vae

    with mock.patch.object(vae, "BYTEDANCE_BLOCK_OUT_CHANNELS", WIDTHS):
        return checkpoints.randomise(vae.VideoAutoencoderKLWrapper(), 401)


if __name__ == "__main__":
    models = Path(sys.argv[1]).resolve()
    checkpoints.start_host(Path.cwd())
    if importlib.util.find_spec("comfy.ldm.seedvr") is not None:
        from safetensors.torch import save_file

        made = {
            "diffusion_models/tiny_seedvr2_3b": transformer,
            "vae/tiny_seedvr2_vae": autoencoder,
        }
        for name, make in made.items():
            path = models / f"{name}.safetensors"
            path.parent.mkdir(parents=True, exist_ok=True)
            save_file({key: x.contiguous().clone() for key, x in make().items()}, path)
