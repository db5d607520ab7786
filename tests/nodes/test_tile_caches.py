"""Caches of other nodes never answer one tile with another's result; what was found is named."""

import logging

import host_stub
import pytest
import torch
from surf.nodes.host.refine.tiling import with_tiles
from torch import nn

SIZE = (60, 104)


class Network(nn.Module):
    """Ten layers on the mean of a picture, so that a tile's answer is its own."""

    patch_size, ref_conv = (1, 2, 2), None

    def __init__(self):
        super().__init__()
        self.layers = nn.ModuleList(nn.Linear(1, 1) for _ in range(10))

    def forward(self, x):
        mean = x.mean().view(1, 1)
        for layer in self.layers:
            mean = mean + layer(mean)
        return x + mean


class Base:
    """What the host calls, bound to the network."""

    def __init__(self, patcher):
        self.__dict__.update(vars(patcher.model))

    def apply_model(self, x, t, **conditioning):
        return self.diffusion_model(x)


def model(**left):
    """A MODEL with a real network, and what other nodes left on it."""
    torch.manual_seed(0)
    made = host_stub.Patcher()
    made.model.diffusion_model = Network()
    made.model.memory_required = lambda shape: 0
    made.model_options = {"transformer_options": left.pop("options", {})}
    made.wrappers = left.pop("wrappers", {})
    made.object_patches = left.pop("objects", {})
    if "function" in left:
        made.model_options["model_function_wrapper"] = left.pop("function")
    assert not left
    return made


def foreign(function, module="/packs/ComfyUI-TeaCache.nodes"):
    function.__module__ = module
    return function


def evaluate(made, pixels=256, time=0.5, seed=0):
    """One evaluation in tiles, as the host makes it."""
    x = torch.randn(1, 16, 3, *SIZE, generator=torch.Generator().manual_seed(seed))
    clone = with_tiles(made, x, pixels)
    apply_model = Base(made).apply_model
    args = {"input": x, "timestep": torch.tensor([time]), "c": {}}
    with torch.inference_mode():
        return clone.model_options["model_function_wrapper"](apply_model, args)


class PatchedForward:
    """TeaCache's way: for the call, the network's forward answers a known time from memory."""

    def __init__(self, network, part):
        self.network, self.memory, self.part = network, {}, part

    def __call__(self, apply_model, args):
        time, plain = args["timestep"][0].item(), self.network.forward

        def forward(x):
            if time not in self.memory:
                self.memory[time] = plain(x) - x
                return x + self.memory[time]
            if self.part:
                self.network.layers[0](x.mean().view(1, 1))
            return x + self.memory[time]

        self.network.forward = forward
        try:
            return apply_model(args["input"], args["timestep"], **args["c"])
        finally:
            del self.network.forward


PatchedForward.__module__ = "/packs/ComfyUI-TeaCache.nodes"


@pytest.mark.parametrize("part", [False, True], ids=["all layers", "all but the first"])
def test_a_cache_by_time_is_refused_by_its_name_at_the_second_tile(part):
    made = model()
    cache = PatchedForward(made.model.diffusion_model, part)
    made.model_options["model_function_wrapper"] = cache
    said = (
        f"a tile ran {int(part)} layers, others up to 10. Found on the model: "
        ".*nodes.PatchedForward; take the cache out"
    )
    with pytest.raises(ValueError, match=said):
        evaluate(made)
    assert len(cache.memory) == 1
    assert not any(m._forward_pre_hooks for m in made.model.diffusion_model.modules())


class EverySecond:
    """Answers every second time from the last call, whichever tile that was for."""

    def __init__(self, network):
        self.network, self.times, self.last = network, [], None

    def __call__(self, apply_model, args):
        time, plain = args["timestep"][0].item(), self.network.forward
        self.times += [] if time in self.times else [time]

        def forward(x):
            if len(self.times) % 2:
                self.last = plain(x) - x
            return x + self.last

        self.network.forward = forward
        try:
            return apply_model(args["input"], args["timestep"], **args["c"])
        finally:
            del self.network.forward


EverySecond.__module__ = "/packs/ComfyUI-TeaCache.nodes"


def test_a_cache_that_answers_all_tiles_of_a_step_is_refused_as_well():
    made = model()
    made.model_options["model_function_wrapper"] = EverySecond(made.model.diffusion_model)
    x = torch.randn(1, 16, 3, *SIZE, generator=torch.Generator().manual_seed(0))
    clone, apply_model = with_tiles(made, x, 256), Base(made).apply_model
    call = clone.model_options["model_function_wrapper"]
    call(apply_model, {"input": x, "timestep": torch.tensor([0.9]), "c": {}})
    with pytest.raises(ValueError, match="a tile ran 0 layers, others up to 10"):
        call(apply_model, {"input": x, "timestep": torch.tensor([0.5]), "c": {}})


def test_guidance_that_skips_a_few_layers_of_all_tiles_goes_with_them():
    made = model(wrappers={"apply_model": {"slg": [foreign(lambda *args: None)]}})
    x, network = torch.zeros(1, 16, 3, *SIZE), made.model.diffusion_model
    clone, apply_model = with_tiles(made, x, 256), Base(made).apply_model
    call = clone.model_options["model_function_wrapper"]
    args = {"input": x, "timestep": torch.tensor([0.9]), "c": {}}
    call(apply_model, args)
    network.layers = network.layers[:7]
    call(apply_model, args)


def test_the_same_cache_in_one_piece_runs():
    made = model()
    made.model_options["model_function_wrapper"] = PatchedForward(made.model.diffusion_model, False)
    assert torch.equal(evaluate(made, 0), evaluate(model(), 0))


def test_a_wrapper_round_the_network_that_answers_from_memory_is_refused():
    made = model(wrappers={"apply_model": {"tea": [foreign(lambda *args: None)]}})
    network, memory = made.model.diffusion_model, []

    def forward(x):
        if not memory:
            memory.append(Network.forward(network, x))
        return memory[0]

    network.forward = forward
    with pytest.raises(ValueError, match="Found on the model: tea; take"):
        evaluate(made)


def test_what_runs_all_layers_goes_with_tiles_bit_for_bit():
    plain = evaluate(model())
    made = model(function=foreign(lambda apply, args: apply(args["input"], args["timestep"])))
    assert torch.equal(evaluate(made), plain)
    assert not any(m._forward_pre_hooks for m in made.model.diffusion_model.modules())


def test_without_other_nodes_nothing_is_watched(monkeypatch):
    def refuse(*args):
        raise AssertionError("watched")

    monkeypatch.setattr(nn.Module, "register_forward_pre_hook", refuse)
    evaluate(model())


def test_a_compiled_network_is_not_watched_and_that_is_said(monkeypatch, caplog):
    caplog.set_level(logging.INFO)
    made = model(function=foreign(lambda apply, args: apply(args["input"], args["timestep"])))
    made.model.diffusion_model.layers[0]._orig_mod = made.model.diffusion_model.layers[0].weight
    monkeypatch.setattr(nn.Module, "register_forward_pre_hook", None)
    evaluate(made)
    assert "compiled, so not checked" in caplog.text


def test_one_line_names_what_was_found_and_how_it_goes_with_tiles(caplog):
    caplog.set_level(logging.INFO)
    made = model(
        wrappers={"diffusion_model": {"tea": [foreign(lambda *args: None)]}},
        function=foreign(lambda apply, args: apply(args["input"], args["timestep"])),
    )
    x = torch.zeros(1, 16, 3, *SIZE)
    clone = with_tiles(made, x, 256)
    args = {"input": x, "timestep": torch.ones(1), "c": {}}
    for _ in range(2):
        clone.model_options["model_function_wrapper"](Base(made).apply_model, args)
    (line,) = [text for text in caplog.messages if "other nodes" in text]
    assert line.startswith("SURF: tiles with what other nodes put on this model: tea (sees one; ")
    assert line.endswith("<lambda> (sees the whole picture; checked for caches).")
