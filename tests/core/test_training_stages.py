"""Training of the embedded models: encoded scenes, batches, stages, and the controls."""

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from surf.surf_core.header import write
from surf.surf_core.refiner import SurfRefinerDiT
from surf.surf_core.tiny import vae
from surf.surf_core.tiny.adherence import read
from surf.surf_core.training.tiny import __main__ as command
from surf.surf_core.training.tiny import autoencoder, bank, controls, enlarge, stages, videos
from surf.surf_core.training.tiny.paint import paint
from surf.surf_core.training.tiny.world import draw


@pytest.fixture(scope="module")
def codec():
    return autoencoder.Autoencode(batch_size=1).build().eval()


@pytest.fixture(scope="module")
def scenes(codec):
    def encoded(size, frames):
        plan = bank.ScenePlan(size=size, frames=frames, seed=1)
        return bank.encode_scenes(codec, plan, 3, "cpu", group=2)

    return {"video": encoded(64, 13), "low": encoded(64, 5), "still": encoded(64, 1)}


PLAN = bank.ScenePlan(size=64, frames=5, seed=1)


@pytest.fixture
def encoded_scenes(monkeypatch):
    """Numbers of the scenes that are encoded, in order."""
    numbers = []
    real = bank.encode

    def encode(model, plan, index):
        numbers.extend(index.tolist())
        return real(model, plan, index)

    monkeypatch.setattr(bank, "encode", encode)
    monkeypatch.setattr(bank, "SHARD", 3)
    monkeypatch.setattr(bank, "PROBED", 1)
    return numbers


def test_encoded_scenes_are_read_back_from_their_folder(codec, tmp_path, encoded_scenes):
    first = bank.encode_scenes(codec, PLAN, 5, "cpu", tmp_path)
    assert encoded_scenes == [0, 1, 2, 3, 4]
    assert len(list(tmp_path.iterdir())) == 2
    again = bank.encode_scenes(codec, PLAN, 5, "cpu", tmp_path)
    assert encoded_scenes[5:] == [0, 3]
    assert torch.equal(again.latents, first.latents)
    assert torch.equal(again.words, first.words)


def test_more_scenes_go_on_from_the_shards_of_fewer(codec, tmp_path, encoded_scenes):
    bank.encode_scenes(codec, PLAN, 3, "cpu", tmp_path)
    assert len(bank.encode_scenes(codec, PLAN, 4, "cpu", tmp_path)) == 4
    assert encoded_scenes == [0, 1, 2, 0, 3]


def test_scenes_are_encoded_again_for_another_vae_or_plan(codec, tmp_path):
    first = bank.encode_scenes(codec, PLAN, 2, "cpu", tmp_path)
    other = autoencoder.Autoencode(batch_size=1, seed=1).build().eval()
    for model, plan in (
        (other, PLAN),
        (codec, replace(PLAN, seed=2)),
        (codec, replace(PLAN, clip=5)),
    ):
        again = bank.encode_scenes(model, plan, 2, "cpu", tmp_path)
        assert not torch.equal(again.latents, first.latents)
    assert len(list(tmp_path.iterdir())) == 4


def test_scenes_that_are_painted_in_another_way_are_encoded_again(codec, tmp_path, monkeypatch):
    first = bank.encode_scenes(codec, PLAN, 2, "cpu", tmp_path)
    monkeypatch.setattr(bank, "paint", lambda *of: -paint(*of))
    again = bank.encode_scenes(codec, PLAN, 2, "cpu", tmp_path)
    assert not torch.equal(again.latents, first.latents)


def test_a_damaged_shard_is_encoded_again(codec, tmp_path):
    first = bank.encode_scenes(codec, PLAN, 2, "cpu", tmp_path)
    (shard,) = tmp_path.iterdir()
    shard.write_bytes(shard.read_bytes()[:-100])
    assert torch.equal(bank.encode_scenes(codec, PLAN, 2, "cpu", tmp_path).latents, first.latents)


def test_encoding_stops_at_a_whole_shard_when_its_time_is_over(codec, encoded_scenes):
    assert len(bank.encode_scenes(codec, PLAN, 9, "cpu", seconds=0)) == 3


def test_encoded_scenes_are_those_of_their_plan(codec, scenes):
    drawn = draw(1, torch.arange(3))
    with torch.no_grad():
        latents = codec.encode(paint(drawn, torch.linspace(-0.5, 0.5, 13), 64))
    torch.testing.assert_close(scenes["video"].latents.float(), latents, atol=5e-3, rtol=5e-3)
    assert torch.equal(scenes["video"].words.float(), drawn.words())


def test_a_still_is_the_first_frame_of_its_video(scenes):
    torch.testing.assert_close(
        scenes["still"].latents[:, :, 0], scenes["video"].latents[:, :, 0], atol=5e-3, rtol=5e-3
    )


def test_batches_of_videos_are_functions_of_the_step(scenes):
    task = videos.Videos(scenes=scenes, batch_size=4, layers=1, still_steps=3)
    for step, kind in enumerate(("still",) * 3 + videos.TURNS):
        batch = task.batch(step, 0, 1)
        again = task.batch(step, 1, 2)
        for name, tensor in batch.tensors.items():
            assert torch.equal(tensor[1::2], again.tensors[name]), (kind, name)
        assert batch.tensors["clean"].shape[2:] == scenes[kind].latents.shape[2:]
        assert len(batch.keys) == (8 if kind == "still" else 4)
    assert not torch.equal(
        task.batch(4, 0, 1).tensors["noise"], task.batch(5, 0, 1).tensors["noise"]
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


def test_errors_on_small_coloured_things_and_beside_them_weigh_more():
    video = torch.zeros(1, 3, 1, 32, 32)
    video[0, 0, 0, 8, 8], video[0, 1:, 0, 8, 8] = 1, -1

    def wrong(row, column, emphasis):
        copy = video.clone()
        copy[0, :, 0, row, column] += 0.5
        return autoencoder.distance(copy, video, emphasis).item()

    assert wrong(8, 8, 0) == pytest.approx(wrong(24, 24, 0))
    for row, column in ((8, 8), (10, 6)):
        assert wrong(row, column, 12) > 8 * wrong(24, 24, 12)
    assert wrong(8, 12, 12) == pytest.approx(wrong(24, 24, 12))


def test_a_pair_is_a_sharp_scene_and_its_enlarged_preview(codec):
    pairs = enlarge.pairs(codec, 0, 2, 3, "cpu")
    assert pairs.sharp.shape == pairs.start.shape == (2, 16, 4, 32, 32)
    assert not torch.equal(pairs.sharp, pairs.start)
    task = enlarge.task(pairs, pairs, 2, 1, "cpu")
    batch = task.batch(0, 0, 1)
    assert batch.tensors["t"].shape == batch.tensors["s"].shape == (2,)
    assert torch.isfinite(task.loss(task.build(), batch))


def test_a_pair_depends_on_its_number_alone_and_is_read_back(codec, tmp_path, monkeypatch):
    monkeypatch.setattr(enlarge, "LARGE", 128)
    both = enlarge.pairs(codec, 5, 2, 3, "cpu", tmp_path)
    alone = enlarge.pair_up(codec, torch.tensor([6]), 3)
    torch.testing.assert_close(alone["start"][0].float(), both.start[1].float(), atol=0.02, rtol=0)
    monkeypatch.setattr(bank, "PROBED", 1)
    assert torch.equal(enlarge.pairs(codec, 5, 2, 3, "cpu", tmp_path).start, both.start)
    assert len(list(tmp_path.iterdir())) == 1


def test_all_models_together_fit_into_the_archive(codec):
    refiner = SurfRefinerDiT(enlarge.config(stages.StageSettings(out=Path()).layers))
    video = videos.Videos(scenes={}, batch_size=1).build()
    weights = [w for model in (codec, video, refiner) for w in model.state_dict().values()]
    assert 2 * sum(weight.numel() for weight in weights) < 9.5e6


def test_ratio_of_sums_matches_a_plain_mean_for_one_answer_a_prompt():
    answers = torch.tensor([1.0, 0, 1, 1])
    ratio, error = controls.ratio_of_sums(answers, torch.ones(4), torch.arange(4))
    assert ratio == pytest.approx(75)
    assert error == pytest.approx(100 * answers.std().item() / 2, rel=1e-5)


def test_controls_check_what_the_scenes_show(codec):
    model = videos.Videos(scenes={}, batch_size=1, layers=1).build()
    table = controls.Controls(model, codec, count=3)
    times = torch.linspace(-0.5, 0.5, 13)
    shown = paint(table.scenes, times, 128) / 2 + 0.5
    assert table.check("scenes", shown).right == pytest.approx(
        100 * torch.tensor([a for row in read(shown, table.things) for a in row]).float().mean()
    )
    grey = table.check("grey", torch.full_like(shown, 0.5))
    assert (grey.right, grey.baseline_share) == (0, 0)


def test_the_check_of_a_vae_reads_scenes_before_and_after_it(codec, tmp_path, monkeypatch):
    (tmp_path / "vae").mkdir()
    vae.save(codec, tmp_path / "vae" / "tiny_vae.safetensors", {}, torch.float32)
    monkeypatch.setattr(
        "sys.argv", ["stages", "vae-check", "--out", str(tmp_path), "--prompts", "2"]
    )
    stages.main()
    report = json.loads((tmp_path / "vae-check.json").read_text())
    right = {row["name"]: row["right"] for row in report["rows"]}
    assert report["prompts"] == 2
    assert right["scenes at 128"] == right["scenes at 64"] == 100
    encoded = ("scenes at 128, encoded", "scenes at 64, encoded")
    assert all(right[name] < 50 for name in (*encoded, f"{encoded[0]}, latent made smaller"))


def test_controls_go_on_with_the_videos_that_are_sampled(codec, tmp_path):
    model = videos.Videos(scenes={}, batch_size=1, layers=1).build()

    def table(cfg=7.5):
        return controls.Controls(model, codec, count=3, cfg=cfg, group=2, folder=tmp_path)

    first = table().full(2)
    assert len(list(tmp_path.iterdir())) == 2
    for path in tmp_path.iterdir():
        write(path, {n: t + 1 for n, t in load_file(path).items()}, {})
    assert torch.equal(table().full(2), first + 1)
    assert not torch.equal(table(cfg=2).full(2), first + 1)
    assert not torch.equal(table().full(3), first + 1)
    with torch.no_grad():
        next(model.parameters()).add_(1)
    assert not torch.equal(table().full(2), first + 1)


def test_every_switch_of_the_controls_has_fewer_steps_of_its_cost_beside_it(codec, monkeypatch):
    model = videos.Videos(scenes={}, batch_size=1, layers=1).build()
    with torch.no_grad():
        for weight in model.parameters():
            weight.add_(0.05 * torch.randn(weight.shape))
    table = controls.Controls(model, codec, count=2)
    monkeypatch.setattr(table, "pixels", lambda z: torch.zeros(len(z), 3, 5, 64, 64))
    table.usual()
    cost = {row.name: row.gflops for row in table.rows}
    assert cost["50 steps"] == pytest.approx(50 * cost["25 steps"] / 25)
    for switch, fewer in (("10 + 30", 16), ("5 + 35", 12)):
        priced = {name: cost[name] for name in cost if name.startswith(switch)}
        assert len(priced) == len(controls.VARIANTS)
        assert len(set(priced.values())) == 1
        steps = cost[f"{fewer} steps"]
        assert steps <= priced[f"{switch}, ours"] < steps * (fewer + 1) / fewer
    assert cost["grey"] == 0
    assert set(controls.SHOWN) <= table.latents.keys()
    every = [latents for name, latents in table.latents.items() if name.startswith("10 + 30")]
    assert not any(torch.equal(a, b) for i, a in enumerate(every) for b in every[:i])


@pytest.mark.parametrize("stage", stages.TRAINED)
def test_a_stage_trains_and_exports(stage, codec, tmp_path, monkeypatch):
    if stage != "vae":
        (tmp_path / "vae").mkdir()
        vae.save(codec, tmp_path / "vae" / "tiny_vae.safetensors", {}, torch.float32)
        monkeypatch.setattr(videos, "SIZE", 64)
        monkeypatch.setattr(enlarge, "LARGE", 128)
    monkeypatch.setattr(autoencoder.Autoencode, "whole", lambda *_: torch.zeros(1, 3, 5, 16, 16))
    words = ["stages", stage, "--out", str(tmp_path), "--steps", "2", "--batch", "1"]
    monkeypatch.setattr("sys.argv", [*words, "--scenes", "4", "--stills", "1", "--log-every", "1"])
    stages.main()
    assert (tmp_path / stage / f"tiny_{stage}.safetensors").exists()
    lines = (tmp_path / stage / "log.jsonl").read_text().splitlines()
    assert sum("loss" in json.loads(line) for line in lines) == 2


def test_the_full_form_runs_every_stage_in_order(tmp_path, monkeypatch):
    seen = []

    def note(stage):
        return lambda settings: seen.append((stage, settings))

    monkeypatch.setattr(stages, "STAGES", {stage: note(stage) for stage in stages.STAGES})
    monkeypatch.setattr("sys.argv", ["tiny", "--form", "full", "--out", str(tmp_path)])
    command.main()
    assert [stage for stage, _ in seen] == ["vae", "vae-check", "t2v", "controls", "refiner"]
    assert all(settings.out == tmp_path / "full" for _, settings in seen)
    assert all(settings.steps for stage, settings in seen if stage in stages.TRAINED)


def test_the_short_form_takes_few_steps_of_the_same_stages_and_then_goes_the_users_way(
    tmp_path, monkeypatch
):
    seen = []
    monkeypatch.setattr(
        stages, "STAGES", {stage: lambda settings: seen.append(settings) for stage in stages.STAGES}
    )
    monkeypatch.setattr(command, "Suite", lambda form, out: lambda: (form, out))
    monkeypatch.setattr(command, "say", lambda outcome: [str(seen.append(outcome))])
    monkeypatch.setattr("sys.argv", ["tiny", "--out", str(tmp_path)])
    command.main()
    assert seen.pop() == (command.SHORT, tmp_path)
    assert list(stages.SHORT) == [stage for stage in stages.FULL if stage != "controls"]
    assert all((settings.steps or 0) <= 30 and settings.scenes for settings in seen)
