"""What constants alone tell is refused by the real host when a graph is queued, before it runs."""

import copy
import json
import os

import pytest
from surf.tests.host.graphs import node
from surf.tests.host.server import Server, install_pack

pytestmark = [
    pytest.mark.host,
    pytest.mark.skipif("COMFYUI_PATH" not in os.environ, reason="COMFYUI_PATH is not set"),
]

PROMPTS = {"positive": ["prompt", 0], "negative": ["prompt", 0]}
LOW = {"low_resolution": "by size", "low_scale": 0.5, "low_width": 32, "low_height": 32}
SWITCH = LOW | {"switch_step": 1, "cfg": 1.0, "cfg_low": 1.0, "sigma_policy": "same"}
SWITCH |= {"noise_policy": "fresh", "handover": "reuse"}
TARGET = {"resolution": "by size", "scale": 2.0, "width": 64, "height": 64, "upsample": "pixel"}


def graph():
    """The embedded models through every node that refuses, down to two outputs."""
    return {
        "models": node("SurfTinyModels"),
        "prompt": node("SurfTinyPrompt", text="red ball"),
        "windows": node("SurfWindowedAttention", model=["models", 0], window=0),
        "guider": node("SurfReshiftGuider", model=["windows", 0], **PROMPTS, **SWITCH),
        "noise": node("RandomNoise", noise_seed=3),
        "euler": node("KSamplerSelect", sampler_name="euler"),
        "sigmas": node(
            "BasicScheduler", model=["models", 0], scheduler="simple", steps=2, denoise=1.0
        ),
        "guided": node(
            "SamplerCustomAdvanced", noise=["noise", 0], guider=["guider", 0],
            sampler=["euler", 0], sigmas=["sigmas", 0], latent_image=["models", 3],
        ),
        "sampled": node(
            "SurfReshiftKSampler", model=["models", 0], **PROMPTS, latent_image=["models", 3],
            seed=1, steps=2, shift=3.0, shift_low=3.0, sampler_name="euler", scheduler="simple",
            denoise=1.0, **SWITCH,
        ),
        "added": node("LatentAdd", samples1=["guided", 0], samples2=["sampled", 0]),
        "smaller": node(
            "SurfLatentDownscale", samples=["added", 0], resolution="by size", scale=0.5,
            width=32, height=32, method="auto",
        ),
        "mask": node(
            "SurfSkipMask", model=["models", 1], latent=["smaller", 0], predictor="detail",
            choose="keep ratio", keep=0.5, tau=3.0, dilate=0, vae=["models", 2], **TARGET,
        ),
        "refined": node(
            "SurfRefiner", model=["models", 1], **PROMPTS, latent=["smaller", 0], seed=1,
            sigma_start=0.05, steps=1, cfg=1.0, window=0, low_band_lock=0.0, colour_match=False,
            vae=["models", 2], tile=0, mask=["mask", 0], seam=0, **TARGET,
        ),
        "frames": node(
            "SurfVAEDecode", samples=["refined", 0], vae=["models", 2], width=0, height=0, piece=0
        ),
        "shown": node("PreviewImage", images=["frames", 0]),
    }  # fmt: skip


ABSENT = object()
# (node, inputs instead, words of each refusal that the host shows, one at every input named)
BAD = [
    ("sampled", {"switch_step": 3}, "switch_step must be at most steps, 2"),
    ("sampled", {"low_width": 36}, "use 32 or 40"),
    ("sampled", {"steps": 10001}, "steps must lie within 1 to 10000"),
    ("sampled", {"low_resolution": "huge"}, "low_resolution must be one of"),
    ("sampled", {"sampler_name": "dpm_fast"}, "Value not in list"),
    ("sampled", {"denoise": 0.0}, "smaller than min"),
    ("guider", {"low_height": 36}, "use 32 or 40"),
    ("smaller", {"height": 36}, "use 32 or 40"),
    ("mask", {"vae": ABSENT}, "needs a VAE"),
    ("mask", {"width": 60}, "use 56 or 64"),
    ("refined", {"vae": ABSENT}, "needs a VAE"),
    ("refined", {"tile": 240}, "use 256 or more, or 0"),
    ("refined", {"window": 1}, "at least 2 latent frames"),
    ("refined", {"upsample": "magic"}, "upsample must be one of"),
    ("frames", {"piece": 112}, "use 128 or more, or 0"),
    ("frames", {"width": -1}, "smaller than min"),
    ("windows", {"window": 1}, "at least 2 latent frames"),
    ("prompt", {"text": "red elephant"}, "elephant"),
]


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    base = tmp_path_factory.mktemp("queue")
    install_pack(base)
    with Server(base) as running:
        yield running


def change(name, inputs):
    changed = copy.deepcopy(graph())
    # The host takes a graph with two outputs where one of them can run.
    for other in ("refined", "frames", "shown") if name == "mask" else ("mask",):
        del changed[other]
    if name != "mask":
        del changed["refined"]["inputs"]["mask"]
    for key, value in inputs.items():
        if value is ABSENT:
            del changed[name]["inputs"][key]
        else:
            changed[name]["inputs"][key] = value
    return changed


def test_the_graph_itself_runs(server):
    server.run(graph())


def test_linked_widgets_are_not_refused(server):
    number = node("PrimitiveInt", value=2)
    linked = change("sampled", {"steps": ["number", 0]}) | {"number": number}
    server.run(linked)


@pytest.mark.parametrize(
    ("name", "inputs", "words"), BAD, ids=[f"{b[0]}-{'-'.join(b[1])}" for b in BAD]
)
def test_constants_are_refused_when_the_graph_is_queued(server, name, inputs, words):
    with pytest.raises(RuntimeError) as caught:
        server.post(change(name, inputs))
    errors = json.loads(str(caught.value))["node_errors"][name]["errors"]
    said = [f"{error['message']} {error['details']}" for error in errors]
    assert said
    assert all(words in text for text in said), said
