"""The smallest honest fake of the host: what the nodes touch, with the host's own arithmetic.

It samples a model function with Euler over a flow schedule, so the engine can be tested where no
ComfyUI is installed. It is no part of the pack; against the real host runs tests/host.
"""

import copy
import importlib.util
import sys
from dataclasses import dataclass, field
from pathlib import Path
from types import ModuleType, SimpleNamespace

import torch
from torch.nn import functional as F


class Input:
    io_type = ""

    def __init__(
        self, id, display_name=None, optional=False, tooltip=None, extra_dict=None, advanced=None,
        default=None, options=None, min=None, max=None, step=None, round=None,
        control_after_generate=None,
    ):  # fmt: skip
        self.__dict__.update({k: v for k, v in locals().items() if k != "self"})

    def get_io_type(self):
        return self.io_type


class Output:
    io_type = ""

    def __init__(self, id=None, display_name=None, tooltip=None, is_output_list=False):
        self.id, self.display_name, self.tooltip = id, display_name or id, tooltip

    def get_io_type(self):
        return self.io_type


def socket(io_type):
    kinds = {"Input": Input, "Output": Output}
    return SimpleNamespace(**{n: type(n, (k,), {"io_type": io_type}) for n, k in kinds.items()})


@dataclass
class Schema:
    node_id: str
    display_name: str = None
    category: str = "sd"
    inputs: list = field(default_factory=list)
    outputs: list = field(default_factory=list)
    description: str = ""
    is_experimental: bool = False


class NodeOutput:
    def __init__(self, *args, ui=None):
        self.args, self.ui = args, ui


class DiscreteFlow(torch.nn.Module):
    def __init__(self, model_config=None):
        super().__init__()
        self.set_parameters()

    def set_parameters(self, shift=1.0, timesteps=1000, multiplier=1000):
        self.shift, self.multiplier = shift, multiplier
        t = torch.arange(1, timesteps + 1) / timesteps
        self.register_buffer("sigmas", shift * t / (1 + (shift - 1) * t))


class Const:
    def noise_scaling(self, sigma, noise, latent):
        return sigma * noise + (1 - sigma) * latent

    def inverse_noise_scaling(self, sigma, latent):
        return latent / (1 - sigma)


class Eps:
    pass


class FluxSampling(torch.nn.Module):
    """A schedule whose shift is another thing: not to be set by us."""

    sigmas = torch.linspace(0.001, 1, 1000)


class Interrupted(BaseException):
    """What the host raises when the user stops a run."""


class Wan21:
    """Statistics of one number in place of sixteen."""

    latent_channels, latent_dimensions = 16, 3

    def process_in(self, latent):
        return (latent - 0.25) * 2

    def process_out(self, latent):
        return latent / 2 + 0.25


FORMATS = {16: Wan21, 48: type("Wan22", (), {})}


class Patcher:
    """A MODEL: velocity (x, sigma, cond) -> v, and a record of every evaluation."""

    def __init__(self, channels=16, velocity=None, kind=(DiscreteFlow, Const), base=object):
        self.load_device = torch.device("cpu")
        self.model = type("Network", (base,), {})()
        self.model.diffusion_model = SimpleNamespace(patch_size=(1, 2, 2), ref_conv=None)
        self.model.latent_format = FORMATS.setdefault(channels, type("Other", (), {}))()
        self.model.latent_format.latent_channels = channels
        self.model.latent_format.latent_dimensions = 3
        self.model.process_latent_in = Wan21().process_in
        self.model.process_latent_out = Wan21().process_out
        self.model.memory_required = lambda shape: 0
        self.model.model_sampling = type("Sampling", kind, {})()
        self.velocity = velocity or (lambda x, sigma, cond: x + cond)
        self.model_options, self.wrappers, self.patches, self.seen = {}, {}, {}, []
        self.attachments = {}

    def clone(self):
        new = copy.copy(self)
        new.patches = dict(self.patches)
        new.wrappers = {kind: dict(keys) for kind, keys in self.wrappers.items()}
        new.model_options = copy.deepcopy(self.model_options)
        return new

    def add_object_patch(self, name, value):
        self.patches[name] = value

    def get_model_object(self, name):
        return self.patches.get(name) or getattr(self.model, name)

    def get_attachment(self, name):
        return self.attachments.get(name)

    def set_attachments(self, name, value):
        self.attachments[name] = value

    def add_wrapper_with_key(self, kind, key, wrapper):
        self.wrappers.setdefault(kind, {}).setdefault(key, []).append(wrapper)

    def remove_wrappers_with_key(self, kind, key):
        self.wrappers.get(kind, {}).pop(key, None)

    def set_model_sampler_post_cfg_function(self, function):
        self.model_options["post_cfg"] = function

    def set_model_unet_function_wrapper(self, function):
        self.model_options["model_function_wrapper"] = function

    def model_size(self):
        return 0


class LoadedPatcher(Patcher):
    """A MODEL that was read from a file: its network is a real one."""

    def __init__(self, model):
        super().__init__()
        self.model, self.model_options = model, {"transformer_options": {}}


class KSampler:
    SAMPLERS = ["euler", "euler_ancestral", "dpm_2", "uni_pc", "uni_pc_bh2", "dpm_fast",
                "dpm_adaptive"]  # fmt: skip
    SCHEDULERS = ["simple", "normal"]

    def __init__(self, model, steps, device, sampler, scheduler, denoise, model_options):
        self.steps = int(steps / denoise)
        early = sampler in ("dpm_2", "uni_pc", "uni_pc_bh2")
        table = model.get_model_object("model_sampling").sigmas
        count = self.steps + early
        taken = [table[-(1 + int(i * len(table) / count))] for i in range(count)]
        sigmas = torch.tensor([*taken, 0.0])
        sigmas = torch.cat([sigmas[:-2], sigmas[-1:]]) if early else sigmas
        self.sigmas = sigmas[-(steps + 1) :]


def euler(model, x, sigmas, seed, callback):
    for i in range(len(sigmas) - 1):
        denoised = model(x, sigmas[i].expand(len(x)))
        callback(i, denoised, x)
        x = x + (x - denoised) / sigmas[i] * (sigmas[i + 1] - sigmas[i])
    return x


def euler_ancestral(model, x, sigmas, seed, callback):
    generator = torch.Generator().manual_seed(seed + 1)
    for i in range(len(sigmas) - 1):
        denoised = model(x, sigmas[i].expand(len(x)))
        callback(i, denoised, x)
        noise = torch.randn(x.shape, generator=generator)
        x = (1 - sigmas[i + 1]) * denoised + sigmas[i + 1] * noise
    return x


def sample_unipc(model, x, sigmas, seed, callback):
    """Keeps the two faults of the real one: blind on one interval, writes into its sigmas."""
    sigmas[-1] = 0.001 if sigmas[-1] == 0 else sigmas[-1]
    return x if len(sigmas) == 2 else euler(model, x, sigmas, seed, callback)


def dpm_fast_function(model, x, sigmas, seed, callback):
    raise AssertionError("reached the sampler")


def dpm_adaptive_function(model, x, sigmas, seed, callback):
    raise AssertionError("reached the sampler")


FUNCTIONS = {"euler": euler, "euler_ancestral": euler_ancestral, "dpm_2": euler,
             "uni_pc": sample_unipc, "uni_pc_bh2": sample_unipc, "dpm_fast": dpm_fast_function,
             "dpm_adaptive": dpm_adaptive_function}  # fmt: skip


class CFGGuider:
    def __init__(self, model):
        self.model_patcher, self.model_options = model, model.model_options
        self.original_conds, self.cfg = {}, 1.0

    def set_conds(self, positive, negative):
        self.original_conds = {"positive": positive, "negative": negative}

    def set_cfg(self, cfg):
        self.cfg = cfg

    def outer_predict_noise(self, x, timestep, model_options=None, seed=None):
        return self.predict_noise(x, timestep, model_options or {}, seed)

    def predict_noise(self, x, timestep, model_options, seed):
        patcher, sigma = self.model_patcher, timestep.view(-1, *[1] * (x.ndim - 1))
        conds = {name: cond[0][0].mean() for name, cond in self.original_conds.items()}
        patcher.seen.append(
            SimpleNamespace(size=tuple(x.shape[-2:]), sigma=timestep[0].item(), cfg=self.cfg,
                            patcher=patcher, conds=self.original_conds, mask=self.mask)
        )  # fmt: skip

        def estimate(cond):
            def apply_model(x, t, **c):
                return x - sigma * patcher.velocity(x, sigma, cond)

            wrapper = patcher.model_options.get("model_function_wrapper")
            args = {"input": x, "timestep": timestep, "c": {}}
            return wrapper(apply_model, args) if wrapper else apply_model(x, timestep)

        good, bad = (estimate(conds[name]) for name in ("positive", "negative"))
        return bad + self.cfg * (good - bad)

    def sample(
        self, noise, latent_image, sampler, sigmas, denoise_mask=None, callback=None,
        disable_pbar=False, seed=None,
    ):  # fmt: skip
        model = self.model_patcher.model
        flow = self.model_patcher.get_model_object("model_sampling")
        if torch.count_nonzero(latent_image):
            latent_image = model.process_latent_in(latent_image)
        self.mask = mask = None
        if denoise_mask is not None:
            mask = self.mask = prepare_mask(denoise_mask, noise.shape, noise.device)

        def guided(x, sigma):
            if mask is None:
                return self.outer_predict_noise(x, sigma, {}, seed)
            kept = flow.noise_scaling(sigma.view(-1, 1, 1, 1, 1), noise, latent_image)
            out = self.outer_predict_noise(x * mask + kept * (1 - mask), sigma, {}, seed)
            return out * mask + latent_image * (1 - mask)

        def tell(step, denoised, x):
            if callback is not None:
                callback(step, denoised, x, len(sigmas) - 1)

        x = flow.noise_scaling(sigmas[0], noise, latent_image)
        x = sampler.sampler_function(guided, x, sigmas, seed, tell)
        return model.process_latent_out(flow.inverse_noise_scaling(sigmas[-1], x))


def prepare_noise(latent, seed, noise_inds=None):
    generator = torch.manual_seed(seed)
    if noise_inds is None:
        return torch.randn(latent.shape, generator=generator)
    drawn = [
        torch.randn(1, *latent.shape[1:], generator=generator) for _ in range(max(noise_inds) + 1)
    ]
    return torch.cat([drawn[i] for i in noise_inds])


def prepare_mask(mask, shape, device):
    mask = mask.reshape(1, 1, -1, *mask.shape[-2:])
    return F.interpolate(mask, shape[2:], mode="trilinear").to(device)


def fix_empty_latent_channels(model, latent, downscale_ratio_spacial=None):
    channels = model.get_model_object("latent_format").latent_channels
    if latent.shape[1] != channels and not torch.count_nonzero(latent):
        latent = latent[:, :1].repeat(1, channels, *[1] * (latent.ndim - 2))
    return latent.unsqueeze(2) if latent.ndim == 4 else latent


BARS = []


class ProgressBar:
    def __init__(self, total):
        self.total, self.shown = total, []
        BARS.append(self)

    def update_absolute(self, value, total=None, preview=None):
        self.shown.append(value)


def prepare_callback(model, steps, x0_output_dict=None):
    bar = SimpleNamespace(steps=steps, shown=[])
    BARS.append(bar)
    return lambda step, x0, x, total: bar.shown.append((step + 1, total))


def load_beside(file, name):
    """Import a file beside this one under another name."""
    spec = importlib.util.spec_from_file_location(name, Path(__file__).with_name(file))
    module = sys.modules[name] = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def install():
    """Put the fakes where imports look for the host, unless the host itself is there."""
    if importlib.util.find_spec("comfy") is not None:
        return
    types = {"Int": "INT", "Float": "FLOAT", "Combo": "COMBO", "Boolean": "BOOLEAN"}
    types |= {n: n.upper() for n in ("Model", "Conditioning", "Latent", "Guider", "Vae", "String")}
    types["Image"] = "IMAGE"
    for kind in (Const, Eps, DiscreteFlow, FluxSampling):
        kind.__module__ = "comfy.model_sampling"
    sampled = lambda name: SimpleNamespace(sampler_function=FUNCTIONS[name])  # noqa: E731
    io = SimpleNamespace(
        Schema=Schema, NodeOutput=NodeOutput, ComfyNode=object, Input=Input, Output=Output,
        Custom=socket, FolderType=SimpleNamespace(temp="temp"),
        **{name: socket(io_type) for name, io_type in types.items()},
    )  # fmt: skip
    cpu = lambda: torch.device("cpu")  # noqa: E731
    contents = {
        "comfy": {},
        "comfy.model_base": {"HunyuanVideo": type("HunyuanVideo", (), {})},
        "comfy.model_management": {
            "intermediate_device": cpu,
            "get_total_memory": lambda device: 2**40,
            "get_free_memory": lambda device: 2**40,
            "soft_empty_cache": lambda: None,
            "OOM_EXCEPTION": torch.OutOfMemoryError,
            "get_torch_device": cpu,
            "free_memory": lambda needed, device: None,
            "throw_exception_if_processing_interrupted": lambda: None,
        },
        "comfy.model_sampling": {"CONST": Const, "ModelSamplingDiscreteFlow": DiscreteFlow},
        "comfy.sample": {
            "prepare_noise": prepare_noise,
            "fix_empty_latent_channels": fix_empty_latent_channels,
        },
        "comfy.samplers": {"CFGGuider": CFGGuider, "KSampler": KSampler, "sampler_object": sampled},
        "comfy.sampler_helpers": {"prepare_mask": prepare_mask},
        "comfy.utils": {"PROGRESS_BAR_ENABLED": False, "ProgressBar": ProgressBar},
        "comfy.patcher_extension": {
            "WrappersMP": SimpleNamespace(
                DIFFUSION_MODEL="diffusion",
                PREPARE_SAMPLING="prepare_sampling",
                OUTER_SAMPLE="outer_sample",
            )
        },
        "comfy_api": {},
        "comfy_api.latest": {"io": io, "ComfyExtension": object},
        "latent_preview": {"prepare_callback": prepare_callback},
    }
    models = load_beside("host_stub_models.py", "host_stub_models")
    contents["comfy_api.latest"]["ui"] = load_beside("host_stub_ui.py", "host_stub_ui")
    for name, members in models.contents(FORMATS).items():
        contents[name] = contents.get(name, {}) | members
    for name, members in contents.items():
        module = sys.modules[name] = ModuleType(name)
        module.__dict__.update(members)
        parent, _, child = name.rpartition(".")
        if parent:
            setattr(sys.modules[parent], child, module)
    sys.modules["comfy"].sd = load_beside("host_stub_sd.py", "comfy.sd")
