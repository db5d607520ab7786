"""The smallest honest fake of the host: what the nodes touch, with the host's own arithmetic.

It samples a model function with Euler over a flow schedule, so the engine can be tested where no
ComfyUI is installed. It is no part of the pack. Names, parameters and results are held against the
real host by tests/host/contract_cases.py: what is added to `contents` is compared, too.
"""

import copy
import importlib.util
import math
import sys
from enum import Enum
from operator import attrgetter
from pathlib import Path
from types import ModuleType, SimpleNamespace

import torch


def load_beside(file, name):
    """Import a file beside this one under another name."""
    spec = importlib.util.spec_from_file_location(name, Path(__file__).with_name(file))
    module = sys.modules[name] = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


latents = load_beside("host_stub_latents.py", "host_stub_latents")
FORMATS, Wan21 = latents.FORMATS, latents.Wan21
prepare_noise, prepare_mask = latents.prepare_noise, latents.prepare_mask
fix_empty_latent_channels = latents.fix_empty_latent_channels
samplers = load_beside("host_stub_samplers.py", "host_stub_samplers")
FUNCTIONS, euler, sampler_object = samplers.FUNCTIONS, samplers.euler, samplers.sampler_object


class DiscreteFlow(torch.nn.Module):
    def __init__(self, model_config=None):
        super().__init__()
        self.set_parameters()

    def set_parameters(self, shift=1.0, timesteps=1000, multiplier=1000):
        self.shift, self.multiplier = shift, multiplier
        t = torch.arange(1, timesteps + 1) / timesteps
        self.register_buffer("sigmas", shift * t / (1 + (shift - 1) * t))


class Const:
    def noise_scaling(self, sigma, noise, latent_image, max_denoise=False):
        sigma = sigma.reshape(-1, *[1] * (noise.ndim - 1))
        return sigma * noise + (1 - sigma) * latent_image

    def inverse_noise_scaling(self, sigma, latent):
        return latent / (1 - sigma.reshape(-1, *[1] * (latent.ndim - 1)))


class Eps:
    pass


class FluxSampling(torch.nn.Module):
    """A schedule whose shift is another thing: not to be set by us."""

    sigmas = torch.linspace(0.001, 1, 1000)


class Interrupted(BaseException):
    """What the host raises when the user stops a run."""


def copied(options):
    """Copy nested dictionaries and lists; what they hold stays the same."""
    if isinstance(options, dict):
        return {key: copied(value) for key, value in options.items()}
    return [copied(value) for value in options] if isinstance(options, list) else options


class Patcher:
    """A MODEL: velocity (x, sigma, cond) -> v, and a record of every evaluation."""

    def __init__(self, channels=16, velocity=None, kind=(DiscreteFlow, Const), base=object):
        self.load_device = torch.device("cpu")
        self.model = type("Network", (base,), {})()
        self.model.diffusion_model = SimpleNamespace(patch_size=(1, 2, 2), ref_conv=None)
        other = type("Other", (Wan21,), {"latent_channels": channels})
        self.model.latent_format = FORMATS.setdefault(channels, other)()
        self.model.process_latent_in = Wan21().process_in
        self.model.process_latent_out = Wan21().process_out
        self.model.memory_required = lambda input_shape: 0
        self.model.get_dtype = lambda: torch.float32
        self.model.model_sampling = type("Sampling", kind, {})()
        self.velocity = velocity or (lambda x, sigma, cond: x + cond)
        self.model_options, self.wrappers, self.object_patches = {}, {}, {}
        self.attachments, self.seen = {}, []

    def clone(self):
        new = copy.copy(self)
        new.object_patches, new.attachments = dict(self.object_patches), dict(self.attachments)
        new.wrappers, new.model_options = copied(self.wrappers), copied(self.model_options)
        return new

    def add_object_patch(self, name, obj):
        self.object_patches[name] = obj

    def get_model_object(self, name):
        if name in self.object_patches:
            return self.object_patches[name]
        return attrgetter(name)(self.model)

    def get_attachment(self, key):
        return self.attachments.get(key)

    def set_attachments(self, key, attachment):
        self.attachments[key] = attachment

    def add_wrapper_with_key(self, wrapper_type, key, wrapper):
        self.wrappers.setdefault(wrapper_type, {}).setdefault(key, []).append(wrapper)

    def remove_wrappers_with_key(self, wrapper_type, key):
        self.wrappers.get(wrapper_type, {}).pop(key, None)

    def set_model_sampler_post_cfg_function(
        self, post_cfg_function, disable_cfg1_optimization=False
    ):
        before = self.model_options.get("sampler_post_cfg_function", [])
        self.model_options["sampler_post_cfg_function"] = [*before, post_cfg_function]
        if disable_cfg1_optimization:
            self.model_options["disable_cfg1_optimization"] = True

    def set_model_unet_function_wrapper(self, unet_wrapper_function):
        self.model_options["model_function_wrapper"] = unet_wrapper_function

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
    SCHEDULERS = ["simple"]

    def __init__(
        self, model, steps, device, sampler=None, scheduler=None, denoise=None,
        model_options={},  # noqa: B006 as the host's
    ):  # fmt: skip
        part = 1.0 if denoise is None or denoise > 0.9999 else denoise
        self.steps = int(steps / part)
        early = sampler in ("dpm_2", "uni_pc", "uni_pc_bh2")
        table = model.get_model_object("model_sampling").sigmas
        count = self.steps + early
        taken = [table[-(1 + int(i * (len(table) / count)))] for i in range(count)]
        sigmas = torch.tensor([*taken, 0.0])
        sigmas = torch.cat([sigmas[:-2], sigmas[-1:]]) if early else sigmas
        self.sigmas = sigmas[-(steps + 1) :]


def convert_cond(cond):
    """Entries as guiders keep them."""
    added = {"model_conds": {}, "uuid": None}
    return [{**options, "cross_attn": text, **added} for text, options in cond]


def seen_conds(conds):
    """What a test reads of the conditioning, in the form that nodes make."""
    return {name: [[e["cross_attn"], e] for e in cond] for name, cond in conds.items()}


class CFGGuider:
    def __init__(self, model_patcher):
        self.model_patcher, self.model_options = model_patcher, model_patcher.model_options
        self.original_conds, self.cfg = {}, 1.0

    def set_conds(self, positive, negative):
        self.inner_set_conds({"positive": positive, "negative": negative})

    def inner_set_conds(self, conds):
        for name, cond in conds.items():
            self.original_conds[name] = convert_cond(cond)

    def set_cfg(self, cfg):
        self.cfg = cfg

    def outer_predict_noise(self, x, timestep, model_options={}, seed=None):  # noqa: B006
        # Imported late: host_stub_models.py is installed after this class is made.
        from comfy.patcher_extension import WrapperExecutor, get_all_wrappers

        wrappers = get_all_wrappers(WrappersMP.PREDICT_NOISE, self.model_options, True)
        run = WrapperExecutor.new_class_executor(self.predict_noise, self, wrappers)
        return run.execute(x, timestep, model_options, seed)

    def predict_noise(self, x, timestep, model_options={}, seed=None):  # noqa: B006
        patcher, sigma = self.model_patcher, timestep.view(-1, *[1] * (x.ndim - 1))
        options = self.model_options
        conds = {k: cond[0]["cross_attn"].mean() for k, cond in self.original_conds.items()}
        patcher.seen.append(
            SimpleNamespace(size=tuple(x.shape[-2:]), sigma=timestep[0].item(), cfg=self.cfg,
                            patcher=patcher, mask=self.mask, conds=seen_conds(self.original_conds))
        )  # fmt: skip

        def estimate(cond):
            def apply_model(x, t, **c):
                return x - sigma * patcher.velocity(x, sigma, cond)

            wrapper = options.get("model_function_wrapper")
            c = {"latent_shapes": self.shapes} if len(self.shapes) > 1 else {}
            args = {"input": x, "timestep": timestep, "c": c}
            return wrapper(apply_model, args) if wrapper else apply_model(x, timestep, **c)

        good = estimate(conds["positive"])
        one = math.isclose(self.cfg, 1.0) and not options.get("disable_cfg1_optimization", False)
        bad = torch.zeros_like(good) if one else estimate(conds["negative"])
        out = bad + self.cfg * (good - bad)
        for change in options.get("sampler_post_cfg_function", []):
            positive, negative = (self.original_conds[k] for k in ("positive", "negative"))
            out = change(
                {"denoised": out, "cond": positive, "uncond": negative, "cond_scale": self.cfg,
                 "model": patcher.model, "uncond_denoised": bad, "cond_denoised": good,
                 "sigma": timestep, "model_options": model_options, "input": x}
            )  # fmt: skip
        return out

    def sample(
        self, noise, latent_image, sampler, sigmas, denoise_mask=None, callback=None,
        disable_pbar=False, seed=None,
    ):  # fmt: skip
        if not len(sigmas):
            return latent_image
        shapes = [latent_image.shape]
        if latent_image.is_nested:
            latent_image, shapes = latents.pack_latents(latent_image.unbind())
            noise, _ = latents.pack_latents(noise.unbind())
        self.shapes = shapes
        model = self.model_patcher.model
        flow = self.model_patcher.get_model_object("model_sampling")
        if torch.count_nonzero(latent_image):
            latent_image = model.process_latent_in(latent_image)
        self.mask = mask = None
        if denoise_mask is not None:
            mask = self.mask = latents.pack_mask(denoise_mask, shapes, noise.device)

        self.inner_model = SimpleNamespace(
            process_latent_in=model.process_latent_in, model_sampling=flow
        )
        guided = samplers.KSamplerX0Inpaint(self, sigmas)
        guided.noise, guided.latent_image, guided.mask = noise, latent_image, mask

        def tell(step, denoised, x):
            if callback is not None:
                seen = (latents.unpacked(each, shapes) for each in (denoised, x))
                callback(step, *seen, len(sigmas) - 1)

        x = flow.noise_scaling(sigmas[0], noise, latent_image)
        x = sampler.sampler_function(guided, x, sigmas, seed, tell)
        out = model.process_latent_out(flow.inverse_noise_scaling(sigmas[-1], x))
        return latents.unpacked(out, shapes)


BARS = []


class ProgressBar:
    def __init__(self, total, node_id=None):
        self.total, self.shown = total, []
        BARS.append(self)

    def update_absolute(self, value, total=None, preview=None):
        self.shown.append(value)


def prepare_callback(model, steps, x0_output_dict=None):
    bar = SimpleNamespace(steps=steps, shown=[])
    BARS.append(bar)
    return lambda step, x0, x, total: bar.shown.append((step + 1, total))


def intermediate_device():
    return torch.device("cpu")


def get_torch_device():
    return torch.device("cpu")


def get_total_memory(dev=None, torch_total_too=False):
    return 2**40


def get_free_memory(dev=None, torch_free_too=False):
    return 2**40


def loaded_models(only_currently_used=False):
    return []


def soft_empty_cache(force=False):
    pass


def free_memory(memory_required, device, keep_loaded=[]):  # noqa: B006 as the host's
    pass


class VRAMState(Enum):
    NORMAL_VRAM = 3
    HIGH_VRAM = 4


def throw_exception_if_processing_interrupted():
    pass


class WrappersMP:
    DIFFUSION_MODEL = "diffusion_model"
    PREPARE_SAMPLING = "prepare_sampling"
    OUTER_SAMPLE = "outer_sample"
    PREDICT_NOISE = "predict_noise"


def contents():
    """Module name -> members that stand there, parents first; without comfy.sd."""
    for kind in (Const, Eps, DiscreteFlow, FluxSampling):
        kind.__module__ = "comfy.model_sampling"
    api = load_beside("host_stub_api.py", "host_stub_api")
    made = {
        "comfy": {},
        "comfy.model_base": {
            "HunyuanVideo": type("HunyuanVideo", (), {}),
            "WAN21": type("WAN21", (), {"concat_cond": lambda self, **kwargs: None}),
        },
        "comfy.model_management": {
            "OOM_EXCEPTION": torch.OutOfMemoryError,
            "free_memory": free_memory,
            "psutil": SimpleNamespace(
                swap_memory=lambda: SimpleNamespace(free=0),
                Process=lambda: SimpleNamespace(memory_info=lambda: SimpleNamespace(rss=0)),
            ),
            "VRAMState": VRAMState,
            "vram_state": VRAMState.NORMAL_VRAM,
            "get_free_memory": get_free_memory,
            "get_torch_device": get_torch_device,
            "get_total_memory": get_total_memory,
            "intermediate_device": intermediate_device,
            "loaded_models": loaded_models,
            "soft_empty_cache": soft_empty_cache,
            "throw_exception_if_processing_interrupted": throw_exception_if_processing_interrupted,
        },
        "comfy.model_sampling": {"CONST": Const, "ModelSamplingDiscreteFlow": DiscreteFlow},
        "comfy.sample": {
            "prepare_noise": prepare_noise,
            "fix_empty_latent_channels": fix_empty_latent_channels,
        },
        "comfy.samplers": {
            "CFGGuider": CFGGuider, "KSampler": KSampler, "sampler_object": sampler_object,
        },
        "comfy.clip_vision": {"Output": type("Output", (), {})},
        "comfy.sampler_helpers": {"prepare_mask": prepare_mask},
        "comfy.nested_tensor": {"NestedTensor": latents.NestedTensor},
        "comfy.utils": {
            "PROGRESS_BAR_ENABLED": False, "ProgressBar": ProgressBar,
            "pack_latents": latents.pack_latents, "unpack_latents": latents.unpack_latents,
            "common_upscale": latents.common_upscale,
        },
        "comfy.patcher_extension": {"WrappersMP": WrappersMP},
        "comfy_api": {},
        "comfy_api.latest": {
            "io": api.io, "ui": api.ui, "InputImpl": api.InputImpl, "ComfyExtension": object,
        },
        "latent_preview": {"prepare_callback": prepare_callback},
    }  # fmt: skip
    models = load_beside("host_stub_models.py", "host_stub_models")
    files = load_beside("host_stub_files.py", "host_stub_files")
    for part in (models.contents(FORMATS), files.contents(FORMATS)):
        for name, members in part.items():
            made[name] = made.get(name, {}) | members
    return made


def install():
    """Put the fakes where imports look for the host, unless the host itself is there."""
    if importlib.util.find_spec("comfy") is not None:
        return
    for name, members in contents().items():
        module = sys.modules[name] = ModuleType(name)
        module.__dict__.update(members)
        parent, _, child = name.rpartition(".")
        if parent:
            setattr(sys.modules[parent], child, module)
    sys.modules["comfy"].sd = load_beside("host_stub_sd.py", "comfy.sd")
