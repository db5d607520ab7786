"""Guides of LTX-2 and keyframes and shifts of MiniMax H3, against the host's own nodes.

    python tests/host/guide_cases.py RESULTS.json

Run with the host's folder as the working directory and its Python; see test_inside.py.
"""

import sys
import tempfile
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))

import av_models  # noqa: E402
import inside  # noqa: E402
from inprocess import refused  # noqa: E402

RESULTS = inside.enter()

import torch  # noqa: E402
from surf.nodes.host import models  # noqa: E402
from surf.nodes.host.conditioning import SizeChange, carry  # noqa: E402

FOLDER = tempfile.mkdtemp()
LOADED = {}
HIGH, LOW = (4, 6), (2, 3)


def model(name):
    if name not in LOADED:
        LOADED[name] = av_models.load(name, FOLDER)
    return LOADED[name]


class GuideCoder:
    """Stands in for LTX-2's VAE: guides take their size from it, and their cells are random."""

    downscale_index_formula = 8, 32, 32

    def encode(self, pixels):
        frames, height, width = pixels.shape[:3]
        return torch.randn(1, 128, (frames - 1) // 8 + 1, height // 32, width // 32)


def guided(size, guides, reference=None):
    """Add guides, (frames, index, strength, mask), with the host's own node; (cond, latent)."""
    from comfy_extras.nodes_lt import LTXVAddGuide

    positive, negative = av_models.prompt("tiny_ltx23"), av_models.prompt("tiny_ltx23", seed=2)
    latent = {"samples": torch.zeros(1, 128, 5, *size)}
    for frames, index, strength, mask in guides:
        image = torch.rand(frames, 64, 96, 3)
        positive, negative, latent = LTXVAddGuide.execute(
            positive, negative, GuideCoder(), latent, image, index, strength, mask, reference
        ).args
    return {"positive": positive, "negative": negative}, latent


def sampled(patcher, name, positive, latent, mask=None):
    """Sample four Euler steps without guidance; (video, audio)."""
    import comfy.sample
    import comfy.samplers

    guider = comfy.samplers.CFGGuider(patcher)
    guider.set_conds(positive, av_models.prompt(name, seed=2))
    guider.set_cfg(1.0)
    sampling = patcher.get_model_object("model_sampling")
    sigmas = comfy.samplers.calculate_sigmas(sampling, "simple", 4)
    euler = comfy.samplers.sampler_object("euler")
    noise = comfy.sample.prepare_noise(latent, 5)
    out = guider.sample(noise, latent, euler, sigmas, mask, seed=5, disable_pbar=True)
    return out.unbind() if out.is_nested else [out]


def change(name, source, target):
    return SizeChange.of(model(name), source, target)


def case_guides_at_another_size_equal_those_that_the_host_adds_there():
    guides = [(1, 0, 0.7, None), (9, 8, 1.0, None), (1, -1, 1.5, torch.ones(1, 64, 96))]
    for source, target in ((HIGH, LOW), (LOW, HIGH), (HIGH, (5, 7))):
        made, _ = guided(source, guides)
        theirs, latent = guided(target, guides)
        ours = carry(made, change("tiny_ltx23", source, target))
        for name in ("positive", "negative"):
            [[_, mine]], [[_, host]] = ours[name], theirs[name]
            assert torch.equal(mine["keyframe_idxs"], host["keyframe_idxs"])
            keys = ("pre_filter_count", "latent_shape", "strength")
            for entry, other in zip(
                mine["guide_attention_entries"], host["guide_attention_entries"], strict=True
            ):
                assert [entry[key] for key in keys] == [other[key] for key in keys]
                masks = entry["pixel_mask"], other["pixel_mask"]
                assert masks == (None, None) or torch.equal(*masks)
        crop(ours, latent)


def crop(conds, latent):
    """The host's own LTXVCropGuides must find its guide frames by conditioning of ours."""
    from comfy_extras.nodes_lt import LTXVCropGuides

    _, _, cropped = LTXVCropGuides.execute(conds["positive"], conds["negative"], latent).args
    assert cropped["samples"].shape[2] == 5
    assert latent["samples"].shape[2] == 5 + 1 + 1 + 1


def case_a_video_with_guides_runs_at_the_low_size():
    made, _ = guided(HIGH, [(1, 0, 0.7, None), (1, -1, 1.0, None)])
    fitted = carry(made, change("tiny_ltx23", HIGH, LOW))
    _, latent = guided(LOW, [(1, 0, 0.7, None), (1, -1, 1.0, None)])
    args = model("tiny_ltx23"), "tiny_ltx23", fitted["positive"]
    [video] = sampled(*args, latent["samples"], latent["noise_mask"])
    assert torch.isfinite(video).all()


def case_references_with_a_downscale_factor_are_refused():
    made, _ = guided(HIGH, [(1, 0, 1.0, None)], {"reference_downscale_factor": 2})
    refused(lambda: carry(made, change("tiny_ltx23", HIGH, LOW)), "downscale factor", "take it")


def case_minimax_h3_runs_with_resized_keyframes_at_even_and_odd_sizes():
    name = "tiny_minimax_h3"
    for source, target in ((HIGH, LOW), (HIGH, (3, 5)), ((5, 7), (3, 4)), ((6, 8), (3, 4))):
        even = source[0] + source[0] % 2, source[1] + source[1] % 2
        keyframes = [av_models.keyframe(0, *even), av_models.keyframe(21, *even, sound=3)]
        made = {"positive": av_models.prompt(name, minimax_keyframes=keyframes)}
        fitted = carry(made, change(name, source, target))["positive"]
        latent = av_models.latent(name, 22, *target)["samples"]
        with_them = sampled(model(name), name, fitted, latent)
        without = sampled(model(name), name, av_models.prompt(name), latent)
        assert with_them[0].shape[-2:] == target
        assert all((a - b).abs().max() > 1e-3 for a, b in zip(with_them, without, strict=True))


def case_a_shift_of_the_video_leaves_that_of_the_sound():
    """With its own shift MiniMax H3 draws what it draws; with another, what its own node gives."""
    from comfy_extras.nodes_minimax_h3 import MiniMaxH3SigmaShift

    name = "tiny_minimax_h3"
    latent, positive = av_models.latent(name, 22, *HIGH)["samples"], av_models.prompt(name)
    for shift, audio in ((12.0, None), (6.0, None), (5.0, 2.0)):
        own = model(name)
        if audio is not None:
            [own] = MiniMaxH3SigmaShift.execute(own, 12.0, audio).args
        [theirs] = MiniMaxH3SigmaShift.execute(own, shift, audio or 3.0).args
        ours = models.with_shift(own, shift)
        expected = sampled(theirs, name, positive, latent)
        if (shift, audio) == (12.0, None):
            expected = sampled(model(name), name, positive, latent)
        for mine, host in zip(sampled(ours, name, positive, latent), expected, strict=True):
            assert torch.equal(mine, host), (shift, audio, (mine - host).abs().max())
        assert "minimax_h3_sigma_shift_video" not in model(name).model_options.get(
            "transformer_options", {}
        )


def case_a_schedule_without_a_shift_for_the_sound_is_refused_before_the_host_fails():
    from comfy_extras.nodes_model_advanced import ModelSamplingSD3

    broken = ModelSamplingSD3().patch(model("tiny_minimax_h3"), 5.0)[0]
    refused(lambda: models.check_flow(broken), "ModelSamplingSD3", "ModelSamplingMiniMaxH3")
    models.check_flow(model("tiny_minimax_h3"))
    models.check_flow(model("tiny_ltx23"))


if __name__ == "__main__":
    inside.report(RESULTS, globals(), av_models.check_known)
