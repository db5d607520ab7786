"""The tiny checkpoints of video and audio load from files, run, and follow what conditions them.

    python tests/host/av_model_cases.py RESULTS.json

Run with the host's folder as the working directory and its Python; see test_inside.py.
"""

import sys
import tempfile
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))

import av_models  # noqa: E402
import inside  # noqa: E402

RESULTS = inside.enter()

import torch  # noqa: E402

FOLDER = tempfile.mkdtemp()
LOADED = {}


def model(name):
    if name not in LOADED:
        LOADED[name] = av_models.load(name, FOLDER)
    return LOADED[name]


def sampled(name, rows=6, columns=10, **options):
    """Sample four Euler steps without guidance; (video, audio)."""
    import comfy.sample
    import comfy.samplers

    frames = 22 if av_models.is_h3(name) else 17
    latent = av_models.latent(name, frames, rows, columns)["samples"]
    guider = comfy.samplers.CFGGuider(model(name))
    guider.set_conds(av_models.prompt(name, **options), av_models.prompt(name, seed=2))
    guider.set_cfg(1.0)
    sampling = model(name).get_model_object("model_sampling")
    sigmas = comfy.samplers.calculate_sigmas(sampling, "simple", 4)
    euler = comfy.samplers.sampler_object("euler")
    noise = comfy.sample.prepare_noise(latent, 5)
    return guider.sample(noise, latent, euler, sigmas, seed=5, disable_pbar=True).unbind()


def gap(a, b):
    """Largest difference of videos, and of audios, relative to the second's largest value."""
    return [((x - y).abs().max() / y.abs().max()).item() for x, y in zip(a, b, strict=True)]


def case_every_kind_is_recognised_and_draws_video_and_audio():
    for name in av_models.KINDS:
        kind = "MiniMaxH3" if av_models.is_h3(name) else "LTXAV"
        network = model(name).model.diffusion_model
        assert type(model(name).model).__name__ == kind
        assert getattr(network, "use_adaln_curves", False) == ("pruned" in name)
        assert getattr(network, "use_keyframes_abs_pos_embedding", False) == ("25" in name)
        video, audio = sampled(name)
        assert torch.isfinite(torch.cat([video.flatten(), audio.flatten()])).all()
        assert video.std() > 0.1 < audio.std(), (name, video.std(), audio.std())


def case_video_and_audio_follow_the_prompt_and_the_seed_alone():
    for name in av_models.KINDS:
        first = sampled(name)
        assert gap(sampled(name), first) == [0, 0]
        assert min(gap(sampled(name, seed=9), first)) > 1e-3, name


def case_minimax_h3_follows_its_keyframes_at_odd_sizes_too():
    for name in ("tiny_minimax_h3", "tiny_minimax_h3_pruned"):
        for rows, columns in ((6, 10), (5, 7)):
            even = rows + rows % 2, columns + columns % 2
            keyframes = [av_models.keyframe(0, *even), av_models.keyframe(21, *even, sound=3)]
            plain = sampled(name, rows=rows, columns=columns)
            anchored = sampled(name, rows=rows, columns=columns, minimax_keyframes=keyframes)
            assert min(gap(anchored, plain)) > 1e-3, name


if __name__ == "__main__":
    inside.report(RESULTS, globals(), av_models.check_known)
