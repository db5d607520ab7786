"""The training loop in one process: its numbers, what it does when, and when it stops."""

import json
import runpy
import signal
from dataclasses import replace
from functools import partial
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from safetensors.torch import load_file
from surf.surf_core.training import loop
from surf.surf_core.training.distributed import World
from surf.surf_core.training.divergence import PATIENCE
from surf.surf_core.training.loop import TrainingLoop, run
from surf.surf_core.training.optim import optimizers
from surf.surf_core.training.state import complete
from surf.surf_core.training.task import Batch, Recipe

TOY = SimpleNamespace(**runpy.run_path(str(Path(__file__).with_name("training_toy.py"))))
Toy, SHORT = TOY.Toy, Recipe(**TOY.SHORT)
CPU = World(device=torch.device("cpu"))


def under_way(task, recipe, out):
    """A run that has not taken a step, in a folder that exists."""
    out.mkdir(parents=True, exist_ok=True)
    return TrainingLoop(task, recipe, out, CPU)


def lines(out):
    return [json.loads(line) for line in (out / "log.jsonl").read_text().splitlines()]


def test_run_matches_a_loop_by_hand(tmp_path):
    task = Toy()
    model = task.build()
    opt = torch.optim.AdamW(model.parameters(), betas=(0.9, 0.999), weight_decay=0.01)
    average = {name: p.detach().clone() for name, p in model.named_parameters()}
    losses = []
    for step in range(8):
        loss = task.loss(model, task.batch(step, 0, 1))
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        opt.param_groups[0]["lr"] = 0.02 * min(1.0, (step + 1) / 2)
        opt.step()
        opt.zero_grad()
        for name, p in model.named_parameters():
            average[name].lerp_(p.detach(), 1 - min(0.999, (step + 1) / (step + 10)))
        losses.append(loss.item())
    path = run(Toy(), SHORT, tmp_path, device="cpu")
    assert [line["loss"] for line in lines(tmp_path)] == losses
    exported = load_file(path)
    assert exported.keys() == average.keys()
    assert all(torch.equal(exported[name], average[name]) for name in average)


def test_rate_warms_up_holds_and_cools_down():
    recipe = Recipe(steps=1000, lr=0.1, warmup=100, cooldown=0.3)
    assert recipe.rate(0) == pytest.approx(0.001)
    assert recipe.rate(49) == pytest.approx(0.05)
    assert recipe.rate(100) == recipe.rate(700) == 0.1
    assert recipe.rate(850) == pytest.approx(0.05)
    assert replace(recipe, cooldown=0.0).rate(999) == 0.1


def test_average_begins_as_a_plain_mean():
    recipe = Recipe(steps=10, ema=0.9)
    assert recipe.decay(1) == 0.1
    assert recipe.decay(10_000) == 0.9


@pytest.mark.parametrize(
    "wrong",
    [{"steps": 0}, {"precision": "fp8"}, {"optimizer": "sgd"}, {"ema": 2}, {"lr": 0}, {"keep": 0}],
)
def test_recipe_rejects_what_it_cannot_do(wrong):
    with pytest.raises(ValueError, match=next(iter(wrong))):
        Recipe(**{"steps": 1} | wrong)


def test_recipe_round_trips_through_its_notes():
    recipe = Recipe(steps=3, betas=(0.5, 0.6), micro=2)
    assert Recipe.of(json.loads(json.dumps(recipe.notes()))) == recipe


@pytest.mark.parametrize("micro", [2, 4])
def test_gradient_in_parts_matches_that_of_the_whole(tmp_path, micro, tolerance):
    gradients = []
    for parts in (1, micro):
        now = under_way(Toy(), replace(SHORT, micro=parts), tmp_path)
        loss = now._backward(Toy().batch(0, 0, 1))
        gradients.append([torch.tensor(loss), *(p.grad for p in now.model.parameters())])
    for whole, summed in zip(*gradients, strict=True):
        torch.testing.assert_close(whole, summed, rtol=1e-5, atol=tolerance[torch.float32])


def test_loop_rejects_batches_that_do_not_divide(tmp_path):
    with pytest.raises(ValueError, match="multiple of processes times micro"):
        under_way(Toy(), replace(SHORT, micro=3), tmp_path)
    with pytest.raises(ValueError, match="micro=3"):
        list(Toy().batch(0, 0, 1).parts(3))


def test_parts_cover_every_sample_once_in_order():
    batch = Batch(tensors={"x": torch.arange(6)}, keys=tuple("abcdef"))
    parts = list(batch.parts(3))
    assert torch.equal(torch.cat([part.tensors["x"] for part in parts]), torch.arange(6))
    assert [part.keys for part in parts] == [("a", "b"), ("c", "d"), ("e", "f")]


def test_checkpointing_computes_twice_and_changes_nothing(tmp_path):
    plain, again = (
        under_way(Toy(), replace(SHORT, checkpointing=on), tmp_path) for on in (False, True)
    )
    for now in (plain, again):
        now.advance()
    assert (plain.model.seen, again.model.seen) == (3, 6)
    assert plain.pending == again.pending


def test_checkpointing_is_refused_by_a_model_without_it(tmp_path):
    class Plain(Toy):
        def build(self):
            return torch.nn.Linear(2, 2)

    with pytest.raises(ValueError, match="Linear without `checkpointing`"):
        under_way(Plain(), replace(SHORT, checkpointing=True), tmp_path)


@pytest.mark.parametrize(
    ("precision", "dtype"), [("bf16", torch.bfloat16), ("fp32", torch.float32)]
)
def test_precision_is_that_of_the_computation_not_of_the_weights(tmp_path, precision, dtype):
    seen = []

    class DtypeSpy(Toy):
        def loss(self, model, batch):
            seen.append(model(batch.tensors["x"]).dtype)
            return super().loss(model, batch)

    now = under_way(DtypeSpy(), replace(SHORT, precision=precision), tmp_path)
    now.advance()
    assert seen == [dtype]
    assert all(p.dtype == torch.float32 for p in now.model.parameters())


def test_compiled_run_gives_the_same_losses(tmp_path, monkeypatch):
    monkeypatch.setattr(loop.torch, "compile", partial(torch.compile, backend="eager"))
    recipe = replace(SHORT, steps=3)
    for name, compiled in (("plain", False), ("compiled", True)):
        run(Toy(), recipe, tmp_path / name, compile_model=compiled, device="cpu")
    one, other = ([line["loss"] for line in lines(tmp_path / n)] for n in ("plain", "compiled"))
    assert one == pytest.approx(other, rel=1e-6)


def test_held_out_and_samples_see_the_average_where_they_are_due(tmp_path):
    seen = []

    class HeldOutSpy(Toy):
        def held_out(self, model):
            seen.append((model.head.weight.clone(), model.training, torch.is_grad_enabled()))
            return super().held_out(model)

    recipe = replace(SHORT, held_out_every=3, sample_every=4)
    now = under_way(HeldOutSpy(), recipe, tmp_path)
    for _ in range(8):
        now.advance()
        before = [p.detach().clone() for p in now.model.parameters()]
        average = now.average.weights["head.weight"].clone()
        now.report()
        assert all(torch.equal(a, b) for a, b in zip(before, now.model.parameters(), strict=True))
        assert torch.equal(average, now.average.weights["head.weight"])
        if now.step in (3, 4, 6, 8):
            weight, training, grads = seen.pop()
            assert torch.equal(weight, average)
            assert not torch.equal(weight, now.model.head.weight)
            assert (training, grads, now.model.training) == (False, False, True)
        assert not seen
    assert [line["step"] for line in lines(tmp_path) if "held_out" in line] == [3, 6]
    assert sorted(path.name for path in (tmp_path / "samples").iterdir()) == ["000004", "000008"]


def test_average_comes_back_when_the_held_out_loss_fails(tmp_path):
    now = under_way(Toy(), SHORT, tmp_path)
    now.advance()
    before = now.model.head.weight.detach().clone()
    with pytest.raises(KeyboardInterrupt), now.average.in_place():
        raise KeyboardInterrupt
    assert torch.equal(before, now.model.head.weight)


def test_time_limit_stops_with_a_checkpoint_and_the_rest_is_as_if_it_had_not(tmp_path):
    whole = run(Toy(), SHORT, tmp_path / "whole", device="cpu")
    assert run(Toy(), SHORT, tmp_path / "cut", max_minutes=0, device="cpu") is None
    assert [path.name for path in complete(tmp_path / "cut")] == ["step-000001"]
    cut = run(Toy(), SHORT, tmp_path / "cut", max_minutes=60, device="cpu")
    assert whole.read_bytes() == cut.read_bytes()


class DivergingToy(Toy):
    """Goes wrong at some steps."""

    def __init__(self, factor, steps):
        super().__init__()
        self.factor, self.steps = factor, steps

    def batch(self, step, rank, world):
        batch = super().batch(step, rank, world)
        scale = torch.full((4,), self.factor if step in self.steps else 1.0)
        return Batch(tensors=batch.tensors | {"scale": scale}, keys=batch.keys)

    def loss(self, model, batch):
        return super().loss(model, batch) * batch.tensors["scale"][0]


def contents(folder):
    return {path.name: path.read_bytes() for path in folder.iterdir()}


@pytest.mark.parametrize("factor", [float("nan"), float("inf")])
def test_a_loss_that_is_not_finite_stops_with_the_samples_named(tmp_path, factor):
    recipe = replace(SHORT, save_every=4)
    with pytest.raises(FloatingPointError, match="bad-step-000006.json"):
        run(DivergingToy(factor, {6}), recipe, tmp_path, device="cpu")
    report = json.loads((tmp_path / "bad-step-000006.json").read_text())
    assert report["step"] == 6
    assert report["keys"] == [["6/0", "6/1", "6/2", "6/3"]]
    assert report["recent"] == [line["loss"] for line in lines(tmp_path)]
    assert str(report["loss"]) == str(factor)
    assert [path.name for path in complete(tmp_path)] == ["step-000004"]
    run(Toy(), recipe, tmp_path, device="cpu")
    assert complete(tmp_path)[-1].name == "step-000008"


def test_a_gradient_that_is_not_finite_stops_too(tmp_path):
    class Steep(Toy):
        def loss(self, model, batch):
            return super().loss(model, batch) + (0 * model.head.weight.sum()).sqrt()

    with pytest.raises(FloatingPointError, match="gradient norm is nan"):
        run(Steep(), SHORT, tmp_path, device="cpu")
    assert complete(tmp_path) == []


def test_an_exploding_loss_stops_and_is_not_saved(tmp_path):
    recipe = replace(SHORT, steps=40, save_every=2, keep=30)
    with pytest.raises(FloatingPointError, match="for 5 steps above 10.0 times its median"):
        run(DivergingToy(1e4, range(24, 40)), recipe, tmp_path, device="cpu")
    assert (tmp_path / f"bad-step-{24 + PATIENCE - 1:06d}.json").exists()
    assert complete(tmp_path)[-1].name == "step-000024"


def test_a_single_bad_batch_does_not_stop_a_run(tmp_path):
    recipe = replace(SHORT, steps=32)
    assert run(DivergingToy(1e4, {25, 26, 28}), recipe, tmp_path, device="cpu") is not None


def test_an_interruption_is_not_swallowed(tmp_path):
    class InterruptedToy(Toy):
        def batch(self, step, rank, world):
            if step == 5:
                signal.raise_signal(signal.SIGINT)
            return super().batch(step, rank, world)

    # A process that a shell has put into the background ignores the signal, and so would the test.
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        with pytest.raises(KeyboardInterrupt):
            run(InterruptedToy(), replace(SHORT, save_every=4), tmp_path, device="cpu")
    finally:
        signal.signal(signal.SIGINT, before)
    assert [path.name for path in tmp_path.glob("step-*")] == ["step-000004"]


def test_muon_is_refused_for_more_than_one_process():
    with pytest.raises(ValueError, match="one process for muon, got 2"):
        optimizers(Toy().build(), replace(SHORT, optimizer="muon"), 2)
