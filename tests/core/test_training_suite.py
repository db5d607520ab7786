"""The tiny suite from drawn clips to refined ones, as short as it goes."""

import json
import shutil
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from surf.surf_core import checkpoint, skip
from surf.surf_core.signature import psnr
from surf.surf_core.training.tiny import suite
from surf.surf_core.training.tiny.__main__ import say
from surf.tests import patience

ROOT = Path(__file__).parents[2]
BESIDE = """
import sys
from pathlib import Path
from surf_core.training.tiny import suite

suite.HELD_OUT = 0.3
form = suite.Form(image_steps=1, video_steps=1, clips=40, refiner_steps=2, mask_steps=2, shown=2)
suite.Suite(form, Path(sys.argv[1]), jobs=2)()
"""
BRIEF = suite.Form(image_steps=1, video_steps=1, clips=40, refiner_steps=2, mask_steps=2, shown=2)


@pytest.mark.slow
def test_the_suite_runs_from_clips_to_a_report_and_goes_on_where_it_was(tmp_path, monkeypatch):
    monkeypatch.setattr(suite, "HELD_OUT", 0.3)
    outcome = suite.Suite(BRIEF, tmp_path)()
    assert set(outcome.losses) == {"t2v", "refiner", "mask"}
    assert 0 < outcome.clips <= 2
    assert all(0 < value < 60 for value in outcome.psnr.values())
    assert json.loads((tmp_path / "report.json").read_text())["psnr"] == outcome.psnr
    assert (tmp_path / "refined.png").stat().st_size > 1000
    config, notes = checkpoint.read_config(tmp_path / "refiner" / "tiny_refiner.safetensors")
    assert (config.time, config.window) == ("t", 2)
    assert notes["recipe"]["steps"] == 2
    predictor, _ = skip.predictor.load(tmp_path / "mask" / "mask.safetensors")
    assert predictor.config.patch == (1, 2, 2)
    assert any("dB" in line for line in say(outcome))
    files = sorted(path for path in tmp_path.rglob("*.safetensors"))
    before = [load_file(path) for path in files]
    second = suite.Suite(BRIEF, tmp_path)()
    assert second.psnr == outcome.psnr
    for path, tensors in zip(files, before, strict=True):
        again = load_file(path)
        assert again.keys() == tensors.keys()
        assert all(torch.equal(again[name], tensors[name]) for name in tensors)


@pytest.mark.slow
def test_the_text_to_video_model_trains_beside_the_rest_and_its_failure_is_the_suites(tmp_path):
    def run():
        command = [sys.executable, "-c", BESIDE, str(tmp_path)]
        return patience.run(command, 900, cwd=ROOT)

    done = run()
    assert done.returncode == 0, done.stderr
    report = json.loads((tmp_path / "report.json").read_text())
    assert set(report["losses"]) == {"t2v", "refiner", "mask"}
    assert "text to video" not in report["seconds"]
    shutil.rmtree(tmp_path / "t2v")
    (tmp_path / "t2v").write_text("in the way")
    failed = run()
    assert failed.returncode != 0
    assert "exit code 1" in failed.stderr
    assert "FileExistsError" in failed.stderr


def test_the_suite_rejects_a_number_of_jobs_that_it_has_not(tmp_path):
    with pytest.raises(ValueError, match="1 or 2 jobs, got jobs=3"):
        suite.Suite(BRIEF, tmp_path, jobs=3)


def test_psnr_is_that_of_each_video():
    truth = torch.zeros(2, 3, 1, 4, 4)
    video = torch.stack([torch.full((3, 1, 4, 4), 0.1), torch.full((3, 1, 4, 4), 0.01)])
    assert psnr(video, truth).mean().item() == pytest.approx(30.0, abs=1e-3)
