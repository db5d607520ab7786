"""What the cases about video and audio share: guiders, runs with and without a switch, gaps.

For scripts that called `inside.enter` first.
"""

import contextlib
import tempfile
from dataclasses import replace
from unittest import mock

import av_models
import torch

H3, PRUNED, LTX, LTX_25 = av_models.KINDS
FAMILIES = tuple(av_models.KINDS)
HIGH, STEPS, K, SEED = (6, 10), 8, 3, 5
TOKENS = 7
"""Text tokens of a prompt."""
FOLDER = tempfile.mkdtemp()
LOADED = {}


def model(name):
    if name not in LOADED:
        LOADED[name] = av_models.load(name, FOLDER)
    return LOADED[name]


def frames_of(name):
    return 22 if av_models.is_h3(name) else 17


def basic(name, patcher=None, **options):
    """The guider of MiniMax H3's templates: one prompt, no guidance."""
    from comfy_extras.nodes_custom_sampler import Guider_Basic

    guider = Guider_Basic(patcher or model(name))
    guider.set_conds(av_models.prompt(name, **options))
    return guider


def guided(name, cfg, patcher=None, **options):
    import comfy.samplers

    guider = comfy.samplers.CFGGuider(patcher or model(name))
    guider.set_conds(av_models.prompt(name, **options), av_models.prompt(name, seed=2))
    guider.set_cfg(cfg)
    return guider


def inputs(name, size=HIGH, sampler="euler", steps=STEPS, seed=None, patcher=None):
    """Noise, latent, sampler and sigmas of a run."""
    import comfy.sample
    import comfy.samplers

    latent = av_models.latent(name, frames_of(name), *size, seed=seed)["samples"]
    sampling = (patcher or model(name)).get_model_object("model_sampling")
    sigmas = comfy.samplers.calculate_sigmas(sampling, "simple", steps)
    noise = comfy.sample.prepare_noise(latent, SEED)
    return noise, latent, comfy.samplers.sampler_object(sampler), sigmas


def plain(guider, given, mask=None, callback=None):
    noise, latent, sampler, sigmas = given
    return guider.sample(noise, latent, sampler, sigmas, mask, callback, True, SEED)


PLAN = {
    "switch_step": K, "low_resolution": "by scale", "low_scale": 0.5, "low_width": 96,
    "low_height": 64, "sigma_policy": "same", "noise_policy": "inherited", "handover": "reuse",
}  # fmt: skip


def switched(guider, **changes):
    """Put the node's switch round a guider."""
    from surf.nodes.guiders import SurfReshiftAnyGuider

    return SurfReshiftAnyGuider.execute(guider=guider, **(PLAN | changes)).args[0]


def through_estimate(guider, given, k=K, mask=None):
    """Switch to the same size through the clean estimate, as a switch to another one does.

    By itself a switch that keeps the size hands the noisy latent on.
    """
    from surf.nodes.host.preview.legs import Call

    noise, latent, sampler, sigmas = given
    ours = switched(guider, switch_step=k, low_scale=1.0)
    call = Call(noise=noise, samples=latent, sampler=sampler, sigmas=sigmas, mask=mask)
    first, second = ours.legs(call)
    ended = torch.cat([sigmas[:k], torch.zeros(1)])
    legs = [replace(first, sigmas=ended), replace(second, begins="estimate")]
    return ours.run(legs, call, None, True, SEED)


def gap(a, b):
    """Largest difference of videos, and of audios, relative to the second's largest value."""
    a, b = a.unbind(), b.unbind()
    assert [x.shape for x in a] == [x.shape for x in b]
    for x in a:
        assert torch.isfinite(x).all()
    return [((x - y).abs().max() / y.abs().max()).item() for x, y in zip(a, b, strict=True)]


def sound_gap(a, b):
    """Largest difference of audios, relative to the second's largest value."""
    a, b = a.unbind()[1], b.unbind()[1]
    return ((a - b).abs().max() / b.abs().max()).item()


@contextlib.contextmanager
def severed(name, guider, from_text=False):
    """Cut the video off from sound and text, and pin the positions of the sound.

    MiniMax H3 has one sequence, text, sound and then video; the sound's positions follow the
    columns of the video's grid.

    Args:
        guider: gets a clone of its model, for good.
        from_text: cut the sound off from the text as well.
    """
    patcher = guider.model_patcher.clone()
    options = dict(patcher.model_options.get("transformer_options", {}))
    patcher.model_options = {**patcher.model_options, "transformer_options": options}
    guider.model_patcher, guider.model_options = patcher, patcher.model_options
    if not av_models.is_h3(name):
        options |= {"a2v_cross_attn": False, "v2a_cross_attn": False}
        yield
        return
    import comfy.ldm.minimax.model as h3

    sound = av_models.latent(name, frames_of(name))["samples"].unbind()[1]
    before = TOKENS + 2 * sound.shape[-1]

    def attend(func, q, k, v, heads, mask=None, **options):
        if q.shape[2] <= before:
            return func(q, k, v, heads, mask=mask, **options)
        cuts = [0, TOKENS, before] if from_text else [0, before]
        outs = [
            func(*(x[:, :, start:stop] for x in (q, k, v)), heads, mask=mask, **options)
            for start, stop in zip(cuts, cuts[1:], strict=False)
        ]
        outs.append(func(q[:, :, before:], k, v, heads, mask=mask, **options))
        return torch.cat(outs, dim=1)

    options["optimized_attention_override"] = attend
    own = h3._audio_grid

    def pinned(cursor, t, *_):
        return own(cursor, t, -5.0, 36.0)

    with mock.patch.object(h3, "_audio_grid", pinned):
        yield
