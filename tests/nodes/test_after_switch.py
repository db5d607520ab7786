"""What may change after a switch, on the fake host: the low band held, its sigma, positions."""

import re

import host_stub
import pytest
import torch
from comfy.patcher_extension import WrappersMP
from surf.nodes.host.preview.after_switch import AfterSwitch
from surf.surf_core.lowband import low_band
from surf.surf_core.resample import resize
from surf.surf_core.schedule import snr_equal_sigma
from surf.tests.nodes.test_any_guider import Hidden, cfg_guider, climb, wrap
from surf.tests.nodes.test_leg_masks import curved
from surf.tests.nodes.test_switch import HIGH, LOW, SETTINGS, make_guider, run, sample

OFF = {"low_band_lock": 0.0, "switch_sigma": 0.0, "rope_scale_low": 1.0}


def model(**more):
    return host_stub.Patcher(velocity=curved, **more)


class WanModel:
    """A network that reads the stretch where the host's does."""

    patch_size, ref_conv = (1, 2, 2), None

    def rope_encode(self, t, h, w, transformer_options=None):
        raise NotImplementedError

    def _forward(self, x):
        raise NotImplementedError


class OwnPositions(WanModel):
    """One that finds its positions its own way, as those of other kinds of Wan do."""

    def rope_encode(self, t, h, w, transformer_options=None):
        raise NotImplementedError


def stretching(network=WanModel):
    """A model, and what its evaluations are told: [(rows, rope_options)]."""
    made, told = model(), []
    made.model.diffusion_model = network()

    def watch(executor, x, timestep, options, *args):
        inner = options.get("transformer_options", {})
        told.append((x.shape[-2], inner.get("rope_options")))
        return executor(x, timestep, options, *args)

    wrappers = {WrappersMP.PREDICT_NOISE: {"told": [watch]}}
    made.model_options = {"transformer_options": {"wrappers": wrappers}}
    return made, told


def estimates(guider, **more):
    """Clean estimates of the steps at low resolution."""
    seen = []
    sample(guider, callback=lambda step, x0, x, total: seen.append(x0), **more)
    return [x0 for x0 in seen if tuple(x0.shape[-2:]) == LOW]


def gap_to(reference, x0):
    """How far the low band of an estimate, in the model's space, is from the reference's."""
    wanted = host_stub.Wan21().process_in(reference)
    return (low_band(x0, 2) - low_band(wanted, 2)).abs().max().item()


def test_off_is_bit_for_bit_the_run_without_the_inputs():
    for policies in ({}, {"noise_policy": "inherited", "sigma_policy": "snr_equal"}):
        for ours, wanted in zip(run(model(), **policies, **OFF)[1:], run(model(), **policies)[1:],
                                strict=True):  # fmt: skip
            assert torch.equal(ours["samples"], wanted["samples"])
    plain, told = stretching()
    sample(make_guider(plain, **OFF))
    assert {options for _, options in told} == {None}


@pytest.mark.parametrize("policies", [{}, {"sigma_policy": "snr_equal"}, {"handover": "evaluate"}])
def test_a_lock_over_all_steps_keeps_the_low_band_of_the_switch(policies):
    settings = {"noise_policy": "inherited"} | policies
    _, preview, x0 = run(model(), low_band_lock=1.0, **settings)
    small = resize(x0["samples"], LOW)
    assert (low_band(preview["samples"], 2) - low_band(small, 2)).abs().max() < 1e-4
    # And the rest is the model's own.
    assert (preview["samples"] - low_band(preview["samples"], 2)).std() > 1e-2
    _, loose, _ = run(model(), **settings)
    assert (low_band(loose["samples"], 2) - low_band(small, 2)).abs().max() > 1e-2


@pytest.mark.parametrize(("share", "held"), [(0.1, 0), (0.33, 2), (0.4, 2), (0.9, 4), (1.0, 5)])
def test_a_share_of_the_first_low_steps_is_held(share, held):
    reference = resize(run(model(), shift=0.0, shift_low=0.0)[2]["samples"], LOW)
    seen = estimates(make_guider(model(), low_band_lock=share))
    far = [gap_to(reference, x0) for x0 in seen]
    assert len(far) == 5
    assert [each < 1e-4 for each in far] == [True] * held + [False] * (5 - held), far


def test_a_lock_goes_on_through_a_change_of_the_expert():
    boundary = {"model_low_noise": model(), "expert_boundary": 0.45}
    whole = estimates(make_guider(model(), low_band_lock=0.8, **boundary))
    reference = resize(run(model(), shift=0.0, shift_low=0.0)[2]["samples"], LOW)
    assert [gap_to(reference, x0) < 1e-4 for x0 in whole] == [True] * 4 + [False]


def test_a_ladder_holds_the_estimate_of_each_of_its_switches():
    seen = []
    sample(climb(cfg_guider(model=model()), "2: 0.75, 5: 0.5", low_band_lock=1.0),
           callback=lambda step, x0, x, total: seen.append(x0))  # fmt: skip
    out = host_stub.Wan21().process_out
    assert gap_to(resize(out(seen[1]), (12, 18)), seen[4]) < 1e-4
    assert gap_to(resize(out(seen[4]), LOW), seen[7]) < 1e-4


def test_the_schedule_is_at_switch_sigma_and_the_evaluations_stay():
    high, low = ([e.sigma for e in run(model(), switch_sigma=0.75)[0].seen if e.size == size]
                 for size in (HIGH, LOW))  # fmt: skip
    assert (len(high), len(low)) == (3, 5)
    assert low[0] == torch.tensor(0.75).item()
    assert all(a > b for a, b in zip(high + low, (high + low)[1:], strict=False))
    before = [e.sigma for e in run(model())[0].seen]
    assert high[0] == before[0]
    assert high[2] < before[2]
    few = run(model(), switch_sigma=0.75, steps_low=2, sigma_policy="snr_equal")[0].seen
    assert [e.size for e in few] == [HIGH] * 3 + [LOW] * 2
    assert few[3].sigma == pytest.approx(snr_equal_sigma(0.75, 2.0))


def test_the_sigma_that_the_schedule_has_changes_nothing():
    own = run(model())[0].seen[3].sigma
    ours, wanted = run(model(), switch_sigma=own)[1], run(model())[1]
    assert torch.equal(ours["samples"], wanted["samples"])


def test_positions_are_stretched_after_the_switch_and_fall_back():
    made, told = stretching()
    sample(wrap(cfg_guider(model=made), rope_scale_low=2.0))
    assert [options for rows, options in told if rows == HIGH[0]] == [None] * 3
    after = [options for rows, options in told if rows == LOW[0]]
    assert [each["scale_x"] for each in after] == pytest.approx([2.0, 1.75, 1.5, 1.25, 1.0])
    assert [each["scale_y"] for each in after] == [each["scale_x"] for each in after]


def test_a_stretch_of_another_node_stays():
    own = {"transformer_options": {"rope_options": {"scale_y": 1.5, "shift_t": 2.0}, "a": 1}}
    after = AfterSwitch(rope_scale=2.0, sigmas=(0.8, 0.4, 0.0))
    assert after.stretched(own, 0.8)["transformer_options"] == {
        "rope_options": {"scale_y": 3.0, "scale_x": 2.0, "shift_t": 2.0}, "a": 1,
    }  # fmt: skip
    assert own["transformer_options"]["rope_options"] == {"scale_y": 1.5, "shift_t": 2.0}


@pytest.mark.parametrize(
    ("sigmas", "at", "factor"),
    [
        ((0.9, 0.6, 0.3, 0.0), 0.9, 2.0),
        ((0.9, 0.6, 0.3, 0.0), 0.95, 2.0),
        ((0.9, 0.6, 0.3, 0.0), 0.75, 1.75),
        ((0.9, 0.6, 0.3, 0.0), 0.3, 1.0),
        ((0.9, 0.6, 0.3, 0.0), 0.1, 1.0),
        ((0.9, 0.6, 0.6, 0.3), 0.6, 1.5),
        ((0.9, 0.0), 0.9, 2.0),
    ],
)
def test_the_stretch_falls_evenly_from_step_to_step(sigmas, at, factor):
    assert AfterSwitch(rope_scale=2.0, sigmas=sigmas).rope_at(at) == pytest.approx(factor)


def compiled():
    made, _ = stretching()
    made.model_options = {"torch_compile_kwargs": {"options": {"guard_filter_fn": len}}}
    return made


BAD = [
    (lambda: run(low_band_lock=1.5), "low_band_lock", "1.0"),
    (lambda: run(rope_scale_low=0.5), "rope_scale_low", "1.0"),
    (lambda: run(switch_sigma=-0.1), "switch_sigma", "0.0"),
    (lambda: run(switch_step=0, switch_sigma=0.5), "before and after", "switch_step=0 of 8"),
    (lambda: run(switch_step=8, switch_sigma=0.5), "before and after", "after 1 to 7 steps"),
    (lambda: run(switch_sigma=1.0), "between 0 and 1", "use about 0.75"),
    (lambda: run(denoise=0.5, switch_sigma=0.9), "between 0 and", "got 0.9"),
    (lambda: run(switch_step=0, low_band_lock=0.3), "low_band_lock=0.3", "at least one step"),
    (lambda: run(low_scale=1.0, noise_policy="inherited", low_band_lock=0.3), "to a smaller size",
     "set it to 0"),
    (lambda: run(rope_scale_low=2.0), "positions of Wan", "SimpleNamespace", "set it to 1"),
    (lambda: run(stretching(OwnPositions)[0], rope_scale_low=2.0), "OwnPositions", "rope_options"),
    (lambda: run(compiled(), rope_scale_low=2.0), "TorchCompileModel", "Surf Compile"),
]  # fmt: skip


@pytest.mark.parametrize(("call", "words"), [(call, words) for call, *words in BAD])
def test_what_cannot_be_done_is_refused_before_the_first_evaluation(call, words):
    with pytest.raises(ValueError, match="^Surf Reshift KSampler: ") as caught:
        call()
    said = str(caught.value)
    assert all(word in said for word in words), said
    assert re.search(r"[;,] .+\.$", said), said


def test_switch_sigma_is_refused_when_the_graph_is_queued():
    from surf.nodes.preview import SurfReshiftKSampler

    said = SurfReshiftKSampler.validate_inputs(steps=8, switch_step=8, switch_sigma=0.5)
    assert "before and after the switch" in said
    assert SurfReshiftKSampler.validate_inputs(steps=8, switch_step=3, switch_sigma=0.5) is True
    assert SETTINGS["switch_step"] == 3


def test_a_guider_that_hides_its_predictions_is_stopped_where_they_would_be_changed():
    guider = wrap(cfg_guider(Hidden), noise_policy="fresh", low_band_lock=0.5)
    with pytest.raises(ValueError, match="wrappers.*low_band_lock and rope_scale_low off"):
        sample(guider)
