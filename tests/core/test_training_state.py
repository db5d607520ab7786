"""Checkpoints: complete, atomic, refused where they do not belong, intact when the disk is full."""

import errno
import json
import logging
import runpy
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from surf.surf_core.training import state
from surf.surf_core.training.distributed import World
from surf.surf_core.training.loop import TrainingLoop, run
from surf.surf_core.training.state import complete, half_written
from surf.surf_core.training.task import MAY_CHANGE, Recipe

TOY = SimpleNamespace(**runpy.run_path(str(Path(__file__).with_name("training_toy.py"))))
Toy, SHORT = TOY.Toy, replace(Recipe(**TOY.SHORT), save_every=2)
CPU = World(device=torch.device("cpu"))
LARGE = {"steps": 12, "cooldown": 0.5, "micro": 2, "checkpointing": True, "explode": 99.0}
LARGE |= {"save_every": 3, "log_every": 2, "held_out_every": 5, "sample_every": 5, "keep": 9}


def under_way(out, task=None, recipe=SHORT):
    out.mkdir(parents=True, exist_ok=True)
    return TrainingLoop(task or Toy(), recipe, out, CPU)


def names(out):
    return sorted(path.name for path in out.glob("step-*"))


def contents(folder):
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def test_checkpoint_round_trips_everything(tmp_path):
    first = under_way(tmp_path)
    for _ in range(3):
        first.advance()
    first.save()
    second = under_way(tmp_path)
    mine, theirs = (state.tensors_of(x.model, x.average, x.opts) for x in (first, second))
    assert mine.keys() == theirs.keys()
    assert all(torch.equal(mine[name], theirs[name]) for name in mine)
    kinds = {name.split("/")[0] for name in mine}
    assert kinds == {"model", "average", "optimizer"}
    assert {name.rsplit("/")[-1] for name in mine if name.startswith("optimizer/")} == {
        "step", "exp_avg", "exp_avg_sq",
    }  # fmt: skip
    assert not torch.equal(mine["model/head.weight"], mine["average/head.weight"])
    assert (second.step, second.pending) == (3, first.pending)
    assert second.guard.state() == first.guard.state()
    notes = json.loads((tmp_path / "step-000003" / state.MARKER).read_text())
    assert (notes["step"], notes["seed"]) == (3, 0)
    assert notes["recipe"] == SHORT.notes()


def test_muon_round_trips_too(tmp_path):
    class Named(Toy):
        def build(self):
            model = super().build()
            model.text_embedding = torch.nn.Sequential(model.head)
            return model

    recipe = replace(SHORT, optimizer="muon")
    first = under_way(tmp_path, Named(), recipe)
    first.advance()
    first.save()
    second = under_way(tmp_path, Named(), recipe)
    for now in (first, second):
        now.advance()
    mine, theirs = (state.tensors_of(x.model, x.average, x.opts) for x in (first, second))
    assert "optimizer/blocks.0.weight/momentum" in mine
    assert all(torch.equal(mine[name], theirs[name]) for name in mine)


def test_a_model_with_dropout_resumes_bit_identical(tmp_path):
    class Dropping(Toy):
        def loss(self, model, batch):
            batch.tensors["x"] = torch.nn.functional.dropout(batch.tensors["x"])
            return super().loss(model, batch)

    whole = run(Dropping(), SHORT, tmp_path / "whole", device="cpu")
    run(Dropping(), SHORT, tmp_path / "cut", max_minutes=0, device="cpu")
    torch.rand(7)
    cut = run(Dropping(), SHORT, tmp_path / "cut", device="cpu")
    assert whole.read_bytes() == cut.read_bytes()


def test_only_the_last_are_kept(tmp_path):
    run(Toy(), replace(SHORT, keep=3), tmp_path, device="cpu")
    assert names(tmp_path) == ["step-000004", "step-000006", "step-000008"]


def test_a_half_written_checkpoint_is_ignored_with_a_message_then_removed(tmp_path, caplog):
    run(Toy(), replace(SHORT, steps=4), tmp_path, device="cpu")
    (tmp_path / "step-000006.tmp").mkdir()
    (tmp_path / "step-000006.tmp" / "__0_0.distcp").write_bytes(b"half")
    (tmp_path / "step-000007").mkdir()
    with caplog.at_level(logging.WARNING):
        now = under_way(tmp_path)
    assert now.step == 4
    for name in ("step-000006.tmp", "step-000007"):
        assert any(name in line and "half-written" in line for line in caplog.messages)
    assert len(half_written(tmp_path)) == 2
    now.to_the_end()
    assert names(tmp_path) == ["step-000006", "step-000008"]


def test_a_marker_in_a_folder_not_yet_renamed_does_not_count(tmp_path):
    (tmp_path / "step-000006.tmp").mkdir()
    (tmp_path / "step-000006.tmp" / state.MARKER).write_text("{}")
    assert complete(tmp_path) == []


def test_a_finished_run_exports_again_and_writes_nothing_else(tmp_path):
    path = run(Toy(), SHORT, tmp_path, device="cpu")
    before, log = path.read_bytes(), (tmp_path / "log.jsonl").read_bytes()
    path.unlink()
    assert run(Toy(), SHORT, tmp_path, device="cpu").read_bytes() == before
    assert (tmp_path / "log.jsonl").read_bytes() == log


@pytest.mark.parametrize(
    ("changed", "said"),
    [
        ({"lr": 0.5}, "recipe lr was 0.02, is 0.5"),
        ({"seed": 3}, "recipe seed was 0, is 3"),
        ({"betas": (0.8, 0.9)}, r"recipe betas was \[0.9, 0.999\], is \[0.8, 0.9\]"),
    ],
)
def test_a_checkpoint_of_another_recipe_is_refused(tmp_path, changed, said):
    run(Toy(), replace(SHORT, steps=2), tmp_path, device="cpu")
    with pytest.raises(ValueError, match=said):
        run(Toy(), replace(SHORT, **changed), tmp_path, device="cpu")


def test_a_checkpoint_of_another_task_or_model_is_refused(tmp_path):
    run(Toy(), replace(SHORT, steps=2), tmp_path, device="cpu")

    class Other(Toy):
        def notes(self):
            return {"shift": 5.0}

        def build(self):
            model = super().build()
            model.head = torch.nn.Linear(TOY.WIDTH, 4)
            model.blocks.append(torch.nn.Linear(TOY.WIDTH, TOY.WIDTH))
            return model

    with pytest.raises(ValueError, match="of another") as error:
        under_way(tmp_path, Other())
    for said in (
        "task shift was nothing, is 5.0",
        "model head.weight was [3, 12], is [4, 12]",
        "model blocks.3.bias was nothing, is [12]",
    ):
        assert said in str(error.value)


def test_what_may_change_may_change(tmp_path):
    run(Toy(), replace(SHORT, steps=2), tmp_path, device="cpu")
    assert LARGE.keys() == MAY_CHANGE
    assert run(Toy(), replace(SHORT, **LARGE), tmp_path, device="cpu") is not None
    assert complete(tmp_path)[-1].name == "step-000012"


def full_shards(monkeypatch):
    """Let shards meet a full disk: the kernel's own, where there is one."""
    if not Path("/dev/full").exists():
        pytest.skip("there is no /dev/full")
    owner = state.dcp.filesystem.FileSystem
    real = owner.create_stream

    def create_stream(self, path, mode):
        return real(self, Path("/dev/full") if "w" in mode else path, mode)

    monkeypatch.setattr(owner, "create_stream", create_stream)


def full_marker(monkeypatch):
    def fsync(_):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(state.os, "fsync", fsync)


@pytest.mark.parametrize("fill", [full_shards, full_marker])
def test_a_full_disk_stops_the_run_and_the_last_checkpoint_is_intact(tmp_path, monkeypatch, fill):
    whole = run(Toy(), SHORT, tmp_path / "whole", device="cpu")
    out = tmp_path / "cut"
    run(Toy(), replace(SHORT, steps=4), out, device="cpu")
    before = {name: contents(out / name) for name in names(out)}
    with monkeypatch.context() as patched:
        fill(patched)
        with pytest.raises(OSError, match="step-000004 is intact. Free space there") as error:
            run(Toy(), SHORT, out, device="cpu")
    assert error.value.errno == errno.ENOSPC
    assert str(out) in str(error.value)
    assert {name: contents(out / name) for name in before} == before
    assert [path.name for path in complete(out)] == ["step-000002", "step-000004"]
    assert run(Toy(), SHORT, out, device="cpu").read_bytes() == whole.read_bytes()


def test_a_full_disk_before_the_first_checkpoint_says_so(tmp_path, monkeypatch):
    full_marker(monkeypatch)
    with pytest.raises(OSError, match="there is none yet"):
        run(Toy(), SHORT, tmp_path, device="cpu")


def test_another_failure_to_write_does_not_speak_of_space(tmp_path, monkeypatch):
    def rename(*_):
        raise PermissionError(errno.EACCES, "Permission denied")

    monkeypatch.setattr(Path, "rename", rename)
    with pytest.raises(OSError, match="Permission denied.*See to the folder") as error:
        run(Toy(), SHORT, tmp_path, device="cpu")
    assert error.value.errno == errno.EIO


def test_an_interruption_while_saving_is_not_swallowed_and_saves_nothing(tmp_path, monkeypatch):
    def write_data(*_):
        raise KeyboardInterrupt

    run(Toy(), replace(SHORT, steps=4), tmp_path, device="cpu")
    with monkeypatch.context() as patched:
        patched.setattr(state.dcp.FileSystemWriter, "write_data", write_data)
        with pytest.raises(KeyboardInterrupt):
            run(Toy(), SHORT, tmp_path, device="cpu")
    assert complete(tmp_path)[-1].name == "step-000004"
    assert under_way(tmp_path).step == 4
