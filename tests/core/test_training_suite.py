"""The tiny suite from drawn clips to refined ones, as short as it goes."""

import json
import shutil

import pytest
import torch
from safetensors.torch import load_file
from surf.surf_core import checkpoint, skip
from surf.surf_core.signature import psnr
from surf.surf_core.training.tiny import suite
from surf.surf_core.training.tiny.__main__ import say

BRIEF = suite.Form(clips=40, refiner_steps=2, mask_steps=2, shown=2)


@pytest.fixture(scope="module")
def done(tmp_path_factory):
    """What a run leaves, and its outcome."""
    torch.set_num_threads(1)
    out = tmp_path_factory.mktemp("suite")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(suite, "HELD_OUT", 0.3)
        return out, suite.Suite(BRIEF, out)()


@pytest.mark.slow
def test_the_suite_runs_from_clips_to_a_report(done):
    out, outcome = done
    report = json.loads((out / "report.json").read_text())
    assert set(report["losses"]) == {"refiner", "mask"}
    assert 0 < report["clips"] <= 2
    assert all(0 < value < 60 for value in report["psnr"].values())
    assert any("dB" in line for line in say(outcome))
    assert (out / "refined.png").stat().st_size > 1000
    config, notes = checkpoint.read_config(out / "refiner" / "tiny_refiner.safetensors")
    assert (config.time, config.window) == ("t", 2)
    assert notes["recipe"]["steps"] == 2
    predictor, _ = skip.predictor.load(out / "mask" / "mask.safetensors")
    assert predictor.config.patch == (1, 2, 2)


@pytest.mark.slow
def test_a_suite_goes_on_where_it_was(done, tmp_path, monkeypatch):
    out, outcome = done
    monkeypatch.setattr(suite, "HELD_OUT", 0.3)
    again = shutil.copytree(out, tmp_path / "again")
    shutil.rmtree(again / "mask")
    assert suite.Suite(BRIEF, again)().psnr == outcome.psnr
    for path in out.rglob("*.safetensors"):
        ours, theirs = load_file(again / path.relative_to(out)), load_file(path)
        assert ours.keys() == theirs.keys()
        assert all(torch.equal(ours[name], theirs[name]) for name in ours)


def test_psnr_is_that_of_each_video():
    truth = torch.zeros(2, 3, 1, 4, 4)
    video = torch.stack([torch.full((3, 1, 4, 4), 0.1), torch.full((3, 1, 4, 4), 0.01)])
    assert psnr(video, truth).mean().item() == pytest.approx(30.0, abs=1e-3)
