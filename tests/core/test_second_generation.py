"""Training of the second embedded models: encoded scenes, batches, stages, and the controls."""

import json
from dataclasses import replace

import pytest
import torch
from surf.surf_core.tiny import vae
from surf.surf_core.tiny.adherence import read
from surf.surf_core.training.tiny import autoencoder, bank, controls, enlarge, stages, videos
from surf.surf_core.training.tiny.paint import paint
from surf.surf_core.training.tiny.world import draw


@pytest.fixture(scope="module")
def codec():
    return autoencoder.Autoencode(batch_size=1).build().eval()


@pytest.fixture(scope="module")
def banks(codec):
    def filled(size, frames):
        plan = bank.Plan(count=3, size=size, frames=frames, seed=1)
        return bank.fill(codec, plan, "cpu", group=2)

    return {"video": filled(64, 13), "low": filled(64, 5), "still": filled(64, 1)}


def test_a_bank_is_read_back_from_its_folder(codec, tmp_path):
    plan = bank.Plan(count=2, size=64, frames=5, seed=1)
    first = bank.fill(codec, plan, "cpu", tmp_path)
    for parameter in (other := vae.TinyVAE()).parameters():
        parameter.data.zero_()
    again = bank.fill(other, plan, "cpu", tmp_path)
    assert torch.equal(again.latents, first.latents)
    assert torch.equal(again.words, first.words)
    assert len(bank.fill(other, replace(plan, seed=2), "cpu", tmp_path).latents) == 2


def test_a_bank_holds_the_scenes_of_its_plan(codec, banks):
    scenes = draw(1, torch.arange(3))
    with torch.no_grad():
        latents = codec.encode(paint(scenes, torch.linspace(-0.5, 0.5, 13), 64))
    torch.testing.assert_close(banks["video"].latents.float(), latents, atol=5e-3, rtol=5e-3)
    assert torch.equal(banks["video"].words.float(), scenes.words())


def test_a_still_is_the_first_frame_of_its_video(banks):
    torch.testing.assert_close(
        banks["still"].latents[:, :, 0], banks["video"].latents[:, :, 0], atol=5e-3, rtol=5e-3
    )


def test_batches_of_videos_are_functions_of_the_step(banks):
    task = videos.Videos(banks=banks, batch_size=4, layers=1)
    for step, kind in enumerate(videos.TURNS):
        batch = task.batch(step, 0, 1)
        again = task.batch(step, 1, 2)
        for name, tensor in batch.tensors.items():
            assert torch.equal(tensor[1::2], again.tensors[name]), (kind, name)
        assert batch.tensors["clean"].shape[2:] == banks[kind].latents.shape[2:]
    assert not torch.equal(
        task.batch(1, 0, 1).tensors["noise"], task.batch(2, 0, 1).tensors["noise"]
    )


def test_the_autoencoder_begins_as_a_model_of_stills(codec):
    video = autoencoder.Autoencode(batch_size=1).whole(0, 64, 1)
    with torch.no_grad():
        moments = codec.moments(video)[0]
        for index, frame in ((0, 0), (1, 4), (3, 12)):
            alone = codec.moments(video[:, :, frame : frame + 1])[0]
            torch.testing.assert_close(moments[:, :, index], alone[:, :, 0])


def test_the_autoencoder_learns_stills():
    task = autoencoder.Autoencode(batch_size=1, still_steps=30, stills=4)
    batch = task.batch(0, 0, 1)
    model = task.build()
    optimizer = torch.optim.Adam(model.parameters(), 3e-3)
    losses = []
    for _ in range(12):
        loss = task.loss(model, batch)
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        losses.append(loss.item())
    assert losses[-1] < 0.9 * losses[0]


def test_a_pair_is_a_sharp_scene_and_its_enlarged_preview(codec):
    pairs = enlarge.pairs(codec, torch.arange(2), seed=3)
    assert pairs.sharp.shape == pairs.start.shape == (2, 16, 4, 32, 32)
    assert not torch.equal(pairs.sharp, pairs.start)
    task = enlarge.task(pairs, pairs, 2, 1, "cpu")
    batch = task.batch(0, 0, 1)
    assert batch.tensors["t"].shape == batch.tensors["s"].shape == (2,)
    assert torch.isfinite(task.loss(task.build(), batch))


def test_clustered_matches_a_plain_mean_for_one_answer_a_prompt():
    answers = torch.tensor([1.0, 0, 1, 1])
    ratio, error = controls.clustered(answers, torch.ones(4), torch.arange(4))
    assert ratio == pytest.approx(75)
    assert error == pytest.approx(100 * answers.std().item() / 2, rel=1e-5)


def test_controls_ask_what_the_scenes_show(codec):
    model = videos.Videos(banks={}, batch_size=1, layers=1).build()
    found = controls.Controls(model, codec, count=3)
    times = torch.linspace(-0.5, 0.5, 13)
    shown = paint(found.scenes, times, 128) / 2 + 0.5
    assert found.ask("scenes", shown).right == pytest.approx(
        100 * torch.tensor([a for row in read(shown, found.things) for a in row]).float().mean()
    )
    grey = found.ask("grey", torch.full_like(shown, 0.5))
    assert (grey.right, grey.kept) == (0, 0)


@pytest.mark.parametrize("stage", ["vae", "t2v"])
def test_a_stage_trains_and_exports(stage, codec, tmp_path, monkeypatch):
    if stage != "vae":
        (tmp_path / "vae").mkdir()
        vae.save(codec, tmp_path / "vae" / "tiny_vae.safetensors", {}, torch.float32)
        monkeypatch.setattr(videos, "SIZE", 64)
    monkeypatch.setattr(autoencoder.Autoencode, "whole", lambda *_: torch.zeros(1, 3, 5, 16, 16))
    words = ["stages", stage, "--out", str(tmp_path), "--steps", "2", "--batch", "1"]
    monkeypatch.setattr("sys.argv", [*words, "--scenes", "4", "--stills", "2", "--log-every", "1"])
    stages.main()
    assert (tmp_path / stage / f"tiny_{stage}.safetensors").exists()
    lines = (tmp_path / stage / "log.jsonl").read_text().splitlines()
    assert sum("loss" in json.loads(line) for line in lines) == 2
