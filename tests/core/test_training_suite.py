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

BESIDE = """
from pathlib import Path
from surf_core.training.tiny import suite

if __name__ == "__main__":
    suite.HELD_OUT = 0.3
    suite.Suite(suite.{form}, Path({out!r}), jobs=2)()
"""
BRIEF = suite.Form(image_steps=1, video_steps=1, clips=40, refiner_steps=2, mask_steps=2, shown=2)


@pytest.fixture(scope="module")
def beside(forks, tmp_path_factory):
    """What two jobs leave, from drawn clips on: the text-to-video model is trained beside."""
    out = tmp_path_factory.mktemp("suite")
    forks.start_script(BESIDE.format(form=BRIEF, out=str(out))).finish(900)
    return out


@pytest.mark.slow
def test_the_suite_runs_from_clips_to_a_report(beside):
    report = json.loads((beside / "report.json").read_text())
    assert set(report["losses"]) == {"t2v", "refiner", "mask"}
    assert "text to video" not in report["seconds"]
    assert 0 < report["clips"] <= 2
    assert all(0 < value < 60 for value in report["psnr"].values())
    assert (beside / "refined.png").stat().st_size > 1000
    config, notes = checkpoint.read_config(beside / "refiner" / "tiny_refiner.safetensors")
    assert (config.time, config.window) == ("t", 2)
    assert notes["recipe"]["steps"] == 2
    predictor, _ = skip.predictor.load(beside / "mask" / "mask.safetensors")
    assert predictor.config.patch == (1, 2, 2)


@pytest.mark.slow
def test_one_job_goes_on_where_two_were_and_gives_the_same(beside, tmp_path, monkeypatch):
    """With its own text-to-video model, then with all that is there."""
    torch.set_num_threads(1)
    monkeypatch.setattr(suite, "HELD_OUT", 0.3)
    out = tmp_path / "alone"
    shutil.copytree(beside, out)
    shutil.rmtree(out / "t2v")
    psnr = json.loads((beside / "report.json").read_text())["psnr"]
    files = sorted(path.relative_to(beside) for path in beside.rglob("*.safetensors"))
    for _ in range(2):
        outcome = suite.Suite(BRIEF, out)()
        assert outcome.psnr == psnr
        assert any("dB" in line for line in say(outcome))
        for path in files:
            ours, theirs = load_file(out / path), load_file(beside / path)
            assert ours.keys() == theirs.keys()
            assert all(torch.equal(ours[name], theirs[name]) for name in ours)


@pytest.mark.slow
def test_a_failure_of_the_text_to_video_model_is_the_suites(beside, forks, tmp_path):
    out = tmp_path / "failed"
    shutil.copytree(beside, out)
    shutil.rmtree(out / "t2v")
    (out / "t2v").write_text("in the way")
    failed = forks.start_script(BESIDE.format(form=BRIEF, out=str(out)))
    assert failed.wait(900) != 0
    assert "exit code 1" in failed.stderr
    assert "FileExistsError" in failed.stderr


def test_the_suite_rejects_a_number_of_jobs_that_it_has_not(tmp_path):
    with pytest.raises(ValueError, match="1 or 2 jobs, got jobs=3"):
        suite.Suite(BRIEF, tmp_path, jobs=3)


def test_psnr_is_that_of_each_video():
    truth = torch.zeros(2, 3, 1, 4, 4)
    video = torch.stack([torch.full((3, 1, 4, 4), 0.1), torch.full((3, 1, 4, 4), 0.01)])
    assert psnr(video, truth).mean().item() == pytest.approx(30.0, abs=1e-3)
