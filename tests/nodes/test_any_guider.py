"""The switch round a guider of any class, once or at several sizes; what cannot be wrapped."""

import re

import comfy.samplers
import host_stub
import pytest
import torch
from surf.nodes.guiders import SurfReshiftAnyGuider, SurfReshiftLadder
from surf.tests.nodes.test_leg_masks import curved
from surf.tests.nodes.test_switch import HIGH, LOW, conds, make_guider, sample

SWITCH = {
    "switch_step": 3, "low_resolution": "by scale", "low_scale": 0.5, "low_width": 416,
    "low_height": 240, "sigma_policy": "same", "noise_policy": "inherited", "handover": "reuse",
}  # fmt: skip
POLICIES = {key: SWITCH[key] for key in ("sigma_policy", "noise_policy", "handover")}
THIRD = [[torch.full((1, 4, 8), 2.0), {}]]


class Halving(comfy.samplers.CFGGuider):
    """Of another pack: a prediction and an attribute of its own, no negative prompt."""

    share = 1.0

    def set_conds(self, positive):
        self.inner_set_conds({"positive": positive, "negative": positive})
        self.share = 0.5

    def predict_noise(self, *args, **kwargs):
        return self.share * super().predict_noise(*args, **kwargs)


class Hidden(comfy.samplers.CFGGuider):
    """Predicts past the host's wrappers."""

    def outer_predict_noise(self, *args, **kwargs):
        return self.predict_noise(*args, **kwargs)


def cfg_guider(kind=comfy.samplers.CFGGuider, model=None, cfg=1.0):
    guider = kind(model or host_stub.Patcher(velocity=curved))
    guider.set_conds(*list(conds().values())[: 1 if kind is Halving else 2])
    guider.set_cfg(cfg)
    return guider


def wrap(guider, **changes):
    return SurfReshiftAnyGuider.execute(guider=guider, **(SWITCH | changes)).args[0]


def climb(guider, sizes, **changes):
    return SurfReshiftLadder.execute(guider=guider, sizes=sizes, **(POLICIES | changes)).args[0]


@pytest.mark.parametrize("kind", [comfy.samplers.CFGGuider, Halving])
@pytest.mark.parametrize("policies", [{}, {"handover": "evaluate"}, {"sigma_policy": "snr_equal"}])
def test_where_nothing_changes_the_run_is_the_guiders_own(kind, policies):
    guider = cfg_guider(kind)
    before = dict(vars(guider))
    out = sample(wrap(guider, low_scale=1.0, **policies))
    torch.testing.assert_close(out, sample(cfg_guider(kind)), atol=1e-6, rtol=1e-6)
    assert vars(guider) == before


def test_it_is_the_reshift_guider_round_a_cfg_guider():
    for policy in ("inherited", "fresh"):
        ours = make_guider(host_stub.Patcher(velocity=curved), noise_policy=policy)
        other = wrap(cfg_guider(cfg=7.5), noise_policy=policy, cfg_low=5.0)
        assert torch.equal(sample(other), sample(ours))


def test_guidance_model_and_prompts_after_the_switch():
    first, second = host_stub.Patcher(), host_stub.Patcher()
    sample(wrap(cfg_guider(model=first, cfg=4.0), model_low=second, positive_low=THIRD,
                steps_low=2, cfg_low=2.0))  # fmt: skip
    assert [(e.size, e.cfg) for e in first.seen] == [(HIGH, 4.0)] * 3
    assert [(e.size, e.cfg) for e in second.seen] == [(LOW, 2.0)] * 2
    assert torch.equal(second.seen[0].conds["positive"][0][0], THIRD[0][0])
    negative = conds()["negative"][0][0]
    assert torch.equal(second.seen[0].conds["negative"][0][0], negative)


def test_options_that_a_guider_adds_to_its_models_stay():
    model, calls = host_stub.Patcher(), []
    guider = cfg_guider(model=model, cfg=2.0)

    def count(args):
        calls.append(args["denoised"].shape[-2:])
        return args["denoised"]

    guider.model_options = {**model.model_options, "sampler_post_cfg_function": [count]}
    model.add_wrapper_with_key("predict_noise", "lazycache", object())
    sample(wrap(guider))
    assert [tuple(size) for size in calls] == [HIGH] * 3 + [LOW] * 5


def test_several_sizes_come_one_after_the_other():
    model = host_stub.Patcher()
    sample(climb(cfg_guider(model=model), "2: 0.75, 5: 0.5"))
    assert [e.size for e in model.seen] == [HIGH] * 2 + [(12, 18)] * 3 + [LOW] * 3
    for policy in ("inherited", "fresh"):
        once = sample(wrap(cfg_guider(), noise_policy=policy))
        assert torch.equal(sample(climb(cfg_guider(), "3: 0.5", noise_policy=policy)), once)
        twice = climb(cfg_guider(), "3: 0.75\n5: 0.5", noise_policy=policy)
        assert torch.equal(sample(twice), sample(twice))


class Paired(comfy.samplers.CFGGuider):
    """Like the host's guider of two models, the second for the negative prompt."""

    second = None

    @property
    def uncond_model_patcher(self):
        return self.second


def paired(second):
    guider = cfg_guider(Paired, cfg=2.0)
    guider.second = second
    return guider


class Bare:
    """Looks like a guider to a socket, and is none of the host's kind."""

    model_patcher, sample = None, None


class Apart(Bare):
    """Of another pack, not made from CFGGuider: no guidance scale, and prompts set elsewhere."""

    model_options, original_conds = {}, {}


def mean_flow():
    """A model whose network is told the noise level of the next step."""
    model = host_stub.Patcher()
    model.model.diffusion_model.time_r_in = torch.nn.Identity()
    return model


BAD = [
    (lambda: wrap(cfg_guider(), middle_low=THIRD), "own middle", "positive, neg",
     "disconnect"),
    (lambda: wrap(cfg_guider(Halving), middle_low=THIRD), "Halving", "middle_low", "disconnect"),
    (lambda: wrap(wrap(cfg_guider())), "without a switch", "got one", "Surf Reshift Ladder"),
    (lambda: wrap(make_guider()), "without a switch", "got one", "connect"),
    (lambda: wrap(Bare()), "as the host makes them", "Bare without model_options", "connect"),
    (lambda: wrap(Apart()), "Apart without cfg, set_conds, inner_set_conds;", "connect"),
    (lambda: wrap(None), "guider must be of type GUIDER", "NoneType", "muted"),
    (lambda: wrap(cfg_guider(model=host_stub.Patcher(kind=(host_stub.DiscreteFlow,
                                                           host_stub.Eps)))),
     "flow model", "Eps", "connect"),
    (lambda: wrap(cfg_guider(), model_low=mean_flow()), "can be switched", "mean flow",
     "SamplerCustomAdvanced"),
    (lambda: wrap(cfg_guider(), model_low=host_stub.Patcher(channels=48)), "Wan21", "Wan22",
     "same family"),
    (lambda: wrap(paired(host_stub.Patcher()), model_low=host_stub.Patcher()), "one model",
     "Paired", "would stay", "disconnect model_low"),
    (lambda: wrap(paired(mean_flow())), "can be switched", "mean flow", "SamplerCustomAdvanced"),
    (lambda: wrap(paired(host_stub.Patcher(channels=48))), "second model of the guider", "Wan22",
     "same family"),
    (lambda: sample(wrap(cfg_guider(), positive_low=[])), "prompt in the positive_low",
     "empty list", "connect"),
    (lambda: sample(wrap(cfg_guider(), switch_step=9)), "0 to 8", "step=9", "use"),
    (lambda: sample(wrap(cfg_guider(Hidden))), "the host's wrappers", "Hidden", "fresh"),
]  # fmt: skip
BAD_LADDERS = [
    (lambda: climb(cfg_guider(), "10 0.5"), "'10: 0.75, 20: 0.5'", "'10 0.5'", "write"),
    (lambda: climb(cfg_guider(), ", "), "at most 16", "got ','", "write"),
    (lambda: climb(cfg_guider(), ", ".join(f"{i}: {1 - i / 100}" for i in range(17))),
     "at most 16", "0: 1.0", "write"),
    (lambda: climb(cfg_guider(), "10: 0.5, 10: 0.4"), "later steps", "got 10: 0.4", "in order"),
    (lambda: climb(cfg_guider(), "1: 0.05"), "within 0.1 to 1.0", "0.05", "use 0.5"),
    (lambda: sample(climb(cfg_guider(), "2: 0.75, 9: 0.5")), "0 to 8", "step=9", "use"),
]  # fmt: skip


@pytest.mark.parametrize(
    ("title", "call", "words"),
    [("Surf Reshift Any Guider", call, words) for call, *words in BAD]
    + [("Surf Reshift Ladder", call, words) for call, *words in BAD_LADDERS],
)
def test_what_cannot_be_wrapped_is_refused_with_advice(title, call, words):
    with pytest.raises(ValueError, match=f"^{title}: ") as caught:
        call()
    said = str(caught.value)
    assert all(word in said for word in words), said
    assert re.search(r"[;,] .+\.$", said), said


def test_a_guider_that_hides_its_predictions_stops_at_the_first_and_runs_with_fresh_noise():
    model = host_stub.Patcher(velocity=curved)
    with pytest.raises(ValueError, match="wrappers"):
        sample(wrap(cfg_guider(Hidden, model)))
    assert len(model.seen) == 1
    out = sample(wrap(cfg_guider(Hidden), noise_policy="fresh"))
    assert torch.equal(out, sample(wrap(cfg_guider(), noise_policy="fresh")))
