"""Every node: inputs stay as they are, keywords an older host lacks, latents in and out."""

import copy

import comfy.sample
import host_stub
import pytest
import torch
from surf.nodes.host.latents import close_latent, open_latent, resize_mask
from surf.nodes.host.node import declare
from surf.nodes.preview import SurfLatentDownscale, SurfReshiftGuider, SurfReshiftKSampler
from surf.nodes.refine import SurfRefiner

DOWN = {"resolution": "by scale", "scale": 0.5, "width": 96, "height": 64, "method": "auto"}
SWITCH = {
    "switch_step": 2, "cfg": 3.0, "cfg_low": 2.0, "low_resolution": "by scale", "low_scale": 0.5,
    "low_width": 96, "low_height": 64, "sigma_policy": "same", "noise_policy": "inherited",
    "handover": "evaluate",
}  # fmt: skip
SAMPLE = SWITCH | {
    "seed": 1, "steps": 4, "shift": 3.0, "shift_low": 0.0, "sampler_name": "uni_pc",
    "scheduler": "simple", "denoise": 1.0,
}  # fmt: skip
REFINE = {
    "seed": 1, "resolution": "by scale", "scale": 2.0, "width": 384, "height": 256,
    "upsample": "latent", "sigma_start": 0.65, "steps": 2, "cfg": 4.5, "window": 0,
    "low_band_lock": 0.5, "colour_match": True,
}  # fmt: skip


def latent():
    return {
        "samples": torch.randn(2, 16, 3, 16, 24),
        "noise_mask": torch.rand(1, 3, 16, 24),
        "batch_index": [3, 1],
        "downscale_ratio_spacial": 8,
    }


def conds():
    def entries():
        bound = {"vace_frames": [torch.randn(1, 32, 3, 16, 24)]}, {"area": (8, 8, 0, 0)}
        return [[torch.randn(1, 4, 8), options] for options in bound]

    return {name: entries() for name in ("positive", "negative")}


def given(node):
    model = {"model": host_stub.Patcher(), **conds()}
    if node is SurfReshiftKSampler:
        return {**model, "latent_image": latent(), **SAMPLE}
    if node is SurfRefiner:
        return {**model, "latent": latent(), **REFINE}
    return {**model, **SWITCH} if node is SurfReshiftGuider else {"samples": latent(), **DOWN}


def alike(a, b):
    if isinstance(a, torch.Tensor):
        return torch.equal(a, b)
    if isinstance(a, dict):
        return a.keys() == b.keys() and all(alike(a[k], b[k]) for k in a)
    if isinstance(a, list):
        return len(a) == len(b) and all(map(alike, a, b))
    return a == b


@pytest.mark.parametrize(
    "node", [SurfReshiftKSampler, SurfReshiftGuider, SurfLatentDownscale, SurfRefiner]
)
def test_every_node_does_not_mutate_its_inputs(node):
    inputs = given(node)
    model = inputs.pop("model", None)
    before = copy.deepcopy(inputs)
    node.execute(**inputs, **({"model": model} if model else {}))
    assert alike(inputs, before)
    if model:
        assert (model.object_patches, model.wrappers, model.model_options) == ({}, {}, {})


@pytest.mark.parametrize("ndim", [4, 5])
@pytest.mark.parametrize("method", ["auto", "bilinear", "area", "bicubic"])
def test_latent_downscale_is_spatial_and_takes_the_mask_along(ndim, method):
    shape = (2, 16, 16, 24) if ndim == 4 else (2, 16, 3, 16, 24)
    given = {"samples": torch.randn(shape), "noise_mask": torch.rand(1, 1, 128, 192)}
    out = SurfLatentDownscale.execute(samples=given, **(DOWN | {"method": method})).args[0]
    assert out["samples"].shape == (*shape[:-2], 8, 12)
    assert out["noise_mask"].shape == (1, 1, 8, 12)
    assert out["samples"].data_ptr() != given["samples"].data_ptr()


def test_latent_downscale_knows_buckets_sizes_and_cells():
    wide = {"samples": torch.zeros(1, 16, 3, 60, 104)}
    out = SurfLatentDownscale.execute(samples=wide, **(DOWN | {"resolution": "240p"})).args[0]
    assert out["samples"].shape[-2:] == (30, 52)
    coarse = {"samples": torch.zeros(1, 48, 3, 44, 80)}
    out = SurfLatentDownscale.execute(
        samples=coarse, **(DOWN | {"resolution": "by size", "width": 640, "height": 352})
    ).args[0]
    assert out["samples"].shape[-2:] == (22, 40)


def test_half_size_is_the_mean_of_four_cells(tolerance):
    samples = torch.randn(1, 16, 3, 16, 24)
    out = SurfLatentDownscale.execute(samples={"samples": samples}, **DOWN).args[0]["samples"]
    expected = torch.nn.functional.avg_pool3d(samples, (1, 2, 2))
    torch.testing.assert_close(out, expected, atol=tolerance[torch.float32], rtol=0)


class OneVae:
    """A VAE of the host, as far as its cells."""

    def __init__(self, channels, cell):
        self.latent_channels, self.cell = channels, cell

    def spacial_compression_encode(self):
        return self.cell


@pytest.mark.parametrize(
    ("shape", "more", "vae", "size"),
    [
        # LTX-Video, 1280 x 704 pixels in cells of 32: 864 x 480.
        ((1, 128, 3, 22, 40), {}, None, (15, 27)),
        # Flux 2 in cells of 16, HunyuanImage 2.1 in cells of 32: 2048 x 2048 pixels.
        ((1, 128, 128, 128), {}, None, (36, 36)),
        ((1, 64, 64, 64), {}, None, (18, 18)),
        # What the latent says, and the VAE before it.
        ((1, 7, 1, 64, 64), {"downscale_ratio_spacial": 16}, None, (36, 36)),
        ((1, 7, 1, 64, 64), {"downscale_ratio_spacial": 8}, OneVae(7, 16), (36, 36)),
        ((1, 16, 1, 90, 160), {}, OneVae(16, 8), (60, 104)),
    ],
)
def test_a_bucket_is_met_in_the_cells_of_the_latent(shape, more, vae, size):
    down = DOWN | {"resolution": "480p", "vae": vae}
    out = SurfLatentDownscale.execute(samples={"samples": torch.ones(shape), **more}, **down)
    assert out.args[0]["samples"].shape == (*shape[:-2], *size)


def test_unknown_cells_are_asked_for_and_only_where_they_count():
    unknown = {"samples": torch.ones(1, 7, 1, 64, 64)}
    for changes in ({"resolution": "480p"}, {"resolution": "by size"}):
        with pytest.raises(
            ValueError, match="^Surf Latent Downscale: .* connect its VAE, or choose by"
        ):
            SurfLatentDownscale.execute(samples=unknown, **(DOWN | changes))
    out = SurfLatentDownscale.execute(samples=unknown, **DOWN)
    assert out.args[0]["samples"].shape == (1, 7, 1, 32, 32)
    with pytest.raises(ValueError, match="7 channels, got one with 16"):
        SurfLatentDownscale.execute(samples=unknown, vae=OneVae(16, 8), **DOWN)


def test_masks_keep_their_range_and_leading_axes():
    mask = (torch.rand(2, 1, 3, 17, 23) > 0.5).float()
    out = resize_mask(mask, (7, 9))
    assert out.shape == (2, 1, 3, 7, 9)
    assert out.min() >= 0
    assert out.max() <= 1
    grown = resize_mask(mask, (40, 50))
    assert grown.shape == (2, 1, 3, 40, 50)
    assert torch.equal(resize_mask(mask, (17, 23)), mask)


@pytest.mark.parametrize("factor", [2, 4])
def test_a_smaller_mask_holds_the_mean_of_what_it_covers(factor):
    """A thin line stays as a faint one: between samples it would be lost or doubled."""
    mask = torch.zeros(1, 16, 24)
    mask[:, :, 8] = mask[:, 5] = 1
    small = resize_mask(mask, (16 // factor, 24 // factor))
    cells = mask.unfold(1, factor, factor).unfold(2, factor, factor)
    torch.testing.assert_close(small, cells.mean((-2, -1)))
    assert small.mean() == pytest.approx(mask.mean())


def test_closed_latents_keep_what_is_not_about_size():
    given = latent() | {"type": "video"}
    out = close_latent(given, torch.zeros(2, 16, 3, 8, 12))
    assert out["batch_index"] == [3, 1]
    assert out["type"] == "video"
    assert out["noise_mask"].shape == (1, 3, 8, 12)
    assert "downscale_ratio_spacial" not in out


def test_empty_latents_get_the_channels_of_the_model(monkeypatch):
    model = host_stub.Patcher(channels=48)
    empty = {"samples": torch.zeros(1, 16, 16, 24), "downscale_ratio_spacial": 8}
    # 192 x 128 pixels, in cells of 16.
    assert open_latent(model, empty, "test").shape == (1, 48, 1, 8, 12)
    asked = []

    def older(model, samples):
        asked.append(samples)
        return samples.repeat(1, 3, 1, 1).unsqueeze(2)

    monkeypatch.setattr(comfy.sample, "fix_empty_latent_channels", older)
    assert open_latent(model, empty, "test").shape == (1, 48, 1, 16, 24)
    assert len(asked) == 1


def test_keywords_that_a_host_lacks_are_dropped():
    def old(id, default=None, extra_dict=None):
        return id, default, extra_dict

    def older(id, default=None):
        return id, default

    assert declare(old, "a", default=1, advanced=True, new=2) == ("a", 1, {"advanced": True})
    assert declare(older, "a", default=1, advanced=True) == ("a", 1)
    assert declare(lambda **all: all, a=1, anything=2) == {"a": 1, "anything": 2}
