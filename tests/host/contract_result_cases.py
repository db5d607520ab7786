"""The fake host of the fast tests computes what this host computes, on small inputs.

Started in the host's folder by test_inside.py.
"""

import inspect
import sys
import tempfile
from types import SimpleNamespace

import checkpoints
import contract
import inprocess
import inside
import torch
from safetensors.torch import save_file

RESULTS = inside.enter()

import comfy.k_diffusion.sampling  # noqa: E402
import comfy.ldm.common_dit  # noqa: E402
import comfy.ldm.modules.attention  # noqa: E402
import comfy.model_sampling  # noqa: E402
import comfy.ops  # noqa: E402
import comfy.patcher_extension  # noqa: E402
import comfy.sample  # noqa: E402
import comfy.sampler_helpers  # noqa: E402
import comfy.samplers  # noqa: E402
import comfy.utils  # noqa: E402

HOST = inprocess.Host()
STUB = contract.load("host_stub.py", "host_stub")
CONTENTS = contract.contents(STUB)


def alike(fake, real, atol=1e-6):
    assert fake.dtype == real.dtype, (fake.dtype, real.dtype)
    inprocess.same(fake, real, atol)


def case_schedules_and_noise_are_the_hosts():
    fake, real = STUB.DiscreteFlow(), comfy.model_sampling.ModelSamplingDiscreteFlow()
    alike(fake.sigmas, real.sigmas)
    for sampling in (fake, real):
        sampling.set_parameters(shift=5.0, timesteps=250, multiplier=1)
    alike(fake.sigmas, real.sigmas)
    assert (fake.shift, fake.multiplier) == (real.shift, real.multiplier)
    noise, latent = inside.noise(2, 16, 3, 4, 6), inside.noise(2, 16, 3, 4, 6, seed=2)
    for sigma in (torch.tensor(0.7), torch.tensor([0.7, 0.2])):
        alike(
            STUB.Const().noise_scaling(sigma, noise, latent),
            comfy.model_sampling.CONST().noise_scaling(sigma, noise, latent),
        )
        alike(
            STUB.Const().inverse_noise_scaling(sigma, latent),
            comfy.model_sampling.CONST().inverse_noise_scaling(sigma, latent),
        )


def case_a_samplers_sigmas_are_the_hosts():
    for shift in (1.0, 5.0):
        fake = STUB.Patcher()
        fake.model.model_sampling.set_parameters(shift=shift)
        real = HOST.shifted(HOST.model(), shift)
        for steps in (1, 3, 8, 7):
            for sampler in ("euler", "uni_pc", "dpm_2"):
                for denoise in (None, 1.0, 0.5):
                    given = (steps, "cpu", sampler, "simple", denoise)
                    alike(
                        STUB.KSampler(fake, *given).sigmas,
                        comfy.samplers.KSampler(real, *given).sigmas,
                    )


def case_samplers_step_as_the_hosts():
    sigmas, x = torch.tensor([1.0, 0.8, 0.5, 0.2, 0.0]), inside.noise(2, 4, 2, 4, 6)

    def denoise(x, sigma, **_):
        return 0.5 * x + sigma.view(-1, 1, 1, 1, 1)

    class DenoisingModel:
        inner_model = SimpleNamespace(
            inner_model=SimpleNamespace(model_sampling=comfy.model_sampling.CONST()),
            model_patcher=HOST.model(),
        )
        __call__ = staticmethod(denoise)

    for name in ("euler", "euler_ancestral"):
        real = getattr(comfy.k_diffusion.sampling, f"sample_{name}")
        alike(
            STUB.FUNCTIONS[name](denoise, x, sigmas, 5, lambda *shown: None),
            real(DenoisingModel(), x, sigmas, {"seed": 5}, disable=True),
        )


def case_samplers_have_the_hosts_names():
    """Ours recognise a sampler by the name of its function."""
    for name in ("uni_pc", "uni_pc_bh2", "dpm_fast", "dpm_adaptive"):
        real, fake = comfy.samplers.sampler_object(name), STUB.sampler_object(name)
        names = [sampler.sampler_function.__name__ for sampler in (real, fake)]
        assert names[0] == names[1], names


def case_latents_are_prepared_as_the_hosts():

    for dtype in (torch.float32, torch.float16):
        latent = torch.zeros(2, 16, 3, 4, 6, dtype=dtype)
        for index in (None, [0, 1], [3, 1], [2, 2]):
            given = (latent, 7, index)
            alike(STUB.prepare_noise(*given), comfy.sample.prepare_noise(*given))
    for target in ((1, 16, 3, 8, 12), (3, 16, 3, 8, 12), (2, 16, 8, 12)):
        for shape in ((8, 12), (1, 4, 6), (3, 16, 20), (2, 1, 4, 6), (1, 1, 3, 4, 6)):
            mask = inside.noise(*shape).sigmoid()
            if len(target) == 4 and mask.ndim == 5:
                continue
            given = (mask, target, torch.device("cpu"))
            alike(STUB.prepare_mask(*given), comfy.sampler_helpers.prepare_mask(*given))


def nested(kind, *parts):
    return kind([part.clone() for part in parts])


def case_nested_latents_are_the_hosts():
    import comfy.nested_tensor

    fake, real = STUB.latents.NestedTensor, comfy.nested_tensor.NestedTensor
    parts = inside.noise(2, 16, 3, 4, 6), inside.noise(2, 8, 5, 16, seed=2)
    ours, theirs = nested(fake, *parts), nested(real, *parts)
    for name in ("shape", "ndim", "dtype", "device", "is_nested"):
        assert getattr(ours, name) == getattr(theirs, name), name
    for one, other in zip(
        ours.to(torch.float16).unbind(), theirs.to(torch.float16).unbind(), strict=True
    ):
        alike(one, other)
    (pack, shapes), (expected, known) = (
        module.pack_latents(list(parts)) for module in (STUB.latents, comfy.utils)
    )
    alike(pack, expected)
    assert shapes == known
    for given in ((pack, shapes), (torch.cat([pack, pack]), shapes), (parts[0], shapes[:1])):
        outs = [module.unpack_latents(*given) for module in (STUB.latents, comfy.utils)]
        for one, other in zip(*outs, strict=True):
            alike(one, other)
    for index in (None, [1, 0]):
        drawn = [STUB.prepare_noise(ours, 7, index), comfy.sample.prepare_noise(theirs, 7, index)]
        for one, other in zip(*(each.unbind() for each in drawn), strict=True):
            alike(one, other)
    assert comfy.sample.fix_empty_latent_channels(HOST.model(), theirs) is theirs
    assert STUB.fix_empty_latent_channels(STUB.Patcher(), ours) is ours


def case_empty_latents_become_what_the_host_makes_of_them():

    known = inspect.signature(comfy.sample.fix_empty_latent_channels).parameters
    ratios = [{}]
    if "downscale_ratio_spacial" in known:
        ratios += [{"downscale_ratio_spacial": ratio} for ratio in (8, 16)]
    if "downscale_ratio_temporal" in known:
        ratios += [{"downscale_ratio_temporal": 4}, {"downscale_ratio_temporal": 1}]
    for channels, name in ((16, "tiny_wan_t2v"), (48, "tiny_wan22_5b")):
        fake, real = STUB.Patcher(channels), HOST.model(name)
        for shape in ((1, 16, 16, 24), (2, 4, 16, 24), (1, 16, 3, 16, 24)):
            for latent in (torch.zeros(shape), torch.ones(shape)):
                for more in ratios:
                    expected = comfy.sample.fix_empty_latent_channels(real, latent, **more)
                    out = STUB.fix_empty_latent_channels(fake, latent, **more)
                    alike(out, expected)


def case_a_models_clone_keeps_apart_what_the_hosts_keeps_apart():
    def state(patcher):
        out = {
            "wrappers": patcher.wrappers.get("diffusion_model", {}),
            "object_patches": patcher.object_patches,
            "attachment": patcher.get_attachment("note"),
            "post": patcher.model_options.get("sampler_post_cfg_function", []),
            "one": patcher.model_options.get("disable_cfg1_optimization"),
            "function": patcher.model_options.get("model_function_wrapper"),
        }
        return {
            key: value.copy() if hasattr(value, "copy") else value for key, value in out.items()
        }

    def walk(patcher):
        clone = patcher.clone()
        yield clone
        clone.set_model_sampler_post_cfg_function(len)
        clone.set_model_sampler_post_cfg_function(max, disable_cfg1_optimization=True)
        clone.set_model_unet_function_wrapper(min)
        clone.add_wrapper_with_key("diffusion_model", "a", sum)
        clone.add_wrapper_with_key("diffusion_model", "a", any)
        clone.add_wrapper_with_key("diffusion_model", "b", all)
        clone.set_attachments("note", 3)
        clone.add_object_patch("latent_format", 4)
        yield clone
        second = clone.clone()
        second.remove_wrappers_with_key("diffusion_model", "a")
        second.add_wrapper_with_key("diffusion_model", "b", abs)
        second.set_model_sampler_post_cfg_function(hash)
        second.set_attachments("note", 5)
        second.add_object_patch("latent_format", 0)
        yield second
        yield clone
        yield patcher

    for fake, real in zip(walk(STUB.Patcher()), walk(HOST.model().clone()), strict=True):
        assert state(fake) == state(real), (state(fake), state(real))
        ours, theirs = (
            fake.get_model_object("latent_format"),
            real.get_model_object("latent_format"),
        )
        assert ours == theirs or type(ours).__name__ == type(theirs).__name__


class LinearVelocity(torch.nn.Module):
    """A network of which velocity is known: x + the mean of the text."""

    dtype, patch_size = torch.float32, (1, 2, 2)

    def __init__(self):
        super().__init__()
        # The host reads the number of channels from it.
        self.patch_embedding = torch.nn.Conv3d(16, 1, 1)

    def forward(self, x, timestep, context, transformer_options=None, **kwargs):
        return x + context.mean((1, 2)).view(-1, 1, 1, 1, 1)


CHANGES = (
    lambda said: said["denoised"] + 0.5 * said["input"] * said["sigma"].max(),
    lambda said: said["denoised"] * 0.8 + said["cond_denoised"] * said["cond_scale"] / 10,
)
"""Functions after the guidance; their order counts."""


def guided(guider, latent, sampler, sigmas, mask):
    shown = []
    out = guider.sample(
        inside.noise(*latent.shape), latent, sampler, sigmas, denoise_mask=mask,
        callback=lambda i, x0, x, total: shown.append((i, x0.clone(), total)), disable_pbar=True,
        seed=3,
    )  # fmt: skip
    return out, shown


def case_a_guider_samples_as_the_hosts():
    """With guidance, a mask and functions after the guidance, over a whole schedule."""
    sigmas, latent = torch.tensor([1.0, 0.7, 0.4, 0.0]), inside.noise(2, 16, 3, 4, 6, seed=4)
    mask = torch.ones(1, 4, 6)
    mask[:, :2] = 0.25
    texts = [torch.full((1, 4, 8), value) for value in (0.5, -0.25)]
    real = HOST.sd.load_diffusion_model_state_dict(checkpoints.diffusion_model("tiny_wan_t2v"))
    real.model.diffusion_model = LinearVelocity()
    real.model.latent_format = STUB.Wan21()
    for cfg in (4.0, 1.0):
        for given in (None, mask):
            for functions in (0, 1, 2):
                outs = []
                for kind, base in ((STUB, STUB.Patcher()), (comfy.samplers, real)):
                    model = base.clone()
                    for change in CHANGES[:functions]:
                        model.set_model_sampler_post_cfg_function(change)
                    guider = kind.CFGGuider(model)
                    guider.set_conds(*([[text, {}]] for text in texts))
                    guider.set_cfg(cfg)
                    sampler = kind.sampler_object("euler")
                    outs.append(guided(guider, latent, sampler, sigmas, given))
                (ours, reported), (theirs, shown) = outs
                alike(ours, theirs, 2e-5)
                assert [each[::2] for each in reported] == [each[::2] for each in shown]
                for ours, theirs in zip(reported, shown, strict=True):
                    alike(ours[1], theirs[1], 2e-5)
    nothing = STUB.CFGGuider(STUB.Patcher()).sample(latent, latent, None, sigmas[:0])
    assert nothing is latent


def case_wrappers_nest_as_the_hosts():
    stub = CONTENTS["comfy.patcher_extension"]
    options = {"wrappers": {"x": {"a": [1, 2], "b": [3]}, "y": {}}}
    for kind in ("x", "y", "z"):
        for more in ((options,), ({"transformer_options": options}, True)):
            ours = stub["get_all_wrappers"](kind, *more)
            assert ours == comfy.patcher_extension.get_all_wrappers(kind, *more)

    def outer(executor, x, y=0):
        return ["outer", executor.class_obj, *executor(x + 1, y=y)]

    def inner(executor, x, y=0):
        return ["inner", *executor(x * 2, y=y + 1)]

    for wrappers in ([], [outer], [outer, inner]):
        said = [
            kind.new_class_executor(lambda x, y=0: [x, y], "me", wrappers).execute(3, y=5)
            for kind in (stub["WrapperExecutor"], comfy.patcher_extension.WrapperExecutor)
        ]
        assert said[0] == said[1], said


def case_layers_and_attention_compute_what_the_hosts_do():

    for shape in ((1, 2, 3, 5, 7), (1, 2, 4, 6, 8)):
        given = (inside.noise(*shape), (1, 2, 2))
        ours = CONTENTS["comfy.ldm.common_dit"]["pad_to_patch_size"](*given)
        alike(ours, comfy.ldm.common_dit.pad_to_patch_size(*given))
    fake = CONTENTS["comfy.ldm.modules.attention"]["optimized_attention"]
    real = comfy.ldm.modules.attention.optimized_attention
    flat = [inside.noise(2, 10, 24, seed=seed) for seed in (1, 2, 3)]
    heads = [x.unflatten(-1, (3, 8)).transpose(1, 2) for x in flat]
    alike(fake(*flat, 3), real(*flat, 3), 1e-5)
    for shape in ({}, {"skip_output_reshape": True}):
        given = {"skip_reshape": True} | shape
        alike(fake(*heads, 3, **given), real(*heads, 3, **given), 1e-5)
    seen = []

    def override(function, *args, **kwargs):
        seen.append(("_inside_attn_wrapper" in kwargs, kwargs.get("transformer_options")))
        return function(*args, **kwargs)

    options = {"optimized_attention_override": override}
    outs = [attend(*flat, 3, transformer_options=options) for attend in (fake, real)]
    alike(*outs, 1e-5)
    assert seen == [(True, options)] * 2
    operations = sys.modules["host_stub_models"].OPERATIONS
    layers = {"Linear": (8, 6), "LayerNorm": (8,), "RMSNorm": (8,), "Conv3d": (3, 4, 2)}
    for name, sizes in layers.items():
        ours, theirs = (getattr(kind, name)(*sizes) for kind in (operations, comfy.ops.manual_cast))
        state = {k: inside.noise(*v.shape).half() for k, v in ours.state_dict().items()}
        assert state
        for layer in (ours, theirs):
            layer.half().load_state_dict(state)
        x = inside.noise(2, 3, 4, 4, 4) if name == "Conv3d" else inside.noise(2, 5, 8)
        alike(ours(x), theirs(x), 1e-5)


def case_files_are_read_as_the_host_reads_them():
    with tempfile.TemporaryDirectory() as folder:
        path, state = (
            f"{folder}/x.safetensors",
            {"a": inside.noise(2, 3), "b": torch.ones(1).half()},
        )
        save_file(state, path, {"note": "x"})
        for load_file in (CONTENTS["comfy.utils"]["load_torch_file"], comfy.utils.load_torch_file):
            out, metadata = load_file(path, safe_load=True, return_metadata=True)
            assert metadata["note"] == "x"
            assert out.keys() == load_file(path).keys() == state.keys()
            assert all(torch.equal(out[key], state[key]) for key in state)


if __name__ == "__main__":
    inside.report(RESULTS, globals())
