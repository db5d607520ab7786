"""The loading half of the fake host: its model base class, its layers, what calls go through.

Installed by host_stub.py. The layers cast their weights to what they are given, as the host's do
when weights and activations differ in dtype.
"""

from enum import Enum
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
    FLOW = 6


class BaseModel(nn.Module):
    def __init__(self, model_config, model_type, device=None, unet_model=None):
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

    def load_model_weights(self, state, prefix=""):
        self.diffusion_model.load_state_dict(state)


class Supported:
    unet_extra_config = {"num_heads": -1}
    latent_format = type("LatentFormat", (), {})
    quant_config = custom_operations = manual_cast_dtype = None

    def __init__(self, unet_config):
        self.unet_config = {**unet_config, **self.unet_extra_config}
        self.latent_format = self.latent_format()

    def set_inference_dtype(self, dtype, manual_cast_dtype):
        self.unet_config["dtype"], self.manual_cast_dtype = dtype, manual_cast_dtype


def unet_prefix_from_state_dict(state):
    return "model."


def model_config_from_unet(state, prefix, metadata=None):
    """What the fake finds out about a file: nothing."""


READ = []
"""Paths of the files that were read whole."""


def load_torch_file(path, safe_load=False, return_metadata=False):
    READ.append(path)
    with safe_open(path, "pt") as file:
        state = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        return (state, file.metadata()) if return_metadata else state


class WrapperExecutor:
    """Calls wrappers outermost first, each with the rest as its `executor`."""

    def __init__(self, original, class_obj, wrappers):
        self.original, self.class_obj, self.wrappers = original, class_obj, wrappers

    @classmethod
    def new_class_executor(cls, original, class_obj, wrappers):
        return cls(original, class_obj, wrappers)

    def execute(self, *args, **kwargs):
        if not self.wrappers:
            return self.original(*args, **kwargs)
        rest = WrapperExecutor(self.original, self.class_obj, self.wrappers[1:])
        return self.wrappers[0](rest, *args, **kwargs)

    __call__ = execute


def get_all_wrappers(kind, options):
    return [w for keyed in options.get("wrappers", {}).get(kind, {}).values() for w in keyed]


def pad_to_patch_size(x, patch):
    sizes = zip(x.shape[:1:-1], patch[::-1], strict=True)
    pad = [side for size, step in sizes for side in (0, -size % step)]
    return F.pad(x, pad, mode="circular")


def optimized_attention(q, k, v, heads, mask=None, transformer_options=None, **kwargs):
    override = (transformer_options or {}).get("optimized_attention_override")
    if override is not None and "_inside_attn_wrapper" not in kwargs:
        more = {"transformer_options": transformer_options, "_inside_attn_wrapper": True}
        return override(optimized_attention, q, k, v, heads, mask=mask, **more)
    q, k, v = (x.view(*x.shape[:2], heads, -1).transpose(1, 2) for x in (q, k, v))
    return F.scaled_dot_product_attention(q, k, v, attn_mask=mask).transpose(1, 2).flatten(-2)


def contents(formats):
    """Module name -> members, parents first, for host_stub.install; formats by channels."""
    return {
        "comfy.conds": {"CONDRegular": lambda cond: SimpleNamespace(cond=cond)},
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
            "dtype_size": lambda dtype: dtype.itemsize,
            "sage_attention_enabled": lambda: False,
        },
        "comfy.patcher_extension": {
            "WrapperExecutor": WrapperExecutor, "get_all_wrappers": get_all_wrappers,
        },
        "comfy.supported_models_base": {"BASE": Supported},
        "comfy.utils": {"load_torch_file": load_torch_file},
        "folder_paths": {
            "get_filename_list": lambda folder: [],
            "get_full_path_or_raise": lambda folder, name: name,
        },
    }  # fmt: skip
