"""Tiny random checkpoints that the real host loads as Wan, HunyuanVideo, their VAEs and LoRAs.

Built from the host's own classes, so that keys and shapes are right for its version. Run with the
host's folder as the working directory and its Python:

    python tests/host/checkpoints.py MODELS_DIR

The layers of the host are born with uninitialised memory: every parameter is written here.
"""

import math
import sys
from pathlib import Path
from unittest import mock

import torch

DIM = 128  # the host counts heads as DIM // 128
WAN = {"dim": DIM, "ffn_dim": 256, "num_heads": 1, "num_layers": 2, "qk_norm": True}
# Name -> (class in comfy.ldm.wan.model, arguments).
WAN_KINDS = {
    "tiny_wan_t2v": ("WanModel", {"model_type": "t2v"}),
    "tiny_wan_high_noise": ("WanModel", {"model_type": "t2v"}),
    "tiny_wan_low_noise": ("WanModel", {"model_type": "t2v"}),
    "tiny_wan_i2v": ("WanModel", {"model_type": "i2v", "in_dim": 36}),
    "tiny_wan22_i2v": ("WanModel", {"model_type": "t2v", "in_dim": 36}),
    "tiny_wan22_i2v_low_noise": ("WanModel", {"model_type": "t2v", "in_dim": 36}),
    "tiny_wan22_5b": ("WanModel", {"model_type": "t2v", "in_dim": 48, "out_dim": 48}),
    "tiny_wan_ref": ("WanModel", {"model_type": "t2v", "in_dim_ref_conv": 16}),
    "tiny_wan_vace": ("VaceWanModel", {"vace_layers": 1, "vace_in_dim": 96}),
}
CONTROL = "tiny_wan_control"
"""A Wan that takes a second latent beside its own."""
HUNYUAN = {
    "in_channels": 16, "out_channels": 16, "vec_in_dim": 768, "context_in_dim": 64,
    "hidden_size": 128, "mlp_ratio": 4.0, "num_heads": 1, "depth": 1, "depth_single_blocks": 1,
    "axes_dim": [16, 56, 56], "theta": 256, "patch_size": [1, 2, 2], "qkv_bias": True,
    "guidance_embed": True, "byt5": False, "meanflow": False, "use_cond_type_embedding": False,
    "vision_in_dim": None, "meanflow_sum": False,
}  # fmt: skip
HUNYUAN_15 = HUNYUAN | {
    "in_channels": 65, "out_channels": 32, "patch_size": [1, 1, 1], "vec_in_dim": None,
    "guidance_embed": False, "byt5": True, "use_cond_type_embedding": True, "vision_in_dim": 1152,
    "meanflow_sum": True,
}  # fmt: skip
HUNYUAN_KINDS = {
    "tiny_hunyuan": HUNYUAN,
    "tiny_hunyuan15": HUNYUAN_15,
    "tiny_hunyuan15_sr": HUNYUAN_15 | {"in_channels": 98, "meanflow": True},
}
NAMES = (*WAN_KINDS, *HUNYUAN_KINDS)


def randomise(module, seed):
    """Give every parameter of a module values of a sane size: {name: fp32 tensor}."""
    generator = torch.Generator().manual_seed(seed)
    state = {}
    for name, value in module.state_dict().items():
        noise = torch.randn(value.shape, generator=generator)
        if name.endswith((".gamma", ".scale")) or ("norm" in name and name.endswith("weight")):
            state[name] = torch.ones(value.shape)
        elif value.ndim < 2:
            state[name] = noise * 0.02
        elif "modulation" in name and value.ndim == 3:
            state[name] = noise * value.shape[-1] ** -0.5
        else:
            state[name] = noise * math.prod(value.shape[1:]) ** -0.5
    return state


def diffusion_model(name):
    """The state dict of one of NAMES, or CONTROL."""
    import comfy.ldm.hunyuan_video.model as hunyuan
    import comfy.ldm.wan.model as wan
    import comfy.ops

    made = {"operations": comfy.ops.disable_weight_init, "dtype": torch.float32, "device": "cpu"}
    if name == CONTROL:
        module = wan.WanModel(model_type="t2v", in_dim=32, out_dim=16, **WAN, **made)
        return randomise(module, 302)
    if name in HUNYUAN_KINDS:
        module = hunyuan.HunyuanVideo(**HUNYUAN_KINDS[name], **made)
    else:
        kind, arguments = WAN_KINDS[name]
        module = getattr(wan, kind)(**{"in_dim": 16, "out_dim": 16, **WAN, **arguments}, **made)
    return randomise(module, NAMES.index(name))


def scail(kind="SCAILWanModel"):
    """The state dict of SCAIL or, with "SCAIL2WanModel", SCAIL-2; newer hosts have them."""
    import comfy.ldm.wan.model as wan
    import comfy.ops

    made = {"operations": comfy.ops.disable_weight_init, "dtype": torch.float32, "device": "cpu"}
    return randomise(getattr(wan, kind)(**WAN, in_dim=20, out_dim=16, **made), 300)


def sd3():
    """The state dict of a Stable Diffusion 3 of two blocks: an image model, latents of 16."""
    import comfy.ops
    from comfy.ldm.modules.diffusionmodules.mmdit import OpenAISignatureMMDITWrapper

    text = {"target": "torch.nn.Linear", "params": {"in_features": 4096, "out_features": 128}}
    module = OpenAISignatureMMDITWrapper(
        input_size=None, in_channels=16, depth=2, context_embedder_config=text,
        adm_in_channels=2048, pos_embed_max_size=48, num_patches=48 * 48, dtype=torch.float32,
        device="cpu", operations=comfy.ops.disable_weight_init,
    )  # fmt: skip
    return randomise(module, 301)


def wan_vae(width=8):
    """The state dict of a Wan VAE with `width` channels at its widest resolution."""
    import comfy.ldm.wan.vae

    module = comfy.ldm.wan.vae.WanVAE(
        dim=width, z_dim=16, dim_mult=[1, 2, 4, 4], num_res_blocks=2, attn_scales=[],
        temperal_downsample=[False, True, True], dropout=0.0,
    )  # fmt: skip
    return randomise(module, 100)


def wan22_vae(width=8):
    """A host's VAE of Wan 2.2 5B; the host fixes its width, which is overridden while it loads."""
    import comfy.ldm.wan.vae2_2 as wan22
    import comfy.sd

    kind = wan22.WanVAE
    with mock.patch.object(
        wan22, "WanVAE", lambda **a: kind(**a | {"dim": width, "dec_dim": width})
    ):
        small = wan22.WanVAE(
            z_dim=48, dim_mult=[1, 2, 4, 4], num_res_blocks=2, attn_scales=[],
            temperal_downsample=[False, True, True], dropout=0.0,
        )  # fmt: skip
        return comfy.sd.VAE(sd=randomise(small, 102))


def light_vae(channels):
    """The state dict of the host's tiny autoencoder: 16 channels stand for HunyuanVideo's VAE,
    whose width the host fixes, 32 for that of HunyuanVideo 1.5, 48 for that of Wan 2.2 5B.
    """
    from comfy.taesd.taehv import TAEHV

    state = randomise(TAEHV(latent_channels=channels), 101)
    # The host takes half precision for HunyuanVideo's, fp32 for Wan's.
    return {name: value.half() if channels == 16 else value for name, value in state.items()}


def upsampler():
    """The state dict of HunyuanVideo 1.5's latent upsampler to 1080p, one block."""
    sys.path.append(str(Path("comfy").resolve()))  # ComfyUI 0.8.0 imports `model_management`
    from comfy.ldm.hunyuan_video.upsampler import HunyuanVideo15SRModel

    sizes = {"z_channels": 32, "out_channels": 32, "block_out_channels": (32,)}
    return randomise(HunyuanVideo15SRModel("1080p", sizes).model, 102)


def lora(seed, rank=4):
    """The state dict of a LoRA on the self-attention of the tiny Wan models."""
    generator = torch.Generator().manual_seed(seed)
    state = {}
    for layer in range(WAN["num_layers"]):
        for part in "qkvo":
            name = f"diffusion_model.blocks.{layer}.self_attn.{part}"
            state[f"{name}.lora_down.weight"] = torch.randn(rank, DIM, generator=generator) * 0.1
            state[f"{name}.lora_up.weight"] = torch.randn(DIM, rank, generator=generator) * 0.1
            state[f"{name}.alpha"] = torch.tensor(float(rank))
    return state


def control_lora(seed, rank=4):
    """The state dict of a LoRA that lets a tiny Wan take a second latent beside its own."""
    generator = torch.Generator().manual_seed(seed)
    name, shape = "diffusion_model.patch_embedding", (DIM, 32, 1, 2, 2)
    return lora(seed, rank) | {
        f"{name}.lora_down.weight": torch.randn(rank, 32, 1, 2, 2, generator=generator) * 0.1,
        f"{name}.lora_up.weight": torch.randn(DIM, rank, 1, 1, 1, generator=generator) * 0.5,
        f"{name}.alpha": torch.tensor(float(rank)),
        f"{name}.reshape_weight": torch.tensor(shape),
    }


REFINER = {
    "dim": 144, "heads": 2, "layers": 3, "ffn_dim": 192, "window": 2, "text_dim": 64,
    "block": "scale", "time": "t", "sigma_start": 0.0,
}  # fmt: skip
"""A refiner in the shape of surf_1b: two heads of 72 channels, three blocks."""


def refiner(path, **changes):
    """Write a random refiner of ours, fp16; needs the pack, imported as `surf`.

    Args:
        changes: to REFINER; dim 128 with one head and block "wan" is an ordinary Wan file.
    """
    from surf.surf_core import checkpoint
    from surf.surf_core.refiner import RefinerConfig, SurfRefinerDiT

    config = RefinerConfig(**REFINER | changes)
    checkpoint.save(path, randomise(SurfRefinerDiT(config), 200), config, {"recipe": "random"})
    return str(path)


def start_host(folder):
    """Make the host importable in this process, on the CPU."""
    sys.argv = [sys.argv[0], "--cpu"]
    sys.path.insert(0, str(folder))
    import comfy.options

    comfy.options.enable_args_parsing()


def write_all(models):
    """Write every checkpoint below a folder laid out like the host's `models`."""
    from safetensors.torch import save_file

    wanted = {f"diffusion_models/{name}": lambda name=name: diffusion_model(name) for name in NAMES}
    wanted["vae/tiny_wan_vae"] = wan_vae
    for name, channels in (("hunyuan", 16), ("hunyuan15", 32), ("wan22", 48)):
        wanted[f"vae/tiny_{name}_vae"] = lambda channels=channels: light_vae(channels)
    wanted["latent_upscale_models/tiny_hunyuan15_upsampler"] = upsampler
    wanted[f"diffusion_models/{CONTROL}"] = lambda: diffusion_model(CONTROL)
    wanted["loras/tiny_wan_control_lora"] = lambda: control_lora(105)
    wanted["loras/tiny_wan_lora_high_noise"] = lambda: lora(103)
    wanted["loras/tiny_wan_lora_low_noise"] = lambda: lora(104)
    for name, make in wanted.items():
        path = Path(models) / f"{name}.safetensors"
        path.parent.mkdir(parents=True, exist_ok=True)
        save_file({key: value.contiguous() for key, value in make().items()}, path)
        print(path, path.stat().st_size)


if __name__ == "__main__":
    target = Path(sys.argv[1]).resolve()
    start_host(Path.cwd())
    write_all(target)
