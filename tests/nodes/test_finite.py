"""A run stops where NaN comes up: the stage, the evaluation and what to try are named."""

import comfy.samplers
import host_stub
import pytest
import torch
from surf.nodes.host import finite
from surf.nodes.preview import SurfReshiftKSampler
from surf.tests.nodes.test_switch import HIGH, LOW, SETTINGS, blank, conds, make_guider, run

NAN, INF = float("nan"), float("inf")


def failing(at, value=NAN):
    """A model whose evaluation number `at` holds one bad value."""
    calls = []

    def velocity(x, sigma, cond):
        calls.append(sigma)
        out = x + cond
        # Every step evaluates the positive and the negative prompt.
        if len(calls) == 2 * at:
            out[0, 0, 0, 0, 0] = value
        return out

    return host_stub.Patcher(velocity=velocity)


@pytest.mark.parametrize("value", [NAN, INF])
@pytest.mark.parametrize(
    ("at", "words"),
    [
        (1, "from evaluation 1 before the switch, at sigma 1;"),
        (3, "from evaluation 3 before the switch"),
        (4, "from evaluation 1 after the switch"),
        (8, "from evaluation 5 after the switch"),
    ],
)
def test_nothing_runs_after_a_bad_evaluation(at, value, words):
    model = failing(at, value)
    with pytest.raises(ValueError, match=f"^Surf Reshift KSampler: expected finite.*{words}.*LoRA"):
        run(model)
    assert len(model.seen) == at


def test_the_guider_names_itself():
    guider = make_guider(failing(2))
    samples, euler = blank()["samples"], comfy.samplers.sampler_object("euler")
    sigmas = torch.linspace(1, 0, 9)
    with pytest.raises(
        ValueError, match="^Surf Reshift Guider: expected finite.*evaluation 2 before"
    ):
        guider.sample(torch.randn_like(samples), samples, euler, sigmas, seed=1)
    with pytest.raises(ValueError, match="^Surf Reshift Guider: the noise must be finite"):
        guider.sample(samples * NAN, samples, euler, sigmas, seed=1)


def test_a_sampler_that_breaks_finite_estimates_is_stopped(monkeypatch):
    def broken(model, x, sigmas, seed, callback):
        return host_stub.euler(model, x, sigmas, seed, callback) * INF

    monkeypatch.setitem(host_stub.FUNCTIONS, "euler", broken)
    model = host_stub.Patcher()
    with pytest.raises(ValueError, match="what the sampler made before the switch must be finite"):
        run(model)
    assert len(model.seen) == 3


CONDS = {
    "text": lambda x: [[x, {}]],
    "pooled_output": lambda x: [[torch.ones(1, 4, 8), {"pooled_output": x}]],
    "vace_frames": lambda x: [[torch.ones(1, 4, 8), {"vace_frames": [x, x]}]],
    "extra": lambda x: [[torch.ones(1, 4, 8), {"extra": {"deep": [x]}}]],
}


@pytest.mark.parametrize("key", CONDS)
@pytest.mark.parametrize("name", ["positive", "negative"])
def test_bad_conditioning_is_refused_before_the_first_evaluation(key, name):
    bad = torch.ones(1, 4, 8)
    bad[0, 1, 2] = NAN
    model, given = host_stub.Patcher(), conds() | {name: CONDS[key](bad)}
    with pytest.raises(ValueError, match=f"{key} of the {name} conditioning must be finite.*8\\)"):
        SurfReshiftKSampler.execute(model=model, latent_image=blank(), **given, **SETTINGS)
    assert not model.seen


@pytest.mark.parametrize("name", ["positive", "negative", "positive_low"])
def test_conditioning_without_a_prompt_is_refused_before_the_first_evaluation(name):
    """The host would estimate zeros for it, without a word."""
    model, given = host_stub.Patcher(), conds() | {name: []}
    if name.endswith("_low"):
        given["negative_low"] = given["negative"]
    with pytest.raises(ValueError, match=f"a prompt in the {name} conditioning, got an empty"):
        SurfReshiftKSampler.execute(model=model, latent_image=blank(), **given, **SETTINGS)
    assert not model.seen


def test_what_is_no_float_or_no_tensor_passes():
    finite.check_conditioning({"positive": [[None, {"hooks": object(), "count": 3}]]})
    finite.check_finite(torch.ones(2, dtype=torch.int64), "ids", "look")
    finite.check_finite(torch.ones(2).to(torch.float8_e4m3fn), "weights", "look")
    with pytest.raises(ValueError, match="^the frames must be finite"):
        finite.check_finite(torch.tensor([1.0, NAN]), "the frames", finite.VAE_CAUSES)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
@pytest.mark.parametrize("value", [NAN, float("inf"), -float("inf")])
def test_one_bad_value_is_found_anywhere_and_at_any_precision(value, dtype):
    x = torch.rand(3, 5, 7).to(dtype)
    assert finite.is_finite(x)
    assert finite.is_finite(x[:0])
    for place in ((0, 0, 0), (2, 4, 6), (1, 2, 3)):
        bad = x.clone()
        bad[place] = value
        assert not finite.is_finite(bad)


class Late:
    """An event of a GPU that is still at work."""

    waited = 0

    def __init__(self):
        self.done = False

    def query(self):
        return self.done

    def synchronize(self):
        Late.waited += 1


def test_frames_that_are_a_view_are_looked_at_without_a_copy_of_all(monkeypatch):
    """Minutes of one frame: torch would allocate them to find their ends."""
    sizes, aminmax = [], torch.aminmax
    monkeypatch.setattr(torch, "aminmax", lambda x: sizes.append(x.numel()) or aminmax(x))
    frame = torch.rand(1, 4, 6, 3)
    frames = frame.expand(1000, -1, -1, -1)
    assert finite.ends(frames).tolist() == [frame.min(), frame.max()]
    assert sum(sizes) == frames.numel()
    assert max(sizes) == finite.GROUP * frame.numel()


@pytest.mark.parametrize("at", [0, 63, 64, 129])
@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_a_bad_frame_is_found_wherever_it_is(at, value):
    frames = torch.rand(130, 2, 2, 3)
    frames[at, 1, 1, 2] = value
    assert not finite.is_finite(frames)
    assert finite.is_finite(frames[torch.arange(130) != at])


def test_a_gpu_is_not_waited_for_until_the_end(monkeypatch):
    events = []

    def fetch(flag):
        events.append(Late())
        return flag, events[-1]

    monkeypatch.setattr(finite, "_fetch", fetch)
    monkeypatch.setattr(Late, "waited", 0)
    good, bad = torch.zeros(1, device="cpu"), torch.tensor([NAN])
    guard = finite.NonFiniteGuard("before the switch")
    on_gpu = lambda x: type("OnGpu", (), {"device": torch.device("cuda"), "value": x})  # noqa: E731
    monkeypatch.setattr(finite, "is_finite", lambda x: torch.isfinite(x.value).all())
    for x in (good, bad, good):
        guard.see(on_gpu(x), 0.5)
    assert Late.waited == 0
    with pytest.raises(ValueError, match="evaluation 2 before the switch, at sigma 0.5"):
        guard.finish()
    assert Late.waited == 2
    guard = finite.NonFiniteGuard("before the switch")
    guard.see(on_gpu(bad), torch.tensor([0.25]))
    events[-1].done = True
    with pytest.raises(ValueError, match="evaluation 1 before the switch, at sigma 0.25"):
        guard.see(on_gpu(good), 0.1)
    assert Late.waited == 2


def test_good_runs_are_left_alone():
    model, preview, _ = run()
    assert [e.size for e in model.seen] == [HIGH] * 3 + [LOW] * 5
    assert torch.isfinite(preview["samples"]).all()
