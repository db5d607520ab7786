"""Runs of more than one process, and runs that are killed: both come out as one that was neither.

What happens in the other processes is in training_toy.py.
"""

import json
import os
import runpy
import shutil
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from safetensors.torch import load_file
from surf.surf_core.training.loop import run
from surf.surf_core.training.state import complete
from surf.surf_core.training.task import Recipe
from surf.tests import patience

FILE = Path(__file__).with_name("training_toy.py")
TOY = SimpleNamespace(**runpy.run_path(str(FILE)))
SHORT = TOY.SHORT
pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(sys.platform != "linux", reason="forks, and kills"),
]


def start(folder, *command):
    """Run training_toy.py with the package importable as `surf`."""
    (folder / "path").mkdir()
    (folder / "path" / "surf").symlink_to(FILE.parents[2])
    changed = {"PYTHONPATH": str(folder / "path"), "OMP_NUM_THREADS": "1"}
    done = patience.run([sys.executable, *command], 900, env=os.environ | changed)
    assert done.returncode == 0, done.stderr[-4000:]
    return done


@pytest.fixture(scope="module")
def together(tmp_path_factory):
    """What two processes wrote."""
    out = tmp_path_factory.mktemp("together")
    launch = ("-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2")
    start(out, *launch, str(FILE), "together", str(out))
    return out


@pytest.fixture(scope="module")
def alone(tmp_path_factory):
    """The same by one process, here."""
    out = tmp_path_factory.mktemp("alone")
    recipe = Recipe(**SHORT, held_out_every=4, sample_every=8)
    run(TOY.Toy(), recipe, out / "toy", device="cpu")
    return out


def lines(out):
    return [json.loads(line) for line in (out / "log.jsonl").read_text().splitlines()]


def curve(out, name="loss"):
    return [line[name] for line in lines(out) if name in line]


@pytest.mark.parametrize("mesh", ["shards", "replicas", "micro"])
def test_two_processes_give_the_losses_of_one(together, alone, mesh):
    """On a mesh of 1x2, of 2x1, and in parts with activations computed again."""
    for name in ("loss", "grad_norm"):
        assert curve(together / mesh, name) == pytest.approx(curve(alone / "toy", name), rel=1e-5)
    assert len(curve(together / mesh)) == 8


@pytest.mark.parametrize("mesh", ["shards", "replicas"])
def test_two_processes_export_the_weights_of_one(together, alone, mesh):
    mine, theirs = (
        load_file(out / "model.safetensors") for out in (alone / "toy", together / mesh)
    )
    assert mine.keys() == theirs.keys()
    for name in mine:
        torch.testing.assert_close(mine[name], theirs[name], rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("mesh", ["shards", "replicas"])
def test_held_out_losses_of_sharded_weights_are_those_of_the_average(together, alone, mesh):
    mine, theirs = (
        [line["held_out"]["all"] for line in lines(out) if "held_out" in line]
        for out in (alone / "toy", together / mesh)
    )
    assert len(mine) == 2
    assert mine == pytest.approx(theirs, rel=1e-5)
    picture = together / mesh / "samples" / "000008" / "picture.txt"
    assert float(picture.read_text()) == pytest.approx(mine[-1], rel=1e-5)


@pytest.mark.parametrize(("name", "rel"), [("video", 1e-5), ("video16", 2e-2)])
def test_the_refiner_is_sharded_without_a_change(together, tmp_path, name, rel):
    recipe = SHORT | {"batch": 2, "steps": 3, "checkpointing": True, "held_out_every": 3}
    recipe |= {"precision": "bf16" if name == "video16" else "fp32"}
    run(TOY.Video(), Recipe(**recipe), tmp_path, device="cpu")
    assert curve(together / name) == pytest.approx(curve(tmp_path), rel=rel)


def test_one_process_goes_on_from_the_checkpoint_of_two(together, alone, tmp_path):
    shutil.copytree(together / "half", tmp_path / "half")
    assert [path.name for path in complete(tmp_path / "half")] == ["step-000001"]
    run(TOY.Toy(), Recipe(**SHORT, save_every=4), tmp_path / "half", device="cpu")
    assert curve(tmp_path / "half") == pytest.approx(curve(alone / "toy"), rel=1e-5)


def test_all_processes_learn_that_the_disk_of_one_is_full(together):
    for rank in (0, 1):
        said = (together / f"error-{rank}.txt").read_text()
        assert "in process 1" in said
        assert "step-000001 is intact" in said


def test_all_processes_stop_at_the_bad_sample_of_one(together):
    for rank in (0, 1):
        assert "bad-step-000003.json" in (together / f"poisoned-{rank}.txt").read_text()
    report = json.loads((together / "poisoned" / "bad-step-000003.json").read_text())
    assert report["keys"] == [["3/0", "3/2"], ["3/1", "3/3"]]


def test_a_killed_run_comes_out_bit_identical(tmp_path):
    start(tmp_path, str(FILE), "killed", str(tmp_path))
    assert int((tmp_path / "kills.txt").read_text()) >= 7
    whole, cut = tmp_path / "whole", tmp_path / "killed"
    assert sorted(p.name for p in whole.iterdir()) == sorted(p.name for p in cut.iterdir())
    assert (whole / "model.safetensors").read_bytes() == (cut / "model.safetensors").read_bytes()
    for path in complete(whole):
        # Weights, average and optimizer; then the losses since the last line of the log.
        shard = f"{path.name}/__0_0.distcp"
        assert (whole / shard).read_bytes() == (cut / shard).read_bytes()
        one, other = (
            json.loads((out / path.name / "complete.json").read_text()) for out in (whole, cut)
        )
        # DCP's metadata has the folder's name in it.
        own = {"seconds": 0, "checksum": "", "checksums": {}}
        assert one | own == other | own
    times = {"seconds": 0, "samples_per_second": 0}
    one, other = ([line | times for line in lines(out)] for out in (whole, cut))
    assert one == other
