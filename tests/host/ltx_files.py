"""Tiny files of LTX-Video, and of LTX-2.x for the workflows: models, LoRA, autoencoders, upsampler.

The autoencoders are the host's classes with few channels; LTX-2.5's own video decoder, which is a
diffusion model, is not among them: the one of LTX-2.3 has the same latents. In the host's folder:

    python ltx_files.py MODELS
"""

import importlib.util
import json
import sys
from pathlib import Path

import av_models
import checkpoints
import torch

VIDEO_VAE = {
    "_class_name": "CausalVideoAutoencoder", "dims": 3, "in_channels": 3, "out_channels": 3,
    "latent_channels": 128, "norm_layer": "pixel_norm", "patch_size": 4,
    "latent_log_var": "uniform", "causal_decoder": False, "spatial_padding_mode": "zeros",
    "encoder_base_channels": 16, "decoder_base_channels": 16,
    "blocks": [["compress_all", 1], ["compress_all", 1], ["compress_all", 1], ["res_x", 1]],
}  # fmt: skip
AUDIO_VAE = {
    "model": {
        "params": {
            "sampling_rate": 16000,
            "ddconfig": {
                "double_z": True, "mel_bins": 64, "z_channels": 8, "resolution": 256,
                "downsample_time": False, "in_channels": 2, "out_ch": 2, "ch": 8,
                "ch_mult": [1, 2, 4], "num_res_blocks": 1, "attn_resolutions": [], "dropout": 0.0,
                "mid_block_add_attention": False, "norm_type": "pixel",
                "causality_axis": "height",
            },
        }
    },
    "preprocessing": {"stft": {"filter_length": 1024, "hop_length": 160}},
}  # fmt: skip
VOCODER = {
    "resblock_kernel_sizes": [3], "resblock_dilation_sizes": [[1, 3, 5]],
    "upsample_rates": [5, 4, 2, 2, 2], "upsample_kernel_sizes": [16, 16, 8, 4, 4],
    "upsample_initial_channel": 64, "stereo": True, "resblock": "1",
}  # fmt: skip
LTX_VIDEO = {
    "num_attention_heads": 1, "attention_head_dim": 32, "cross_attention_dim": 32,
    "caption_channels": av_models.TEXT, "num_layers": 1,
}  # fmt: skip
"""The first LTX, of video alone, which hosts since 0.8.0 have. Its VAE works on a sixteenth of the
pixels, and its model has a quarter of Wan's tokens: the cheapest way to 1080p."""
UPSAMPLER = {"in_channels": 128, "mid_channels": 32, "num_blocks_per_stage": 1, "dims": 3}
SOUND = {"audio_vae": AUDIO_VAE, "vocoder": VOCODER}


def with_statistics(state):
    """Set the mean and deviation of latents to 0 and 1."""
    for key, value in state.items():
        if key.endswith("std-of-means"):
            state[key] = torch.ones_like(value)
        if key.endswith("mean-of-means"):
            state[key] = torch.zeros_like(value)
    return state


def video_vae():
    from comfy.ldm.lightricks.vae.causal_video_autoencoder import VideoVAE

    return with_statistics(av_models.drawn(VideoVAE(config=VIDEO_VAE), 470))


def ltx_video():
    import comfy.ops
    from comfy.ldm.lightricks.model import LTXVModel

    made = {"operations": comfy.ops.disable_weight_init, "dtype": torch.float32, "device": "cpu"}
    return checkpoints.randomise(LTXVModel(**LTX_VIDEO, **made), 473)


def audio_vae():
    """The state dict of autoencoder and vocoder: keys autoencoder.* and vocoder.*."""
    from comfy.ldm.lightricks.vae.audio_vae import AudioVAE

    module = AudioVAE(metadata={"config": json.dumps(SOUND)})
    return with_statistics(av_models.drawn(module, 471))


def upsampler():
    import comfy.ops
    from comfy.ldm.lightricks.latent_upsampler import LatentUpsampler

    module = LatentUpsampler.from_config(UPSAMPLER, operations=comfy.ops.disable_weight_init)
    return av_models.drawn(module, 472)


def checkpoint():
    """All of LTX-2.3 in one state dict, as it is published."""
    names = {"autoencoder.": "audio_vae.", "vocoder.": "vocoder."}
    sound = audio_vae()
    parts = {f"vae.{key}": value for key, value in video_vae().items()}
    for old, new in names.items():
        parts |= {new + k.removeprefix(old): v for k, v in sound.items() if k.startswith(old)}
    model = av_models.network("tiny_ltx23").state_dict()
    return parts | {f"model.diffusion_model.{key}": value for key, value in model.items()}


def lora(rank=4):
    """The state dict of a LoRA on the self-attention of the tiny LTX-2.3."""
    generator, width = torch.Generator().manual_seed(473), av_models.LTX["cross_attention_dim"]
    state = {}
    for layer in range(av_models.LTX["num_layers"]):
        name = f"diffusion_model.transformer_blocks.{layer}.attn1.to_q"
        state[f"{name}.lora_down.weight"] = torch.randn(rank, width, generator=generator) * 0.1
        state[f"{name}.lora_up.weight"] = torch.randn(width, rank, generator=generator) * 0.1
        state[f"{name}.alpha"] = torch.tensor(float(rank))
    return state


def write_video(models):
    """Write LTX-Video and its VAE, below a folder laid out like the host's `models`."""
    made = {
        "diffusion_models/tiny_ltx_video": (ltx_video(), {"transformer": LTX_VIDEO}),
        "vae/tiny_ltx_video_vae": (video_vae(), {"vae": VIDEO_VAE}),
    }
    _write(models, made)


def write_all(models):
    """Write what the workflows of LTX-2.x need beside it."""
    av_models.write("tiny_ltx25", models / "diffusion_models")
    everything = {"transformer": av_models.LTX, "vae": VIDEO_VAE} | SOUND
    made = {
        "checkpoints/tiny_ltx23": (checkpoint(), everything),
        "loras/tiny_ltx_lora": (lora(), {}),
        "vae/tiny_ltx_audio_vae": (audio_vae(), SOUND),
        "latent_upscale_models/tiny_ltx_upsampler": (upsampler(), UPSAMPLER),
    }
    _write(models, made)


def _write(models, made):
    from safetensors.torch import save_file

    for name, (state, config) in made.items():
        path = models / f"{name}.safetensors"
        path.parent.mkdir(parents=True, exist_ok=True)
        tensors = {key: value.contiguous() for key, value in state.items()}
        save_file(tensors, path, metadata={"config": json.dumps(config)})


if __name__ == "__main__":
    target = Path(sys.argv[1]).resolve()
    checkpoints.start_host(Path.cwd())
    write_video(target)
    if importlib.util.find_spec("comfy.ldm.minimax") is not None:
        write_all(target)
