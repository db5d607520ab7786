"""The host in this process, and its own models with random weights: no file, no download.

Nothing is imported from the host before `enter`.
"""

import importlib.util
import math
import os
import shlex
import sys
from dataclasses import fields
from pathlib import Path
from typing import Any

import torch
from torch import nn

from surf_core.cost import ModelShape
from surf_core.refiner import RefinerConfig

ROOT = Path(__file__).resolve().parents[3]


def enter(name: str, options: str = "") -> str | None:
    """Make the host in COMFYUI_PATH importable, and the pack as `surf`, as the host loads it.

    Args:
        name: of the benchmark, to say what it needs.
        options: of the host's command line.

    Returns:
        The host's version; None without a host.
    """
    folder = os.environ.get("COMFYUI_PATH")
    if not folder:
        print(f"{name}: not run: set COMFYUI_PATH to a ComfyUI checkout, and use the Python of it.")
        return None
    # As on a GPU; by itself the host takes another attention on a CPU.
    more = [] if torch.cuda.is_available() else ["--cpu", "--use-pytorch-cross-attention"]
    command, sys.argv = sys.argv, [sys.argv[0], *more, *shlex.split(options)]
    # The pack's folder holds `nodes`, which is a module of the host as well.
    sys.path[:] = [path for path in sys.path if Path(path).resolve() != ROOT]
    sys.path.insert(0, folder)
    import comfy.options

    comfy.options.enable_args_parsing()
    import comfy.cli_args
    import comfy.utils
    import comfyui_version

    sys.argv = command

    comfy.utils.set_progress_bar_enabled(False)
    spec = importlib.util.spec_from_file_location("surf", ROOT / "__init__.py")
    spec.submodule_search_locations = [str(ROOT)]
    sys.modules["surf"] = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(sys.modules["surf"])
    return comfyui_version.__version__


def wan(shape: ModelShape, dtype: torch.dtype) -> Any:
    """Build Wan 2.1 T2V of any size as a MODEL of the host."""
    import comfy.supported_models

    config = {
        "image_model": "wan2.1", "model_type": "t2v", "dim": shape.dim, "ffn_dim": shape.ffn_dim,
        "num_heads": shape.heads, "num_layers": shape.layers, "in_dim": 16, "out_dim": 16,
        "text_dim": shape.text_dim, "freq_dim": shape.freq_dim, "patch_size": shape.patch,
        "window_size": (-1, -1), "qk_norm": True, "cross_attn_norm": True, "eps": 1e-6,
    }  # fmt: skip
    return patcher(comfy.supported_models.WAN21_T2V(config), dtype)


def hunyuan(shape: ModelShape, dtype: torch.dtype) -> Any:
    """Build HunyuanVideo as a MODEL of the host: a third of its blocks are two-stream."""
    import comfy.supported_models

    config = {
        "image_model": "hunyuan_video", "in_channels": 16, "out_channels": 16, "vec_in_dim": 768,
        "context_in_dim": shape.text_dim, "hidden_size": shape.dim,
        "mlp_ratio": shape.ffn_dim / shape.dim, "num_heads": shape.heads,
        "depth": shape.layers // 3, "depth_single_blocks": shape.layers - shape.layers // 3,
        "axes_dim": [16, 56, 56], "theta": 256, "patch_size": list(shape.patch),
        "qkv_bias": True, "guidance_embed": True, "byt5": False, "meanflow": False,
        "use_cond_type_embedding": False, "vision_in_dim": None, "meanflow_sum": False,
    }  # fmt: skip
    return patcher(comfy.supported_models.HunyuanVideo(config), dtype)


def surf(config: RefinerConfig, dtype: torch.dtype) -> Any:
    """Build our refiner as a MODEL, through the classes that its loader hands to the host."""
    from surf.nodes.host.refiner.loading import (
        ATTENTION_KEY,
        HOST_ATTENTION,
        TRAITS_KEY,
        RefinerTraits,
    )
    from surf.nodes.host.refiner.model import RefinerSupport

    model = patcher(RefinerSupport(config), dtype)
    model.model_options["transformer_options"][ATTENTION_KEY] = HOST_ATTENTION
    fixed = {each.name: getattr(config, each.name) for each in fields(RefinerTraits)}
    model.set_attachments(TRAITS_KEY, RefinerTraits(**fixed))
    return model


def patcher(support: Any, dtype: torch.dtype) -> Any:
    """Load a model on its device in the host's patcher, with random weights."""
    import comfy.model_management as management
    import comfy.model_patcher

    support.set_inference_dtype(dtype, None)
    offload = management.unet_offload_device()
    network = support.get_model({}, "", device=offload)
    kind = getattr(comfy.model_patcher, "CoreModelPatcher", comfy.model_patcher.ModelPatcher)
    model = kind(network, load_device=management.get_torch_device(), offload_device=offload)
    management.load_models_gpu([model])
    randomise(network.diffusion_model)
    return model


def vae(width: int) -> Any:
    """Build Wan 2.1's VAE in the host's wrapper; the real one is 96 channels wide."""
    import comfy.ldm.wan.vae
    import comfy.sd

    module = comfy.ldm.wan.vae.WanVAE(
        dim=width, z_dim=16, dim_mult=[1, 2, 4, 4], num_res_blocks=2, attn_scales=[],
        temperal_downsample=[False, True, True], dropout=0.0,
    )  # fmt: skip
    randomise(module)
    return comfy.sd.VAE(sd=module.state_dict())


def randomise(module: nn.Module) -> None:
    """Write every weight: layers of the host start with whatever the memory held."""
    generators = {}
    for name, weight in module.named_parameters():
        if weight.device not in generators:
            generators[weight.device] = torch.Generator(weight.device).manual_seed(0)
        if name.endswith((".gamma", ".scale")) or ("norm" in name and name.endswith("weight")):
            weight.data.fill_(1)
            continue
        fan = weight.shape[-1] if "modulation" in name else math.prod(weight.shape[1:])
        std = 0.02 if weight.ndim < 2 else fan**-0.5
        weight.data.normal_(std=std, generator=generators[weight.device])


def prompts(shape: ModelShape) -> tuple[list, list]:
    """Draw positive and negative conditioning of the right shapes."""
    generator = torch.Generator().manual_seed(1)

    def one() -> list:
        text = torch.randn(1, shape.text_tokens, shape.text_dim, generator=generator)
        pooled = torch.randn(1, 768, generator=generator)
        more = {"pooled_output": pooled, "guidance": 6.0} if shape.joint_text else {}
        return [[text, more]]

    return one(), one()
