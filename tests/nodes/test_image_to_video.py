"""Surf Image To Video on the fake host: its sizes, its refusals, what it leaves alone."""

import pytest
import torch
from surf.nodes.host.vae import check_picture
from surf.nodes.image_to_video import SurfImageToVideo
from surf.tests.frozen_nodes import INPUTS
from surf.tests.nodes.test_refine import AveragingVae

DEFAULTS = {k: x["default"] for k, x in INPUTS["SurfImageToVideo"].items() if "default" in x}
DEFAULTS |= {"target_resolution": "by scale", "target_scale": 3.0, "length": 9}


def prompt(value=0.5, **options):
    return [[torch.full((1, 4, 8), value), options]]


def picture(frames=1, channels=3):
    return torch.rand(frames, 60, 80, channels, generator=torch.Generator().manual_seed(1))


def run(**changes):
    given = {"vae": AveragingVae(), "positive": prompt(), "negative": prompt(-0.5)}
    given |= {"start_image": picture(), "width": 192, "height": 128}
    out = SurfImageToVideo.execute(**(DEFAULTS | given | changes)).args
    return [out[:2], out[2:4], out[4:6]], out[6]


def images_of(pair):
    return [cond[0][1]["concat_latent_image"] for cond in pair]


@pytest.mark.parametrize(
    ("changes", "grids"),
    [
        ({}, [(16, 24), (8, 12), (24, 36)]),
        ({"low_scale": 1.0, "target_scale": 1.0}, [(16, 24)] * 3),
        ({"low_resolution": "by size", "low_width": 112, "low_height": 80, "target_scale": 2.0},
         [(16, 24), (10, 14), (20, 28)]),
        ({"width": 832, "height": 480, "target_resolution": "1080p", "length": 1},
         [(60, 104), (30, 52), (135, 240)]),
        ({"target_resolution": "by size", "target_width": 200, "target_height": 136},
         [(16, 24), (8, 12), (17, 25)]),
    ],
)  # fmt: skip
def test_the_three_sizes_are_those_of_the_sampler_and_the_refiner(changes, grids):
    pairs, latent = run(**changes)
    frames = (changes.get("length", 9) - 1) // 4 + 1
    for pair, grid in zip(pairs, grids, strict=True):
        for cond in pair:
            assert cond[0][1]["concat_latent_image"].shape == (1, 16, frames, *grid)
            mask = cond[0][1]["concat_mask"]
            assert mask.shape == (1, 1, frames, *grid)
            assert (mask[:, :, :1] == 0).all()
            assert (mask[:, :, 1:] == 1).all()
    assert latent["samples"].shape == (1, 16, frames, *grids[0])
    assert not latent["samples"].any()


def test_5b_takes_sides_of_32_and_has_the_picture_in_the_latent():
    vae = AveragingVae(48, 16)
    pairs, latent = run(vae=vae)
    assert latent["samples"].shape == (1, 48, 3, 8, 12)
    assert latent["noise_mask"].shape == (1, 1, 3, 8, 12)
    torch.testing.assert_close(
        latent["samples"][:, :, :1].mean(), picture()[..., :1].mean(), rtol=0, atol=0.05
    )
    assert (latent["noise_mask"][:, :, 0] == 0).all()
    assert (latent["noise_mask"][:, :, 1:] == 1).all()
    assert not any(cond[0][1] for pair in pairs for cond in pair)
    # One picture, once.
    assert vae.calls == [("encode", (1, 128, 192, 3))]


def test_hunyuan_video_15_encodes_one_frame_a_size():
    vae = AveragingVae(32, 16)
    pairs, latent = run(vae=vae)
    assert latent["samples"].shape == (1, 32, 3, 8, 12)
    assert [shape[0] for _, shape in vae.calls] == [1, 1, 1]
    for pair in pairs:
        for image in images_of(pair):
            assert image[:, :, 0].any()
            assert not image[:, :, 1:].any()


def test_an_end_image_gives_masks_by_frame():
    pairs, _ = run(end_image=picture())
    for pair in pairs:
        mask = pair[0][0][1]["concat_mask"]
        given = mask == 0
        assert mask.shape[:3] == (1, 4, 3)
        assert given[:, :, 0].all()
        assert given[:, 3, 2].all()
        assert not given[:, :3, 1:].any()
        assert not given[:, 3, 1].any()


def test_areas_are_placed_in_each_size_and_inputs_stay_as_they_are():
    positive = prompt(area=(8, 12, 4, 6), strength=0.5)
    pairs, latent = run(positive=positive)
    areas = [pair[0][0][1]["area"] for pair in pairs]
    assert areas == [(8, 12, 4, 6), (4, 6, 2, 3), (12, 18, 6, 9)]
    assert positive[0][1] == {"area": (8, 12, 4, 6), "strength": 0.5}
    assert latent["surf_made_for"] == (128, 192)


REJECTED = {
    "RGBA": ({"start_image": picture(channels=4)}, "RGB.*as start_image, got.*Split Image"),
    "several pictures": ({"start_image": picture(5)}, "one picture as start_image, got 5"),
    "several at the end": ({"end_image": picture(2)}, "one picture as end_image, got 2"),
    "NaN": ({"start_image": picture() * float("nan")}, "start_image must be finite"),
    "0 to 255": ({"start_image": 255 * picture()}, "0 to 1 as start_image, got .* to 2.*divide"),
    "below 0": ({"end_image": 2 * picture() - 1}, "0 to 1 as end_image, got -.* to .*map"),
    "no prompt": ({"positive": []}, "a prompt in the positive conditioning, got an empty list"),
    "no negative": ({"negative": []}, "a prompt in the negative conditioning.*may be an empty"),
    "length": ({"length": 10}, r"4n \+ 1 frames, got length=10; use 9"),
    "width": ({"width": 200}, "multiples of 16 .*got 200 x 128; use 192 x 128"),
    "5B width": ({"vae": AveragingVae(48, 16), "width": 208}, "multiples of 32 .*208 x 128"),
    "low above": ({"low_resolution": "720p"}, "must not be above"),
    "target below": ({"target_resolution": "by size", "target_width": 64, "target_height": 32},
                     "must not be below"),
    "image VAE": ({"vae": AveragingVae(4)}, "the VAE of Wan 2.1.*got one of 4 channels"),
    "VAE of other cells": ({"vae": AveragingVae(16, 16)}, "the VAE of Wan 2.1"),
    "end for 5B": ({"vae": AveragingVae(48, 16), "end_image": picture()}, "one picture.*disc"),
    "vision for 5B": ({"vae": AveragingVae(48, 16), "clip_vision_output": object()}, "disconnect"),
    "vision of no end": ({"clip_vision_end": object()}, "needs end_image.*got no end_image"),
    "vision of an end alone": ({"clip_vision_end": object(), "end_image": picture()},
                               "got no clip_vision_output"),
}  # fmt: skip


@pytest.mark.parametrize("case", REJECTED)
def test_what_does_not_fit_is_refused_before_the_vae_works(case):
    changes, words = REJECTED[case]
    vae = changes.get("vae", AveragingVae())
    with pytest.raises(ValueError, match=f"^Surf Image To Video: .*{words}"):
        run(**({"vae": vae} | changes))
    assert not vae.calls


def test_values_a_little_outside_are_taken_as_sharp_upscalers_make_them():
    check_picture(1.4 * picture() - 0.2, "start_image")
    with pytest.raises(ValueError, match="got -.* to .*high dynamic range"):
        check_picture(4 * picture() - 2, "start_image")


def test_a_length_is_refused_when_the_graph_is_queued():
    assert "use 9" in SurfImageToVideo.validate_inputs(length=10)
    assert SurfImageToVideo.validate_inputs(length=9) is True
