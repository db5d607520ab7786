"""Guides and pictures in place of LTX-2 through Surf Refiner, against the host's own nodes.

    python tests/host/av_anchor_cases.py RESULTS.json

Run with the host's folder as the working directory and its Python; see test_inside.py.
"""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))

import av_models  # noqa: E402
import inside  # noqa: E402
from av_refining import FAMILIES, SETTINGS, gap, model, preview, refined, stock  # noqa: E402
from inprocess import refused  # noqa: E402

RESULTS = inside.enter()

import torch  # noqa: E402
from comfy.nested_tensor import NestedTensor  # noqa: E402
from surf.nodes.refine import SurfRefiner  # noqa: E402


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


if __name__ == "__main__":
    inside.report(RESULTS, globals(), av_models.check_known)
