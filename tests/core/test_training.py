"""The training of the tiny model: short, resumable, the same every time."""

import json
from dataclasses import replace

import pytest
import torch
from safetensors.torch import load_file
from surf.surf_core.training.muon import Muon, orthogonalise
from surf.surf_core.training.tiny import t2v

SHORT = t2v.T2VRecipe(
    layers=1,
    size=16,
    frames=2,
    image_steps=3,
    video_steps=3,
    image_batch=2,
    video_batch=2,
    warmup=1,
)


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


def test_batch_is_a_function_of_seed_and_step_alone():
    for step in (0, 4):
        for first, second in zip(t2v.batch(SHORT, step), t2v.batch(SHORT, step), strict=True):
            assert torch.equal(first, second)
    assert t2v.batch(SHORT, 0)[0].shape == (2, 16, 1, 4, 4)
    assert t2v.batch(SHORT, 3)[0].shape == (2, 16, 2, 4, 4)


def test_rate_warms_up_holds_and_cools_down():
    recipe = t2v.T2VRecipe().loop()
    assert recipe.rate(0) < recipe.rate(50) < recipe.rate(200) == recipe.lr
    assert recipe.rate(recipe.steps - 1) < 0.01 * recipe.lr


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_run_matches_a_loop_by_hand(tmp_path, monkeypatch, precision):
    """Bit for bit, what the shipped weights were trained with."""
    monkeypatch.setattr(t2v, "REPORT_EVERY", 1)
    recipe = replace(SHORT, precision=precision)
    task = t2v.TextToVideo(recipe=recipe)
    model = task.build()
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
        clean, noise, sigma, context = t2v.batch(recipe, step)
        s = sigma[:, None, None, None, None]
        with torch.autocast("cpu", torch.bfloat16, enabled=precision == "bf16"):
            velocity = model((1 - s) * clean + s * noise, sigma * 1000, context)
        loss = (velocity.float() - (noise - clean)).square().mean()
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
    t2v.train(recipe, tmp_path, False)
    lines = map(json.loads, (tmp_path / "log.jsonl").read_text().splitlines())
    assert [line["loss"] for line in lines] == losses
    exported = load_file(tmp_path / "tiny_t2v.safetensors")
    assert exported.keys() == average.keys()
    assert all(torch.equal(exported[name], average[name].half()) for name in average)


def test_resumed_run_is_bit_identical(tmp_path, monkeypatch):
    monkeypatch.setattr(t2v, "SAVE_EVERY", 2)
    monkeypatch.setattr(t2v, "REPORT_EVERY", 1)
    t2v.train(SHORT, tmp_path / "whole", False)

    class StopAtFive(Exception):
        pass

    draw = t2v.batch

    def stop_at_five(recipe, step):
        if step == 5:
            raise StopAtFive
        return draw(recipe, step)

    monkeypatch.setattr(t2v, "batch", stop_at_five)
    with pytest.raises(StopAtFive):
        t2v.train(SHORT, tmp_path / "cut", False)
    monkeypatch.setattr(t2v, "batch", draw)
    t2v.train(SHORT, tmp_path / "cut", False)
    whole, cut = (load_file(tmp_path / name / "tiny_t2v.safetensors") for name in ("whole", "cut"))
    assert whole.keys() == cut.keys()
    assert all(torch.equal(whole[name], cut[name]) for name in whole)
    lines = (tmp_path / "cut" / "log.jsonl").read_text().splitlines()
    assert [json.loads(line)["step"] for line in lines] == [1, 2, 3, 4, 5, 6]
