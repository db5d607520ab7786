"""The refiner's task: what a sample is, what the loss is, where it begins, what it writes."""

from dataclasses import dataclass, replace

import pytest
import torch
from safetensors.torch import save_file
from surf.surf_core import checkpoint
from surf.surf_core.refiner import RefinerConfig, SurfRefinerDiT
from surf.surf_core.training.flow_map import (
    FlowMap,
    Phase,
    by_size,
    cells_of,
    fill,
    stratified_levels,
)
from surf.surf_core.training.recipes import RECIPES, surf_1b, tiny, wan_1_3b
from surf.surf_core.training.token_dropout import TokenDropout

CONFIG = RefinerConfig(
    dim=16, heads=2, layers=2, ffn_dim=20, window=2, latent_channels=4, text_dim=8,
    sigma_start=0.7, sigma_start_range=(0.6, 0.9), time="t",
)  # fmt: skip


@dataclass
class MemorySample:
    hr: torch.Tensor
    start: torch.Tensor
    text: torch.Tensor | None


class Clips:
    """Eleven clips in memory: nine of 5 latent frames, two of 2, made from their names."""

    held_out = ("h0", "h1")

    def __init__(self, text=True):
        self.text = text

    def buckets(self):
        return {f"k{i}": "32x32x17" for i in range(9)} | {"s0": "32x32x5", "s1": "32x32x5"}

    def load(self, key):
        generator = torch.Generator().manual_seed(sum(key.encode()))
        frames = 2 if key.startswith("s") else 5
        hr = torch.randn(4, frames, 4, 4, generator=generator)
        text = torch.randn(3, 8, generator=generator) if self.text else None
        return MemorySample(hr, hr + 0.1, text)


class Many(Clips):
    """Enough for the batch of any recipe."""

    def buckets(self):
        return {f"k{i}": "32x32x17" for i in range(32)}


def task(clips=None, **changes):
    given = {
        "config": CONFIG, "clips": clips or Clips(), "batch_size": 4, "text_tokens": 5, "seed": 3,
        "phases": (Phase(frames=5, steps=2), Phase(frames=17, steps=10)),
        "token_dropout": TokenDropout(share=0.0),
    }  # fmt: skip
    return FlowMap(**given | changes)


def awake(model):
    """With a head that says something: the one of a fresh model is zero."""
    model.head.head.weight.data.normal_(generator=torch.Generator().manual_seed(5))
    return model


def test_batch_is_a_function_of_seed_and_step_alone():
    first, again = task().batch(4, 0, 1), task().batch(4, 0, 1)
    other = task(seed=4).batch(4, 0, 1)
    assert first.keys == again.keys
    for name, value in first.tensors.items():
        assert torch.equal(value, again.tensors[name]), name
    assert not torch.equal(first.tensors["noise"], other.tensors["noise"])
    assert not torch.equal(first.tensors["noise"], task().batch(5, 0, 1).tensors["noise"])


@pytest.mark.parametrize("world", [2, 4])
def test_processes_share_out_the_samples_that_one_draws(world):
    whole = task().batch(3, 0, 1)
    for rank in range(world):
        part = task().batch(3, rank, world)
        assert part.tensors.keys() == whole.tensors.keys()
        assert part.keys == whole.keys[rank::world]
        for name, value in part.tensors.items():
            assert torch.equal(value, whole.tensors[name][rank::world]), name


def test_phases_take_the_first_frames_of_longer_clips_and_then_the_long_ones():
    short, long = task().batch(0, 0, 1), task().batch(2, 0, 1)
    assert short.tensors["hr"].shape == (4, 4, 2, 4, 4)
    assert long.tensors["hr"].shape == (4, 4, 5, 4, 4)
    assert all(key.startswith("k") for key in long.keys)
    for key, hr in zip(short.keys, short.tensors["hr"], strict=True):
        assert torch.equal(hr, Clips().load(key).hr[:, :2])
    with pytest.raises(ValueError, match="lengthen a phase"):
        task().batch(12, 0, 1)


def test_sizes_know_which_clips_are_long_enough():
    buckets = {"a": "704x1280x81", "b": "704x1280x21", "c": "1280x704x81"}
    assert by_size(buckets, 21) == dict.fromkeys("ab", "704x1280x21") | {"c": "1280x704x21"}
    assert by_size(buckets, 81) == {"a": "704x1280x81", "c": "1280x704x81"}


def test_levels_come_one_from_each_share_of_the_distribution():
    generator = torch.Generator().manual_seed(0)
    order = torch.randperm(64, generator=generator)
    levels = stratified_levels(order, torch.rand(64, generator=generator))
    share = torch.special.ndtr(torch.logit(levels.double()))
    assert torch.equal((share * 64).floor().sort().values, torch.arange(64).double())
    assert levels.min() > 0
    assert levels.max() < 1


@pytest.mark.parametrize("time", ["t", "sigma"])
def test_loss_is_the_papers_in_either_time(time):
    """For a model that answers zero it is the mean square of z_lr - z_hr, whatever t is."""
    made = task(config=replace(CONFIG, time=time))
    batch = made.batch(2, 0, 1)
    given = batch.tensors
    s = given["s"][:, None, None, None, None]
    z_lr = (1 - s) * given["start"] + s * given["noise"]
    expected = (z_lr - given["hr"]).square().mean()
    torch.testing.assert_close(made.loss(made.build(), batch), expected)


@pytest.mark.parametrize("time", ["t", "sigma"])
def test_a_model_that_knows_the_answer_has_no_loss(time):
    made = task(config=replace(CONFIG, time=time))
    batch = made.batch(2, 0, 1)
    hr, seen = batch.tensors["hr"], []

    def oracle(z, timestep, text, s):
        seen.append((timestep / 1000, s))
        # z = hr + t * (z_lr - hr)
        level = timestep[:, None, None, None, None] / 1000
        return (z - hr) / level

    assert made.loss(oracle, batch) < 1e-9
    level, s = seen[0]
    t = batch.tensors["t"]
    torch.testing.assert_close(level, s * t if time == "sigma" else t)
    assert ((s >= 0.6) & (s <= 0.9)).all()


def test_text_is_filled_up_and_dropped_for_guidance():
    texts = torch.cat([task(dropout=0.3).batch(step, 0, 1).tensors["text"] for step in range(12)])
    assert texts.shape[1:] == (5, 8)
    assert (texts[:, 3:] == 0).all()
    dropped = (texts == 0).all(dim=(1, 2)).float().mean()
    assert 0.1 < dropped < 0.55
    assert (task(Clips(text=False)).batch(0, 0, 1).tensors["text"] == 0).all()


def test_holes_come_in_a_share_of_the_steps_and_only_kept_tokens_count():
    made = task(
        token_dropout=TokenDropout(share=0.5, kept=0.5), phases=(Phase(frames=17, steps=64),)
    )
    holes = [bool(made.batch(step, 0, 1).tensors["drop_tokens"].any()) for step in range(64)]
    assert 16 < sum(holes) < 48
    step = holes.index(True)
    batch = made.batch(step, 0, 1)
    seen = []

    def zero(z, timestep, text, s, keep=None):
        seen.append(keep)
        return torch.zeros_like(z)

    loss = made.loss(zero, batch)
    keep = seen[0]
    assert keep.shape == (5, 2, 2)
    assert keep.dtype == torch.bool
    assert 10 <= keep.sum() < 20
    given = batch.tensors
    s = given["s"][:, None, None, None, None]
    target = (1 - s) * given["start"] + s * given["noise"] - given["hr"]
    mask = cells_of(keep, (1, 2, 2))
    torch.testing.assert_close(loss, target[:, :, mask].square().mean())


def test_holes_keep_what_blurring_would_lose():
    hr = torch.zeros(2, 4, 3, 16, 16)
    hr[1, :, :, 4:8, 8:12] = torch.randn(4, 3, 4, 4, generator=torch.Generator().manual_seed(0))
    keep = TokenDropout(kept=0.1).keep(hr, (1, 2, 2))
    assert keep[:, 2:4, 4:6].all()


def test_held_out_is_fixed_and_falls_to_zero_for_the_truth():
    made = task()
    model = awake(made.build())
    first, again = made.held_out(model), made.held_out(model)
    assert first == again
    assert set(first) == {"t=0.1", "t=0.3", "t=0.5", "t=0.7", "t=0.9", "mean"}
    assert first["mean"] == pytest.approx(
        sum(first[f"t={t}"] for t in (0.1, 0.3, 0.5, 0.7, 0.9)) / 5
    )
    assert task(held_out_clips=0).held_out(model) == {}


def test_build_begins_with_the_weights_of_wan_and_a_silent_embedding(tmp_path):
    plain = awake(SurfRefinerDiT(replace(CONFIG, sigma_start_range=None, time="sigma")))
    plain.initialise(torch.Generator().manual_seed(9))
    state = {f"model.diffusion_model.{name}": w for name, w in plain.state_dict().items()}
    save_file(state, tmp_path / "wan.safetensors")
    model = task(weights=tmp_path / "wan.safetensors").build()
    for name, weight in plain.state_dict().items():
        assert torch.equal(model.state_dict()[name], weight), name
    assert (model.sigma_start_embedding[2].weight == 0).all()
    with pytest.raises(ValueError, match="do not fit"):
        fill(SurfRefinerDiT(replace(CONFIG, layers=3)), tmp_path / "wan.safetensors")
    with pytest.raises(FileNotFoundError, match="download"):
        fill(model, tmp_path / "none.safetensors")
    state["model.diffusion_model.head.head.bias"][0] = float("inf")
    save_file(state, tmp_path / "wan.safetensors")
    with pytest.raises(ValueError, match="NaN or infinity .*head.head.bias"):
        fill(model, tmp_path / "wan.safetensors")


def test_export_is_what_the_loader_reads(tmp_path):
    made = task()
    model = awake(made.build())
    made.export(model.state_dict(), tmp_path / "out.safetensors", {"steps": 7})
    config, notes = checkpoint.read_config(tmp_path / "out.safetensors")
    assert config == CONFIG
    assert notes == {"steps": 7}
    assert checkpoint.report(tmp_path / "out.safetensors") == []


@pytest.mark.parametrize("name", RECIPES)
def test_every_recipe_is_consistent_and_says_what_it_needs(name):
    job = RECIPES[name](Many())
    if job.size is not None:
        assert job.recipe.steps == sum(phase.steps for phase in job.task.phases)
    assert job.recipe.batch == job.task.batch_size
    assert "Hardware" in RECIPES[name].__doc__
    assert "Command" in RECIPES[name].__doc__


def test_the_papers_schedule():
    for job in (surf_1b(Clips()), wan_1_3b(Clips())):
        assert [(p.frames, p.steps) for p in job.task.phases] == [(21, 1000), (81, 4000)]
        assert (job.recipe.lr, job.recipe.batch, job.task.shift) == (5e-5, 24, 5.0)
        assert job.task.config.sigma_start_range == (0.6, 0.9)
    assert surf_1b(Clips()).task.config.time == "t"
    assert tiny(Clips(), strengths=(0.0, 0.0)).task.config.sigma_start_range is None
