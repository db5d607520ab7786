"""Conditioning across a change of resolution: what is resized, what is left, what is said."""

import logging
import sys

import host_stub
import pytest
import torch
from surf.nodes.host.conditioning import Grid, SizeChange, carry, check_areas
from surf.nodes.host.conditioning.resize import UNBOUND
from surf.nodes.host.refine.tiling import with_tiles

HALVED = SizeChange(source=(16, 24), target=(8, 12))
VIDEO = (1, 16, 3, 16, 24)
SCAIL = Grid(bound_references=True, half_poses=True)


def carried(change=HALVED, **options):
    cond = [[torch.zeros(1, 4, 8), options]]
    return carry({"positive": cond}, change)["positive"][0][1]


@pytest.mark.parametrize(
    ("key", "shape", "expected"),
    [
        ("vace_frames", (1, 32, 3, 16, 24), (8, 12)),
        ("vace_mask", (1, 64, 4, 16, 24), (8, 12)),
        ("time_dim_concat", (1, 16, 1, 16, 24), (8, 12)),
        ("pose_video_latent", VIDEO, (8, 12)),
        ("control_video", VIDEO, (8, 12)),
        ("camera_conditions", (1, 24, 3, 128, 192), (64, 96)),
    ],
)
@pytest.mark.parametrize("listed", [False, True])
def test_bound_conditioning_is_resized(key, shape, expected, listed):
    value = torch.randn(shape)
    out = carried(**{key: [value] if listed else value})[key]
    out = out[0] if listed else out
    assert out.shape == (*shape[:-2], *expected)


@pytest.mark.parametrize(
    ("source", "target"), [((16, 24), (8, 12)), ((16, 24), (12, 18)), ((16, 24), (48, 72))]
)
def test_poses_at_half_of_the_grid_stay_at_half(source, target):
    change = SizeChange(source=source, target=target, grid=SCAIL)
    pose, half = torch.randn(1, 16, 3, 8, 12), (target[0] // 2, target[1] // 2)
    driving, masks = torch.rand(1, 3, 28, 8, 12), torch.rand(1, 4, 28, 16, 24)
    out = carried(
        change, pose_video_latent=pose, driving_mask_28ch=driving, ref_mask_28ch=masks,
        reference_latents=[torch.randn(1, 16, 1, 16, 24)],
    )  # fmt: skip
    assert out["pose_video_latent"].shape == (1, 16, 3, *half)
    assert out["driving_mask_28ch"].shape == (1, 3, 28, *half)
    assert out["ref_mask_28ch"].shape == (1, 4, 28, *target)
    assert out["reference_latents"][0].shape == (1, 16, 1, *target)
    assert 0 <= out["ref_mask_28ch"].min() <= out["ref_mask_28ch"].max() <= 1
    torch.testing.assert_close(
        out["driving_mask_28ch"].mean((-2, -1)), driving.mean((-2, -1)), rtol=0, atol=0.03
    )


def test_hard_masks_stay_hard_and_in_place():
    pixels = torch.zeros(1, 1, 128, 192)
    pixels[..., 32:96, 48:144] = 1
    mask = torch.nn.functional.pixel_unshuffle(pixels, 8)[:, :, None].repeat(1, 1, 3, 1, 1)
    out = carried(vace_mask=[mask])["vace_mask"][0]
    small = torch.nn.functional.pixel_shuffle(out[:, :, 0], 8)
    expected = torch.zeros(1, 1, 64, 96)
    expected[..., 16:48, 24:72] = 1
    assert torch.equal(small, expected)
    assert torch.equal(out[:, :, 0], out[:, :, 2])


@pytest.mark.parametrize(
    ("area", "expected"),
    [
        ((8, 12, 4, 6), (4, 6, 2, 3)),
        ((3, 8, 12, 0, 15, 23), (3, 4, 6, 0, 7, 11)),
        ((1, 1, 0, 0), (1, 1, 0, 0)),
        (("percentage", 0.5, 0.5, 0.1, 0.1), ("percentage", 0.5, 0.5, 0.1, 0.1)),
    ],
)
def test_absolute_areas_are_scaled(area, expected):
    assert carried(area=area)["area"] == expected


def test_references_follow_only_where_the_model_lays_them_on_the_grid():
    references = [torch.randn(1, 16, 1, 16, 24)]
    assert carried(reference_latents=references)["reference_latents"] is references
    bound = SizeChange(source=(16, 24), target=(8, 12), grid=SCAIL)
    assert carried(bound, reference_latents=references)["reference_latents"][0].shape[-2:] == (
        8,
        12,
    )


@pytest.mark.parametrize("key", sorted(UNBOUND))
def test_what_the_host_resizes_is_left_alone(key, caplog):
    value = torch.randn(VIDEO)
    assert carried(**{key: value})[key] is value
    assert not caplog.records


def test_images_to_concatenate_are_stretched_where_the_host_would_crop():
    value = torch.randn(1, 16, 3, 45, 80)
    change = SizeChange(source=(45, 80), target=(22, 40))
    assert carried(change, concat_latent_image=value)["concat_latent_image"].shape[-2:] == (22, 40)


def test_unknown_tensors_give_one_warning_that_names_them(caplog):
    options = {"mystery": torch.randn(VIDEO), "riddle": [torch.randn(1, 3, 128, 192)]}
    cond = [[torch.zeros(1, 4, 8), options]]
    with caplog.at_level(logging.WARNING):
        out = carry({"positive": cond, "negative": cond}, HALVED)
    (record,) = caplog.records
    assert "'mystery'" in record.getMessage()
    assert "'riddle'" in record.getMessage()
    assert out["negative"][0][1]["mystery"].shape[-2:] == (8, 12)
    assert out["negative"][0][1]["riddle"][0].shape[-2:] == (64, 96)


def test_other_values_are_shared_and_silent(caplog):
    options = {
        "pooled_output": torch.randn(1, 768), "guidance": 6.0, "clip": object(), "empty": [],
        "other": torch.randn(1, 16, 3, 5, 7), "mixed": [torch.randn(VIDEO), 1],
    }  # fmt: skip
    out = carried(**options)
    assert all(out[key] is value for key, value in options.items())
    assert not caplog.records


def test_conditioning_is_not_mutated():
    frames, mask = [torch.randn(1, 32, 3, 16, 24)], [torch.ones(1, 64, 3, 16, 24)]
    cond = [
        [torch.zeros(1, 4, 8), {"vace_frames": frames, "vace_mask": mask, "area": (8, 8, 0, 0)}]
    ]
    before = frames[0].clone()
    carry({"positive": cond}, HALVED)
    assert cond[0][1]["vace_frames"] is frames
    assert cond[0][1]["area"] == (8, 8, 0, 0)
    assert torch.equal(frames[0], before)


def test_the_same_size_changes_nothing():
    conds = {"positive": [[torch.zeros(1), {"vace_frames": [torch.randn(VIDEO)]}]]}
    assert carry(conds, SizeChange(source=(16, 24), target=(16, 24))) is conds


GOOD_AREAS = [
    (4, 4, 0, 0), (2, 8, 15, 23), (99, 99, 0, 0), (1, 4, 4, 2, 0, 0), [4, 4, 1, 1],
    ("percentage", 1.0, 0.5, 0.5, 0.0, 0.25, 0.0),
]  # fmt: skip
BAD_AREAS = [
    (None, "within"), ("area", "within"), ((4,), "begins"), ((4, 4, 16, 0), r"\(3, 16, 24\)"),
    ((4, 4, 0, 24), "within"), ((0, 4, 0, 0), "within"), ((-4, 4, 0, 0), "within"),
    ((4, 4, -1, 0), "within"), ((1, 4, 4, 3, 0, 0), "within"), ((4.0, "4", 0, 0), "within"),
    ((1,) * 8, "within"), (("percentage", 0.5, 0.5, 0.0, 0.0), "PercentageVideo"),
    (("percentage", 1.0, 0.5, float("nan"), 0.0, 0.0, 0.0), "within"),
    (("percentage", 1.0, 0.5, 0.5, 0.0, 0.0, 1.0), "within"),
]  # fmt: skip


@pytest.mark.parametrize("area", GOOD_AREAS)
def test_an_area_that_begins_inside_is_taken(area):
    check_areas({"positive": [[None, {"area": area}], [None, {}]], "negative": []}, (3, 16, 24))


@pytest.mark.parametrize(("area", "words"), BAD_AREAS)
def test_an_area_that_the_host_cannot_place_is_refused(area, words):
    conds = {"positive": [[None, {}]], "negative": [[None, {"area": area}]]}
    with pytest.raises(ValueError, match=f"negative.*{words}|{words}.*negative"):
        check_areas(conds, (3, 16, 24))


HUNYUAN = Grid(patch=2)


@pytest.mark.parametrize(
    ("area", "expected"),
    [
        ((8, 12, 4, 6), (4, 6, 2, 4)),
        ((6, 6, 2, 2), (4, 4, 0, 0)),
        ((1, 2, 14, 22), (2, 2, 6, 10)),
        (("percentage", 1.0, 0.7, 0.5, 0.0, 0.3, 0.5),
         ("percentage", 1.0, 6 / 8, 6 / 12, 0.0, 2 / 8, 6 / 12)),
    ],
)  # fmt: skip
def test_areas_are_scaled_to_whole_patches_where_the_model_cannot_pad(area, expected):
    change = SizeChange(source=(16, 24), target=(8, 12), grid=HUNYUAN)
    assert carried(change, area=area)["area"] == expected
    check_areas({"positive": [[None, {"area": expected}]]}, (3, 8, 12), HUNYUAN)


@pytest.mark.parametrize(
    ("area", "words"),
    [
        ((5, 6, 0, 0), "multiples of 16 pixels in the positive.* got 48 x 40"),
        ((8, 8, 0, 19), "got 40 x 64"),
        (("percentage", 1.0, 0.45, 0.5, 0.0, 0.0, 0.0), "got 96 x 56"),
    ],
)
def test_areas_of_parts_of_patches_are_refused_where_the_model_cannot_pad(area, words):
    conds = {"positive": [[None, {"area": area}]]}
    check_areas(conds, (3, 16, 24))
    with pytest.raises(ValueError, match=words):
        check_areas(conds, (3, 16, 24), HUNYUAN)


MAPS = {
    "vace_frames": [torch.zeros(1, 32, 3, 16, 24)], "time_dim_concat": torch.zeros(VIDEO),
    "control_video": torch.zeros(VIDEO), "pose_video_latent": torch.zeros(VIDEO),
    "camera_conditions": torch.zeros(1, 24, 3, 128, 192),
}  # fmt: skip


@pytest.mark.parametrize("key", MAPS)
def test_an_area_beside_a_map_that_the_host_does_not_cut_is_refused(key):
    def check(area):
        conds = {"positive": [[None, {"area": area, key: MAPS[key]}]]}
        check_areas(conds, (3, 16, 24), Grid())

    with pytest.raises(ValueError, match=f"positive .*{key} do not go together.*Set Mask"):
        check((8, 8, 4, 4))
    check((99, 99, 0, 0))
    check(("percentage", 1.0, 1.0, 1.0, 0.0, 0.0, 0.0))


def test_an_area_in_a_prompt_for_vace_is_refused_and_beside_an_image_taken():
    area = {"area": (8, 8, 4, 4)}
    image = {"positive": [[None, {**area, "concat_latent_image": torch.zeros(VIDEO)}]]}
    check_areas(image, (3, 16, 24), Grid())
    with pytest.raises(ValueError, match="a VACE model do not go together"):
        check_areas({"positive": [[None, area]]}, (3, 16, 24), Grid(controlled=True))


POSES = {"pose_video_latent": torch.zeros(1, 16, 3, 24, 32)}


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (POSES, "pose_video_latent of the positive.*one piece"),
        ({"control": object()}, "ControlNet"),
    ],
)
def test_what_cannot_follow_tiles_is_refused_before_anything_runs(options, words, monkeypatch):
    management = sys.modules["comfy.model_management"]
    monkeypatch.setattr(management, "get_total_memory", lambda device: 1e12, raising=False)
    scail, shape = host_stub.Patcher(), torch.empty(1, 16, 3, 48, 64, device="meta")
    scail.model.diffusion_model = type("SCAILWanModel", (), {"patch_size": (1, 2, 2)})()
    conds = {"positive": [[None, options]]}
    with_tiles(scail, shape, 0, conds=conds)
    with pytest.raises(ValueError, match=words):
        with_tiles(scail, shape, 256, conds=conds)
