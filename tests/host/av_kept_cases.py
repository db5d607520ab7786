"""What a switch on video and audio keeps: masks, given sound, keyframes, guides; what it refuses.

    python tests/host/av_kept_cases.py RESULTS.json

Run with the host's folder as the working directory and its Python; see test_inside.py.
"""

import logging
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))

import av_models  # noqa: E402
import inside  # noqa: E402
from av_runs import (  # noqa: E402
    FAMILIES,
    H3,
    HIGH,
    LTX,
    PRUNED,
    basic,
    frames_of,
    gap,
    inputs,
    model,
    plain,
    switched,
    through_estimate,
)
from inprocess import refused  # noqa: E402

RESULTS = inside.enter()

import torch  # noqa: E402
from surf.nodes.host.preview.pictures import Pictures  # noqa: E402

LOW = (4, 6)
"""What half of HIGH is in whole tokens of MiniMax H3."""


def masks(name, video, audio=1.0):
    """Make a noise mask of both parts; `video` is a number for each latent frame, or for all."""
    from comfy.nested_tensor import NestedTensor

    shapes = [part.shape for part in av_models.latent(name, frames_of(name))["samples"].unbind()]
    frames = torch.ones(shapes[0][2]) * 1.0
    values = torch.as_tensor(video, dtype=torch.float32).flatten()
    frames[: len(values)] = values
    picture = torch.ones(1, 1, shapes[0][2], *HIGH) * frames[:, None, None]
    return NestedTensor([picture, torch.full((1, 1, *shapes[1][2:]), float(audio))])


def case_what_a_hard_or_soft_mask_keeps_crosses_a_switch_to_the_same_size():
    """A first frame that is kept; the 0.3 of LTX-2's Image to Video; each part by itself."""
    for name in FAMILIES:
        given = inputs(name, seed=3)
        for video, audio in ((0.0, 1.0), ([0.0], 1.0), ([0.3], 1.0), ([0.3, 0.7], 0.5), (1.0, 0.3)):
            mask = masks(name, video, audio)
            expected = plain(basic(name), given, mask)
            ours = through_estimate(basic(name), given, mask=mask)
            assert max(gap(ours, expected)) < 2e-5, (name, video, audio, gap(ours, expected))


def case_a_frame_that_is_kept_is_the_resized_one_after_the_switch():
    from surf.surf_core.resample import resize

    for name in FAMILIES:
        given = inputs(name, seed=3)
        out = plain(switched(basic(name)), given, masks(name, [0.0])).unbind()[0]
        expected = resize(given[1].unbind()[0][:, :, :1], tuple(out.shape[-2:]))
        kept = (out[:, :, :1] - expected).abs().max() / expected.abs().max()
        assert kept < (2e-2 if av_models.is_h3(name) else 1e-6), (name, kept)


def case_given_sound_comes_back_as_it_was_and_guides_the_video():
    for name in FAMILIES:
        given, mask = inputs(name, seed=3), masks(name, 1.0, 0.0)
        for policy in ("same", "snr_equal") if av_models.is_h3(name) else ("same",):
            video, audio = plain(switched(basic(name), sigma_policy=policy), given, mask).unbind()
            sound = given[1].unbind()[1]
            assert (audio - sound).abs().max() / sound.abs().max() < 1e-6, (name, policy)
            free = plain(switched(basic(name), sigma_policy=policy), given).unbind()[0]
            assert (video - free).abs().max() > 1e-4, name


class MeanCoder:
    """Stands in for MiniMax H3's video VAE: means of 16 pixels, in 24 channels."""

    def encode(self, pixels):
        assert pixels.ndim == 4
        assert pixels.shape[-1] == 3
        cells = torch.nn.functional.avg_pool2d(pixels.movedim(-1, 1), 16)
        return cells.repeat(1, 8, 1, 1)[:, :, None].mean(0, keepdim=True)


def picture(seed, height=100, width=170):
    return torch.rand(1, height, width, 3, generator=torch.Generator().manual_seed(seed))


class PromptStandIn:
    """Stands in for the text encoder of 32 B."""

    def tokenize(self, prompt, images):
        return prompt

    def encode_from_tokens_scheduled(self, tokens):
        return av_models.prompt(H3)


def conditioned(size, first=None, last=None):
    """Condition with the host's own node for a size in cells: (conditioning, latent)."""
    from comfy_extras.nodes_minimax_h3 import MiniMaxH3ImageToVideo

    rows, columns = size
    return MiniMaxH3ImageToVideo.execute(
        PromptStandIn(), MeanCoder(), "", columns * 16, rows * 16, 22, first, last
    ).args


def case_first_and_last_frame_are_encoded_for_the_low_size_as_the_hosts_node_does():
    first, last = picture(1), picture(2)
    pictures = Pictures(first_frame=first, last_frame=last, vae=MeanCoder())
    high, _ = conditioned(HIGH, first, last)
    for size in (LOW, (2, 4), HIGH):
        ours = pictures.encoded(model(H3), {"positive": high}, 7, size)["positive"]
        theirs, _ = conditioned(size, first, last)
        for mine, host in zip(*(c[0][1]["minimax_keyframes"] for c in (ours, theirs)), strict=True):
            assert mine["resolved_frame_index"] == host["resolved_frame_index"]
            assert torch.equal(mine["latent"], host["latent"])
    assert high[0][1]["minimax_keyframes"][0]["latent"].shape[-2:] == HIGH


class Heard(logging.Handler):
    """Collects log messages."""

    def __init__(self):
        super().__init__()
        self.said = []

    def emit(self, record):
        self.said.append(record.getMessage())


def case_image_to_video_runs_with_pictures_and_says_that_it_resizes_without():
    first, last, given = picture(1), picture(2), inputs(H3)
    positive, latent = conditioned(HIGH, first, last)
    assert [part.shape for part in latent["samples"].unbind()] == [
        part.shape for part in given[1].unbind()
    ]
    guider, heard = basic(H3), Heard()
    guider.set_conds(positive)
    logging.getLogger("surf").addHandler(heard)
    logging.getLogger("surf").setLevel(logging.INFO)
    resized = plain(switched(guider), given)
    assert any("frames [0, 21] are resized" in said for said in heard.said), heard.said
    heard.said.clear()
    anew = plain(switched(guider, first_frame=first, last_frame=last, vae=MeanCoder()), given)
    assert not any("resized" in said for said in heard.said), heard.said
    half = plain(switched(guider, first_frame=first, vae=MeanCoder()), given)
    assert any("frames [21] are resized" in said for said in heard.said), heard.said
    assert min(*gap(anew, resized), *gap(half, resized), *gap(half, anew)) > 1e-5
    theirs, _ = conditioned(LOW, first, last)
    assert max(gap(plain(switched(guider, positive_low=theirs), given), anew)) == 0
    assert positive[0][1]["minimax_keyframes"][0]["latent"].shape[-2:] == HIGH


def case_keyframes_and_references_have_one_noise_in_all_legs():
    """The host's network adds a little to them, from the seed of the sampling call."""
    references = [
        {"kind": "image", "latent_h": 4, "latent_w": 6, "latent": torch.ones(1, 24, 1, 4, 6)}
    ]
    guides = [av_models.keyframe(0, *HIGH), av_models.keyframe(21, *HIGH, sound=3)]
    for name in (H3, PRUNED):
        for options in ({"minimax_keyframes": guides}, {"minimax_refs": references}):
            given, expected = inputs(name), plain(basic(name, **options), inputs(name))
            far = gap(through_estimate(basic(name, **options), given), expected)
            assert max(far) < 1e-6, (name, *options, far)
            again = plain(switched(basic(name, **options), low_scale=1.0), given)
            assert max(gap(again, expected)) < 1e-6, (name, *options)


def case_guides_of_any_kind_and_references_cross_the_switch_at_even_and_odd_sizes():
    for size in (HIGH, (5, 7)):
        even = tuple(side + side % 2 for side in size)
        guides = [
            av_models.keyframe(0, *even),
            av_models.keyframe(5, *even, frames=2, sound=4),
            av_models.keyframe(8, frames=0, sound=3),
        ]
        references = [
            {"kind": "image", "latent_h": 4, "latent_w": 6, "latent": torch.randn(1, 24, 1, 4, 6)}
        ]
        for name in (H3, PRUNED):
            options = {"minimax_keyframes": guides, "minimax_refs": references}
            video, audio = plain(switched(basic(name, **options)), inputs(name, size)).unbind()
            assert torch.isfinite(video).all()
            assert torch.isfinite(audio).all()
        assert guides[0]["latent"].shape[-2:] == even


def case_what_cannot_work_is_refused_before_anything_is_sampled():
    from comfy.nested_tensor import NestedTensor
    from comfy_extras.nodes_model_advanced import ModelSamplingSD3

    noise, latent, sampler, sigmas = inputs(H3)
    video, audio = latent.unbind()
    ran = []

    def refused_run(samples, *words, guider=None, **changes):
        ours = switched(guider or basic(H3), **changes)
        given = samples, samples, sampler, sigmas
        refused(lambda: plain(ours, given, callback=lambda *_: ran.append(1)), *words)

    refused_run(NestedTensor([video, audio, audio]), "got 3", "two nested parts")
    refused_run(NestedTensor([audio, video]), "two nested parts", "video [B, C, T, H, W] and then")
    refused_run(video, "video alone", "MiniMaxH3ImageToVideo")
    larger = basic(H3, minimax_keyframes=[av_models.keyframe(0, *(2 * side for side in HIGH))])
    refused_run(latent, "expected keyframes of the latent's", "one width and", guider=larger)
    refused_run(NestedTensor([video, audio[..., :-5]]), "37 audio latents", "got 32", "17 k + 5")
    two = NestedTensor([torch.cat([part, part]) for part in (video, audio)])
    refused_run(two, "one video for MiniMax H3", "batch of 2")
    ltx = av_models.latent(LTX, 17)["samples"]
    refused_run(ltx, "24", guider=basic(H3))
    refused_run(NestedTensor([ltx.unbind()[0][:, :24], audio[..., :1]]), "sound as long")
    refused_run(
        latent, "first_frame", "keyframe at frame 0", first_frame=picture(1), vae=MeanCoder()
    )  # fmt: skip
    refused_run(ltx, "for MiniMax H3", guider=basic(LTX), first_frame=picture(1), vae=MeanCoder())
    refused(lambda: switched(basic(H3), first_frame=picture(1)), "encoded by vae", "without it")
    refused(lambda: switched(basic(H3), vae=MeanCoder()), "without a picture", "connect both")
    refused(
        lambda: switched(basic(H3), last_frame=picture(1)[..., :2], vae=MeanCoder()), "RGB", "last"
    )  # fmt: skip
    broken = ModelSamplingSD3().patch(model(H3), 5.0)[0]
    refused(lambda: switched(basic(H3, broken)), "ModelSamplingSD3", "ModelSamplingMiniMaxH3")
    refused(lambda: switched(basic(H3), model_low=model(LTX)), "model_low", "same family")
    refused(
        lambda: plain(switched(basic(H3)), (video, latent, sampler, sigmas)), "noise of the shape"
    )  # fmt: skip
    other = type("OwnSampler", (type(sampler).__mro__[1],), {})()
    given = noise, latent, other, sigmas
    refused(lambda: plain(switched(basic(H3)), given, masks(H3, 0.5)), "OwnSampler", "noise mask")
    assert not ran


if __name__ == "__main__":
    inside.report(RESULTS, globals(), av_models.check_known)
