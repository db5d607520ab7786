"""Refiners of our own format inside a real host: run by test_inside.py, all cases at once.

    cd $COMFYUI_PATH && python tests/host/loader_cases.py RESULTS.json

Every function `case_*` asserts.
"""

import sys
import tempfile
import threading
from pathlib import Path

import checkpoints
import inside
import torch
from inside import noise

RESULTS = inside.enter()

import comfy.ldm.modules.attention  # noqa: E402
import comfy.model_detection  # noqa: E402
import comfy.model_management  # noqa: E402
import comfy.samplers  # noqa: E402
import comfy.sd  # noqa: E402
import comfy.utils  # noqa: E402
import folder_paths  # noqa: E402
from comfy.cli_args import args as flags  # noqa: E402
from comfy.ldm.common_dit import pad_to_patch_size  # noqa: E402
from surf.nodes.host.attention import host_attention  # noqa: E402
from surf.nodes.host.refiner import loading  # noqa: E402
from surf.nodes.host.refiner.loading import TRAITS_KEY  # noqa: E402
from surf.nodes.loader import SurfRefinerLoader  # noqa: E402
from surf.surf_core import checkpoint  # noqa: E402
from surf.surf_core.tiny.model import WEIGHTS  # noqa: E402

FOLDER = Path(tempfile.mkdtemp())
WAN_SHAPED = {"dim": 128, "heads": 1, "ffn_dim": 256, "block": "wan", "text_dim": 4096}
TIME = torch.tensor([400.0])
LATENT = noise(1, 16, 5, 4, 6)


def file(**changes):
    name = "-".join(f"{key}-{value}" for key, value in changes.items()) or "plain"
    path = FOLDER / f"{name}.safetensors"
    return str(path) if path.exists() else checkpoints.refiner(path, **changes)


def text(width=64, seed=2):
    return noise(1, 4, width, seed=seed)


def network(model):
    comfy.model_management.load_models_gpu([model])
    return model.model.diffusion_model


def close(got, expected, share=1e-5):
    """Equal up to a share of the largest value."""
    assert got.shape == expected.shape
    gap, scale = (got - expected).abs().max().item(), expected.abs().max().item()
    assert gap <= share * scale, f"differs by {gap / scale} of the largest value"


def refused(call, *words, kind=ValueError):
    said = None
    try:
        call()
    except kind as error:
        said = str(error)
    assert said is not None, "was not refused"
    assert all(word in said for word in words), said


def case_the_hosts_network_is_the_cores():
    for changes in ({}, {"time": "sigma", "sigma_start": 0.6}, WAN_SHAPED, {"window": 0}):
        path, words = file(**changes), text(changes.get("text_dim", 64))
        host, core = network(loading.load_refiner(path)), checkpoint.load(path)
        for frames in (1, 2, 5):
            x = noise(2, 16, frames, 4, 6)
            close(host(x, TIME.repeat(2), words.repeat(2, 1, 1)), core(x, TIME, words))


def case_odd_latents_are_padded_as_the_host_pads_for_wan():
    path, x = file(), noise(1, 16, 3, 5, 7)
    expected = checkpoint.load(path)(pad_to_patch_size(x, (1, 2, 2)), TIME, text())
    close(network(loading.load_refiner(path))(x, TIME, text()), expected[..., :5, :7])


def case_every_weight_dtype_computes_with_its_own_rounding():
    path = file()
    for name, options in loading.WEIGHT_DTYPES.items():
        host, core = network(loading.load_refiner(path, name)), checkpoint.load(path)
        round_weights(core, options.get("dtype", torch.float32), norms=False)
        close(host(LATENT, TIME, text()), core(LATENT, TIME, text()), 2e-5)


def case_half_precision_weights_compute_as_they_are():
    path = file()
    for flag, dtype in (("fp16_unet", torch.float16), ("bf16_unet", torch.bfloat16)):
        setattr(flags, flag, True)
        try:
            model = loading.load_refiner(path)
        finally:
            setattr(flags, flag, False)
        assert model.model.get_dtype() == dtype
        core = checkpoint.load(path)
        round_weights(core, dtype, norms=True)
        close(network(model)(LATENT, TIME, text()), core(LATENT, TIME, text()), 2e-5)
        model.model.manual_cast_dtype = dtype
        cast = [x.to(dtype) for x in (LATENT, text())]
        got = network(model)(cast[0], TIME, cast[1]).float()
        close(got, core(LATENT, TIME, text()), {torch.float16: 5e-3}.get(dtype, 2e-2))


def round_weights(core, dtype, norms):
    """What the host holds of a core's weights, back in fp32."""
    for module in core.modules():
        linear = isinstance(module, torch.nn.Linear)
        for parameter in module.parameters(recurse=False):
            if linear or norms:
                parameter.copy_(parameter.to(dtype).float())


def case_loading_changes_nothing_of_the_host():
    shared = comfy.sd.load_diffusion_model_state_dict
    before, modules = dict(vars(comfy.sd)), dict(sys.modules)
    original = loading.RefinerSupport.get_model
    other = []

    def meanwhile(*args, **kwargs):
        load = lambda: other.append(shared(checkpoints.diffusion_model("tiny_wan_t2v")))  # noqa: E731
        thread = threading.Thread(target=torch.inference_mode()(load))
        thread.start()
        thread.join()
        return original(*args, **kwargs)

    loading.RefinerSupport.get_model = meanwhile
    try:
        ours = loading.load_refiner(file())
    finally:
        loading.RefinerSupport.get_model = original
    assert type(ours.model).__name__ == "SurfRefinerModel"
    assert type(other[0].model).__name__ == "WAN21"
    assert vars(comfy.sd) == before
    assert all(sys.modules[name] is module for name, module in modules.items())


def case_stock_loaders_know_our_wan_files_and_refuse_the_others():
    path, several = file(**WAN_SHAPED, window=0), str(WEIGHTS)
    ours = loading.load_refiner(path)
    for stock in (comfy.sd.load_diffusion_model(path), loading.load_as_wan(path)):
        assert type(stock.model).__name__ == "WAN21"
        close(network(ours)(LATENT, TIME, text(4096)), network(stock)(LATENT, TIME, text(4096)))
    models = loading.load_refiner(several), loading.load_as_wan(several)
    close(*(network(model)(LATENT, TIME, text(4096)) for model in models))
    assert comfy.sd.load_diffusion_model(several).model.diffusion_model.num_heads == 1
    assert ours.get_attachment(TRAITS_KEY).window == 0
    refused(
        lambda: comfy.sd.load_diffusion_model(file()), "Could not detect model", kind=RuntimeError
    )


def case_other_files_are_refused_before_anything_is_read():
    foreign = FOLDER / "foreign.safetensors"
    state = checkpoints.diffusion_model("tiny_wan_t2v")
    comfy.utils.save_torch_file(state, str(foreign), metadata={"format": "pt"})
    read, comfy.utils.load_torch_file = comfy.utils.load_torch_file, None
    try:
        refused(lambda: loading.load_refiner(str(foreign)), "not ours", "Load Diffusion Model")
        refused(lambda: loading.load_refiner(file(latent_channels=12)), "got 12")
    finally:
        comfy.utils.load_torch_file = read


def case_the_node_finds_its_files_in_the_hosts_folder():
    path = Path(file())
    folders = folder_paths.folder_names_and_paths["diffusion_models"][0]
    folders.append(str(FOLDER))
    try:
        names = SurfRefinerLoader.define_schema().inputs[0].options
        assert path.name in names
        node = SurfRefinerLoader.execute(path.name, "default", "host")
    finally:
        folders.remove(str(FOLDER))
    assert node.args[0].get_attachment(TRAITS_KEY).window == 2


def case_lora_keys_of_both_kinds_change_the_weights():
    down, up = noise(4, 144, seed=5), noise(144, 4, seed=6) * 0.05
    path = file()
    core = checkpoint.load(path)
    core.blocks[1].self_attn.q.weight += up @ down
    expected = core(LATENT, TIME, text())
    plain = loading.load_refiner(path)
    before = network(plain)(LATENT, TIME, text())
    for name in ("diffusion_model.blocks.1.self_attn.q", "lora_unet_blocks_1_self_attn_q"):
        lora = {f"{name}.lora_up.weight": up, f"{name}.lora_down.weight": down}
        model, _ = comfy.sd.load_lora_for_models(plain, None, lora, 1.0, 0.0)
        close(network(model)(LATENT, TIME, text()), expected)
        comfy.model_management.unload_all_models()
    close(network(plain)(LATENT, TIME, text()), before, 1e-6)
    assert (expected - before).abs().max() > 1e-3


def sample(model, sigmas, shape=(1, 16, 3, 4, 6), seed=4):
    prompt = [[text(), {}]]
    guider = comfy.samplers.CFGGuider(model)
    guider.set_conds(prompt, [[text(seed=3), {}]])
    guider.set_cfg(2.0)
    euler = comfy.samplers.sampler_object("euler")
    return guider.sample(
        noise(*shape, seed=seed), torch.zeros(shape), euler, sigmas, disable_pbar=True, seed=seed
    )


def case_a_compiled_refiner_is_the_same_for_every_grid():
    from comfy_api.torch_helpers import set_torch_compile_wrapper
    from comfy_extras.nodes_torch_compile import skip_torch_compile_dict

    model = loading.load_refiner(file())
    compiled = model.clone()
    options = {"guard_filter_fn": skip_torch_compile_dict}
    set_torch_compile_wrapper(compiled, backend="eager", options=options)
    sigmas = torch.linspace(1, 0, 3)
    for shape in ((1, 16, 3, 4, 6), (1, 16, 5, 6, 4), (1, 16, 1, 5, 5)):
        close(sample(compiled, sigmas, shape), sample(model, sigmas, shape), 1e-4)


def case_the_step_cache_counts_in_shares_of_a_shift_of_one():
    from comfy_extras.nodes_easycache import EasyCacheNode

    model, evaluated = loading.load_refiner(file(time="t")), []
    blocks = model.model.diffusion_model.blocks
    blocks[0].register_forward_pre_hook(lambda *args: evaluated.append(args))
    cached = EasyCacheNode.execute(model, 1e9, 0.5, 1.0, False).args[0]
    sigmas = torch.linspace(1, 0, 11)
    plain = sample(model, sigmas)
    whole, evaluated[:] = len(evaluated), []
    out = sample(cached, sigmas)
    assert out.isfinite().all()
    # From the sixth step on, after half of the way, every step can be skipped but the two that
    # the cache needs to see first.
    assert whole / 2 <= len(evaluated) < whole * 0.8, (len(evaluated), whole)
    evaluated.clear()
    late = EasyCacheNode.execute(model, 1e9, 0.999, 1.0, False).args[0]
    close(sample(late, sigmas), plain, 1e-6)
    assert len(evaluated) == whole


def case_attention_overrides_see_the_blocks():
    model, seen = loading.load_refiner(file()), []

    def override(func, *args, transformer_options, **kwargs):
        seen.append((transformer_options["block_type"], transformer_options["block_index"]))
        assert transformer_options["total_blocks"] == 3
        return func(*args, transformer_options=transformer_options, **kwargs)

    options = {"optimized_attention_override": override}
    close(network(model)(LATENT, TIME, text(), options), network(model)(LATENT, TIME, text()))
    assert sorted(set(seen)) == [("double", index) for index in range(3)]
    assert seen == sorted(seen)
    assert list(options) == ["optimized_attention_override"]


def case_every_attention_of_the_host_gives_the_same():
    module, model = comfy.ldm.modules.attention, loading.load_refiner(file())
    expected, original = checkpoint.load(file())(LATENT, TIME, text()), module.optimized_attention
    for name in ("basic", "pytorch", "split", "sub_quad"):
        module.optimized_attention = getattr(module, f"attention_{name}")
        try:
            close(network(model)(LATENT, TIME, text()), expected, 2e-5)
        finally:
            module.optimized_attention = original


def case_sage_1_gets_heads_that_it_takes():
    module, model, widths = comfy.ldm.modules.attention, loading.load_refiner(file()), []

    def sageattn(q, k, v, tensor_layout="HND", is_causal=False, sm_scale=None, **kwargs):
        width = q.shape[-1]
        assert width in (64, 96, 128), f"headdim should be in [64, 96, 128], got {width}"
        assert tensor_layout == "NHD"
        widths.append(width)
        k -= k.mean(dim=1, keepdim=True)
        q, k, v = (x.transpose(1, 2) for x in (q, k, v))
        out = torch.nn.functional.scaled_dot_product_attention(q, k, v, scale=sm_scale)
        return out.transpose(1, 2)

    expected = network(model)(LATENT, TIME, text())
    original, version = module.optimized_attention, host_attention._sage_is_1
    module.sageattn, module.optimized_attention = sageattn, module.attention_sage
    host_attention._sage_is_1, flags.use_sage_attention = lambda: True, True
    try:
        close(network(model)(LATENT, TIME, text()), expected, 2e-5)
    finally:
        module.optimized_attention, host_attention._sage_is_1 = original, version
        flags.use_sage_attention = False
        del module.sageattn
    assert set(widths) == {96}


def case_named_attentions_are_used_or_refused():
    path = file()
    model = loading.load_refiner(path, attention="sdpa")
    options = model.clone().model_options["transformer_options"]
    close(
        network(model)(LATENT, TIME, text(), options), checkpoint.load(path)(LATENT, TIME, text())
    )
    bad = loading.load_refiner(path, attention="flash_varlen")
    refused(lambda: sample(bad, torch.linspace(1, 0, 3)), "flash_varlen cannot run")


def case_a_sampling_run_without_text_is_refused():
    model = loading.load_refiner(file())
    guider = comfy.samplers.CFGGuider(model)
    guider.set_conds([[None, {}]], [])
    euler = comfy.samplers.sampler_object("euler")
    x = noise(1, 16, 3, 4, 6)
    refused(
        lambda: guider.sample(x, x * 0, euler, torch.linspace(1, 0, 3), disable_pbar=True, seed=1),
        "expected conditioning with text",
    )


def case_memory_is_asked_for_by_the_window():
    small, full = (loading.load_refiner(file(window=window)).model for window in (2, 0))
    shape = [1, 16, 121, 68, 120]
    assert small.memory_required(shape) < full.memory_required(shape)
    assert small.memory_required([2, *shape[1:]], cond_shapes={}) > small.memory_required(shape)


def case_the_model_can_be_loaded_once_more_for_another_device():
    path = file()
    model = loading.load_refiner(path, "fp8_e5m2", "sdpa")
    expected = network(model)(LATENT, TIME, text())
    factory, arguments = model.cached_patcher_init
    again = factory(*arguments)
    assert again.model is not model.model
    close(network(again)(LATENT, TIME, text()), expected, 1e-6)
    if hasattr(model, "deepclone_multigpu"):
        twin = model.deepclone_multigpu(torch.device("cpu"))
        assert twin.model is not model.model
        assert twin.get_attachment(TRAITS_KEY) == model.get_attachment(TRAITS_KEY)
        close(network(twin)(LATENT, TIME, text()), expected, 1e-6)


def case_the_wan_22_latent_space_is_known_by_its_channels():
    model = loading.load_refiner(file(latent_channels=48))
    assert type(model.get_model_object("latent_format")).__name__ == "Wan22"
    out = network(model)(noise(1, 48, 3, 4, 6), TIME, text())
    assert out.shape == (1, 48, 3, 4, 6)


if __name__ == "__main__":
    inside.report(RESULTS, dict(globals()))
