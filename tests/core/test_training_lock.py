"""One run at a time in a folder: who holds it is said, and nothing outlives a process."""

import json
import os
import runpy
import time
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest
from surf.surf_core.training.lock import locked
from surf.surf_core.training.loop import run
from surf.surf_core.training.task import Recipe
from surf.surf_core.training.tiny.clips import write_clips

from . import prepared

TOY = SimpleNamespace(**runpy.run_path(str(Path(__file__).with_name("training_toy.py"))))
ROOT = Path(__file__).parents[2]
HOLD = """
import time
from pathlib import Path
from surf_core.training.lock import locked

with locked(Path({path!r}), "the folder"):
    print("held", flush=True)
    time.sleep(600)
"""


@pytest.fixture
def holder(forks):
    """Start processes that hold a lock; they end with the test."""
    started = []

    def start(path):
        process = forks.start_script(HOLD.format(path=str(path)))
        started.append(process)
        while process.poll() is None and not process.stdout:
            time.sleep(0.01)
        assert process.stdout == "held\n", process.stderr
        return process

    yield start
    for process in started:
        process.kill()


def test_a_second_run_is_told_who_is_at_work(tmp_path, holder):
    process = holder(tmp_path / "run.lock")
    with pytest.raises(ValueError, match=f"got process {process.pid} on .* since 20.* choose an"):
        run(TOY.Toy(), Recipe(**TOY.SHORT), tmp_path, device="cpu")
    assert not (tmp_path / "log.jsonl").exists()
    assert not list(tmp_path.glob("step-*"))


def test_a_process_that_was_killed_holds_nothing(tmp_path, holder):
    process = holder(tmp_path / "run.lock")
    process.kill()
    assert json.loads((tmp_path / "run.lock.json").read_text())["process"] == process.pid
    run(TOY.Toy(), replace(Recipe(**TOY.SHORT), steps=2), tmp_path, device="cpu")
    assert not (tmp_path / "run.lock.json").exists()


def test_a_run_that_failed_holds_nothing(tmp_path):
    for _ in range(2):
        with pytest.raises(FloatingPointError):
            run(TOY.Poisoned(), Recipe(**TOY.SHORT), tmp_path, device="cpu")


def test_the_note_may_be_missing_or_broken(tmp_path, holder):
    path = tmp_path / "run.lock"
    holder(path)
    for text in ("", "[" * 2000, '{"process": {}}'):
        (tmp_path / "run.lock.json").write_text(text)
        with (
            pytest.raises(ValueError, match="got (another process|process {} on ).*at work"),
            locked(path, "it"),
        ):
            pass


def test_a_lock_is_for_one_at_a_time_in_a_process_too(tmp_path):
    with locked(tmp_path / "a" / "x.lock", "it"):
        with (
            pytest.raises(ValueError, match=f"got process {os.getpid()} on"),
            locked(tmp_path / "a" / "x.lock", "it"),
        ):
            pass
        with locked(tmp_path / "a" / "y.lock", "it"):
            time.sleep(0)
    with locked(tmp_path / "a" / "x.lock", "it"):
        pass


def test_two_prepare_other_parts_of_a_folder_but_not_the_same(tmp_path, holder):
    write_clips(tmp_path / "v", 2, seed=1)
    holder(tmp_path / "out" / "tmp" / "1-2.lock")
    with pytest.raises(ValueError, match="expected part 1 of 2 of the folder .* got process"):
        prepared.run(tmp_path / "v", tmp_path / "out", part=(1, 2))
    prepared.run(tmp_path / "v", tmp_path / "out", part=(2, 2))
