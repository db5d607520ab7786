"""Conditioning for the leg after a switch: made there, or a resize that is said."""

import logging

import pytest
import torch
from surf.nodes.host.conditioning import Grid, SizeChange, low_conds

HIGH, LOW = (16, 24), (8, 12)
CHANGE = SizeChange(source=HIGH, target=LOW)
SCAIL = SizeChange(source=HIGH, target=LOW, grid=Grid(bound_references=True, half_poses=True))


def prompt(width=8, **options):
    return [[torch.full((1, 4, width), 0.5), options]]


def i2v(size, frames=3, channels=16, masks=4, width=8, **more):
    """What WanImageToVideo makes."""
    return prompt(
        width,
        concat_latent_image=torch.randn(1, channels, frames, *size),
        concat_mask=torch.ones(1, masks, frames, *size), **more,
    )  # fmt: skip


def vace(size, frames=3, count=1):
    return prompt(
        vace_frames=[torch.randn(1, 32, frames, *size)] * count,
        vace_mask=[torch.ones(1, 64, frames, *size)] * count,
    )


def animate(size):
    return i2v(size, pose_video_latent=torch.randn(1, 16, 2, *size))


def camera(size):
    return prompt(camera_conditions=torch.randn(1, 24, 3, *(8 * side for side in size)))


def scail(size):
    half = tuple(side // 2 for side in size)
    return prompt(
        pose_video_latent=torch.randn(1, 16, 3, *half),
        reference_latents=[torch.randn(1, 16, 1, *size)],
    )


def phantom(size):
    return prompt(time_dim_concat=torch.randn(1, 16, 2, *size))


def pair(make, size, **more):
    return {"positive": make(size, **more), "negative": make(size, **more)}


FAMILIES = [
    (i2v, CHANGE), (vace, CHANGE), (animate, CHANGE), (camera, CHANGE), (phantom, CHANGE),
    (scail, SCAIL),
]  # fmt: skip


@pytest.mark.parametrize(("make", "change"), FAMILIES)
def test_conditioning_that_was_made_at_the_low_size_is_taken_as_it_is(make, change, caplog):
    conds, made = pair(make, HIGH), pair(make, LOW)
    with caplog.at_level(logging.INFO):
        out = low_conds(conds, made, change, (3,))
    assert out == made
    assert all(out[name] is made[name] for name in out)
    assert not caplog.records


@pytest.mark.parametrize(("make", "change"), FAMILIES)
def test_without_it_the_resize_is_said_once_with_its_keys_and_what_to_connect(make, change, caplog):
    conds = pair(make, HIGH)
    with caplog.at_level(logging.INFO):
        out = low_conds(conds, {}, change, (3,))
    [said] = [record.getMessage() for record in caplog.records]
    for key in conds["positive"][0][1]:
        assert (key in said) == (key != "concat_mask")
        if key not in ("concat_latent_image", "concat_mask"):
            new = out["positive"][0][1][key]
            new = new[0] if isinstance(new, list) else new
            assert new.shape[-2:] == change.grid.size_of(key, LOW)
    assert "96 x 64 pixels" in said
    assert "positive_low and negative_low" in said


def test_text_alone_needs_no_word(caplog):
    with caplog.at_level(logging.INFO):
        out = low_conds(pair(lambda size: prompt(), HIGH), {}, CHANGE, (3,))
    assert out.keys() == {"positive", "negative"}
    assert not caplog.records


def test_another_text_is_taken_and_names_without_maps_may_be_left_out():
    conds = {"positive": i2v(HIGH), "negative": prompt(), "middle": prompt(area=(8, 8, 0, 0))}
    made = {"positive": i2v(LOW)}
    out = low_conds(conds, made, CHANGE, (3,))
    assert out["positive"] is made["positive"]
    assert out["negative"][0][0] is conds["negative"][0][0]
    assert out["middle"][0][1]["area"] == (4, 4, 0, 0)
    texts = {"positive": prompt(), "negative": prompt()}
    assert low_conds(pair(lambda size: prompt(), HIGH), texts, CHANGE, (3,)) == texts


REJECTED = {
    "made for the high size": (pair(i2v, HIGH), ["96 x 64", "got one for 192 x 128", "width 96"]),
    "another size": (pair(i2v, (6, 12)), ["96 x 64", "got one for 96 x 48", "height 64"]),
    "another length": (pair(i2v, LOW, frames=2), ["[B, 16, 3,", "got [B, 16, 2,", "length"]),
    "another VAE": (pair(i2v, LOW, channels=48), ["[B, 16, 3,", "got [B, 48, 3,", "VAE"]),
    "masks of another count": (pair(i2v, LOW, masks=1), ["concat_mask", "[B, 4, 3,", "[B, 1, 3,"]),
    "no maps": (pair(lambda size: prompt(), LOW), ["concat_latent_image", "got none"]),
    "another family": (pair(vace, LOW), ["concat_latent_image", "got none"]),
    "more maps": (pair(animate, LOW), ["pose_video_latent", "none, got [B, 16, 2,"]),
    "another encoder": (pair(i2v, LOW, width=6), ["[8] wide", "got [6]"]),
    "no negative": ({"positive": i2v(LOW)}, ["negative_low beside positive_low", "got none"]),
    "not finite": (pair(i2v, LOW, note=torch.tensor([float("nan")])), ["positive_low", "finite"]),
    "an area outside": (pair(i2v, LOW, area=(4, 4, 8, 0)), ["positive_low", "(3, 8, 12)"]),
}


@pytest.mark.parametrize("made", REJECTED)
def test_conditioning_that_does_not_fit_is_refused(made):
    given, words = REJECTED[made]
    with pytest.raises(ValueError, match="expected|must be") as refused:
        low_conds(pair(i2v, HIGH), given, CHANGE, (3,))
    assert all(word in str(refused.value) for word in words), refused.value


@pytest.mark.parametrize(
    ("make", "more", "words"),
    [
        (vace, {"count": 2}, ["vace_frames", "[B, 32, 3, rows, columns], [B, 32, 3,"]),
        (vace, {"frames": 4}, ["[B, 32, 3,", "got [B, 32, 4,"]),
    ],
)
def test_lists_of_maps_must_have_the_same_count_and_frames(make, more, words):
    with pytest.raises(ValueError, match="same node, length and VAE") as refused:
        low_conds(pair(make, HIGH), pair(make, LOW, **more), CHANGE, (3,))
    assert all(word in str(refused.value) for word in words), refused.value


def test_poses_of_scail_at_the_full_grid_are_refused():
    made = pair(scail, LOW)
    made["negative"][0][1]["pose_video_latent"] = torch.randn(1, 16, 3, *LOW)
    with pytest.raises(ValueError, match="pose_video_latent of negative_low .*for 192 x 128"):
        low_conds(pair(scail, HIGH), made, SCAIL, (3,))


def test_inputs_are_not_mutated():
    conds, made = pair(i2v, HIGH), pair(i2v, LOW)
    before = {name: dict(cond[0][1]) for name, cond in (conds | made).items()}
    low_conds(conds, made, CHANGE, (3,))
    assert all(made[name][0][1] == before[name] for name in made)
