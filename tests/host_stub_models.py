"""The loading half of the fake host: its model base class, its layers, what calls go through.

Installed by host_stub.py. The layers cast their weights to what they are given, as the host's do
when weights and activations differ in dtype.
"""

from enum import Enum
from pathlib import Path
from types import SimpleNamespace

from safetensors import safe_open
from torch import nn
from torch.nn import functional as F


class Blank:
    """Layers are born empty: what they hold comes from a file."""

    def reset_parameters(self):
        pass


class Linear(Blank, nn.Linear):
    def forward(self, x):
        return F.linear(x, self.weight.to(x), self.bias.to(x))


class Conv3d(Blank, nn.Conv3d):
    def forward(self, x):
        return self._conv_forward(x, self.weight.to(x), self.bias.to(x))


class LayerNorm(Blank, nn.LayerNorm):
    def forward(self, x):
        own = [p if p is None else p.to(x) for p in (self.weight, self.bias)]
        return F.layer_norm(x, self.normalized_shape, *own, self.eps)


class RMSNorm(Blank, nn.RMSNorm):
    def forward(self, x):
        own = self.weight if self.weight is None else self.weight.to(x)
        return F.rms_norm(x, self.normalized_shape, own, self.eps)


OPERATIONS = SimpleNamespace(Linear=Linear, Conv3d=Conv3d, LayerNorm=LayerNorm, RMSNorm=RMSNorm)


class ModelType(Enum):
    EPS, FLOW = 1, 6


class BaseModel(nn.Module):
    def __init__(self, model_config, model_type=ModelType.EPS, device=None, unet_model=None):
        super().__init__()
        self.latent_format, self.model_config = model_config.latent_format, model_config
        self.model_type, self.manual_cast_dtype = model_type, model_config.manual_cast_dtype
        settings = {**model_config.unet_config, "device": device, "operations": OPERATIONS}
        self.diffusion_model = unet_model(**settings).requires_grad_(False).eval()

    def get_dtype(self):
        return self.diffusion_model.dtype

    def process_latent_in(self, latent):
        return self.latent_format.process_in(latent)

    def process_latent_out(self, latent):
        return self.latent_format.process_out(latent)

    def extra_conds(self, **kwargs):
        return {"c_crossattn": "repeated to a common length"}

    def load_model_weights(self, sd, unet_prefix=""):
        self.diffusion_model.load_state_dict(sd)


class Supported:
    unet_extra_config = {"num_heads": -1}
    latent_format = type("LatentFormat", (), {})
    quant_config = custom_operations = manual_cast_dtype = None

    def __init__(self, unet_config):
        self.unet_config = {**unet_config, **self.unet_extra_config}
        self.latent_format = self.latent_format()

    def set_inference_dtype(self, dtype, manual_cast_dtype):
        self.unet_config["dtype"], self.manual_cast_dtype = dtype, manual_cast_dtype


class WanModel(nn.Module):
    """The sizes of a Wan; the fake runs none."""

    def __init__(self, dim, num_heads, dtype, **settings):
        super().__init__()
        self.dim, self.num_heads, self.dtype = dim, num_heads, dtype
        self.patch_size, self.ref_conv = (1, 2, 2), None

    def load_state_dict(self, state_dict):
        pass


class WanSupport(Supported):
    unet_extra_config = {}

    def get_model(self, state_dict, prefix="", device=None):
        return BaseModel(self, ModelType.FLOW, device=device, unet_model=WanModel)


def unet_prefix_from_state_dict(state_dict):
    return "model."


def model_config_from_unet(state_dict, unet_key_prefix, use_base_if_no_match=False, metadata=None):
    """What the fake finds out about a file: whether it is a Wan, by the rule of the host."""
    if "head.modulation" in state_dict:
        dim = state_dict["head.modulation"].shape[-1]
        return WanSupport({"dim": dim, "num_heads": dim // 128})
    return None


READ = []
"""Paths of the files that were read whole."""


def load_torch_file(ckpt, safe_load=False, device=None, return_metadata=False):
    READ.append(ckpt)
    with safe_open(ckpt, "pt") as file:
        state = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        return (state, file.metadata()) if return_metadata else state


class WrapperExecutor:
    """Calls wrappers outermost first, each with the rest as its `executor`."""

    def __init__(self, original, class_obj, wrappers, idx):
        self.original, self.class_obj, self.wrappers, self.idx = original, class_obj, wrappers, idx

    @classmethod
    def new_class_executor(cls, original, class_obj, wrappers, idx=0):
        return cls(original, class_obj, wrappers, idx)

    def execute(self, *args, **kwargs):
        if self.idx == len(self.wrappers):
            return self.original(*args, **kwargs)
        return self.wrappers[self.idx](self, *args, **kwargs)

    def __call__(self, *args, **kwargs):
        rest = WrapperExecutor(self.original, self.class_obj, self.wrappers, self.idx + 1)
        return rest.execute(*args, **kwargs)


def get_all_wrappers(wrapper_type, transformer_options, is_model_options=False):
    if is_model_options:
        transformer_options = transformer_options.get("transformer_options", {})
    keyed = transformer_options.get("wrappers", {}).get(wrapper_type, {})
    return [wrapper for wrappers in keyed.values() for wrapper in wrappers]


def pad_to_patch_size(img, patch_size=(2, 2), padding_mode="circular"):
    sizes = zip(img.shape[:1:-1], patch_size[::-1], strict=True)
    pad = [side for size, cells in sizes for side in (0, -size % cells)]
    return F.pad(img, pad, mode=padding_mode)


def optimized_attention(
    q, k, v, heads, mask=None, attn_precision=None, skip_reshape=False, skip_output_reshape=False,
    **kwargs,
):  # fmt: skip
    override = (kwargs.get("transformer_options") or {}).get("optimized_attention_override")
    if override is not None and "_inside_attn_wrapper" not in kwargs:
        how = {
            "mask": mask, "attn_precision": attn_precision, "skip_reshape": skip_reshape,
            "skip_output_reshape": skip_output_reshape, "_inside_attn_wrapper": True,
        }  # fmt: skip
        return override(optimized_attention, q, k, v, heads, **(how | kwargs))
    if not skip_reshape:
        q, k, v = (x.unflatten(-1, (heads, -1)).transpose(1, 2) for x in (q, k, v))
    out = F.scaled_dot_product_attention(q, k, v, attn_mask=mask)
    return out if skip_output_reshape else out.transpose(1, 2).flatten(-2)


class CONDRegular:
    def __init__(self, cond):
        self.cond = cond


def dtype_size(dtype):
    return dtype.itemsize


def sage_attention_enabled():
    return False


def get_filename_list(folder_name):
    return []


def get_full_path_or_raise(folder_name, filename):
    if not Path(filename).is_file():
        raise FileNotFoundError(f"Model in folder '{folder_name}' with filename '{filename}'")
    return filename


def contents(formats):
    """Module name -> members, parents first, for host_stub.install; formats by channels."""
    WanSupport.latent_format = formats[16]
    return {
        "comfy.conds": {"CONDRegular": CONDRegular},
        "comfy.latent_formats": {kind.__name__: kind for kind in formats.values()},
        "comfy.ldm": {},
        "comfy.ldm.common_dit": {"pad_to_patch_size": pad_to_patch_size},
        "comfy.ldm.modules": {},
        "comfy.ldm.modules.attention": {"optimized_attention": optimized_attention},
        "comfy.model_base": {"BaseModel": BaseModel, "ModelType": ModelType},
        "comfy.model_detection": {
            "unet_prefix_from_state_dict": unet_prefix_from_state_dict,
            "model_config_from_unet": model_config_from_unet,
        },
        "comfy.model_management": {
            "dtype_size": dtype_size, "sage_attention_enabled": sage_attention_enabled,
        },
        "comfy.patcher_extension": {
            "WrapperExecutor": WrapperExecutor, "get_all_wrappers": get_all_wrappers,
        },
        "comfy.supported_models_base": {"BASE": Supported},
        "comfy.utils": {"load_torch_file": load_torch_file},
        "folder_paths": {
            "get_filename_list": get_filename_list,
            "get_full_path_or_raise": get_full_path_or_raise,
        },
    }  # fmt: skip
