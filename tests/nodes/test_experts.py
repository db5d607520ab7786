"""Two experts over a switch, each on its side of the boundary; a leg with settings of its own."""

import comfy.samplers
import host_stub
import pytest
import torch
from surf.tests.nodes.test_leg_masks import curved
from surf.tests.nodes.test_switch import HIGH, LOW, SETTINGS, conds, make_guider, run, sample

BOUNDARY = 0.9
SHIFTED = {"shift": 5.0, "shift_low": 5.0, "noise_policy": "inherited"}


def pair(**changes):
    """Run both experts: (evaluations of each in order, preview, switch_x0)."""
    high, low = host_stub.Patcher(velocity=curved), host_stub.Patcher(velocity=curved)
    seen = []
    high.seen = low.seen = seen
    _, preview, x0 = run(high, model_low_noise=low, **({"expert_boundary": BOUNDARY} | SHIFTED
                                                       | changes))  # fmt: skip
    return [(e.patcher.model is low.model, e) for e in seen], preview, x0


@pytest.mark.parametrize("k", range(9))
@pytest.mark.parametrize("sigma_policy", ["same", "snr_equal"])
@pytest.mark.parametrize("handover", ["reuse", "evaluate"])
def test_each_expert_evaluates_its_side_of_the_boundary(k, sigma_policy, handover):
    seen, *_ = pair(switch_step=k, sigma_policy=sigma_policy, handover=handover)
    high = k + (handover == "evaluate" and 0 < k < 8)
    assert [e.size for _, e in seen] == [HIGH] * high + [LOW] * (8 - k)
    for is_low_noise, e in seen:
        assert is_low_noise == (e.sigma < BOUNDARY - 1e-6)


@pytest.mark.parametrize("cfg_low_noise", [0.0, 2.0])
def test_guidance_is_by_size_unless_the_low_noise_expert_has_its_own(cfg_low_noise):
    seen, *_ = pair(switch_step=4, cfg_low_noise=cfg_low_noise)
    assert {is_low_noise for is_low_noise, _ in seen} == {False, True}
    for is_low_noise, e in seen:
        by_size = 7.5 if e.size == HIGH else 5.0
        assert e.cfg == (cfg_low_noise if is_low_noise and cfg_low_noise else by_size)


def test_one_model_as_both_experts_is_the_run_of_one():
    model = host_stub.Patcher(velocity=curved)
    wanted = run(model, switch_step=5, **SHIFTED)[1]["samples"]
    out = run(
        model, switch_step=5, model_low_noise=model, expert_boundary=BOUNDARY, **SHIFTED
    )[1]["samples"]  # fmt: skip
    torch.testing.assert_close(out, wanted, atol=1e-5, rtol=1e-5)


def test_one_shift_holds_for_both_experts():
    seen, *_ = pair(switch_step=4, shift=8.0, shift_low=3.0)
    for _, e in seen:
        shift = e.patcher.get_model_object("model_sampling").shift
        assert shift == (8.0 if e.size == HIGH else 3.0)


def test_one_bar_counts_through_all_legs():
    host_stub.BARS.clear()
    pair(switch_step=4, steps_low=6, handover="evaluate")
    [bar] = host_stub.BARS
    assert bar.steps == 11
    assert bar.shown == [(i + 1, 11) for i in range(11)]


@pytest.mark.parametrize("stop", [0, 3, 4, 7])
def test_an_interrupt_in_any_leg_passes_through(stop):
    low = host_stub.Patcher()
    guider = make_guider(switch_step=4, **SHIFTED_GUIDER, model_low_noise=low)

    def interrupt(step, x0, x, total):
        if step == stop:
            raise host_stub.Interrupted

    first = sample(guider)
    with pytest.raises(host_stub.Interrupted):
        sample(guider, callback=interrupt)
    assert torch.equal(sample(guider), first)


SHIFTED_GUIDER = {"noise_policy": "inherited", "expert_boundary": 0.7}


def test_the_guider_cuts_where_the_given_sigmas_cross_the_boundary():
    high, low = host_stub.Patcher(), host_stub.Patcher()
    sample(make_guider(high, switch_step=4, **SHIFTED_GUIDER, model_low_noise=low))
    assert [e.sigma for e in high.seen] == [1.0, 0.875, 0.75]
    assert [(e.sigma, e.size) for e in low.seen][0] == (0.625, HIGH)
    assert len(low.seen) == 5


def test_steps_sampler_and_scheduler_of_the_second_leg_are_its_own(monkeypatch):
    monkeypatch.setattr(
        comfy.samplers.KSampler, "SCHEDULERS", [*comfy.samplers.KSampler.SCHEDULERS, "other"]
    )
    used = []
    for name in ("euler", "dpm_2"):

        def spy(*args, name=name, real=host_stub.FUNCTIONS[name]):
            used.append((name, len(args[2]) - 1))
            return real(*args)

        monkeypatch.setitem(host_stub.FUNCTIONS, name, spy)
    model, *_ = run(sampler_low="dpm_2", scheduler_low="other", steps_low=4)
    assert used == [("euler", 3), ("dpm_2", 4)]
    assert [e.size for e in model.seen] == [HIGH] * 3 + [LOW] * 4


def test_the_rest_of_the_schedule_is_the_default():
    assert torch.equal(
        run(steps_low=5, sampler_low="euler", scheduler_low="simple")[1]["samples"],
        run()[1]["samples"],
    )


def test_second_prompts_are_those_of_the_second_size():
    third = [[torch.full((1, 4, 8), 2.0), {}]]
    model, *_ = run(positive_low=third, negative_low=third)
    own = conds()["positive"][0][0]
    for e in model.seen:
        text = e.conds["positive"][0][0]
        assert torch.equal(text, own if e.size == HIGH else third[0][0])
    alone, *_ = run(positive_low=third)
    negative = conds()["negative"][0][0]
    assert all(torch.equal(e.conds["negative"][0][0], negative) for e in alone.seen)


def test_settings_of_the_guider_are_those_of_the_ksampler():
    assert set(SETTINGS) >= {"switch_step", "cfg", "cfg_low"}
    third = [[torch.full((1, 4, 8), 2.0), {}]]
    low = host_stub.Patcher()
    extra = {"model_low": low, "steps_low": 2, "positive_low": third}
    guider = make_guider(**extra, switch_step=3)
    sample(guider)
    assert len(low.seen) == 2
    assert torch.equal(low.seen[0].conds["positive"][0][0], third[0][0])
