"""The size that conditioning was made for: who tells it, who wins, where it is asked for."""

import logging

import host_stub
import pytest
import torch
from surf.nodes.host.conditioning.made_for import KEY, source_cells
from surf.nodes.host.latents import low_size
from surf.nodes.preview import SurfLatentDownscale, SurfReshiftKSampler
from surf.nodes.refine import SurfRefiner
from surf.tests.frozen_nodes import INPUTS

SAMPLES = torch.zeros(1, 16, 3, 8, 12)


class SCAILWanModel:
    patch_size = (1, 2, 2)


def model(network=None):
    made = host_stub.Patcher()
    made.model.diffusion_model = network or made.model.diffusion_model
    return made


def source(made_for=None, given=(0, 0), network=None, **options):
    latent = {} if made_for is None else {KEY: made_for}
    conds = {"positive": [[torch.zeros(1, 4, 8), options]], "negative": []}
    return source_cells(model(network), conds, latent, SAMPLES, given)


AREA = {"area": (4, 6, 2, 3)}
VIDEO = {"concat_latent_image": torch.zeros(1, 16, 3, 32, 48)}


def test_the_input_comes_first_then_a_video_then_the_latent():
    key, given = (128, 192), (192, 288)
    assert source(key, given, **AREA, **VIDEO) == (24, 36)
    assert source(key, **AREA, **VIDEO) == (32, 48)
    assert source(key, **AREA) == (16, 24)
    assert source() == (8, 12)
    assert source(area=("percentage", 0.5, 0.5, 0.0, 0.0)) == (8, 12)


def test_maps_for_several_sizes_are_refused():
    small = {"vace_frames": [torch.zeros(1, 32, 3, 8, 12)]}
    with pytest.raises(ValueError, match="one size, got .*positive for 384 x 256.* for 96 x 64"):
        source(**VIDEO, **small)
    same = {"camera_conditions": torch.zeros(1, 24, 3, 256, 384)}
    assert source(**VIDEO, **same) == (32, 48)


TARGET = (24, 36)
AT_TARGET = {
    "concat_latent_image": torch.randn(1, 16, 3, *TARGET),
    "concat_mask": torch.ones(1, 4, 3, *TARGET),
    "vace_frames": [torch.randn(1, 32, 3, *TARGET)], "vace_mask": [torch.ones(1, 64, 3, *TARGET)],
    "time_dim_concat": torch.randn(1, 16, 1, *TARGET),
    "control_video": torch.randn(1, 16, 3, *TARGET),
    "pose_video_latent": torch.randn(1, 16, 3, *TARGET),
    "camera_conditions": torch.randn(1, 24, 3, 8 * 24, 8 * 36),
}  # fmt: skip


@pytest.mark.parametrize("given", [{}, {"made_width": 192, "made_height": 128}])
@pytest.mark.parametrize("key", AT_TARGET)
def test_conditioning_made_at_the_target_stays_without_a_word(key, given, caplog):
    made = model()
    conds = {"positive": prompt(**{key: AT_TARGET[key]}), "negative": prompt()}
    settings = defaults("SurfRefiner", resolution="by scale", scale=3.0, upsample="latent")
    settings |= {"steps": 1, "window": 0, "model": made, **conds, **given}
    with caplog.at_level(logging.INFO):
        SurfRefiner.execute(**settings, latent={"samples": SAMPLES, KEY: (128, 192)})
    assert made.seen[-1].conds["positive"][0][1][key] is AT_TARGET[key]
    assert not [r for r in caplog.records if "resized" in r.getMessage()]


@pytest.mark.parametrize("key", sorted(AT_TARGET.keys() - {"concat_mask"}))
def test_conditioning_of_the_preview_is_resized_and_said_with_what_to_connect(key, caplog):
    made, value = model(), AT_TARGET[key]
    listed = isinstance(value, list)
    value = (value[0] if listed else value)[..., ::3, ::3].contiguous()
    conds = {"positive": prompt(**{key: [value] if listed else value}), "negative": prompt()}
    settings = defaults("SurfRefiner", resolution="by scale", scale=3.0, upsample="latent")
    settings |= {"steps": 1, "window": 0, "model": made, **conds}
    with caplog.at_level(logging.INFO):
        SurfRefiner.execute(**settings, latent={"samples": SAMPLES})
    [said] = [r.getMessage() for r in caplog.records if "resized" in r.getMessage()]
    assert key in said
    assert "288 x 192 pixels; connect a positive and negative" in said
    new = made.seen[-1].conds["positive"][0][1][key]
    # The host resizes this one itself.
    expected = value if key == "concat_latent_image" else AT_TARGET[key]
    assert (new[0] if listed else new).shape == (expected[0] if listed else expected).shape


def test_an_area_of_unknown_size_asks_for_it():
    with pytest.raises(ValueError, match="area in pixels .*set made_width and made_height"):
        source(**AREA)
    with pytest.raises(ValueError, match="belong together, got 0 x 64"):
        source(given=(64, 0))


@pytest.mark.parametrize("made_for", [(128, 128), (128,), "128 x 192", (-128, -192), (1.5, 2.25)])
def test_a_key_that_is_not_of_the_latents_shape_is_ignored_and_said(made_for, caplog):
    with caplog.at_level(logging.WARNING):
        assert source(made_for) == (8, 12)
    [said] = [record.getMessage() for record in caplog.records]
    assert "not the shape of its 8 x 12 cells" in said
    with pytest.raises(ValueError, match="set made_width"):
        source(made_for, **AREA)


SMALLER = [("240p", 1.0), ("480p", 1.0), *(("by scale", n / 20) for n in range(4, 21))]


@pytest.mark.parametrize("pixels", [(720, 1280), (480, 832), (1088, 1920), (1280, 720), (576, 576)])
@pytest.mark.parametrize(("resolution", "scale"), SMALLER)
def test_a_preview_that_was_rounded_to_patches_keeps_its_key(pixels, resolution, scale):
    high = tuple(side // 8 for side in pixels)
    target = {"resolution": resolution, "scale": scale, "width": 0, "height": 0}
    low = low_size(torch.empty(1, 16, 1, *high, device="meta"), 8, 16, **target)
    samples = torch.empty(1, 16, 1, *low, device="meta")
    assert (
        source_cells(model(), {"positive": prompt(**AREA)}, {KEY: pixels}, samples, (0, 0)) == high
    )


@pytest.mark.parametrize(
    ("key", "shape"),
    [
        ("ref_mask_28ch", (1, 4, 28, 32, 48)),
        ("pose_video_latent", (1, 16, 3, 16, 24)),
        ("driving_mask_28ch", (1, 3, 28, 16, 24)),
    ],
)
def test_poses_of_scail_tell_twice_their_cells(key, shape):
    assert source(network=SCAILWanModel(), **{key: torch.zeros(shape)}) == (32, 48)
    if key == "pose_video_latent":
        assert source(**{key: torch.zeros(shape)}) == (16, 24)


def defaults(node_id, **more):
    return {k: x["default"] for k, x in INPUTS[node_id].items() if "default" in x} | more


def prompt(**options):
    return [[torch.full((1, 4, 8), 0.5), options]]


def test_the_area_of_a_prompt_lies_where_it_was_made_after_switch_and_refiner():
    """Half of a picture of 16 x 24 cells, its preview 8 x 12, its target 24 x 36."""
    shared = {"positive": prompt(area=(16, 12, 0, 12)), "negative": prompt()}
    made = model()
    preview, switch_x0 = SurfReshiftKSampler.execute(
        **defaults("SurfReshiftKSampler", steps=4, switch_step=2, cfg_low=1.0), **shared,
        model=made, latent_image={"samples": torch.zeros(1, 16, 3, 16, 24)},
    ).args  # fmt: skip
    assert preview[KEY] == switch_x0[KEY] == (128, 192)
    assert made.seen[-1].conds["positive"][0][1]["area"] == (8, 6, 0, 6)
    settings = defaults("SurfRefiner", resolution="by scale", scale=3.0, upsample="latent")
    settings |= {"steps": 2, "window": 0, "model": made, **shared}
    out = SurfRefiner.execute(**settings, latent=preview).args[0]
    assert made.seen[-1].size == (24, 36)
    assert made.seen[-1].conds["positive"][0][1]["area"] == (24, 18, 0, 18)
    assert out[KEY] == (128, 192)
    bare = {"samples": preview["samples"]}
    count = len(made.seen)
    with pytest.raises(ValueError, match="^Surf Refiner: .*made_width"):
        SurfRefiner.execute(**settings, latent=bare)
    assert len(made.seen) == count
    out = SurfRefiner.execute(**(settings | {"made_width": 192, "made_height": 128}), latent=bare)
    assert made.seen[-1].conds["positive"][0][1]["area"] == (24, 18, 0, 18)
    assert out.args[0][KEY] == (128, 192)


def test_latent_downscale_says_what_it_is_told_and_keeps_what_came():
    settings = defaults("SurfLatentDownscale")
    latent = {"samples": torch.zeros(1, 16, 3, 16, 24), KEY: (256, 384)}
    assert SurfLatentDownscale.execute(latent, **settings).args[0][KEY] == (256, 384)
    typed = settings | {"made_width": 192, "made_height": 128}
    assert SurfLatentDownscale.execute(latent, **typed).args[0][KEY] == (128, 192)
    assert latent[KEY] == (256, 384)
    del latent[KEY]
    assert KEY not in SurfLatentDownscale.execute(latent, **settings).args[0]
    with pytest.raises(ValueError, match="^Surf Latent Downscale: .*belong together"):
        SurfLatentDownscale.execute(latent, **(settings | {"made_width": 192}))
    said = SurfLatentDownscale.validate_inputs(made_width=192, made_height=0)
    assert "belong together" in said
