"""The second model's world: scenes that are the same everywhere, painted, captioned and read."""

from dataclasses import replace

import pytest
import torch
from surf.surf_core.resample import resize
from surf.surf_core.tiny.adherence import FAULTS, faults, read
from surf.surf_core.tiny.caption import (
    COLOURS,
    COUNTS,
    DIRECTIONS,
    PLACES,
    SHAPES,
    encode_caption,
    multi_hot,
    things_of,
)
from surf.surf_core.training.tiny.paint import paint
from surf.surf_core.training.tiny.world import BEAD, FORMATIONS, LARGE, draw

TIMES = torch.linspace(-0.5, 0.5, 13)
COUNT = 48


@pytest.fixture(scope="module")
def scenes():
    return draw(5, torch.arange(COUNT))


@pytest.fixture(scope="module")
def video(scenes):
    parts = [paint(scenes.part(i, i + 8), TIMES, 128) for i in range(0, COUNT, 8)]
    return torch.cat(parts) / 2 + 0.5


def share(answers):
    flat = [answer for row in answers for answer in row]
    return sum(flat) / len(flat)


def test_a_scene_does_not_depend_on_the_batch_it_is_drawn_in(scenes):
    alone = draw(5, torch.tensor([7]))
    assert torch.equal(alone.beads, scenes.beads[7:8])
    assert torch.equal(alone.look, scenes.look[7:8])
    assert not torch.equal(draw(6, torch.tensor([7])).look, alone.look)


def test_things_stay_inside_the_frame(scenes):
    for sign in (-0.5, 0.5):
        large = scenes.middle + sign * scenes.travel[:, :LARGE]
        reach = scenes.radius[..., None]
        assert (large - reach).min() > 0
        assert (large + reach).max() < 1
        beads = scenes.beads + sign * scenes.travel[:, LARGE:, None]
        near = beads[scenes.beads < 2]
        assert near.min() > BEAD
        assert near.max() < 1 - BEAD


def test_beads_keep_apart_from_each_other_and_from_large_things():
    scenes = draw(5, torch.arange(400))
    own = (scenes.beads[:, 0, :, None] - scenes.beads[:, 0, None]).norm(dim=-1)
    own = own + torch.eye(own.shape[-1])
    assert own[(scenes.beads[:, 0, :, 0] < 2)].min() > 3.6 * BEAD
    gaps = []
    for time in torch.linspace(-0.5, 0.5, 13):
        large = scenes.middle[:, 0] + time * scenes.travel[:, 0]
        beads = scenes.beads[:, 0] + time * scenes.travel[:, 1:]
        gaps.append((beads - large[:, None]).norm(dim=-1).amin(dim=1) - scenes.radius[:, 0])
    nearest = torch.stack(gaps).amin(dim=0)
    assert (nearest > BEAD).float().mean() > 0.97


def test_beads_fly_in_the_formation_of_their_count_ahead_along_their_way():
    scenes = draw(5, torch.arange(200))
    for count, places in enumerate(FORMATIONS, 1):
        mine = scenes.count[:, 0] == count
        beads = scenes.beads[mine, 0, :count]
        beads = beads - beads.mean(dim=1, keepdim=True)
        step = torch.nn.functional.normalize(scenes.travel[mine, 1], dim=-1)
        ahead = (beads * step[:, None]).sum(dim=-1)
        wanted = torch.tensor(places)
        wanted = wanted - wanted.mean(dim=0)
        assert (ahead - wanted[:, 0]).abs().max() < 0.025
        assert (beads.norm(dim=-1) - wanted.norm(dim=-1)).abs().max() < 0.04


def test_every_thing_of_a_scene_has_a_colour_of_its_own(scenes):
    assert all(len(set(row)) == 2 for row in scenes.colour.tolist())


def test_every_thing_lies_in_the_quarter_that_its_phrase_names(scenes):
    assert (scenes.place[:, 0] != scenes.place[:, 1]).all()
    shown = scenes.count[:, 0] > 2
    assert (scenes.place[shown].sum(dim=1) == len(PLACES) - 1).all()
    beyond = scenes.middle[:, 0] - 0.5
    side = torch.stack([2 * (scenes.place[:, 0] % 2) - 1, 2 * (scenes.place[:, 0] // 2) - 1], -1)
    assert (beyond * side > 0).all()


def test_a_thing_in_another_quarter_is_not_right(scenes, video):
    things = scenes.things()
    for turned in (1, 2, 3):
        moved = [[replace(one, place=one.place ^ turned) for one in row] for row in things]
        assert share(read(video, moved)) < 0.05


def test_prompts_round_trip_to_things_and_words(scenes):
    words = scenes.words()
    for i, prompt in enumerate(scenes.prompts()):
        assert things_of(prompt) == scenes.things()[i]
        asked = {tuple(row) for row in multi_hot(prompt).tolist()}
        assert asked == {tuple(row) for row in words[i].tolist()} | (
            asked if tuple([0.0] * words.shape[2]) in asked else set()
        )


def test_caption_rejects_unknown_words_and_too_many_phrases():
    assert encode_caption("one red bead moving up").shape == (1, 3, 4096)
    assert encode_caption("").abs().sum() == 0
    with pytest.raises(ValueError, match="got 'orange'"):
        encode_caption("orange ball moving left")
    with pytest.raises(ValueError, match="at most 3 phrases"):
        encode_caption(", ".join(["red ball"] * 4))


def test_a_painted_part_is_a_cut_of_the_whole(scenes):
    few = scenes.part(0, 3)
    whole = paint(few, TIMES[:2], 128)
    top, left = torch.tensor([0, 16, 60]), torch.tensor([64, 32, 0])
    part = paint(few, TIMES[:2], 128, (top, left, 64))
    for i in range(3):
        a, b = top[i], left[i]
        torch.testing.assert_close(part[i], whole[i, :, :, a : a + 64, b : b + 64])


def test_a_scene_looks_alike_at_every_size(scenes):
    few = scenes.part(0, 8)
    large, small = (paint(few, TIMES[:1], size) for size in (256, 64))
    error = resize(large, (64, 64), "area") - small
    assert error.abs().mean() < 0.02


@pytest.mark.parametrize("size", [128, 64])
def test_nearly_every_painted_thing_is_read_as_right(scenes, video, size):
    shown = resize(video, (size, size), "area")
    assert share(read(shown, scenes.things())) >= 0.97


def test_what_is_blurred_is_read_as_what_is_sharp(scenes, video):
    blurred = resize(resize(video, (24, 24), "area"), (64, 64), "bicubic").clamp(0, 1)
    assert share(read(blurred, scenes.things())) >= 0.97


def test_what_shows_nothing_is_never_right(scenes, video):
    things = scenes.things()
    dice = torch.Generator().manual_seed(0)
    for shown in (
        torch.full_like(video, 0.5),
        torch.rand(video.shape, generator=dice),
        video[:, :, :1].expand_as(video),
        video.flip(2),
    ):
        assert share(read(shown, things)) == 0
    assert share(read(video.roll(1, 0), things)) < 0.08


@pytest.mark.parametrize("word", FAULTS)
def test_one_wrong_word_makes_a_thing_wrong_and_is_named(scenes, video, word):
    def changed(thing, others):
        if word == "not always":
            absent = min(set(range(len(COLOURS))) - {other.colour for other in others})
            return replace(thing, colour=absent)
        if word == "direction":
            return replace(thing, direction=(thing.direction + 1) % len(DIRECTIONS))
        if word == "place":
            return replace(thing, place=len(PLACES) - 1 - thing.place)
        if thing.shape is None:
            return replace(thing, count=thing.count % len(COUNTS) + 1) if word == "count" else None
        return replace(thing, shape=(thing.shape + 1) % len(SHAPES)) if word == "shape" else None

    wrong = [[new for thing in row if (new := changed(thing, row))] for row in scenes.things()]
    found = [fault for row in faults(video, wrong) for fault in row]
    assert found.count("") <= 0.02 * len(found)
    assert found.count(word) >= 0.9 * len(found)
    assert [[not fault for fault in row] for row in faults(video, wrong)] == read(video, wrong)


def test_read_rejects_what_it_cannot_read(scenes, video):
    with pytest.raises(ValueError, match="each of 2 prompts"):
        read(video[:1], scenes.things()[:2])
    with pytest.raises(ValueError, match="frames"):
        read(video[:1, :, :3], scenes.things()[:1])
