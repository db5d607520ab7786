"""Damaged checkpoints and logs are passed over by name; planted ones run nothing."""

import json
import logging
import os
import pickle
import random
import runpy
import shutil
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
import torch.distributed.checkpoint as dcp
from surf.surf_core.training import intact
from surf.surf_core.training.distributed import World
from surf.surf_core.training.intact import MARKER, METADATA, MetadataReader
from surf.surf_core.training.loop import run
from surf.surf_core.training.prepare.storage import file_hash
from surf.surf_core.training.task import Recipe
from torch.distributed.checkpoint.metadata import BytesStorageMetadata

TOY = SimpleNamespace(**runpy.run_path(str(Path(__file__).with_name("training_toy.py"))))
Toy, SHORT = TOY.Toy, replace(Recipe(**TOY.SHORT), save_every=2)
CPU = World(device=torch.device("cpu"))
SHARD = "__0_0.distcp"


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """The file that a run exported which nobody stopped."""
    return run(Toy(), SHORT, tmp_path_factory.mktemp("whole"), device="cpu").read_bytes()


@pytest.fixture(scope="module")
def stopped(tmp_path_factory):
    """The folder of a run of 8 steps that was stopped after 6, with its last two checkpoints."""
    out = tmp_path_factory.mktemp("stopped")
    run(Toy(), replace(SHORT, steps=6), out, device="cpu")
    (out / "model.safetensors").unlink()
    return out


@pytest.fixture
def cut(stopped, tmp_path):
    return shutil.copytree(stopped, tmp_path / "cut")


def change(name, edit):
    def act(folder):
        data = (folder / name).read_bytes()
        (folder / name).write_bytes(edit(data))

    return act


def flip(data):
    at = len(data) // 2
    return data[:at] + bytes([data[at] ^ 8]) + data[at + 1 :]


def put(name, text):
    return lambda folder: (folder / name).write_bytes(text)


DAMAGE = {
    "an empty .metadata": put(METADATA, b""),
    "a cut .metadata": change(METADATA, lambda data: data[:200]),
    "a flipped .metadata": change(METADATA, flip),
    "no .metadata": lambda folder: (folder / METADATA).unlink(),
    "a folder for .metadata": lambda folder: (
        (folder / METADATA).unlink(), (folder / METADATA).mkdir()),
    "an empty shard": put(SHARD, b""),
    "a cut shard": change(SHARD, lambda data: data[:-50]),
    "a flipped shard": change(SHARD, flip),
    "no shard": lambda folder: (folder / SHARD).unlink(),
    "a marker of []": put(MARKER, b"[]"),
    "a marker of {}": put(MARKER, b"{}"),
    "an empty marker": put(MARKER, b""),
    "a marker of garbage": put(MARKER, b"\xff\x00garbage"),
    "a deep marker": put(MARKER, b"[" * 5000),
    "a cut marker": change(MARKER, lambda data: data[:-20]),
    "a flipped marker": change(MARKER, lambda data: data.replace(b'"seconds": ', b'"seconds": 1')),
    "the marker of another step": lambda folder: shutil.copy(
        folder.with_name("step-000004") / MARKER, folder / MARKER),
}  # fmt: skip


@pytest.mark.parametrize("how", DAMAGE)
def test_a_damaged_checkpoint_is_passed_over_by_name(how, whole, cut, caplog):
    DAMAGE[how](cut / "step-000006")
    with caplog.at_level(logging.INFO):
        assert run(Toy(), SHORT, cut, device="cpu").read_bytes() == whole
    assert f"{cut / 'step-000006'} is damaged and passed over: " in caplog.text
    assert "resumed at step 4" in caplog.text
    left = sorted(cut.glob("step-*"))
    assert [path.name for path in left] == ["step-000006", "step-000008"]
    assert [intact.damage(path, CPU) for path in left] == ["", ""]


@pytest.mark.parametrize("name", [METADATA, SHARD, MARKER])
def test_no_flipped_bit_goes_unnoticed(name, cut):
    path = cut / "step-000006" / name
    data, draw = path.read_bytes(), random.Random(0)
    for _ in range(40):
        at = draw.randrange(len(data))
        path.write_bytes(data[:at] + bytes([data[at] ^ 1 << draw.randrange(8)]) + data[at + 1 :])
        # Another format is refused aloud, and spaces of JSON mean nothing.
        format_is_other = name == MARKER and at < len(b'{"format": 2')
        assert intact.damage(path.parent, CPU) or format_is_other
    path.write_bytes(data)
    assert intact.damage(path.parent, CPU) == ""


def test_a_run_whose_checkpoints_are_all_damaged_is_refused_and_kept(cut):
    for name in ("step-000004", "step-000006"):
        put(SHARD, b"")(cut / name)
    with pytest.raises(ValueError, match="got 2 that are damaged, step-000004 for one: __0_0.dis"):
        run(Toy(), SHORT, cut, device="cpu")
    assert (cut / "step-000006" / METADATA).exists()


def test_a_copy_of_a_checkpoint_is_no_checkpoint_and_stays(whole, cut, caplog):
    copy = shutil.copytree(cut / "step-000006", cut / "step-000006-copy")
    (cut / "step-7").mkdir()
    assert run(Toy(), SHORT, cut, device="cpu").read_bytes() == whole
    assert f"{copy} has no name of a checkpoint and is left alone" in caplog.text
    assert (copy / MARKER).exists()
    assert (cut / "step-7").exists()


def test_a_checkpoint_under_the_name_of_another_step_is_passed_over(whole, cut, caplog):
    shutil.copytree(cut / "step-000006", cut / "step-000007")
    assert run(Toy(), SHORT, cut, device="cpu").read_bytes() == whole
    assert "step-000007 is damaged and passed over: complete.json is of step 6" in caplog.text


class Planted:
    """Runs something when it is unpickled."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return os.mkdir, (str(self.path),)


def sign(folder):
    """Give a checkpoint the checksums of what it holds now."""
    notes = json.loads((folder / MARKER).read_text())
    sums = {path.name: file_hash(path) for path in folder.iterdir() if path.name != MARKER}
    rest = {k: v for k, v in notes.items() if k not in ("format", "step", "checksums", "checksum")}
    (folder / MARKER).write_text(intact.marker(notes["step"], sums, rest))


@pytest.mark.parametrize("signed", [False, True])
def test_a_planted_pickle_runs_nothing(signed, whole, cut, tmp_path, caplog):
    folder, victim = cut / "step-000006", tmp_path / "it ran"
    (folder / METADATA).write_bytes(pickle.dumps(Planted(victim)))
    if signed:
        sign(folder)
    assert run(Toy(), SHORT, cut, device="cpu").read_bytes() == whole
    assert not victim.exists()
    said = f"asks for {os.mkdir.__module__}.mkdir" if signed else "has other bytes"
    assert said in caplog.text


def test_contents_that_dcp_would_unpickle_are_refused(cut, tmp_path):
    folder, victim = cut / "step-000006", tmp_path / "it ran"
    torch.save(Planted(victim), folder / "planted")
    metadata = MetadataReader(folder).read_metadata()
    name = next(iter(metadata.state_dict_metadata))
    metadata.state_dict_metadata[name] = BytesStorageMetadata()
    (folder / METADATA).write_bytes(pickle.dumps(metadata))
    sign(folder)
    assert "asks for" in intact.damage(folder, CPU)
    assert not victim.exists()


def test_places_outside_of_the_checkpoint_are_refused(cut):
    folder = cut / "step-000006"
    metadata = MetadataReader(folder).read_metadata()
    for info in metadata.storage_data.values():
        info.relative_path = "../" + info.relative_path
    (folder / METADATA).write_bytes(pickle.dumps(metadata))
    sign(folder)
    assert intact.damage(folder, CPU) == ".metadata names files elsewhere"


def test_the_metadata_is_that_of_dcp(cut):
    folder = cut / "step-000006"
    mine = MetadataReader(folder).read_metadata()
    theirs = dcp.FileSystemReader(folder).read_metadata()
    assert mine.state_dict_metadata == theirs.state_dict_metadata
    assert mine.storage_data == theirs.storage_data


@pytest.mark.parametrize(
    "garbage", [b"\xff\xfe\n", b"[]\n", b"7\n", b'{"step": "x"}\n', b"{}\n", b"[" * 3000 + b"\n"]
)
def test_garbage_in_the_log_is_left_out_and_said(garbage, whole, cut, caplog):
    lines = (cut / "log.jsonl").read_bytes().splitlines(keepends=True)
    (cut / "log.jsonl").write_bytes(b"".join([*lines[:2], garbage, *lines[2:]]))
    assert run(Toy(), SHORT, cut, device="cpu").read_bytes() == whole
    steps = [json.loads(line)["step"] for line in (cut / "log.jsonl").read_text().splitlines()]
    assert steps == list(range(1, 9))
    assert "log.jsonl: 1 damaged lines are left out" in caplog.text
