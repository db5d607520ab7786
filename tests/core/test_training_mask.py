"""The mask predictor: its file, its task, and what its numbers mean."""

import json
from types import SimpleNamespace

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import save_file
from surf.surf_core import checkpoint
from surf.surf_core.resample import resize
from surf.surf_core.skip import MaskPredictor, PredictorConfig, detail, predict_mask, predictor
from surf.surf_core.training.loop import run
from surf.surf_core.training.mask import MaskTask, auc, correlation, share, threshold
from surf.surf_core.training.task import Recipe
from surf.surf_core.training.tiny import codec
from surf.surf_core.training.tiny.scenes import render


class Rendered:
    """Rendered scenes in memory, with the interface of the shards."""

    def __init__(self, train=8, held=4, size=64, frames=3):
        keys = [*(f"clip-{i}" for i in range(train)), *(f"held-{i}" for i in range(held))]
        self.held_out = tuple(keys[train:])
        self.names = {key: f"{size}x{size}x{frames}" for key in keys[:train]}
        video = render(len(keys), frames, size, torch.Generator().manual_seed(0)).video
        low = resize(resize(video, (size // 4, size // 4), "area"), (size, size), "bicubic")
        hr, start = codec.encode(video), codec.encode(low)
        small = resize(start, (size // 16, size // 16), "area")
        self.clips = {
            key: SimpleNamespace(hr=hr[i], start=start[i], lr=small[i], text=None, caption="")
            for i, key in enumerate(keys)
        }

    def buckets(self):
        return self.names

    def load(self, key):
        return self.clips[key]


@pytest.fixture(scope="module")
def clips():
    return Rendered()


def task_of(clips, **options):
    pixels = {"decode": codec.decode, "cell": (1, codec.CELL)}
    return MaskTask(**{"clips": clips, "batch_size": 4} | pixels | options)


# The network and its file.


@pytest.mark.parametrize("shape", [(1, 16, 1, 2, 2), (2, 16, 3, 8, 12), (1, 16, 5, 6, 2)])
def test_one_logarithm_per_token_comes_out(shape):
    model = MaskPredictor(PredictorConfig())
    out = model(torch.randn(shape))
    assert out.shape == (shape[0], shape[2], shape[3] // 2, shape[4] // 2)
    assert out.dtype == torch.float32
    found = model.scores(torch.randn(shape).half())
    assert found.isfinite().all()
    assert found.min() >= 0


def test_it_is_small_and_begins_by_knowing_nothing():
    models = [MaskPredictor(PredictorConfig()) for _ in range(2)]
    for model in models:
        model.initialise(torch.Generator().manual_seed(3))
    assert sum(p.numel() for p in models[0].parameters()) == 75217
    assert all(
        torch.equal(a, b)
        for a, b in zip(models[0].parameters(), models[1].parameters(), strict=True)
    )
    assert not models[0](torch.randn(1, 16, 2, 8, 8)).any()


def test_a_token_sees_its_neighbours_in_space_and_time_and_no_other_sample():
    model = MaskPredictor(PredictorConfig(depth=0))
    start = torch.randn(2, 16, 5, 16, 16, generator=torch.Generator().manual_seed(0))
    other = start.clone()
    other[0, :, 2, 8, 8] += 1
    touched = (model(other) != model(start)).nonzero()
    assert set(touched[:, 0].tolist()) == {0}
    assert set(touched[:, 1].tolist()) == {1, 2, 3}
    # Cell (8, 8) is the first of token (4, 4), and one beyond (3, 3).
    assert {tuple(place) for place in touched[:, 2:].tolist()} == {(3, 3), (3, 4), (4, 3), (4, 4)}


def test_calibration_divides_scores(tmp_path):
    model = MaskPredictor(PredictorConfig())
    start = torch.randn(1, 16, 2, 8, 8)
    plain = model.scores(start)
    model.calibration = 0.5
    assert torch.equal(model.scores(start), plain / 0.5)


def test_a_file_round_trips_with_config_calibration_and_notes(tmp_path):
    config = PredictorConfig(width=16, depth=1, groups=4)
    model, path = MaskPredictor(config), tmp_path / "mask.safetensors"
    predictor.save(path, model.state_dict(), config, 0.75, {"steps": 3})
    again, notes = predictor.load(path)
    assert (again.config, again.calibration, notes) == (config, 0.75, {"steps": 3})
    start = torch.randn(1, 16, 2, 8, 8)
    assert torch.equal(again(start), model(start))
    assert not again.training
    with pytest.raises(ValueError, match="it is not ours, use the loader of its kind"):
        checkpoint.read_config(path)


def written(path, change):
    """A predictor's file with other metadata."""
    config = PredictorConfig(width=16, depth=1, groups=4)
    model = MaskPredictor(config)
    predictor.save(path, model.state_dict(), config, 1.0, {})
    with safe_open(path, "pt") as file:
        metadata = file.metadata()
    weights = {name: weight.clone() for name, weight in model.state_dict().items()}
    change(metadata, weights)
    save_file(weights, path, metadata)
    return path


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        (lambda m, w: m.clear(), "it is no mask predictor"),
        (lambda m, w: m.update({"surf.skip.format": "2"}), "update the pack"),
        (lambda m, w: m.update({"surf.skip.config": "{"}), "it is damaged"),
        (lambda m, w: m.update({"surf.skip.config": '{"patch": [1, 2, 2], "x": 1}'}), "unknown"),
        (lambda m, w: m.update({"surf.skip.calibration": "nan"}), "it is damaged"),
        (lambda m, w: m.update({"surf.skip.calibration": "0"}), "it is damaged"),
        (lambda m, w: m.pop("surf.skip.calibration"), "it is damaged"),
        (lambda m, w: w.pop("head.bias"), "do not fit their config"),
        (lambda m, w: w.update({"head.bias": torch.zeros(2)}), "do not fit their config"),
    ],
)
def test_files_that_are_none_are_rejected(change, expected, tmp_path):
    path = written(tmp_path / "mask.safetensors", change)
    with pytest.raises(ValueError, match=expected):
        predictor.load(path)


def test_missing_and_broken_files_are_rejected(tmp_path):
    with pytest.raises(FileNotFoundError, match="found nothing"):
        predictor.load(tmp_path / "nowhere.safetensors")
    (tmp_path / "broken.safetensors").write_bytes(b"no")
    with pytest.raises(ValueError, match="is not one"):
        predictor.load(tmp_path / "broken.safetensors")


@pytest.mark.parametrize(
    "options", [{"width": 20}, {"groups": 0}, {"depth": -1}, {"patch": (2, 2, 2)}], ids=str
)
def test_configs_that_cannot_be_are_rejected(options):
    with pytest.raises(ValueError, match="expected"):
        PredictorConfig(**options)


# The task.


def test_a_batch_is_a_function_of_its_step_that_processes_share(clips):
    task = task_of(clips)
    whole = task.batch(3, 0, 1)
    halves = [task_of(clips).batch(3, rank, 2) for rank in range(2)]
    assert [half.keys for half in halves] == [whole.keys[0::2], whole.keys[1::2]]
    for name, value in whole.tensors.items():
        for rank, half in enumerate(halves):
            assert torch.equal(half.tensors[name], value[rank::2])
    assert whole.tensors["start"].shape == (4, 16, 3, 16, 16)
    assert whole.tensors["scores"].shape == (4, 3, 8, 8)
    assert not set(whole.keys) & set(clips.held_out)


def test_targets_are_of_pixels_or_of_the_latent(clips):
    start, pixels = task_of(clips).sample("clip-0")
    assert start is clips.load("clip-0").start
    _, latent = task_of(clips, decode=None, cell=(1, 1)).sample("clip-0")
    assert pixels.shape == latent.shape == (3, 8, 8)
    assert correlation(pixels.flatten().log(), latent.flatten().log()) > 0.5
    assert not torch.allclose(pixels, latent)


def test_the_loss_is_that_of_logarithms(clips):
    task = task_of(clips)
    batch = task.batch(0, 0, 1)
    model = lambda start: torch.log(batch.tensors["scores"] + 0.3)  # noqa: E731
    assert task.loss(model, batch) == 0
    model = lambda start: torch.log(batch.tensors["scores"] + 0.3) + 2  # noqa: E731
    assert task.loss(model, batch) == pytest.approx(1.5, rel=1e-5)


def test_a_model_that_knows_the_truth_is_judged_perfect(clips):
    """And one that is wrong by a factor is put right by the calibration."""
    task = task_of(clips, recall=1.0)
    truth = {key: task.sample(key) for key in clips.held_out}

    class Knowing(torch.nn.Linear):
        scale = 1.0

        def forward(self, start):
            for given, found in truth.values():
                if torch.equal(given, start[0]):
                    return torch.log(self.scale * found + 0.3)[None]
            raise AssertionError("a clip that is not held out")

    model = Knowing(1, 1)
    numbers = task.held_out(model)
    assert numbers["loss"] == pytest.approx(0, abs=1e-6)
    assert (numbers["auc"], numbers["recall"]) == (1.0, 1.0)
    assert numbers["correlation"] == pytest.approx(1)
    assert numbers["keep"] == pytest.approx(numbers["oracle_keep"], abs=0.01)
    model.scale = 0.25
    wrong = task.held_out(model)
    assert wrong["recall"] < 0.9
    assert wrong["calibrated_recall"] > 0.95
    assert 0.25 <= wrong["calibration"] < 0.4
    assert 0.5 < wrong["detail_auc"] < 1


def test_the_baseline_is_judged_on_the_same_clips(clips):
    task = task_of(clips)
    numbers = task.held_out(task.build())
    found = torch.cat([detail(clips.load(key).start[None]).flatten() for key in clips.held_out])
    truth = torch.cat([task.sample(key)[1].flatten() for key in clips.held_out])
    assert numbers["detail_auc"] == pytest.approx(auc(found, truth >= task.tau))
    assert numbers["auc"] == 0.5
    assert all(isinstance(value, float) for value in numbers.values())


def test_the_area_is_the_chance_of_ranking_right():
    found = torch.tensor([1.0, 2, 2, 3, 5, 0, 2])
    must = torch.tensor([0, 1, 0, 1, 1, 0, 0]) > 0
    pairs = [(y > n) + 0.5 * (y == n) for y in found[must] for n in found[~must]]
    assert auc(found, must) == pytest.approx(float(sum(pairs)) / len(pairs))
    assert auc(found, must | True) == auc(found, must & False) == 0.5
    assert share(must) == pytest.approx(3 / 7)
    assert share(must, must & False) == 1.0
    assert correlation(torch.ones(3), torch.arange(3.0)) == 0


@pytest.mark.parametrize(("recall", "expected"), [(1.0, 1.0), (0.98, 2.0), (0.9, 6.0)])
def test_the_threshold_is_the_greatest_with_the_recall(recall, expected):
    found = torch.cat([torch.arange(1.0, 51), torch.zeros(30)])
    must = torch.cat([torch.ones(50), torch.zeros(30)]) > 0
    bar = threshold(found, must, recall)
    assert bar == expected
    assert (found[must] >= bar).double().mean() >= recall - 1e-9


def test_without_anything_to_find_the_threshold_keeps_everything(caplog):
    assert threshold(torch.rand(9), torch.zeros(9, dtype=torch.bool), 0.98) == 1e-3
    assert "not calibrated" in caplog.text


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({"tau": 0}, "tau must lie within"),
        ({"recall": 1.5}, "recall must lie within"),
        ({"batch_size": 0}, "batch of at least 1"),
        ({"held_out_clips": 1}, "at least 2 held-out"),
        ({"batch_size": 9}, "expected a bucket with 9 clips"),
    ],
    ids=str,
)
def test_tasks_that_cannot_be_are_rejected(clips, options, expected):
    with pytest.raises(ValueError, match=expected):
        task_of(clips, **options)


def test_too_few_held_out_clips_are_rejected():
    task = task_of(Rendered(train=4, held=1))
    with pytest.raises(ValueError, match="at least 2 held-out clips, got 1"):
        task.held_out(task.build())


@pytest.mark.slow
def test_a_short_run_learns_and_exports_what_predict_mask_loads(clips, tmp_path):
    task = task_of(clips)
    recipe = Recipe(
        steps=60, name="mask", lr=3e-3, warmup=5, ema=0.9, precision="fp32", batch=4, save_every=60
    )
    before = task.held_out(task.build())
    path = run(task, recipe, tmp_path)
    model, notes = predictor.load(path)
    after = notes["judged"]
    assert after["loss"] < 0.6 * before["loss"]
    assert after["auc"] > 0.65
    assert after["correlation"] > 0.5
    assert model.calibration == after["calibration"] > 0
    assert notes["task"] == json.loads(json.dumps(task.notes()))
    # What was calibrated finds what must be refined in all of the held-out clips together.
    starts = torch.stack([clips.load(key).start for key in clips.held_out])
    truth = torch.stack([task.sample(key)[1] for key in clips.held_out])
    assert share(model.scores(starts) >= task.tau, truth >= task.tau) >= task.recall - 1e-3
    mask = predict_mask(starts, model, keep=0.5, hysteresis=1)
    assert torch.equal(mask.scores, model.scores(starts).amax(dim=0))
    assert 0.5 <= mask.keep_ratio < 0.6
