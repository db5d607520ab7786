"""What a run says: lines that are forgotten with their steps, and trackers picked by name."""

import json
import runpy
import sys
from dataclasses import replace
from pathlib import Path
from types import ModuleType, SimpleNamespace

import pytest
from surf.surf_core.training.logs import Log
from surf.surf_core.training.loop import run
from surf.surf_core.training.task import Recipe

TOY = SimpleNamespace(**runpy.run_path(str(Path(__file__).with_name("training_toy.py"))))
Toy = TOY.Toy
RECIPE = replace(Recipe(**TOY.SHORT), log_every=2, held_out_every=4)


def lines(out):
    return [json.loads(line) for line in (out / "log.jsonl").read_text().splitlines()]


def test_a_line_has_means_since_the_line_before(tmp_path):
    run(Toy(), replace(RECIPE, log_every=1), tmp_path / "each", device="cpu")
    run(Toy(), RECIPE, tmp_path / "pairs", device="cpu")
    each, pairs = (
        [line for line in lines(tmp_path / name) if "loss" in line] for name in ("each", "pairs")
    )
    assert [line["step"] for line in pairs] == [2, 4, 6, 8]
    for first, second, both in zip(each[::2], each[1::2], pairs, strict=True):
        for name in ("loss", "grad_norm"):
            assert both[name] == pytest.approx((first[name] + second[name]) / 2)
        assert both["lr"] == second["lr"]
        assert both["samples_per_second"] > 0
        assert both["seconds"] >= 0
    assert [line["step"] for line in lines(tmp_path / "pairs") if "held_out" in line] == [4, 8]


def test_a_resumed_log_forgets_what_came_after_the_checkpoint(tmp_path):
    log = Log(tmp_path, (), 0, {})
    for step in (1, 2, 3):
        log.add(step, loss=0.5)
    with log.file.open("a") as file:
        file.write('{"step": 4, "lo')
    Log(tmp_path, (), 2, {}).add(3, loss=0.25)
    assert lines(tmp_path) == [
        {"step": 1, "loss": 0.5}, {"step": 2, "loss": 0.5}, {"step": 3, "loss": 0.25},
    ]  # fmt: skip


def test_a_run_without_a_checkpoint_begins_a_new_log(tmp_path):
    (tmp_path / "log.jsonl").write_text('{"step": 1}\n')
    Log(tmp_path, (), 0, {})
    assert lines(tmp_path) == []


class Recorder:
    """Stands in for a SummaryWriter and for a W&B run."""

    def __init__(self, *args, **kwargs):
        self.made, self.rows, self.closed = (args, kwargs), [], False
        made.append(self)

    def add_text(self, *_):
        pass

    def add_scalar(self, name, value, step):
        self.rows.append((step, name, value))

    def log(self, numbers, step):
        self.rows += [(step, name, value) for name, value in numbers.items()]

    def close(self):
        self.closed = True

    finish = close


made = []


@pytest.fixture
def packages(monkeypatch):
    """Stand-ins for both packages."""
    made.clear()
    board, wandb = ModuleType("torch.utils.tensorboard"), ModuleType("wandb")
    board.SummaryWriter = wandb.init = Recorder
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", board)
    monkeypatch.setitem(sys.modules, "wandb", wandb)


def test_trackers_get_every_number_of_the_log(tmp_path, packages):
    run(Toy(), RECIPE, tmp_path, trackers=("tensorboard", "wandb"), device="cpu")
    expected = []
    for line in lines(tmp_path):
        step = line.pop("step")
        held_out = line.pop("held_out", {})
        expected += [(step, name, value) for name, value in line.items()]
        expected += [(step, f"held_out/{name}", value) for name, value in held_out.items()]
    board, wandb = made
    assert board.rows == wandb.rows == expected
    assert board.closed
    assert wandb.closed
    assert board.made == ((str(tmp_path / "tensorboard"),), {"purge_step": 1})
    assert wandb.made[1]["config"]["recipe"]["steps"] == 8


@pytest.mark.parametrize(
    ("name", "module"), [("tensorboard", "torch.utils.tensorboard"), ("wandb", "wandb")]
)
def test_a_missing_package_is_named_before_the_first_step(tmp_path, monkeypatch, name, module):
    monkeypatch.setitem(sys.modules, module, None)
    with pytest.raises(ImportError, match=f"pip install {name}"):
        run(Toy(), RECIPE, tmp_path, trackers=(name,), device="cpu")
    assert not (tmp_path / "log.jsonl").exists()


def test_an_unknown_tracker_is_refused(tmp_path):
    with pytest.raises(ValueError, match="tensorboard, wandb, got 'mlflow'"):
        run(Toy(), RECIPE, tmp_path, trackers=("mlflow",), device="cpu")
