"""Files of drafts: bit for bit, in their own dtype, refused where they are not what they say."""

import json

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import save_file
from surf.surf_core.draft import ABOUT_KEY, SEAL_KEY, VERSION_KEY, Draft, load_draft, save_draft


def draft(dtype=torch.float32, **more):
    video = torch.randn(2, 16, 3, 4, 6).to(dtype)
    return Draft(tensors={"video": video} | more.pop("tensors", {}), **more)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_a_draft_round_trips_bit_for_bit(tmp_path, dtype):
    tensors = {"audio": torch.randn(2, 8, 5, 16).to(dtype), "video_mask": torch.rand(1, 1, 3, 4, 6)}
    whole = draft(
        dtype, tensors=tensors, batch_index=(2, 0), made_for=(480, 832),
        record={"seed": 2**64 - 1, "cfg": 3.5, "scheduler": "simple", "flag": True},
    )  # fmt: skip
    save_draft(tmp_path / "a", whole, {"prompt": "text"})
    found = load_draft(tmp_path / "a")
    assert found.tensors.keys() == whole.tensors.keys()
    for name, x in whole.tensors.items():
        assert found.tensors[name].dtype == x.dtype
        assert torch.equal(found.tensors[name].view(torch.uint8), x.view(torch.uint8))
    for name in ("batch_index", "made_for", "record"):
        assert getattr(found, name) == getattr(whole, name)
    with safe_open(tmp_path / "a", "pt") as file:
        assert file.metadata()["prompt"] == "text"


def test_what_a_draft_does_not_know_stays_unknown(tmp_path):
    save_draft(tmp_path / "a", draft(), {})
    found = load_draft(tmp_path / "a")
    assert (found.batch_index, found.made_for, found.record) == (None, None, {})


def test_parts_that_share_memory_are_saved(tmp_path):
    """The host's samplers return video and audio as views of one pack."""
    pack = torch.randn(1, 1, 16 * 3 * 4 * 6 + 8 * 5 * 16)
    video, audio = pack[..., :1152].view(1, 16, 3, 4, 6), pack[..., 1152:].view(1, 8, 5, 16)
    save_draft(tmp_path / "a", Draft(tensors={"video": video, "audio": audio}), {})
    found = load_draft(tmp_path / "a").tensors
    assert torch.equal(found["video"], video)
    assert torch.equal(found["audio"], audio)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"batch_index": (0,)}, "batch_index .* for 2 items"),
        ({"batch_index": (0, -1)}, "batch_index"),
        ({"batch_index": (0, 2**20)}, "batch_index"),
        ({"batch_index": (0, True)}, "batch_index"),
        ({"made_for": (480,)}, "a size of"),
        ({"made_for": (0, 832)}, "a size of"),
        ({"record": {"seed": 2**64}}, "a seed of"),
        ({"record": {"seed": 1.5}}, "a seed of"),
        ({"record": {"steps": [1]}}, "a record of steps"),
        ({"tensors": {"other": torch.zeros(1)}}, "tensors other, video"),
        ({"tensors": {"audio": torch.ones(1, 8, 5, 16)}}, "video .* and audio"),
        ({"tensors": {"audio_mask": torch.ones(1, 8, 5, 16)}}, "a mask of audio without audio"),
        ({"tensors": {"video": torch.full((1, 4, 2, 2), float("nan"))}}, "must be finite"),
    ],
)
def test_what_does_not_belong_together_is_refused(change, words):
    with pytest.raises(ValueError, match=words):
        draft(**change)


def edited(path, **changes):
    """Save the file again with other metadata."""
    with safe_open(path, "pt") as file:
        tensors = {name: file.get_tensor(name) for name in ("video",)}
        metadata = {**file.metadata(), **changes}
    save_file(tensors, path, {key: x for key, x in metadata.items() if x is not None})


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({VERSION_KEY: "2"}, "expected format 1 or older, got 2 .*update the pack"),
        (
            {VERSION_KEY: "0"},
            "a format from 1 to 1, got 0 .*; the file is damaged: restore .* copy",
        ),
        ({VERSION_KEY: None}, "a draft that Surf Save Draft wrote, .* is not one"),
        ({ABOUT_KEY: None}, "a draft that Surf Save Draft wrote, .* is not one"),
        ({ABOUT_KEY: "[]"}, "it is damaged: restore the file from a copy, or make the"),
        ({ABOUT_KEY: json.dumps({"batch_index": None})}, "record = None; it is damaged"),
        ({ABOUT_KEY: json.dumps({"record": {}, "more": 1})}, "unknown fields more"),
        ({ABOUT_KEY: json.dumps({"record": {}, "batch_index": 7})}, "batch_index = 7"),
        (
            {SEAL_KEY: "0" * 32},
            "as it was saved, with the seal 0+, got other bytes, with [0-9a-f]+;",
        ),
        (
            {ABOUT_KEY: json.dumps({"record": {"seed": 7}})},
            "damaged since: restore .* make the dra",
        ),
    ],
)
def test_files_that_are_no_drafts_are_refused(tmp_path, changes, words):
    save_draft(tmp_path / "a", draft(), {})
    edited(tmp_path / "a", **changes)
    with pytest.raises(ValueError, match=words):
        load_draft(tmp_path / "a")


def test_latents_of_whole_numbers_and_a_latent_of_the_host_are_refused(tmp_path):
    ours = {VERSION_KEY: "1", ABOUT_KEY: json.dumps({"record": {}})}
    save_file({"video": torch.ones(1, 4, 2, 2, dtype=torch.int32)}, tmp_path / "a", ours)
    with pytest.raises(ValueError, match="video of dtype I32; it is damaged"):
        load_draft(tmp_path / "a")
    save_file({"latent_tensor": torch.ones(1, 4, 2, 2)}, tmp_path / "b", {"prompt": "{}"})
    with pytest.raises(ValueError, match=r"its metadata has prompt; .* Load Latent\."):
        load_draft(tmp_path / "b")


def test_a_draft_of_the_first_versions_has_no_seal_and_loads(tmp_path):
    whole = draft(record={"seed": 3})
    save_draft(tmp_path / "a", whole, {})
    edited(tmp_path / "a", **{SEAL_KEY: None})
    found = load_draft(tmp_path / "a")
    assert torch.equal(found.tensors["video"], whole.tensors["video"])
    assert found.record == {"seed": 3}


def test_every_flipped_bit_is_found_and_what_is_cut_off_is_to_be_restored(tmp_path):
    """None gives other latents or another record; texts of the host may differ."""
    tensors = {
        "video": torch.randn(1, 4, 2, 2, 2), "audio": torch.randn(1, 8, 2, 2),
        "video_mask": torch.rand(1, 1, 2, 2, 2), "audio_mask": torch.rand(1, 1, 2, 2),
    }  # fmt: skip
    record = {"seed": 3, "cfg": 3.5}
    whole = Draft(tensors=tensors, batch_index=(4,), made_for=(16, 16), record=record)
    save_draft(tmp_path / "a", whole, {"prompt": "{}"})
    data, refused = (tmp_path / "a").read_bytes(), 0
    for place in range(len(data)):
        bad = bytearray(data)
        bad[place] ^= 1 << place % 8
        (tmp_path / "b").write_bytes(bad)
        try:
            found = load_draft(tmp_path / "b")
        except ValueError:
            refused += 1
            continue
        assert found.tensors.keys() == tensors.keys(), place
        assert all(torch.equal(found.tensors[name], x) for name, x in tensors.items()), place
        assert (found.batch_index, found.made_for, found.record) == ((4,), (16, 16), record), place
    payload = sum(x.nbytes for x in tensors.values())
    assert refused > payload
    for length in (0, 7, 100, len(data) - payload, len(data) - 1):
        (tmp_path / "b").write_bytes(data[:length])
        with pytest.raises(ValueError, match=r"expected .*: restore|; restore .* draft again\."):
            load_draft(tmp_path / "b")
