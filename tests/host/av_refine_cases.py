"""Surf Refiner on video with sound, by the real host: MiniMax H3 and LTX-2, tiny and random.

    python tests/host/av_refine_cases.py RESULTS.json

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

import comfy.sample  # noqa: E402
import comfy.samplers  # noqa: E402
import torch  # noqa: E402
from comfy.nested_tensor import NestedTensor  # noqa: E402
from surf.nodes.refine import SurfRefiner  # noqa: E402

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
    """A preview: smooth, so that nothing takes it for noise."""
    latent = av_models.latent(name, FRAMES[name], rows, columns, seed=seed)
    video, audio = latent["samples"].unbind()
    return {"samples": NestedTensor([video * 0.3 + 1, audio]), **more}


def refined(name, latent, patcher=None, positive=None, **changes):
    """Call the node; (video, audio)."""
    out = SurfRefiner.execute(
        model=patcher or model(name), positive=positive or av_models.prompt(name),
        negative=av_models.prompt(name, seed=2), latent=latent, **(SETTINGS | changes),
    ).args[0]  # fmt: skip
    return out["samples"].unbind()


def stock(name, latent, patcher=None, cfg=1.0, positive=None, mask=None):
    """The host's own sampler from the same noise, sigmas and mask; (video, audio)."""
    sigmas = torch.linspace(SETTINGS["sigma_start"], 0, SETTINGS["steps"] + 1)
    noise = comfy.sample.prepare_noise(latent["samples"], SETTINGS["seed"])
    return comfy.samplers.sample(
        patcher or model(name), noise, positive or av_models.prompt(name),
        av_models.prompt(name, seed=2), cfg, "cpu", comfy.samplers.sampler_object("euler"),
        sigmas, (patcher or model(name)).model_options, latent["samples"], mask,
        disable_pbar=True, seed=SETTINGS["seed"],
    ).unbind()  # fmt: skip


def silent(latent):
    video, audio = latent["samples"].unbind()
    return NestedTensor([torch.ones_like(video), torch.zeros_like(audio)])


def gap(a, b):
    return ((a - b).abs().max() / b.abs().max()).item()


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
    name = "tiny_minimax_h3"
    latent = preview(name, 23, 20)
    keyframes = [av_models.keyframe(0, 24, 20), av_models.keyframe(21, 24, 20, sound=3)]
    anchored = av_models.prompt(name, minimax_keyframes=keyframes)
    plain = refined(name, latent, positive=anchored)[0]
    assert torch.equal(refined(name, latent, positive=anchored, tile=24 * 16)[0], plain)
    cut = refined(name, latent, positive=anchored, tile=256)[0]
    assert gap(cut, refined(name, latent, tile=256)[0]) > 1e-4
    assert torch.isfinite(cut).all()


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


class PictureCoder:
    """Stands in for LTX-2's VAE: random but fixed latents for pictures of 32 pixels a cell."""

    latent_channels, latent_dim, downscale_index_formula = 128, 3, (8, 32, 32)
    vae_dtype, device, upscale_ratio = torch.float32, torch.device("cpu"), None

    def spacial_compression_encode(self):
        return 32

    spacial_compression_decode = spacial_compression_encode

    def temporal_compression_decode(self):
        return 8

    def memory_used_encode(self, shape, dtype):
        return 0

    memory_used_decode = memory_used_encode

    def encode(self, pixels):
        frames, height, width = pixels.shape[:3]
        means = pixels.mean((1, 2)).mean(-1)[: (frames - 1) // 8 + 1]
        shape = (1, 128, len(means), height // 32, width // 32)
        noise = inside.noise(*shape, seed=7)
        return means.view(1, 1, -1, 1, 1) + 0.3 * noise

    def decode(self, samples):
        frames = 8 * samples.shape[2] - 7
        rows, columns = (32 * side for side in samples.shape[-2:])
        return samples.mean().expand(1, frames, rows, columns, 3).sigmoid()


GUIDES = [(1, 0, 0.7), (17, 8, 1.0), (1, -1, 1.0)]


def guided(name, guides=GUIDES, rows=4, columns=6):
    """Add guides with the host's own node; (positive, negative, LATENT of both)."""
    from comfy_extras.nodes_lt import LTXVAddGuide, LTXVConcatAVLatent

    video, audio = preview(name, rows, columns)["samples"].unbind()
    latent = {"samples": video}
    positive, negative = av_models.prompt(name), av_models.prompt(name, seed=2)
    for frames, index, strength in guides:
        image = torch.rand(frames, 64, 96, 3, generator=torch.Generator().manual_seed(frames))
        positive, negative, latent = LTXVAddGuide.execute(
            positive, negative, PictureCoder(), latent, image, index, strength
        ).args
    [both] = LTXVConcatAVLatent.execute(latent, {"samples": audio, "type": "audio"}).args
    return positive, negative, both


def node(name, latent, positive, negative, **changes):
    return SurfRefiner.execute(
        model=model(name), positive=positive, negative=negative, latent=latent,
        **(SETTINGS | changes),
    ).args  # fmt: skip


def case_guides_are_refined_and_the_hosts_node_crops_them_afterwards():
    from comfy_extras.nodes_lt import LTXVCropGuides, LTXVSeparateAVLatent

    for name in FAMILIES[1:]:
        positive, negative, latent = guided(name)
        frames = latent["samples"].shape[2]
        for changes in ({}, {"scale": 2.0}, {"scale": 2.0, "upsample": "pixel"}):
            more = {"vae": PictureCoder()} if "upsample" in changes else {}
            out, _, _, ours, theirs = node(name, latent, positive, negative, **changes, **more)
            assert out["samples"].shape[2] == frames == 7 + 4
            assert torch.equal(out["samples"].unbind()[1], latent["samples"].unbind()[1])
            video, _ = LTXVSeparateAVLatent.execute(out).args
            _, _, cropped = LTXVCropGuides.execute(ours, theirs, video).args
            assert cropped["samples"].shape[2] == 7, (name, changes, cropped["samples"].shape)
            assert torch.equal(cropped["samples"], video["samples"][:, :, :7])


def case_guides_at_the_size_of_the_latent_are_those_of_the_hosts_sampler():
    for name in FAMILIES[1:]:
        positive, negative, latent = guided(name)
        out = node(name, latent, positive, negative)[0]["samples"].unbind()
        masks = latent["noise_mask"].unbind()
        audio = latent["samples"].unbind()[1]
        mask = NestedTensor([masks[0], torch.zeros_like(audio)])
        assert torch.equal(out[0], stock(name, latent, positive=positive, mask=mask)[0]), name


def case_guides_are_not_cut_and_windows_take_those_of_strength_1_alone():
    name = "tiny_ltx23"
    positive, negative, latent = guided(name, rows=12, columns=10)
    given = (name, latent, positive, negative)
    refused(lambda: node(*given, tile=256), "guides", "tile to 0")
    refused(lambda: node(*given, window=2), "strength 0.7", "set window to 0")
    positive, negative, latent = guided(name, [(1, 0, 1.0), (1, -1, 1.0)])
    plain, whole, cut = (
        node(name, latent, positive, negative, window=window)[0]["samples"].unbind()[0]
        for window in (0, 7, 2)
    )
    assert torch.equal(plain, whole)
    assert gap(cut, plain) > 1e-4
    stray = av_models.prompt(name, keyframe_idxs=torch.zeros(1, 3, 5, 2))
    refused(lambda: node(name, preview(name), stray, negative), "expected guides", "LTXVAddGuide")


def case_references_with_a_downscale_factor_are_refused():
    from comfy_extras.nodes_lt import LTXVAddGuide, LTXVConcatAVLatent

    name = "tiny_ltx23"
    video, audio = preview(name, 4, 6)["samples"].unbind()
    texts = av_models.prompt(name), av_models.prompt(name, seed=2)
    positive, negative, latent = LTXVAddGuide.execute(
        *texts, PictureCoder(), {"samples": video}, torch.rand(1, 64, 96, 3), 0, 1.0, None,
        {"reference_downscale_factor": 2},
    ).args  # fmt: skip
    [both] = LTXVConcatAVLatent.execute(latent, {"samples": audio}).args
    refused(lambda: node(name, both, positive, negative, scale=2.0), "downscale factor", "take it")


def case_a_picture_in_place_is_kept_where_it_was_encoded_at_the_target():
    """The template's second stage: enlarged, the picture in place at strength 1, joined."""
    from comfy_extras.nodes_lt import LTXVConcatAVLatent, LTXVImgToVideoInplace

    image = torch.rand(1, 384, 576, 3, generator=torch.Generator().manual_seed(1))
    for name in FAMILIES[1:]:
        video, audio = preview(name, 12, 18)["samples"].unbind()
        [placed] = LTXVImgToVideoInplace.execute(
            PictureCoder(), image, {"samples": video}, 1.0
        ).args
        [both] = LTXVConcatAVLatent.execute(placed, {"samples": audio, "type": "audio"}).args
        out = refined(name, both)
        expected = stock(name, both, mask=NestedTensor(
            [placed["noise_mask"], torch.zeros_like(audio)]
        ))[0]  # fmt: skip
        assert torch.equal(out[0], expected), name
        assert gap(out[0][:, :, 0], placed["samples"][:, :, 0]) < 1e-6


def case_start_image_encodes_a_picture_in_place_at_the_target():
    """From the first stage, whose picture the mask keeps in part: as the host's node places it."""
    from comfy_extras.nodes_lt import LTXVConcatAVLatent, LTXVImgToVideoInplace

    image = torch.rand(1, 256, 384, 3, generator=torch.Generator().manual_seed(1))
    for name in FAMILIES[1:]:
        video, audio = preview(name, 4, 6)["samples"].unbind()
        [placed] = LTXVImgToVideoInplace.execute(
            PictureCoder(), image, {"samples": video}, 0.7
        ).args
        [both] = LTXVConcatAVLatent.execute(placed, {"samples": audio}).args
        ours = refined(name, both, scale=2.0, start_image=image, vae=PictureCoder())[0]
        first = PictureCoder().encode(image)
        assert gap(ours[:, :, :1], first) < 1e-6, name
        free = refined(name, both, scale=2.0)[0]
        assert gap(free[:, :, :1], first) > 0.01


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
    inside.report(RESULTS, globals())
