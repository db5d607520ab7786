"""What cannot work is refused before a model runs: what was expected, what came, what to do."""

import re
from types import SimpleNamespace

import comfy.model_base
import comfy.samplers
import host_stub
import pytest
import torch
from surf.nodes.host.models import with_shift
from surf.nodes.preview import SurfLatentDownscale, SurfReshiftGuider, SurfReshiftKSampler
from surf.nodes.refine import SurfRefiner

NAN, INF = float("nan"), float("inf")
SWITCH = {
    "switch_step": 3, "cfg": 7.5, "cfg_low": 5.0, "low_resolution": "by scale", "low_scale": 0.5,
    "low_width": 96, "low_height": 64, "sigma_policy": "same", "noise_policy": "fresh",
    "handover": "reuse",
}  # fmt: skip
SAMPLE = SWITCH | {
    "seed": 1, "steps": 8, "shift": 3.0, "shift_low": 3.0, "sampler_name": "euler",
    "scheduler": "simple", "denoise": 1.0,
}  # fmt: skip
DOWN = {"resolution": "by scale", "scale": 0.5, "width": 96, "height": 64, "method": "auto"}
REFINE = {
    "seed": 1, "resolution": "by scale", "scale": 2.0, "width": 384, "height": 256,
    "upsample": "latent", "sigma_start": 0.65, "steps": 4, "cfg": 4.5, "window": 0,
    "low_band_lock": 0.0, "colour_match": False,
}  # fmt: skip
SIGMAS = torch.linspace(1, 0, 9)


def latent(*shape, fill=0.0, **more):
    return {"samples": torch.full(shape or (1, 16, 3, 16, 24), fill), **more}


def nested(*parts):
    return {"samples": host_stub.latents.NestedTensor(parts)}


def models():
    """Models by kind; they count what they evaluate."""
    eps = (host_stub.DiscreteFlow, host_stub.Eps)
    flux = (host_stub.FluxSampling, host_stub.Const)
    image, i2v = host_stub.Patcher(), host_stub.Patcher()
    i2v.model.model_config = SimpleNamespace(unet_config={"in_dim": 36})
    image.model.latent_format.latent_dimensions = 2
    mean_flow = host_stub.Patcher()
    mean_flow.model.diffusion_model.time_r_in = torch.nn.Identity()
    return {
        "flow": host_stub.Patcher(),
        "image": image,
        "i2v": i2v,
        "mean flow": mean_flow,
        "eps": host_stub.Patcher(kind=eps),
        "flux": host_stub.Patcher(kind=flux),
        "5b": host_stub.Patcher(channels=48),
        "shift 8": with_shift(host_stub.Patcher(), 8.0),
        "hunyuan": host_stub.Patcher(base=comfy.model_base.HunyuanVideo),
    }


LATENTS = {
    "nested": nested(latent()["samples"], torch.zeros(1, 8, 5, 16)),
    "four parts": nested(*[latent()["samples"], torch.zeros(1, 8, 5, 16)] * 2),
    "no samples": {},
    "channels": latent(1, 8, 3, 16, 24, fill=1.0),
    "nan": latent(fill=NAN),
    "infinite": latent(fill=INF),
    "3-d": latent(16, 16, 24),
    "empty": latent(0, 16, 3, 16, 24),
    "integers": {"samples": torch.zeros(1, 16, 3, 16, 24, dtype=torch.int64)},
    "batch_index": latent(batch_index=[0, 1, 2]),
    "mask": latent(noise_mask=torch.tensor([1.0])),
    "float8": {"samples": torch.zeros(1, 16, 3, 16, 24).to(torch.float8_e4m3fn)},
    "bool mask": latent(noise_mask=torch.ones(1, 16, 24, dtype=torch.bool)),
    "int mask": latent(noise_mask=torch.ones(1, 16, 24, dtype=torch.int64)),
    "list mask": latent(noise_mask=[1.0]),
    "nan mask": latent(noise_mask=torch.full((1, 16, 24), NAN)),
    "two masks": latent(noise_mask=torch.ones(2, 16, 24)),
    "masks of two": latent(noise_mask=torch.ones(2, 1, 3, 16, 24)),
    "odd rows": latent(1, 16, 3, 15, 24),
    "odd columns": latent(1, 16, 3, 16, 25),
    "filled": latent(fill=0.5),
    "an image": latent(1, 16, 16, 24, fill=0.5),
}
K, G, D, R = SurfReshiftKSampler, SurfReshiftGuider, SurfLatentDownscale, SurfRefiner
# (node, what is wrong with it, words that the message must hold)
TABLE = [
    (K, {"model": "eps"}, "flow model", "Eps", "connect"),
    (K, {"model": "flux"}, "has a shift", "FluxSampling", "set the shift to 0"),
    (K, {"model_low": "eps"}, "flow model", "Eps", "connect"),
    (K, {"model": "mean flow"}, "can be switched", "mean flow", "SamplerCustomAdvanced"),
    (K, {"model_low": "mean flow"}, "can be switched", "mean flow", "SamplerCustomAdvanced"),
    (K, {"model_low": "5b"}, "Wan21", "Wan22", "same family"),
    (K, {"model_low_noise": "5b", "expert_boundary": 0.9}, "model_low_noise", "Wan22", "family"),
    (K, {"model_low_noise": "i2v", "expert_boundary": 0.9}, "of one family", "with 36 channels",
     "of the same model"),
    (K, {"model_low_noise": "eps", "expert_boundary": 0.9}, "flow model", "Eps", "connect"),
    (K, {"model_low_noise": "flow"}, "boundary of 0", "never", "set it to 0.9 for I2V"),
    (K, {"expert_boundary": 0.9}, "needs two experts", "got one model", "model_low_noise"),
    (K, {"expert_boundary": 1.5}, "within 0.0 to 1.0", "1.5", "use"),
    (K, {"expert_boundary": NAN}, "within 0", "nan", "use"),
    (K, {"cfg_low_noise": 2.0}, "expert_boundary above 0", "2.0", "set the boundary"),
    (K, {"model_low": "flow", "model_low_noise": "flow", "expert_boundary": 0.9}, "got both",
     "another model after the switch", "else set expert_boundary to 0"),
    (K, {"model_low_noise": "shift 8", "expert_boundary": 0.9, "shift": 0.0}, "one timestep shift",
     "8", "or shift here"),
    (K, {"model_low_noise": "shift 8", "expert_boundary": 0.9, "shift_low": 0.0}, "timestep shift",
     "8", "or shift_low here"),
    (G, {"model_low_noise": "shift 8", "expert_boundary": 0.9}, "one timestep shift", "8", "set"),
    (G, {"expert_boundary": 0.9}, "needs two experts", "got one model", "model_low_noise"),
    (G, {"model_low_noise": "flow"}, "boundary of 0", "never", "set it to 0.9 for I2V"),
    (K, {"steps_low": -1}, "within 0 to 10000", "-1", "use 0"),
    (K, {"sampler_low": "magic"}, "sampler_low must be one of euler", "'magic'", "choose one"),
    (K, {"sampler_low": "dpm_fast"}, "takes the schedule's steps", "dpm_fast", "use euler"),
    (K, {"scheduler_low": "magic"}, "scheduler_low must be one of simple", "'magic'", "choose one"),
    (K, {"positive_low": [[torch.ones(1, 4, 16), {}]]}, "from the text encoder of positive", "16",
     "encode both"),
    (G, {"negative_low": [[torch.ones(1, 4, 16), {}]]}, "from the text encoder of negative", "16",
     "encode both"),
    (K, {"latent_image": "two masks"}, "1 or 3 latent frames", r"\(2, 16, 24\)", "make one mask"),
    (K, {"latent_image": "masks of two"}, "for 1 or 1 items", r"\(2, 1, 3, 16", "make one mask"),
    (G, {"denoise_mask": torch.ones(2, 16, 24)}, "1 or 3 latent frames", r"\(2, 16", "make one"),
    (K, {"latent_image": "nested"}, "one video latent", "nested", "separate"),
    (K, {"latent_image": "no samples"}, "one tensor", "NoneType", "pass"),
    (K, {"latent_image": "channels"}, "16 channels", "got 8", "same model family"),
    (K, {"latent_image": "an image"}, "a video latent", "an image latent", "decode it and encode"),
    (K, {"model": "image"}, "an image latent", "got a video latent", "decode it and encode"),
    (G, {"latent_image": "an image"}, "a video latent", "an image latent", "decode it and encode"),
    (G, {"model": "image"}, "an image latent", "got a video latent", "decode it and encode"),
    (K, {"latent_image": "nan"}, "finite", "NaN", "look at"),
    (K, {"latent_image": "infinite"}, "finite", "infinity", "look at"),
    (K, {"latent_image": "3-d"}, r"\[B, C, H, W\]", "16, 16, 24", "pass a latent"),
    (K, {"latent_image": "empty"}, "at least one cell", r"\(0, 16", "check"),
    (K, {"latent_image": "integers"}, "floating", "int64", "convert"),
    (K, {"latent_image": "float8"}, "at least 16 bits", "float8_e4m3fn", "convert"),
    (K, {"latent_image": "bool mask"}, "from 0, kept, to 1", "torch.bool", "convert it"),
    (K, {"latent_image": "int mask"}, "from 0, kept, to 1", "torch.int64", "convert it"),
    (K, {"latent_image": "list mask"}, "from 0, kept, to 1", "list", "convert it"),
    (G, {"denoise_mask": torch.ones(16, 24).bool()}, "from 0", "torch.bool", "convert it"),
    (D, {"samples": "bool mask"}, "from 0, kept, to 1", "torch.bool", "convert it"),
    (D, {"samples": "float8"}, "at least 16 bits", "float8_e4m3fn", "convert"),
    (K, {"latent_image": "batch_index"}, "batch_index", r"\[0, 1, 2\]", "take"),
    (K, {"latent_image": "mask"}, "rows and columns", r"\(1,\)", "set it again"),
    (K, {"latent_image": "nan mask"}, "finite", r"\(1, 16, 24\)", "set it again"),
    (K, {"model": "hunyuan", "latent_image": "odd rows"}, "multiples of 2", "15 x 24", "192 x 128"),
    (K, {"model": "hunyuan", "latent_image": "odd columns"}, "of 2", "16 x 25", "192 x 128"),
    (K, {"switch_step": -1}, "within 0 to 10000", "got -1", "use 10"),
    (K, {"switch_step": 9}, "0 to 8", "step=9", "use"),
    (K, {"low_resolution": "720p"}, "above the input's 192 x 128", "got", "choose"),
    (K, {"low_scale": 1.5}, "within 0.1 to 1.0", "1.5", "use 0.5"),
    (K, {"low_scale": 0.0}, "within 0.1", "got 0.0", "use 0.5"),
    (K, {"low_scale": NAN}, "within 0.1", "nan", "use 0.5"),
    (K, {"low_resolution": "by size", "low_width": 100}, "multiple of 16", "100", "use 96 or 112"),
    (K, {"low_resolution": "by size", "low_height": 0}, "within 16 to 8192", "got 0", "use 240"),
    (K, {"low_resolution": "by size", "low_width": 208}, "above the input's", "208 x 64", "choose"),
    (K, {"low_resolution": "360p"}, "one of", "'360p'", "choose one"),
    (K, {"sigma_policy": "lower"}, "one of same", "'lower'", "choose one"),
    (K, {"noise_policy": "old"}, "one of fresh", "'old'", "choose one"),
    (K, {"handover": "both"}, "one of reuse", "'both'", "choose one"),
    (K, {"denoise": 0.0}, "within 0.01", "got 0.0", "use 1.0"),
    (K, {"denoise": 1.5}, "within 0.01 to 1.0", "1.5", "use 1.0"),
    (K, {"denoise": NAN}, "within 0.01", "nan", "use 1.0"),
    (K, {"steps": 0}, "within 1", "got 0", "use 40"),
    (K, {"steps": 8.0}, "whole number", "got 8.0", "use 40"),
    (K, {"seed": 2**64}, "within 0", str(2**64), "use 0"),
    (K, {"seed": -1}, "within 0", "got -1", "use 0"),
    (K, {"cfg": NAN}, "within 0", "nan", "use"),
    (K, {"cfg_low": -1.0}, "within 0", "-1.0", "use"),
    (K, {"shift": -1.0}, "within 0", "-1.0", "use 3"),
    (K, {"shift_low": INF}, "within 0", "inf", "use 3"),
    (K, {"sampler_name": "dpm_fast"}, "takes the schedule's steps", "dpm_fast", "use euler"),
    (K, {"sampler_name": "dpm_adaptive"}, "takes the schedule's", "dpm_adaptive", "use euler"),
    (K, {"sampler_name": "magic"}, "one of euler", "'magic'", "choose one"),
    (K, {"scheduler": "magic"}, "one of simple", "'magic'", "choose one"),
    (G, {"model": "eps"}, "flow model", "Eps", "connect"),
    (G, {"model": "mean flow"}, "can be switched", "mean flow", "SamplerCustomAdvanced"),
    (G, {"model_low": "5b"}, "Wan21", "Wan22", "same family"),
    (G, {"latent_image": "nested"}, "one video latent", "nested", "separate"),
    (G, {"latent_image": "nan"}, "finite", "NaN", "look at"),
    (G, {"latent_image": "channels"}, "16 channels", "got 8", "same model family"),
    (G, {"model": "hunyuan", "latent_image": "odd rows"}, "multiples of 2", "15 x 24", "use 192"),
    (G, {"sampler": "dpm_fast"}, "takes the schedule's steps", "dpm_fast", "use euler"),
    (G, {"sampler": "dpm_adaptive"}, "takes the schedule's steps", "dpm_adaptive", "use euler"),
    (G, {"sigmas": SIGMAS[:0]}, "schedule is empty", r"got \[\]", "use at least one step"),
    (G, {"sigmas": SIGMAS[:1]}, "schedule is empty", r"got \[1.0\]", "use at least one step"),
    (G, {"sigmas": SIGMAS.flip(0)}, "must fall", "0.125", "use a scheduler"),
    (G, {"sigmas": SIGMAS * 14.6}, "within 0..1", "14.6", "flow model"),
    (G, {"sigmas": SIGMAS * NAN}, "must fall", "nan", "use a scheduler"),
    (G, {"sigmas": SIGMAS[None]}, "one row", r"\(1, 9\)", "connect a scheduler"),
    (G, {"sigmas": torch.ones(9)}, "end below sigma 1", "1.0, 1.0", "use the lower part"),
    (G, {"switch_step": 9}, "0 to 8", "step=9", "use"),
    (G, {"seed": -1}, "seed must lie within 0", "got -1", "use 0"),
    (G, {"seed": 2**64}, "seed must lie within 0", str(2**64), "use 0"),
    (G, {"noise": latent()}, "DisableNoise", "got none", "set noise_policy to inherited"),
    (G, {"noise": latent(), "latent_image": "filled", "sigmas": SIGMAS[2:], "switch_step": 0},
     "DisableNoise", "got none", "set noise_policy to inherited"),
    (G, {"sigmas": SIGMAS[:3], "switch_step": 1, "sigma_policy": "snr_equal", "low_scale": 0.25},
     "ending at 0.75, does not reach", "split the sigmas later, switch earlier",
     "or set sigma_policy to same"),
    (G, {"low_resolution": "480p"}, "above the input's", "got", "choose a lower"),
    (D, {"samples": "four parts"}, "two nested parts", "got 4 of", "join one video"),
    (D, {"samples": "no samples"}, "one tensor", "NoneType", "pass"),
    (D, {"samples": "nan"}, "finite", "NaN", "look at"),
    (D, {"samples": "3-d"}, r"\[B, C, H, W\]", "16, 16, 24", "pass a latent"),
    (D, {"samples": "mask"}, "rows and columns", r"\(1,\)", "set it again"),
    (D, {"resolution": "4k"}, "one of", "'4k'", "choose one"),
    (D, {"method": "magic"}, "one of auto", "'magic'", "choose one"),
    (D, {"scale": 2.0}, "within 0.1 to 1.0", "2.0", "use 0.5"),
    (D, {"scale": -1.0}, "within 0.1", "-1.0", "use 0.5"),
    (D, {"width": -64}, "within 16", "-64", "use 416"),
    (D, {"width": 10**9}, "to 8192", "1000000000", "use 416"),
    (D, {"resolution": "by size", "height": 50}, "multiple of 16", "50", "use 48 or 64"),
    (D, {"resolution": "720p"}, "above the input's", "got", "choose a lower"),
]  # fmt: skip
NAMES = {
    K: "Surf Reshift KSampler",
    G: "Surf Reshift Guider",
    D: "Surf Latent Downscale",
    R: "Surf Refiner",
}


def conds():
    return {name: [[torch.ones(1, 4, 8), {}]] for name in ("positive", "negative")}


def run(node, known, changes):
    """Run a node as a graph would; the guider through a sampling call."""
    named = dict.fromkeys(("model", "model_low", "model_low_noise"), known)
    named |= dict.fromkeys(("latent", "latent_image", "samples"), LATENTS)
    given = {key: named[key][v] if key in named else v for key, v in changes.items()}
    flow = {"model": known["flow"], **conds()}
    if node is D:
        return D.execute(**({"samples": latent()} | DOWN | given))
    if node is R:
        return R.execute(**(flow | {"latent": latent(fill=0.5)} | REFINE | given))
    if node is K:
        return K.execute(**(flow | {"latent_image": latent()} | SAMPLE | given))
    sampling = {"latent_image": latent(), "sampler": "euler", "sigmas": SIGMAS}
    sampling |= {"noise": latent(fill=1.0), "denoise_mask": None, "seed": 1}
    sampling = {key: given.pop(key, value) for key, value in sampling.items()}
    (guider,) = G.execute(**(flow | SWITCH | given)).args
    samples = sampling["latent_image"]["samples"]
    sampler = comfy.samplers.sampler_object(sampling["sampler"])
    noise = sampling["noise"]["samples"]
    more = {name: sampling[name] for name in ("denoise_mask", "seed")}
    return guider.sample(noise, samples, sampler, sampling["sigmas"], **more)


@pytest.mark.parametrize(
    ("node", "changes", "words"),
    [(node, changes, words) for node, changes, *words in TABLE],
    ids=[f"{NAMES[n]}-{'-'.join(map(str, c))}-{i}" for i, (n, c, *_) in enumerate(TABLE)],
)
def test_bad_input_is_refused_with_advice(node, changes, words):
    known = models()
    with pytest.raises(ValueError, match=f"^{NAMES[node]}: ") as caught:
        run(node, known, changes)
    said = str(caught.value)
    assert said.count(f"{NAMES[node]}: ") == 1
    for word in words:
        assert re.search(word, said), f"{word!r} not in: {said}"
    assert re.search(r"[;,] .+\.$", said), said
    assert not any(model.seen for model in known.values())


def test_the_table_covers_every_node():
    assert len(TABLE) >= 40
    assert {node for node, *_ in TABLE} == set(NAMES) - {R}, "see test_refine_rejects.py"


@pytest.mark.parametrize("node", list(NAMES))
def test_the_same_nodes_run_on_good_input(node):
    known = models()
    run(node, known, {})
    assert node is D or known["flow"].seen


def test_the_largest_seed_runs_a_stochastic_sampler_on_a_cpu():
    known = models()
    run(K, known, {"seed": 2**64 - 1, "sampler_name": "euler_ancestral"})
    assert len(known["flow"].seen) == 8
