"""Refiner files on the stub host: what loads, what is refused before anything is read."""

import importlib.util
import json
import sys
from pathlib import Path

import comfy.sd
import host_stub_models
import pytest
import torch
from safetensors import safe_open
from safetensors.torch import save_file
from surf.nodes.host.refiner import loading
from surf.nodes.host.refiner.loading import TRAITS_KEY, RefinerTraits
from surf.nodes.host.refiner.model import ATTENTION_KEY, RefinerSupport
from surf.nodes.loader import SurfRefinerLoader
from surf.surf_core import checkpoint, cost
from surf.surf_core.refiner import RefinerConfig, SurfRefinerDiT
from surf.surf_core.tiny.model import WEIGHTS
from torch.nn import functional as F

TIME = torch.tensor([400.0])


def config(**changes):
    sizes = {"dim": 48, "heads": 2, "layers": 3, "ffn_dim": 64, "text_dim": 8, "window": 2}
    return RefinerConfig(**{**sizes, "block": "scale", "time": "t", "sigma_start": 0.3, **changes})


def save(path, sizes=None, edit=None):
    """Write a random refiner; `edit` changes its weights first."""
    sizes = sizes or config()
    generator = torch.Generator().manual_seed(0)
    weights = {
        name: torch.randn(value.shape, generator=generator) * (0.1 if value.ndim > 1 else 0.3)
        for name, value in SurfRefinerDiT(sizes).state_dict().items()
    }
    if edit:
        edit(weights)
    checkpoint.save(path, weights, sizes, {})
    return path


@pytest.fixture
def file(tmp_path):
    return str(save(tmp_path / "refiner.safetensors"))


@pytest.fixture(autouse=True)
def nothing_read():
    host_stub_models.READ.clear()


def latent(frames=5, rows=4, cols=6, channels=16):
    return torch.randn(1, channels, frames, rows, cols, generator=torch.Generator().manual_seed(1))


def text(tokens=3, width=8):
    return torch.randn(1, tokens, width, generator=torch.Generator().manual_seed(2))


def network(path, **kwargs):
    return loading.load_refiner(str(path), **kwargs).model.diffusion_model


def load(name, weight_dtype="default", attention="host"):
    return SurfRefinerLoader.execute(name, weight_dtype, attention).args[0]


@pytest.mark.parametrize("block", ["scale", "wan"])
@pytest.mark.parametrize(("time", "start"), [("t", 0.0), ("t", 0.4), ("sigma", 0.65)])
def test_a_file_of_ours_loads_with_what_its_training_fixed(tmp_path, block, time, start):
    sizes = config(block=block, time=time, sigma_start=start)
    model = load(str(save(tmp_path / "a.safetensors", sizes)))
    expected = RefinerTraits(sigma_start=start, window=2, time=time, text_dim=8)
    assert model.get_attachment(TRAITS_KEY) == expected
    assert model.model_options["transformer_options"][ATTENTION_KEY] == "host"
    assert model.model.model_config.sampling_settings == {"shift": 1.0}
    assert model.model.latent_format.__class__.__name__ == "Wan21"


def test_the_embedded_weights_load_as_a_model_without_a_start():
    traits = load(str(WEIGHTS)).get_attachment(TRAITS_KEY)
    assert (traits.sigma_start, traits.window, traits.time) == (None, 0, "sigma")


@pytest.mark.parametrize("block", ["scale", "wan"])
def test_the_hosts_network_is_the_cores(tmp_path, block, tolerance):
    path = save(tmp_path / "a.safetensors", config(block=block))
    out = network(path)(latent(), TIME, text())
    expected = checkpoint.load(path)(latent(), TIME, text())
    torch.testing.assert_close(out, expected, atol=tolerance[torch.float32], rtol=1e-5)


def test_latents_that_the_patch_does_not_divide_are_padded_and_cropped(file, tolerance):
    odd = latent(3, 5, 7)
    padded = F.pad(odd, (0, 1, 0, 1, 0, 0), mode="circular")
    expected = checkpoint.load(file)(padded, TIME, text())[..., :5, :7]
    torch.testing.assert_close(
        network(file)(odd, TIME, text()), expected, atol=tolerance[torch.float32], rtol=1e-5
    )


@pytest.mark.parametrize("weight_dtype", ["fp8_e4m3fn", "fp8_e4m3fn_fast", "fp8_e5m2"])
def test_fp8_holds_the_linear_maps_and_spares_the_norms(file, weight_dtype, tolerance):
    core, host = checkpoint.load(file), network(file, weight_dtype=weight_dtype)
    dtype = loading.WEIGHT_DTYPES[weight_dtype]["dtype"]
    for name, module in core.named_modules():
        own = host.get_submodule(name)
        if isinstance(module, torch.nn.Linear):
            assert own.weight.dtype == dtype
            for parameter in (module.weight, module.bias):
                parameter.data = parameter.data.to(dtype).float()
        elif getattr(own, "weight", None) is not None:
            assert own.weight.dtype == torch.float32
    out, expected = (model(latent(), TIME, text()) for model in (host, core))
    torch.testing.assert_close(out, expected, atol=tolerance[torch.float32], rtol=1e-5)


def test_overrides_see_every_block_and_the_callers_options_stay(file):
    seen = []

    def override(func, *args, transformer_options, **kwargs):
        seen.append(tuple(transformer_options[k] for k in ("block_index", "total_blocks")))
        assert transformer_options["block_type"] == "double"
        return func(*args, transformer_options=transformer_options, **kwargs)

    options = {"optimized_attention_override": override}
    model = network(file)
    model(latent(), TIME, text(), options)
    assert sorted(set(seen)) == [(0, 3), (1, 3), (2, 3)]
    assert seen == sorted(seen)
    assert options == {"optimized_attention_override": override}
    assert model.attention.options == {}


def test_wrappers_of_the_diffusion_model_run_around_it(file):
    calls = []

    def wrapper(executor, *args, **kwargs):
        calls.append((executor.class_obj, args[-1]))
        return executor(*args, **kwargs) * 2

    options = {"wrappers": {"diffusion_model": {"ours": [wrapper]}}}
    model = network(file)
    out, plain = model(latent(), TIME, text(), options), model(latent(), TIME, text())
    assert torch.equal(out, 2 * plain)
    assert calls == [(model, options)]


def test_the_attention_of_the_windows_is_the_one_named(file, tolerance):
    model = load(file, attention="sdpa")
    options = model.model_options["transformer_options"]
    out, plain = (model.model.diffusion_model(latent(), TIME, text(), o) for o in (options, {}))
    torch.testing.assert_close(out, plain, atol=tolerance[torch.float32], rtol=1e-5)
    refused = load(file, attention="flash_varlen")
    with pytest.raises(ValueError, match="flash_varlen cannot run"):
        refused.model.diffusion_model(
            latent(), TIME, text(), refused.model_options["transformer_options"]
        )


def test_a_call_without_text_is_refused(file):
    for context, said in ((None, "an empty one"), (text(width=12), "8 channels, got 12")):
        with pytest.raises(ValueError, match=said):
            network(file)(latent(), TIME, context)


def test_text_reaches_the_network_as_it_is(file):
    model = load(file).model
    assert model.extra_conds(cross_attn=text())["c_crossattn"].cond.equal(text())


def test_memory_is_the_cost_of_the_windows(file):
    model = load(file).model
    one, two = (model.memory_required([batch, 16, 21, 68, 120]) for batch in (1, 2))
    assert one < two
    assert model.memory_required([1, 16, 21, 68, 120], cond_shapes={}) == one
    shape = cost.ModelShape.of(config())
    assert one == cost.activation_bytes(shape, 81, 544, 960, 2, itemsize=4)


def test_the_hosts_own_loading_stays_as_it_is(file, monkeypatch):
    seen, before, modules = [], dict(vars(comfy.sd)), dict(sys.modules)

    class LoadingBeside(RefinerSupport):
        def get_model(self, *args, **kwargs):
            # As another thread would, in the middle of our load.
            seen.append(comfy.sd.load_diffusion_model_state_dict({}))
            return super().get_model(*args, **kwargs)

    monkeypatch.setattr(loading, "RefinerSupport", LoadingBeside)
    assert load(file) is not None
    assert seen == [None]
    assert vars(comfy.sd) == before
    assert all(sys.modules[name] is module for name, module in modules.items())


def test_a_model_can_be_loaded_once_more(file, tolerance):
    model = load(file, "fp8_e5m2", "sdpa")
    factory, arguments = model.cached_patcher_init
    again = factory(*arguments, disable_dynamic=True)
    assert again.model is not model.model
    assert again.get_attachment(TRAITS_KEY) == model.get_attachment(TRAITS_KEY)
    assert again.model_options == model.model_options
    out = [m.model.diffusion_model(latent(), TIME, text()) for m in (model, again)]
    assert torch.equal(*out)


def other_host(monkeypatch, tmp_path, *lines):
    """Let the host's loading function have another body; `load` is the usual one."""
    path = tmp_path / "other_sd.py"
    kept = Path(comfy.sd.__file__).read_text(encoding="utf-8").replace("def load_diff", "def old_")
    head = "def load_diffusion_model_state_dict(sd, model_options={}, disable_dynamic=None):"
    path.write_text("\n    ".join([f"{kept}\n\n{head}", *lines]), encoding="utf-8")
    spec = importlib.util.spec_from_file_location("comfy.sd", path)
    monkeypatch.setattr(comfy.sd, "__spec__", spec)


def test_options_of_newer_hosts_are_handed_on(file, monkeypatch, tmp_path):
    body = (
        "model = old_usion_model_state_dict(sd, model_options)",
        "model.disable_dynamic = disable_dynamic",
        "return model",
    )
    other_host(monkeypatch, tmp_path, *body)
    assert loading.load_refiner(file).disable_dynamic is None
    assert loading.load_refiner(file, disable_dynamic=True).disable_dynamic is True


@pytest.mark.parametrize("body", ["return None", "return host_stub.Patcher()"])
def test_a_host_that_detects_otherwise_is_refused(file, monkeypatch, tmp_path, body):
    other_host(monkeypatch, tmp_path, body)
    with pytest.raises(RuntimeError, match="update this pack"):
        load(file)


def reheader(path, **changes):
    """Copy a file with other metadata."""
    with safe_open(path, "pt") as file:
        weights = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        metadata = file.metadata()
    save_file(weights, path, {**metadata, **changes})


def newer(path):
    save(path)
    reheader(path, **{"surf.format": "99"})


def foreign(path):
    save_file({"head.modulation": torch.zeros(1)}, path, {"format": "pt"})


def renamed(path):
    save(path, edit=lambda w: w.update({"blocks.0.ffn.9.weight": w.pop("blocks.0.ffn.0.weight")}))


def repacked(path):
    names = ("ffn.0", "ffn.2", *(f"{kind}_attn.{n}" for kind in ("self", "cross") for n in "qkv"))
    scales = {f"blocks.{i}.{n}.scale_weight": torch.ones(()) for i in range(3) for n in names}
    save(path, edit=lambda w: w.update(scales))


BAD = {
    "a file of another model": (foreign, ["not ours", "Load Diffusion Model"]),
    "a newer format": (newer, ["99", "update"]),
    "no safetensors": (lambda path: path.write_bytes(b"PK" * 40), ["safetensors"]),
    "missing and extra keys": (
        renamed, ["missing blocks.0.ffn.0.weight", "unexpected blocks.0.ffn.9.weight"]),
    "another shape": (
        lambda path: save(path, edit=lambda w: w.update({"head.head.weight": torch.ones(2, 2)})),
        ["head.head.weight", "(2, 2)"]),
    "scaled fp8": (repacked, ["unexpected", "and 4 more", "scaled fp8"]),
    "latents of no model": (
        lambda path: save(path, config(latent_channels=12)), ["got 12", "16 (Wan 2.1)"]),
}  # fmt: skip


@pytest.mark.parametrize("case", BAD)
def test_the_loader_refuses_before_anything_is_read(case, tmp_path, monkeypatch):
    make, words = BAD[case]
    path = tmp_path / "a.safetensors"
    make(path)
    monkeypatch.setattr(host_stub_models, "BaseModel", None)
    with pytest.raises(ValueError, match="^Surf Refiner") as error:
        load(str(path))
    assert all(word in str(error.value) for word in words), str(error.value)
    assert not host_stub_models.READ


def test_the_loader_names_a_tensor_that_is_not_finite(tmp_path, monkeypatch):
    file = tmp_path / "a.safetensors"
    save(file)
    with safe_open(file, "pt") as opened:
        weights = {name: opened.get_tensor(name) for name in opened.keys()}  # noqa: SIM118
        metadata = opened.metadata()
    weights["blocks.1.ffn.0.weight"][2, 2] = float("nan")
    save_file(weights, file, metadata)
    monkeypatch.setattr(host_stub_models, "BaseModel", None)
    with pytest.raises(ValueError, match=r"^Surf Refiner Loader: .*tensors: blocks.1.ffn.0.weight"):
        load(str(file))


def test_the_loader_refuses_options_that_it_does_not_know(file):
    for changes, said in (({"weight_dtype": "int4"}, "weight_dtype"), ({"attention": "x"}, "one")):
        with pytest.raises(ValueError, match=said):
            load(file, **changes)
    assert not host_stub_models.READ


def test_the_node_lists_the_diffusion_models(monkeypatch):
    monkeypatch.setattr(
        loading.folder_paths, "get_filename_list", lambda folder: [f"{folder}/a.safetensors"]
    )
    name, weights, attention = SurfRefinerLoader.define_schema().inputs
    assert name.options == ["diffusion_models/a.safetensors"]
    assert weights.options == ["default", "fp8_e4m3fn", "fp8_e4m3fn_fast", "fp8_e5m2"]
    assert attention.options == ["host", "sdpa", "flash_varlen", "torch_varlen", "triton"]


def test_the_config_travels_in_the_file(file):
    with safe_open(file, "pt") as opened:
        assert json.loads(opened.metadata()["surf.config"])["time"] == "t"


def test_a_file_that_is_not_there_is_refused_by_name():
    with pytest.raises(
        ValueError, match="^Surf Refiner Loader: .*'gone.safetensors'.*put it there"
    ):
        SurfRefinerLoader.execute("gone.safetensors", "default", "host")


@pytest.mark.parametrize("name", ["", " "])
def test_no_name_is_said_to_be_none(name):
    with pytest.raises(ValueError, match="Surf Refiner Loader: expected the name .*, got none; "):
        SurfRefinerLoader.execute(refiner_name=name, weight_dtype="default", attention="host")
