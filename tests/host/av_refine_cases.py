"""Surf Refiner on video with audio, by the real host: MiniMax H3 and LTX-2, tiny and random.

    python tests/host/av_refine_cases.py RESULTS.json

Run with the host's folder as the working directory and its Python; see test_inside.py.
"""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))

import av_models  # noqa: E402
import inside  # noqa: E402
from av_refining import FAMILIES, SETTINGS, gap, model, preview, refined, silent, stock  # noqa: E402
from inprocess import refused  # noqa: E402

RESULTS = inside.enter()

import torch  # noqa: E402
from comfy.nested_tensor import NestedTensor  # noqa: E402


def case_an_enlarged_latent_is_refined_as_by_the_hosts_sampler_and_keeps_its_audio():
    for name in FAMILIES:
        for cfg in (1.0, 3.0):
            latent = preview(name)
            video, audio = latent["samples"].unbind()
            before = [part.clone() for part in (video, audio)]
            ours = refined(name, latent, cfg=cfg)
            theirs = stock(name, latent, cfg=cfg, mask=silent(latent))
            assert torch.equal(ours[0], theirs[0]), (name, gap(ours[0], theirs[0]))
            assert torch.equal(ours[1], audio)
            assert gap(theirs[1], audio) < 1e-6
            assert gap(ours[0], video) > 0.01
            assert all(map(torch.equal, before, (video, audio)))


def case_keyframes_of_another_size_are_resized_where_the_video_keeps_its_own():
    name = "tiny_minimax_h3"
    latent = preview(name)
    large = av_models.prompt(name, minimax_keyframes=[av_models.keyframe(0, 12, 20)])
    ours = refined(name, latent, positive=large)[0]
    assert ours.shape == latent["samples"].unbind()[0].shape
    assert gap(ours, refined(name, latent)[0]) > 1e-5


def case_audio_is_refined_where_asked_for():
    for name in FAMILIES:
        latent = preview(name)
        ours, theirs = refined(name, latent, refine_audio=True), stock(name, latent)
        for mine, host in zip(ours, theirs, strict=True):
            assert torch.equal(mine, host), name
        assert gap(ours[1], latent["samples"].unbind()[1]) > 0.01


def case_the_video_hears_the_audio():
    for name in FAMILIES:
        latent = preview(name)
        video, audio = latent["samples"].unbind()
        other = {"samples": NestedTensor([video, audio.flip(-1)])}
        assert gap(refined(name, other)[0], refined(name, latent)[0]) > 1e-4, name


def case_given_audio_stays_bit_for_bit_although_audio_is_refined():
    for name in FAMILIES:
        latent = preview(name)
        latent["noise_mask"] = silent(latent)
        ours = refined(name, latent, refine_audio=True)
        assert torch.equal(ours[1], latent["samples"].unbind()[1])
        assert torch.equal(ours[0], refined(name, preview(name))[0])


def case_one_window_is_full_attention_bit_for_bit_and_more_are_not():
    for name in FAMILIES:
        latent = preview(name)
        plain, frames = refined(name, latent)[0], latent["samples"].shape[2]
        assert torch.equal(refined(name, latent, window=frames)[0], plain), name
        for window in (2, 3):
            cut = refined(name, latent, window=window)[0]
            assert torch.isfinite(cut).all()
            assert gap(cut, plain) > 1e-4, (name, window)


def case_windows_go_with_keyframes_and_cut_the_video_of_minimax_h3_alone():
    name = "tiny_minimax_h3"
    latent = preview(name)
    keyframes = [av_models.keyframe(0, 6, 10), av_models.keyframe(21, 6, 10, sound=3)]
    anchored = av_models.prompt(name, minimax_keyframes=keyframes)
    plain = refined(name, latent, positive=anchored)[0]
    frames = latent["samples"].shape[2]
    assert torch.equal(refined(name, latent, positive=anchored, window=frames)[0], plain)
    cut = refined(name, latent, positive=anchored, window=2)[0]
    assert gap(cut, plain) > 1e-4


def counted(name, latent, **changes):
    """Attentions of the run in which as many tokens attend to as many, all of the video's."""
    tokens, seen = latent["samples"].unbind()[0][0, 0].numel(), []

    def count(func, q, k, *args, **kwargs):
        seen.append(q.shape[1] == k.shape[1] == tokens)
        return func(q, k, *args, **kwargs)

    clone = model(name).clone()
    clone.model_options["transformer_options"] = {"optimized_attention_override": count}
    out = refined(name, latent, clone, **changes)
    return sum(seen), out[0]


def case_audio_with_as_many_tokens_as_the_video_is_not_cut():
    """Of four attentions in a block that look alike, the first is the video's."""
    for name in FAMILIES[1:]:
        latent = preview(name, 1, 7)
        assert latent["samples"].unbind()[0][0, 0].numel() == 49
        assert latent["samples"].unbind()[1].shape[2] == 49
        blocks = 2 * SETTINGS["steps"]
        whole, plain = counted(name, latent)
        cut, windowed = counted(name, latent, window=2)
        assert (whole, cut) == (4 * blocks, 3 * blocks), (name, whole, cut)
        assert gap(windowed, plain) > 1e-4


def case_one_tile_is_the_whole_picture_bit_for_bit_and_more_blend():
    for name in FAMILIES:
        cell = 16 if "h3" in name else 32
        rows, columns = (24, 20) if cell == 16 else (12, 10)
        latent = preview(name, rows, columns)
        plain = refined(name, latent, tile=24 * 16)
        assert torch.equal(plain[0], refined(name, latent)[0])
        assert torch.equal(plain[0], stock(name, latent, mask=silent(latent))[0])
        cut = refined(name, latent, tile=256)
        assert torch.isfinite(cut[0]).all()
        assert cut[0].shape == plain[0].shape
        assert torch.equal(cut[1], plain[1])
        assert 1e-6 < gap(cut[0], plain[0]) < 1, name
        given = {"name": name, "latent": latent, "tile": 256, "refine_audio": True}
        refused(lambda given=given: refined(**given), "audio", "tile to 0")


def case_tiles_crop_the_keyframes_of_minimax_h3():
    """Keyframes have whole tokens; the video, and with it a tile, need not."""
    name = "tiny_minimax_h3"
    for rows, columns in ((23, 20), (15, 24)):
        latent, even = preview(name, rows, columns), (rows + 1, columns)
        keyframes = [av_models.keyframe(0, *even), av_models.keyframe(21, *even, sound=3)]
        anchored = av_models.prompt(name, minimax_keyframes=keyframes)
        plain = refined(name, latent, positive=anchored)[0]
        assert torch.equal(refined(name, latent, positive=anchored, tile=24 * 16)[0], plain)
        cut = refined(name, latent, positive=anchored, tile=256)[0]
        assert gap(cut, refined(name, latent, tile=256)[0]) > 1e-4
        assert torch.isfinite(cut).all()


def case_tiles_crop_a_noise_mask_and_leave_that_of_the_audio():
    """The audio's mask has as many axes as a map of the picture; no tile cuts it."""
    for name, (rows, columns), kept in (
        ("tiny_minimax_h3", (24, 20), (2, 37)), ("tiny_ltx23", (12, 10), (49, 16)),
    ):  # fmt: skip
        latent = preview(name, rows, columns)
        video, audio = latent["samples"].unbind()
        assert tuple(audio.shape[-2:]) == kept
        mask = torch.ones_like(video)
        mask[..., :2, :] = 0.5
        masked = latent | {"noise_mask": NestedTensor([mask, torch.zeros_like(audio)])}
        cut, free = (refined(name, each, tile=256)[0] for each in (masked, latent))
        assert torch.isfinite(cut).all()
        assert gap(cut, free) > 1e-3


def case_masks_of_tokens_are_refused_for_both():
    from surf.nodes.host.skip import SkipMask
    from surf.surf_core.skip import Mask

    for name, (rows, columns) in ((FAMILIES[0], (3, 5)), (FAMILIES[1], (6, 10))):
        latent = preview(name)
        video = latent["samples"].unbind()[0]
        tokens = torch.ones(video.shape[2], rows, columns, dtype=torch.bool)
        tokens[0, 0, 0] = False
        mask = SkipMask(
            mask=Mask(tokens=tokens, scores=tokens.float(), tau=1.0, source="detail"),
            size=(6, 10), upsampled=None, upsample="latent", samples=video,
        )  # fmt: skip
        given = {"name": name, "latent": latent, "mask": mask}
        refused(lambda given=given: refined(**given), "cannot leave out", "disconnect the mask")


def case_the_low_band_and_the_colours_of_the_video_alone_are_locked():
    for name in FAMILIES:
        latent = preview(name)
        plain = refined(name, latent, scale=2.0)
        for changes in ({"low_band_lock": 0.7}, {"colour_match": True}):
            out = refined(name, latent, scale=2.0, **changes)
            assert out[0].shape == plain[0].shape
            assert gap(out[0], plain[0]) > 1e-4, (name, changes)
            assert torch.equal(out[1], plain[1])


def case_the_size_doubles_and_the_audio_stays():
    for name in FAMILIES:
        latent = preview(name, 6, 10)
        video, audio = refined(name, latent, scale=2.0)
        assert tuple(video.shape[-2:]) == (12, 20)
        assert torch.equal(audio, latent["samples"].unbind()[1])


def case_what_cannot_be_refined_is_refused():
    h3, ltx = FAMILIES[:2]
    video, audio = preview(h3)["samples"].unbind()
    refused(lambda: refined(h3, {"samples": video}), "both in one run", "EmptyMiniMaxH3LatentAV")
    three = {"samples": NestedTensor([video, audio, audio])}
    refused(lambda: refined(h3, three), "two nested parts", "got 3")
    swapped = {"samples": NestedTensor([audio, video])}
    refused(lambda: refined(h3, swapped), "two nested parts", "LTXVConcatAVLatent")
    refused(lambda: refined(ltx, preview(h3)), "128 channels, got 24")
    area = av_models.prompt(ltx, area=(4, 6, 0, 0))
    refused(lambda: refined(ltx, preview(ltx), positive=area), "area", "beside audio")
    from comfy_extras.nodes_model_advanced import ModelSamplingSD3

    for name, axis in ((h3, 3), (ltx, 2)):
        video, audio = preview(name)["samples"].unbind()
        long = {"samples": NestedTensor([video, torch.cat([audio, audio], dim=axis)])}
        words = "sound as long as the video", f"got {2 * audio.shape[axis]}"
        refused(lambda name=name, long=long: refined(name, long), *words)
    broken = ModelSamplingSD3().patch(model(h3), 5.0)[0]
    refused(lambda: refined(h3, preview(h3), broken), "ModelSamplingSD3")


if __name__ == "__main__":
    inside.report(RESULTS, globals(), av_models.check_known)
