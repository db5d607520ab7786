"""Drafts saved and loaded on the fake host: all that belongs to them, in its folders alone."""

import os
from pathlib import Path

import comfy.cli_args
import host_stub_files
import pytest
import torch
from comfy.nested_tensor import NestedTensor
from safetensors import safe_open
from surf.nodes.draft_files import SurfLoadDraft, SurfSaveDraft
from surf.nodes.host.draft_record import KEY
from surf.nodes.host.drafts import draft_names, graph_of, save

FIRST = "drafts/a_00001_.draft.safetensors [output]"


@pytest.fixture(autouse=True)
def folders(monkeypatch, tmp_path):
    for name in ("input", "output", "temp"):
        (tmp_path / name).mkdir()
        monkeypatch.setitem(host_stub_files.FOLDERS, name, str(tmp_path / name))
    return tmp_path


def latent(**more):
    return {"samples": torch.rand(1, 16, 3, 4, 6).half(), **more}


def saved(latent, prefix="drafts/a"):
    out = SurfSaveDraft.execute(draft=latent, filename_prefix=prefix)
    assert out.args[0] is latent
    [file] = out.ui["latents"]
    return file


def test_a_draft_comes_back_with_all_that_belongs_to_it():
    given = latent(
        noise_mask=torch.rand(1, 1, 3, 4, 6), batch_index=[2], surf_made_for=(64, 96),
        **{KEY: {"seed": 2**64 - 1, "scheduler": "simple"}},
    )  # fmt: skip
    saved(given)
    found, plan = SurfLoadDraft.execute(file=FIRST).args
    assert found.keys() == given.keys()
    for name in ("samples", "noise_mask"):
        assert found[name].dtype == given[name].dtype
        assert torch.equal(found[name], given[name])
    assert [found[k] for k in ("batch_index", "surf_made_for", KEY)] == [
        given[k] for k in ("batch_index", "surf_made_for", KEY)
    ]
    for line in ("video: (1, 16, 3, 4, 6)", f"seed: {2**64 - 1}", "batch_index: (2,)"):
        assert line in plan.splitlines()


@pytest.mark.parametrize("masks", ["none", "video", "both"])
def test_video_with_sound_and_its_masks_come_back(masks):
    parts = [torch.rand(1, 24, 2, 4, 4), torch.rand(1, 32, 2, 9)]
    given = {"samples": NestedTensor(parts)}
    if masks == "video":
        given["noise_mask"] = torch.rand(1, 1, 2, 4, 4)
    if masks == "both":
        given["noise_mask"] = NestedTensor([torch.rand(1, 1, 2, 4, 4), torch.rand(1, 1, 2, 9)])
    saved(given)
    found, _ = SurfLoadDraft.execute(file=FIRST).args
    assert found.keys() == given.keys()
    assert all(map(torch.equal, found["samples"].unbind(), parts))
    if masks == "video":
        assert torch.equal(found["noise_mask"], given["noise_mask"])
    if masks == "both":
        assert all(map(torch.equal, *(x["noise_mask"].unbind() for x in (found, given))))


def test_files_are_numbered_listed_and_told_apart(folders):
    assert draft_names() == []
    first, second = saved(latent()), saved(latent())
    assert first["subfolder"] == "drafts"
    assert [first["filename"][:7], second["filename"][:7]] == ["a_00001", "a_00002"]
    (folders / "output" / "other.safetensors").touch()
    Path(folders, "output", "drafts", second["filename"]).rename(
        folders / "input" / "b.draft.safetensors"
    )
    assert draft_names() == ["b.draft.safetensors", FIRST]
    prints = [SurfLoadDraft.fingerprint_inputs(file=name) for name in draft_names()]
    assert prints[0] != prints[1]
    assert SurfLoadDraft.fingerprint_inputs(file=None) == ""


@pytest.mark.parametrize("name", ["", " ", " a", "a ", "a\0b", "a\nb", "x" * 300, "\u65e5" * 67])
def test_what_is_no_name_is_refused(folders, name):
    with pytest.raises(ValueError, match="expected filename_prefix of printable .* 200 bytes"):
        SurfSaveDraft.execute(draft=latent(), filename_prefix=name)
    with pytest.raises(ValueError, match="Surf Load Draft: .*; "):
        SurfLoadDraft.execute(file=name)


@pytest.mark.parametrize("name", ["../a", "drafts/../../a", "/tmp/a", "../output2/a"])
def test_nothing_is_saved_outside_of_the_output_folder(folders, name):
    before = sorted(folders.rglob("*"))
    with pytest.raises(ValueError, match="Surf Save Draft: expected a name below the input or out"):
        SurfSaveDraft.execute(draft=latent(), filename_prefix=name)
    assert sorted(folders.rglob("*")) == before


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("../secret.draft.safetensors", "which leaves it"),
        ("../secret.draft.safetensors [output]", "which leaves it"),
        ("{}/secret.draft.safetensors", "which leaves it"),
        ("a.draft.safetensors [temp]", "in the input or output folder"),
        ("gone.draft.safetensors", "which is not there"),
        ("", "got none"),
        (" [output]", "got none"),
    ],
)
def test_nothing_is_read_outside_of_the_two_folders(folders, name, words):
    saved(latent(), "a")
    (folders / "output" / "a_00001_.draft.safetensors").rename(folders / "secret.draft.safetensors")
    name = name.format(folders)
    with pytest.raises(ValueError, match=f"Surf Load Draft: .*{words}"):
        SurfLoadDraft.execute(file=name)
    assert words in SurfLoadDraft.validate_inputs(file=name)


def test_a_file_of_another_name_is_loaded_where_it_is_named(folders):
    saved(latent(), "1/2/3/4/5/c")
    assert draft_names() == []
    name = "1/2/3/4/5/c_00001_.draft.safetensors [output]"
    assert SurfLoadDraft.validate_inputs(file=name) is True
    SurfLoadDraft.execute(file=name)


def test_foreign_and_damaged_files_are_refused(folders):
    path = folders / "input" / "x.draft.safetensors"
    path.write_bytes(b"no safetensors at all")
    with pytest.raises(ValueError, match="Surf Load Draft: expected a .safetensors file"):
        SurfLoadDraft.execute(file=path.name)
    saved(latent(), "y")
    whole = (folders / "output" / "y_00001_.draft.safetensors").read_bytes()
    path.write_bytes(whole[:-100])
    with pytest.raises(ValueError, match="Surf Load Draft: expected a .*; restore .* from a copy"):
        SurfLoadDraft.execute(file=path.name)
    for place in (1, 100, 1000):
        bad = bytearray(whole)
        bad[-place] ^= 4
        path.write_bytes(bad)
        with pytest.raises(
            ValueError, match="Surf Load Draft: expected .* as it was saved, .*copy"
        ):
            SurfLoadDraft.execute(file=path.name)
        assert path.read_bytes() == bad


def test_the_graph_goes_along_unless_the_host_is_told_to_save_none(folders, monkeypatch):
    class PromptOfAGraph:
        prompt = {"1": {"class_type": "A"}}
        extra_pnginfo = {"workflow": {"nodes": []}}

    def texts(name):
        with safe_open(folders / "output" / name, "pt") as file:
            return {key for key in file.metadata() if not key.startswith("surf.")}

    assert texts(save(latent(), "a", graph_of(PromptOfAGraph))[0]) == {"prompt", "workflow"}
    assert texts(save(latent(), "a", graph_of(None))[0]) == set()
    large = {"prompt": "x" * 2**22}
    assert texts(save(latent(), "a", large)[0]) == set()
    monkeypatch.setattr(comfy.cli_args.args, "disable_metadata", True)
    assert texts(save(latent(), "a", graph_of(PromptOfAGraph))[0]) == set()


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"samples": torch.full((1, 16, 3, 4, 6), float("nan"))}, "draft must be finite"),
        ({"batch_index": [-1]}, "batch_index must number"),
        ({"surf_made_for": 7}, "a latent that a draft can be saved of"),
        ({KEY: {"seed": [1]}}, "a latent that a draft can be saved of"),
        ({"noise_mask": torch.ones(4, 6) > 0}, "noise mask must hold floating"),
    ],
)
def test_what_cannot_be_saved_is_refused_and_leaves_no_file(folders, change, words):
    with pytest.raises(ValueError, match=f"Surf Save Draft: .*{words}"):
        saved(latent() | change)
    assert not list(folders.rglob("*.safetensors*"))


def test_a_folder_that_takes_no_draft_says_what_to_do(folders, monkeypatch):
    (folders / "output" / "drafts").touch()
    with pytest.raises(ValueError, match=r"Surf Save Draft: .*make room .*--output-directory"):
        saved(latent())

    def full(*args):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("surf.surf_core.header.save_file", full)
    with pytest.raises(ValueError, match=r"No space left on device; make room"):
        saved(latent(), "other/a")
    assert not list(folders.rglob("*.tmp"))


def test_a_draft_that_must_not_be_read_says_what_to_do(folders, monkeypatch):
    saved(latent())

    def refused(*args):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(Path, "open", refused)
    with pytest.raises(ValueError, match=r"Surf Load Draft: .*Permission denied; let this program"):
        SurfLoadDraft.execute(file=FIRST)


@pytest.mark.parametrize("name", ["", " ", " [input]", " [output]"])
def test_no_name_is_said_to_be_none(name):
    assert "expected the name of a draft, got none" in SurfLoadDraft.validate_inputs(file=name)


def test_what_a_killed_save_left_goes_with_a_later_one(folders):
    below = folders / "output" / "drafts"
    names = [
        "a_00001_.draft.safetensors.tmp", "a_00002_.draft.safetensors.tmp",
        "b_00001_.draft.safetensors.tmp", "a_mine_.draft.safetensors.tmp",
    ]  # fmt: skip
    for name in names:
        (below / name).mkdir(parents=True)
        (below / name / ".tmpA1b2C3").touch()
        if name != names[1]:
            os.utime(below / name, (0, 0))
    saved(latent())
    left = sorted(path.name for path in below.iterdir() if path.name.endswith(".tmp"))
    assert left == sorted(names[1::2])


def test_a_save_that_another_process_ends_meanwhile_is_no_error(folders, monkeypatch):
    saved(latent())
    gone = folders / "output" / "drafts" / "a_00007_.draft.safetensors.tmp"
    listed = Path.iterdir
    monkeypatch.setattr(Path, "iterdir", lambda path: iter([*listed(path), gone]))
    saved(latent())


def test_drafts_in_folders_of_folders_are_listed():
    saved(latent(), "2026/11/29/a")
    assert "2026/11/29/a_00001_.draft.safetensors [output]" in draft_names()
