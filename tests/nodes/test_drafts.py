"""Drafts on the fake host: items apart, one chosen, all of them in one numbered picture."""

import copy
from pathlib import Path

import host_stub
import host_stub_api
import host_stub_files
import pytest
import torch
from comfy.nested_tensor import NestedTensor
from surf.nodes.drafts import SurfDrafts, SurfFinishDraft, SurfStartDrafts
from surf.nodes.host.draft_record import KEY
from surf.nodes.host.drafts import drafts_of
from surf.nodes.host.drafts.pictures import previewed
from surf.nodes.host.drafts.sheet import DIGITS, LARGEST, fitted, numbered, sheet
from surf.nodes.host.latents import open_parts
from surf.tests.node_calls import changes, kept
from surf.tests.nodes.skip_node import CellVae


def latent(batch=3, frames=3, rows=4, columns=6, **more):
    generator = torch.Generator().manual_seed(1)
    return {"samples": torch.rand(batch, 16, frames, rows, columns, generator=generator), **more}


def choose(drafts, index=1, **more):
    return SurfDrafts.execute(drafts=drafts, index=index, fps=16.0, **more).args[0]


def start(latent, count=3, how="one by one"):
    return SurfStartDrafts.execute(latent=latent, count=count, how=how).args[0]


@pytest.fixture(autouse=True)
def clean(monkeypatch, tmp_path):
    monkeypatch.setitem(host_stub_files.FOLDERS, "temp", str(tmp_path))
    monkeypatch.setattr(host_stub_api, "SAVED", [])


def saved(number=-1):
    """Frames of a picture; the fake host writes none, so that it has to be told that it did."""
    Path(host_stub_files.FOLDERS["temp"], "surf_drafts.webp").touch()
    return host_stub_api.SAVED[number][1]


def test_numbers_of_drafts_go_on_from_those_of_the_latent():
    for own, expected in ((None, [0, 1, 2]), ([4], [4, 5, 6])):
        given = latent(1) if own is None else latent(1, batch_index=own)
        assert [one["batch_index"] for one in start(given)] == [[n] for n in expected]
        [batch] = start(given, how="as a batch")
        assert batch["batch_index"] == expected
        assert len(batch["samples"]) == 3
    two = latent(2, batch_index=[1, 3])
    assert [one["batch_index"] for one in start(two, 2)] == [[1], [3], [4], [6]]
    assert torch.equal(start(two, 2)[3]["samples"], two["samples"][1:])


def test_start_drafts_does_not_mutate_its_input():
    for how in ("one by one", "as a batch"):
        given = latent(2, noise_mask=torch.rand(2, 1, 3, 4, 6), batch_index=[0, 1])
        before = kept(given)
        start(given, how=how)
        assert not changes(before, kept(given), "latent")


def test_sound_goes_along_one_by_one_and_is_refused_as_a_batch():
    given = {"samples": NestedTensor([torch.rand(1, 24, 2, 4, 4), torch.rand(1, 32, 2, 9)])}
    ones = start(given)
    assert [one["batch_index"] for one in ones] == [[0], [1], [2]]
    for one in ones:
        assert all(map(torch.equal, one["samples"].unbind(), given["samples"].unbind()))
    with pytest.raises(ValueError, match="Surf Start Drafts: expected a latent without audio"):
        start(given, how="as a batch")


@pytest.mark.parametrize(
    ("shape", "own"),
    [((3, 1, 3, 4, 6), True), ((1, 1, 3, 4, 6), False), ((3, 4, 6), False), ((4, 6), False)],
)
def test_a_draft_keeps_its_own_noise_mask(shape, own):
    """Of a video, axes before [T, H, W] count items; those of [N, H, W] are frames."""
    mask = torch.rand(shape)
    for place, one in enumerate(drafts_of(latent(noise_mask=mask))):
        assert torch.equal(one["noise_mask"], mask[place : place + 1] if own else mask)


def test_masks_of_an_image_count_items():
    mask = torch.rand(2, 4, 6)
    batch = {"samples": torch.rand(3, 16, 4, 6), "noise_mask": mask}
    for place, one in enumerate(drafts_of(batch)):
        assert torch.equal(one["noise_mask"], mask[[place % 2]])


def test_sound_and_video_keep_their_own_masks():
    parts = [torch.rand(2, 24, 2, 4, 4), torch.rand(2, 32, 2, 9)]
    masks = [torch.rand(2, 1, 2, 4, 4), torch.rand(2, 1, 2, 9)]
    batch = {"samples": NestedTensor(parts), "noise_mask": NestedTensor(masks)}
    for place, one in enumerate(drafts_of(batch)):
        for found, whole in zip(one["noise_mask"].unbind(), masks, strict=True):
            assert torch.equal(found, whole[[place]])


@pytest.mark.parametrize("batch_index", [None, [4, 2, 9]])
def test_the_chosen_draft_is_the_item_with_all_that_it_carries(batch_index):
    given = latent(surf_made_for=(64, 96), other="kept")
    given |= {} if batch_index is None else {"batch_index": batch_index}
    before = kept(given)
    draft = choose(given, 2)
    assert torch.equal(draft["samples"], given["samples"][1:2])
    assert draft["batch_index"] == [1 if batch_index is None else 2]
    assert (draft["surf_made_for"], draft["other"]) == ((64, 96), "kept")
    assert not changes(before, kept(given), "drafts")


def test_drafts_come_one_by_one_and_as_batches_in_one_list():
    many = [latent(2), latent(1, batch_index=[7])]
    assert choose(many, [3])["batch_index"] == [7]
    assert torch.equal(choose(many, [2])["samples"], many[0]["samples"][1:])
    assert "batch_index" not in choose([latent(1)])


def test_a_seed_is_kept_with_the_draft_that_does_not_say_its_own():
    assert choose(latent(), 2, seed=[5])[KEY] == {"seed": 5}
    assert choose(latent(), 2, seed=[5, 6, 7])[KEY] == {"seed": 6}
    own = latent(**{KEY: {"seed": 5, "steps": 4}})
    assert choose(own, 2, seed=[5])[KEY] == choose(own, 2)[KEY] == own[KEY]
    with pytest.raises(ValueError, match="expected the seed that made the draft, 5, got 6"):
        choose(own, 2, seed=6)
    with pytest.raises(ValueError, match="one for each of the 3, got 2"):
        choose(latent(), seed=[5, 6])


@pytest.mark.parametrize(
    ("drafts", "index", "words"),
    [
        ([], 1, "expected at least one draft, got none"),
        (latent(), 4, "at most the number of drafts, 3, got 4; choose one from 1 to 3, or make"),
        (latent(1), 4, "at most the number of drafts, 1, got 4; choose 1, or make more drafts"),
        (latent(), 0, "index must lie within 1 to 4096"),
        (latent(), [1, 2], "expected one index, got 2"),
        ([latent(), None], 1, "drafts must be of type LATENT, got NoneType"),
        ({"samples": torch.full((1, 16, 1, 4, 4), float("nan"))}, 1, "drafts must be finite"),
        (latent(batch_index=[1]), 1, "drafts: batch_index must number each of the 3"),
    ],
)
def test_what_is_no_draft_is_refused(drafts, index, words):
    with pytest.raises(ValueError, match=words) as caught:
        choose(drafts, index)
    assert str(caught.value).startswith("Surf Drafts: ")


def test_a_draft_is_made_again_from_its_number_and_seed():
    finish = SurfFinishDraft.execute
    draft = choose(latent(batch_index=[4, 2, 9]), 3, seed=[11])
    one = latent(1, rows=8)
    made, seed = finish(draft=draft, start=one).args
    assert (made["batch_index"], seed) == ([9], 11)
    assert "batch_index" not in one
    made, _ = finish(draft=draft, start=latent(3, rows=8, batch_index=[9, 1, 2])).args
    assert made["batch_index"] == [9]
    for wrong, words in (
        ({"draft": latent(1)}, "a draft that says its seed"),
        ({"draft": latent(2)}, "expected one draft, got 2"),
        ({"start": latent(3)}, r"with the number of the draft, \[9\]"),
    ):
        with pytest.raises(ValueError, match=words):
            finish(**{"draft": draft, "start": one} | wrong)


class OtherLatents(host_stub.Wan21):
    latent_channels = 48


@pytest.fixture
def other():
    """A MODEL of other latents than the drafts'."""
    model = host_stub.Patcher()
    model.model.latent_format = OtherLatents()
    return model


def test_a_draft_of_another_model_is_not_made_again(other):
    finish, model = SurfFinishDraft.execute, host_stub.Patcher()
    blank = {"samples": torch.zeros(1, 16, 3, 8, 12)}
    said = {"seed": 11, "latent_format": "Wan21", "model": "WAN21"}
    draft, unsaid = latent(1, **{KEY: said}), latent(1, **{KEY: {"seed": 11}})
    before = kept(draft)
    with pytest.raises(ValueError, match="^Surf Finish Draft: draft: .* OtherLatents .* Wan21, of"):
        finish(draft=draft, start=blank, model=other)
    with pytest.raises(ValueError, match="^Surf Finish Draft: draft .*48 channels"):
        finish(draft=unsaid, start=blank, model=other)
    assert KEY not in finish(draft=unsaid, start=blank, model=model).args[0]
    # Of an empty start, the kind goes along: the sampler that takes it looks.
    made, seed = finish(draft=draft, start=blank, model=model).args
    assert (made[KEY], seed) == ({"latent_format": "Wan21"}, 11)
    assert not changes(before, kept(draft), "draft")
    with pytest.raises(ValueError, match="got a draft of the kind Wan21; connect"):
        open_parts(other, made, "latent_image")


def test_a_start_of_another_model_is_refused(other):
    finish = SurfFinishDraft.execute
    draft = latent(1, **{KEY: {"seed": 11}})
    zeros = torch.zeros(1, 48, 3, 8, 12)
    finish(draft=draft, start={"samples": zeros})
    sound = torch.zeros(1, 32, 2, 9)
    joint = {"samples": NestedTensor([draft["samples"], sound]), KEY: {"seed": 11}}
    finish(draft=joint, start={"samples": zeros})
    for made, given in (
        (draft, zeros + 1), (draft, NestedTensor([zeros, sound])), (joint, draft["samples"]),
    ):  # fmt: skip
        with pytest.raises(ValueError, match="^Surf Finish Draft: expected a start of the draft's"):
            finish(draft=made, start={"samples": given})


def test_the_model_is_kept_with_the_chosen_draft_and_another_is_refused(other):
    made = choose(latent(), model=host_stub.Patcher(), seed=[3])
    assert made[KEY] == {"latent_format": "Wan21", "model": "Network", "seed": 3}
    own = {"latent_format": "Wan21", "model": "WAN21"}
    assert choose(latent(**{KEY: own}), model=host_stub.Patcher())[KEY] == own
    for drafts in (latent(), latent(**{KEY: own})):
        with pytest.raises(ValueError, match="^Surf Drafts: drafts"):
            choose(drafts, model=other)


def test_drafts_are_decoded_once():
    vae, drafts = CellVae(), latent()
    for index in (1, 3, 2, 3):
        choose(drafts, index, vae=vae)
        saved()
    assert len(vae.calls) == 3
    choose(latent(2), vae=vae)
    assert len(vae.calls) == 5
    Path(host_stub_files.FOLDERS["temp"], "surf_drafts.webp").unlink()
    choose(drafts, vae=vae)
    assert len(vae.calls) == 8
    choose(drafts, vae=CellVae())
    assert len(host_stub_api.SAVED) == 4


def test_the_picture_shows_every_draft_in_its_place():
    drafts = drafts_of(latent(3, rows=32, columns=48))
    images = sheet(drafts, CellVae(), None)
    high, wide = images.shape[1] // 2, images.shape[2] // 2
    assert images.shape == (9, 2 * high, 2 * wide, 3)
    for place, draft in enumerate(drafts):
        row, column = divmod(place, 2)
        cell = images[:, row * high :, column * wide :][:, :high, :wide]
        frames = fitted(CellVae().decode(draft["samples"])[0], 2)
        # The number is in the corner.
        assert torch.equal(cell[:, high // 2 :], frames[:, high // 2 :])
        assert torch.equal(cell, numbered(frames, place + 1))
    assert not images[:, high:, wide:].any()


def test_numbers_are_read_as_they_are_drawn():
    frames = torch.full((2, 40, 40, 3), 0.5)
    for number in (7, 10, 64):
        drawn = numbered(frames, number)
        assert torch.equal(drawn[0], drawn[1])
        text, white = str(number), drawn[0, 1:6, 1:, 0]
        for place, digit in enumerate(text):
            found = white[:, 4 * place : 4 * place + 3].flatten().long().tolist()
            assert "".join(map(str, found)) == DIGITS[int(digit)]
        assert (drawn[0, 7:] == 0.5).all()
    assert (frames == 0.5).all()
    assert len(set(DIGITS)) == 10


@pytest.mark.parametrize(("side", "columns"), [(8, 1), (100, 2), (2000, 1), (2000, 4)])
def test_frames_are_fitted_without_another_shape(side, columns):
    frames = fitted(torch.rand(1, side, 2 * side, 3), columns)
    rows, wide = frames.shape[1:3]
    assert wide == 2 * rows
    assert wide <= LARGEST
    assert columns * wide <= 1280
    if 2 * side < 200:
        assert rows % side == 0


def test_clips_of_other_lengths_and_sizes_share_a_picture():
    drafts = [latent(1), latent(1, frames=1, rows=8)]
    images = sheet(drafts, CellVae(), None)
    assert len(images) == 9
    assert torch.equal(images[0, :, images.shape[2] // 2 :], images[-1, :, images.shape[2] // 2 :])


class Coloured(host_stub.Wan21):
    latent_rgb_factors = [[0.1, -0.2, 0.3]] * 16


def test_without_a_vae_the_hosts_previewer_colours_each_latent_frame(monkeypatch):
    video = latent(1)["samples"]
    frames = previewed({"samples": video}, Coloured())
    clean = Coloured().process_in(video)[0]
    colours = torch.einsum("ctrw,cd->trwd", clean, torch.tensor(Coloured.latent_rgb_factors))
    assert torch.allclose(frames, ((colours + 1) / 2).clamp(0, 1), atol=1 / 255)
    model = host_stub.Patcher()
    model.model.latent_format = Coloured()
    choose(latent(), model=[model])
    assert len(saved()) == 3


def test_a_record_names_the_kind_of_latents_and_an_unknown_one_shows_nothing(monkeypatch):
    import comfy.latent_formats

    monkeypatch.setattr(comfy.latent_formats, "Coloured", Coloured, raising=False)
    choose(latent(**{KEY: {"latent_format": "Coloured"}}))
    assert len(host_stub_api.SAVED) == 1
    for record in ({}, {"latent_format": "Wan21"}, {"latent_format": "torch"}, "no record"):
        out = SurfDrafts.execute(drafts=latent(**{KEY: record}), index=1, fps=16.0)
        assert out.ui is None
        assert out.args[0]["batch_index"] == [0]
    assert len(host_stub_api.SAVED) == 1


def test_a_draft_of_other_latents_is_refused_by_its_record():
    given = latent(1, **{KEY: {"latent_format": "HunyuanVideo"}})
    with pytest.raises(ValueError, match="kind Wan21 for Network, got a draft of the kind Hun"):
        open_parts(host_stub.Patcher(), given, "latent")
    open_parts(host_stub.Patcher(), copy.copy(latent(1)), "latent")
