"""Inputs as the schemas declare them: refused whoever calls, and when a graph is queued."""

import asyncio

import comfy.samplers
import host_stub
import pytest
import torch
from surf.nodes import SurfExtension
from surf.nodes.host.node import ABSENT
from surf.tests.frozen_nodes import INPUTS
from surf.tests.nodes import vaes

NODES = {
    node.define_schema().node_id: node
    for node in asyncio.run(SurfExtension().get_node_list())
}  # fmt: skip
NUMBERS = [
    (node, name, item)
    for node, inputs in INPUTS.items()
    for name, item in inputs.items()
    if item["type"] in ("INT", "FLOAT")
]
WRONG = (True, "8", None, [8], float("nan"), float("inf"))


def values(item):
    """Values outside of an input's range, or of another kind."""
    step = 1 if item["type"] == "INT" else 1e-3
    yield from (item["min"] - step, item["max"] + step, -(10**30), 10**30, *WRONG)
    if item["type"] == "INT":
        yield item["min"] + 0.5
        yield float(item["max"])


def wrong_for(node, item, values):
    """The values that a node refuses: one may take lists, and a link of its may be absent."""
    own = item["type"] in ("INT", "FLOAT") and "default" in item
    absent = item.get("optional") and not own
    for value in values:
        listed = isinstance(value, list) and getattr(node.define_schema(), "is_input_list", False)
        if not listed and not (absent and value is None):
            yield value


@pytest.mark.parametrize(("node_id", "name", "item"), NUMBERS)
def test_a_number_out_of_its_declared_range_is_refused_before_anything_else(node_id, name, item):
    node = NODES[node_id]
    # Nothing but the check can run on these.
    others = dict.fromkeys(INPUTS[node_id], None)
    others |= {key: x["default"] for key, x in INPUTS[node_id].items() if "default" in x}
    title = node.define_schema().display_name
    for value in wrong_for(node, item, values(item)):
        with pytest.raises(ValueError, match=f"^{title}: {name} must .*; use .*[0-9]\\.$"):
            node.execute(**(others | {name: value}))


OTHERS = {
    "MODEL": [None, "model", {}], "VAE": [None, 3, "vae", host_stub.Patcher()],
    "LATENT": [None, [], ()],
    "CONDITIONING": [None, {}, "text", [[]], [None], [[torch.ones(1, 2, 8)]],
                     [[torch.ones(2, 8), {}]]],
    "GUIDER": [None, "guider", {}, host_stub.Patcher()],
    "IMAGE": [None, torch.ones(4, 4, 3), [1]], "SURF_MASK": [{}, torch.ones(1, 4, 4)],
    "COMBO": [None, 7, ["by scale"]], "BOOLEAN": [None, 1, "yes"], "STRING": [None, b"red", 5],
}  # fmt: skip
FITTING = {
    "MODEL": host_stub.Patcher(), "LATENT": {}, "CONDITIONING": [], "IMAGE": torch.ones(1, 4, 4, 3),
    "VAE": vaes.Vae(), "SURF_MASK": None, "COMBO": "an option",
    "GUIDER": host_stub.CFGGuider(host_stub.Patcher()),
}  # fmt: skip


@pytest.mark.parametrize(
    ("node_id", "name"),
    [(node, name) for node, inputs in INPUTS.items() for name, item in inputs.items()
     if item["type"] in OTHERS],
)  # fmt: skip
def test_a_value_of_another_type_is_refused_by_its_name(node_id, name):
    node, inputs = NODES[node_id], INPUTS[node_id]
    given = {key: x.get("default", FITTING.get(x["type"])) for key, x in inputs.items()}
    title, item = node.define_schema().display_name, inputs[name]
    for value in wrong_for(node, item, OTHERS[item["type"]]):
        with pytest.raises(ValueError, match=f"^{title}: {name} must be .*, got .*; .*connect a"):
            node.execute(**(given | {name: value}))


# Constants of a graph, as the host hands them to validate_inputs; None is a link.
SIZE = {"resolution": "by size", "width": 1920, "height": 1088}
LOW = {"low_resolution": "by size", "low_width": 416, "low_height": 240}
PAIR = {"expert_boundary": 0.9, "cfg_low_noise": 1.0}
REFINER = SIZE | {"upsample": "pixel", "window": 4, "vae": None, "tile": 0, "latent": None}
GOOD = {
    "SurfReshiftKSampler": LOW | PAIR | {"steps": 8, "switch_step": 8},
    "SurfReshiftGuider": LOW | PAIR,
    "SurfReshiftAnyGuider": LOW,
    "SurfReshiftLadder": {"sizes": "10: 0.75, 20: 0.5"},
    "SurfLatentDownscale": {"resolution": "by size", "width": 416, "height": 40},
    "SurfImageToVideo": {"length": 81},
    "SurfRefiner": REFINER,
    "SurfSkipMask": SIZE | {"upsample": "pixel", "vae": None},
    "SurfVAEDecode": {"piece": 128},
    "SurfDecodeVideo": {"piece": 128, "width": 1920, "height": 1080},
    "SurfPlan": LOW | {"switch_step": 8, "steps": 8},
    "SurfWindowedAttention": {"window": 2},
    "SurfTinyPrompt": {"text": "red ball"},
    "SurfLoadDraft": {"file": None},
}
# (node, constants instead, what is absent, words of the refusal)
BAD = [
    ("SurfReshiftKSampler", {"switch_step": 9}, (), "switch_step must be at most steps, 8"),
    ("SurfReshiftKSampler", {"switch_step": -1}, (), "switch_step must lie within 0 to 10000"),
    ("SurfReshiftKSampler", {"steps": 0}, (), "steps must lie within 1"),
    ("SurfReshiftKSampler", {"low_width": 100}, (), "use 96 or 104"),
    ("SurfReshiftKSampler", {"low_height": 8200}, (), "low_height must lie within 16 to 8192"),
    ("SurfReshiftKSampler", {"low_resolution": "1080p"}, (), "must be one of by scale, 240p"),
    ("SurfReshiftKSampler", {"expert_boundary": 0.0}, (), "needs an expert_boundary above 0"),
    ("SurfReshiftKSampler", {"expert_boundary": 1.5}, (), "expert_boundary must lie within 0.0"),
    ("SurfReshiftGuider", {"expert_boundary": 0.0}, (), "needs an expert_boundary above 0"),
    ("SurfReshiftAnyGuider", {"low_height": 100}, (), "use 96 or 104"),
    ("SurfReshiftLadder", {"sizes": ""}, (), "expected steps and factors"),
    ("SurfReshiftLadder", {"sizes": "10: 0.5, 20"}, (), "got '20'; write the evaluations"),
    ("SurfReshiftLadder", {"sizes": "20: 0.75, 10: 0.5"}, (), "got 10: 0.5 after 20: 0.75"),
    ("SurfReshiftLadder", {"sizes": "10: 0.5, 20: 0.75"}, (), "later steps and smaller sizes"),
    ("SurfReshiftLadder", {"sizes": "10: 1.5"}, (), "a factor of sizes must lie within"),
    ("SurfReshiftGuider", {"low_height": 100}, (), "use 96 or 104"),
    ("SurfReshiftGuider", {"low_resolution": "huge"}, (), "must be one of"),
    ("SurfLatentDownscale", {"width": 100}, (), "use 96 or 104"),
    ("SurfLatentDownscale", {"resolution": "huge"}, (), "must be one of"),
    ("SurfRefiner", {}, ("vae",), "needs a VAE"),
    ("SurfRefiner", {}, ("latent",), "got neither a latent nor an image"),
    ("SurfRefiner", {"upsample": "latent", "image": None}, ("vae",), "needs a VAE"),
    ("SurfRefiner", {"width": 1270}, (), "use 1264 or 1272"),
    ("SurfRefiner", {"window": 1}, (), "at least 2 latent frames"),
    ("SurfRefiner", {"window": 1025}, (), "window must lie within 0 to 1024"),
    ("SurfRefiner", {"tile": 240}, (), "use 256 or more, or 0"),
    ("SurfRefiner", {"tile": 16400}, (), "tile must lie within"),
    ("SurfRefiner", {"upsample": "magic"}, (), "must be one of pixel"),
    ("SurfSkipMask", {}, ("vae",), "needs a VAE"),
    ("SurfSkipMask", {"height": 1084}, (), "use 1080 or 1088"),
    ("SurfSkipMask", {"upsample": "latent", "image": None}, (), "upsample must be pixel"),
    ("SurfVAEDecode", {"piece": 112}, (), "use 128 or more, or 0"),
    ("SurfDecodeVideo", {"piece": 112}, (), "use 128 or more, or 0"),
    ("SurfDecodeVideo", {"width": 1921}, ("height",), "width must be even, as H.264"),
    ("SurfDecodeVideo", {"height": 1081}, (), "got 1081; set height to 1080"),
    ("SurfVAEDecode", {"piece": -16}, (), "piece must lie within"),
    ("SurfWindowedAttention", {"window": 1}, (), "at least 2 latent frames"),
    ("SurfTinyPrompt", {"text": "a red elephant"}, (), "elephant"),
]


@pytest.mark.parametrize("node_id", GOOD)
def test_constants_that_can_work_are_queued(node_id):
    assert NODES[node_id].validate_inputs(**GOOD[node_id]) is True
    # Linked, all of them; and a graph that lacks them, which the host reports by itself.
    assert NODES[node_id].validate_inputs(**dict.fromkeys(GOOD[node_id])) is True
    kept = {key: None for key in ("vae", "latent") if key in GOOD[node_id]}
    assert NODES[node_id].validate_inputs(**kept) is True


@pytest.mark.parametrize(("node_id", "changes", "absent", "words"), BAD)
def test_constants_that_cannot_work_are_refused_when_queued(node_id, changes, absent, words):
    given = {key: x for key, x in (GOOD[node_id] | changes).items() if key not in absent}
    said = NODES[node_id].validate_inputs(**given)
    assert words in str(said)


def test_a_vae_is_not_asked_for_where_nothing_is_encoded():
    refiner = {key: value for key, value in REFINER.items() if key != "vae"}
    validate = NODES["SurfRefiner"].validate_inputs
    assert validate(**(refiner | {"upsample": "latent"})) is True
    assert validate(**(refiner | {"upsample": None})) is True
    assert validate(**(refiner | {"mask": None})) is True


def test_frames_take_the_place_of_a_latent():
    refiner = {key: value for key, value in REFINER.items() if key != "latent"}
    validate = NODES["SurfRefiner"].validate_inputs
    assert validate(**(refiner | {"image": None})) is True
    assert validate(**(refiner | {"image": None, "upsample": "latent"})) is True
    assert validate(**(REFINER | {"image": None})) is True


def test_widths_count_for_by_size_alone():
    for node_id in ("SurfReshiftKSampler", "SurfReshiftGuider", "SurfReshiftAnyGuider"):
        given = GOOD[node_id] | {"low_resolution": "by scale", "low_width": 100}
        assert NODES[node_id].validate_inputs(**given) is True


def test_what_is_named_is_an_input():
    for node_id, node in NODES.items():
        named = getattr(node, "validate_inputs", None)
        if named is None:
            assert node_id not in GOOD
            continue
        code = named.__func__.__code__
        names = code.co_varnames[1 : code.co_argcount]
        assert set(names) <= set(INPUTS[node_id])
        assert set(named.__func__.__defaults__) == {ABSENT}
        # An error stands beside each input that is named.
        assert len(names) <= 10
    assert set(GOOD) == {name for name, node in NODES.items() if hasattr(node, "validate_inputs")}


@pytest.mark.parametrize(
    ("name", "kinds"), [("sampler_name", "SAMPLERS"), ("scheduler", "SCHEDULERS")]
)
def test_samplers_of_other_packs_are_taken_whenever_they_come(name, kinds, monkeypatch):
    added = [*getattr(comfy.samplers.KSampler, kinds), "res_2s"]
    monkeypatch.setattr(comfy.samplers.KSampler, kinds, added)
    node = NODES["SurfReshiftKSampler"]
    [item] = [item for item in node.define_schema().inputs if item.id == name]
    assert "res_2s" in item.options
    with pytest.raises(ValueError, match="one of .*res_2s, got 'res_3s'"):
        node.execute(
            **{key: x.get("default") for key, x in INPUTS["SurfReshiftKSampler"].items()}
            | {"model": host_stub.Patcher(), "positive": [], "negative": [], "latent_image": {}}
            | {name: "res_3s"}
        )
