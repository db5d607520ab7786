"""Surf Refiner on tiny models of video and audio, and the host's own sampler beside it.

Imported before `inside.enter`, which takes this folder off the path.
"""

import tempfile

import av_models
import torch

FOLDER = tempfile.mkdtemp()
LOADED = {}
FAMILIES = ("tiny_minimax_h3", "tiny_ltx23", "tiny_ltx25")
FRAMES = {"tiny_minimax_h3": 22, "tiny_ltx23": 49, "tiny_ltx25": 49}
SETTINGS = {
    "seed": 3, "resolution": "by scale", "scale": 1.0, "width": 384, "height": 256,
    "upsample": "latent", "sigma_start": 0.85, "steps": 3, "cfg": 1.0, "window": 0,
    "low_band_lock": 0.0, "colour_match": False,
}  # fmt: skip


def model(name):
    if name not in LOADED:
        LOADED[name] = av_models.load(name, FOLDER)
    return LOADED[name]


def preview(name, rows=6, columns=10, seed=4, **more):
    """A preview with audio; on hosts without these models the case does not run."""
    av_models.check_known()
    from comfy.nested_tensor import NestedTensor

    latent = av_models.latent(name, FRAMES[name], rows, columns, seed=seed)
    video, audio = latent["samples"].unbind()
    return {"samples": NestedTensor([video * 0.3 + 1, audio]), **more}


def refined(name, latent, patcher=None, positive=None, **changes):
    """Call the node; (video, audio)."""
    from surf.nodes.refine import SurfRefiner

    out = SurfRefiner.execute(
        model=patcher or model(name), positive=positive or av_models.prompt(name),
        negative=av_models.prompt(name, seed=2), latent=latent, **(SETTINGS | changes),
    ).args[0]  # fmt: skip
    return out["samples"].unbind()


def stock(name, latent, patcher=None, cfg=1.0, positive=None, mask=None):
    """The host's own sampler from the same noise, sigmas and mask; (video, audio)."""
    import comfy.sample
    import comfy.samplers

    sigmas = torch.linspace(SETTINGS["sigma_start"], 0, SETTINGS["steps"] + 1)
    noise = comfy.sample.prepare_noise(latent["samples"], SETTINGS["seed"])
    return comfy.samplers.sample(
        patcher or model(name), noise, positive or av_models.prompt(name),
        av_models.prompt(name, seed=2), cfg, "cpu", comfy.samplers.sampler_object("euler"),
        sigmas, (patcher or model(name)).model_options, latent["samples"], mask,
        disable_pbar=True, seed=SETTINGS["seed"],
    ).unbind()  # fmt: skip


def silent(latent):
    from comfy.nested_tensor import NestedTensor

    video, audio = latent["samples"].unbind()
    return NestedTensor([torch.ones_like(video), torch.zeros_like(audio)])


def gap(a, b):
    return ((a - b).abs().max() / b.abs().max()).item()
