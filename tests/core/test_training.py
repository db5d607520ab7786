"""The training of the text-to-video model: short, resumable, the same every time."""

import json
from dataclasses import replace

import pytest
import torch
from safetensors.torch import load_file
from surf.surf_core.tiny.caption import PHRASES, WORDS
from surf.surf_core.training.loop import run
from surf.surf_core.training.muon import Muon, orthogonalise
from surf.surf_core.training.task import Recipe
from surf.surf_core.training.tiny import stages, videos
from surf.surf_core.training.tiny.bank import EncodedScenes

RECIPE = Recipe(
    name="tiny_t2v", steps=6, lr=2e-3, warmup=1, cooldown=0.3, betas=(0.9, 0.99),
    optimizer="muon", ema=0.998, batch=2, save_every=2, log_every=1,
)  # fmt: skip


def scenes(frames, cells):
    """Noise in the place of encoded scenes."""
    dice = torch.Generator().manual_seed(frames * cells)
    latents = torch.randn(5, 16, frames, cells, cells, generator=dice).half()
    words = torch.rand(5, PHRASES, len(WORDS), generator=dice) < 0.2
    return EncodedScenes(latents=latents, words=words)


SCENES = {"still": scenes(1, 4), "video": scenes(2, 4), "low": scenes(2, 2)}
TASK = videos.Videos(scenes=SCENES, batch_size=2, stills=1, still_steps=3, layers=1)


def test_orthogonalise_brings_singular_values_near_one():
    torch.manual_seed(0)
    for shape in [(3, 16, 16), (2, 8, 24), (2, 24, 8)]:
        values = torch.linalg.svdvals(orthogonalise(torch.randn(shape)))
        assert values.min() > 0.3
        assert values.max() < 1.4


def test_muon_descends():
    weight = torch.nn.Parameter(torch.randn(8, 12, generator=torch.Generator().manual_seed(0)))
    optimizer = Muon([weight], lr=0.2)
    losses = []
    for _ in range(60):
        loss = weight.square().sum()
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        losses.append(loss.item())
    assert losses[-1] < 0.1 * losses[0]


def test_rate_warms_up_holds_and_cools_down(tmp_path):
    settings = stages.StageSettings(out=tmp_path)
    recipe = replace(stages.recipe_of(settings, "t2v", 16, 2e-3, 100, 0.998, 500), steps=6500)
    assert recipe.rate(0) < recipe.rate(50) < recipe.rate(200) == recipe.lr
    assert recipe.rate(recipe.steps - 1) < 0.01 * recipe.lr


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_run_matches_a_loop_by_hand(tmp_path, precision):
    """Bit for bit."""
    model = TASK.build()
    matrices = [p for p in model.blocks.parameters() if p.ndim == 2]
    wide = model.text_embedding[0].weight
    rest = [p for p in model.parameters() if all(p is not q for q in (*matrices, wide))]
    muon = Muon(matrices, weight_decay=0.01)
    adamw = torch.optim.AdamW(
        [{"params": rest}, {"params": [wide]}], betas=(0.9, 0.99), weight_decay=0.01
    )
    average = {name: p.detach().clone() for name, p in model.named_parameters()}
    losses = []
    for step in range(6):
        batch = TASK.batch(step, 0, 1)
        with torch.autocast("cpu", torch.bfloat16, enabled=precision == "bf16"):
            loss = TASK.loss(model, batch)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        rate = 2e-3 * min(1.0, (6 - step) / (0.3 * 6))
        muon.param_groups[0]["lr"] = adamw.param_groups[0]["lr"] = rate
        adamw.param_groups[1]["lr"] = rate * 128 / 4096
        for opt in (muon, adamw):
            opt.step()
            opt.zero_grad()
        for name, p in model.named_parameters():
            average[name].lerp_(p.detach(), 1 - min(0.998, (step + 1) / (step + 10)))
        losses.append(loss.item())
    run(TASK, replace(RECIPE, precision=precision), tmp_path)
    lines = map(json.loads, (tmp_path / "log.jsonl").read_text().splitlines())
    assert [line["loss"] for line in lines] == losses
    exported = load_file(tmp_path / "tiny_t2v.safetensors")
    assert exported.keys() == average.keys()
    assert all(torch.equal(exported[name], average[name].half()) for name in average)


def test_resumed_run_is_bit_identical(tmp_path, monkeypatch):
    run(TASK, RECIPE, tmp_path / "whole")

    class StopAtFive(Exception):
        pass

    draw = videos.Videos.batch

    def stop_at_five(self, step, rank, world):
        if step == 5:
            raise StopAtFive
        return draw(self, step, rank, world)

    monkeypatch.setattr(videos.Videos, "batch", stop_at_five)
    with pytest.raises(StopAtFive):
        run(TASK, RECIPE, tmp_path / "cut")
    monkeypatch.setattr(videos.Videos, "batch", draw)
    run(TASK, RECIPE, tmp_path / "cut")
    whole, cut = (load_file(tmp_path / name / "tiny_t2v.safetensors") for name in ("whole", "cut"))
    assert whole.keys() == cut.keys()
    assert all(torch.equal(whole[name], cut[name]) for name in whole)
    lines = (tmp_path / "cut" / "log.jsonl").read_text().splitlines()
    assert [json.loads(line)["step"] for line in lines] == [1, 2, 3, 4, 5, 6]
