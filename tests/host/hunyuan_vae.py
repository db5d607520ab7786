"""A small random VAE in HunyuanVideo's latent space.

The host fixes the width of HunyuanVideo's own VAE, 250 million parameters; its tiny autoencoder in
half precision stands in for the same latents. Run in the host's folder with its Python:

    python tests/host/hunyuan_vae.py FILE
"""

import os
import sys

target = os.path.abspath(sys.argv[1])
sys.argv = [sys.argv[0], "--cpu"]
sys.path.insert(0, os.getcwd())

import comfy.options  # noqa: E402

comfy.options.enable_args_parsing()

import torch  # noqa: E402
from comfy.taesd.taehv import TAEHV  # noqa: E402
from safetensors.torch import save_file  # noqa: E402

generator = torch.Generator().manual_seed(0)
state = {
    name: (torch.randn(value.shape, generator=generator) * value[0].numel() ** -0.5).half()
    for name, value in TAEHV(latent_channels=16).state_dict().items()
}
save_file(state, target)
