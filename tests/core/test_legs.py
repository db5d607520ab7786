"""Legs of a run: two cuts that know nothing of each other, and no expert out of its range."""

import pytest
import torch
from surf.surf_core.legs import ESTIMATE, LEFTOVER, START, Turn, plan_legs
from surf.surf_core.schedule import SIGMA_POLICIES, flow_sigmas, snr_equal_sigma

I2V = 0.9
HALF = 2.0


def simple(steps, shift):
    """The host's "simple" schedule of a flow model with a table of 1000 sigmas."""
    t = torch.arange(1, 1001) / 1000
    table = shift * t / (1 + (shift - 1) * t)
    return torch.tensor([*(table[-(1 + int(i * (1000 / steps)))] for i in range(steps)), 0.0])


def plan(sigmas, k, *, ratio=HALF, **more):
    return plan_legs(sigmas, [Turn(step=k, ratio=ratio)], **more)


def counts(legs):
    """(size, expert, evaluations) of each leg."""
    return [(leg.size, leg.expert, len(leg.sigmas) - 1) for leg in legs]


# Typed in from counts on the host: shift, steps -> evaluations of the high-noise expert at or above
# .9 (I2V) and .875 (T2V).
EXPERTS = {
    (3, 4): (2, 2), (3, 8): (3, 3), (3, 20): (6, 7), (3, 40): (11, 13),
    (5, 4): (2, 2), (5, 8): (3, 4), (5, 20): (8, 9), (5, 40): (15, 17),
    (8, 4): (2, 3), (8, 8): (4, 5), (8, 20): (10, 11), (8, 40): (19, 22),
    (12, 4): (3, 3), (12, 8): (5, 6), (12, 20): (12, 13), (12, 40): (23, 26),
}  # fmt: skip
# shift, steps, k -> (high-noise, low-noise) evaluations of the low leg, "same" and "snr_equal".
LOW_LEG = {
    (3, 8, 2): ((1, 5), (0, 6)), (3, 20, 5): ((1, 14), (0, 15)), (3, 40, 10): ((1, 29), (0, 30)),
    (5, 4, 1): ((1, 2), (0, 3)), (5, 8, 2): ((1, 5), (0, 6)), (5, 20, 5): ((3, 12), (0, 15)),
    (5, 40, 10): ((5, 25), (0, 30)),
    (8, 4, 1): ((1, 2), (1, 2)), (8, 8, 2): ((2, 4), (1, 5)), (8, 20, 5): ((5, 10), (2, 13)),
    (8, 40, 10): ((9, 21), (4, 26)),
    (12, 4, 1): ((2, 1), (1, 2)), (12, 8, 2): ((3, 3), (2, 4)), (12, 20, 5): ((7, 8), (5, 10)),
    (12, 40, 10): ((13, 17), (9, 21)),
}  # fmt: skip


@pytest.mark.parametrize(("shift", "steps"), EXPERTS)
def test_the_boundary_alone_cuts_where_the_hosts_schedule_crosses_it(shift, steps):
    for boundary, first in zip((0.9, 0.875), EXPERTS[shift, steps], strict=True):
        legs = plan(simple(steps, shift), steps, boundary=boundary)
        assert counts(legs) == [(0, 0, first), (0, 1, steps - first)]
        assert [leg.begins for leg in legs] == [START, LEFTOVER]
        assert legs[0].sigmas[-1] == legs[1].sigmas[0]


@pytest.mark.parametrize(("shift", "steps", "k"), LOW_LEG)
def test_evaluations_of_each_expert_in_the_low_leg(shift, steps, k):
    for policy, (high, low) in zip(SIGMA_POLICIES, LOW_LEG[shift, steps, k], strict=True):
        legs = plan(simple(steps, shift), k, sigma_policy=policy, boundary=I2V)
        assert counts(legs)[0] == (0, 0, k)
        wanted = [(1, expert, n) for expert, n in ((0, high), (1, low)) if n]
        assert counts(legs)[1:] == wanted


@pytest.mark.parametrize("shift", [3, 5, 8, 12])
@pytest.mark.parametrize("steps", [4, 8, 20, 40])
@pytest.mark.parametrize("sigma_policy", SIGMA_POLICIES)
@pytest.mark.parametrize("handover", ["reuse", "evaluate"])
@pytest.mark.parametrize("boundary", [0.9, 0.875])
def test_no_evaluation_of_an_expert_is_out_of_its_range(
    shift, steps, sigma_policy, handover, boundary
):
    sigmas = simple(steps, shift)
    for k in range(steps + 1):
        legs = plan(sigmas, k, sigma_policy=sigma_policy, handover=handover, boundary=boundary)
        assert 1 <= len(legs) <= 4
        more = handover == "evaluate" and 0 < k < steps
        assert sum(n for _, _, n in counts(legs)) == steps + more
        for leg in legs:
            evaluated = leg.sigmas[:-1]
            assert len(evaluated)
            above = evaluated >= boundary - 1e-6
            assert above.all() if leg.expert == 0 else not above.any()
        assert [leg.size for leg in legs] == sorted(leg.size for leg in legs)
        chain(legs)


def chain(legs):
    """Each leg goes on from the one before it, in noise or through an estimate."""
    assert legs[0].begins == START
    assert legs[-1].sigmas[-1] == 0
    for before, leg in zip(legs, legs[1:], strict=False):
        if leg.begins == LEFTOVER:
            assert before.size == leg.size
            assert before.sigmas[-1] == leg.sigmas[0] > 0
        else:
            assert leg.begins == ESTIMATE
            assert before.size < leg.size
            assert before.sigmas[-1] == 0


def test_a_sigma_at_the_boundary_belongs_to_the_high_noise_expert_in_fp32():
    sigmas = simple(20, 3)
    assert sigmas[5] == pytest.approx(0.9)
    for at in (sigmas[5].item(), sigmas[5].item() + 5e-7):
        legs = plan(sigmas, 20, boundary=at)
        assert counts(legs)[0] == (0, 0, 6)


def test_a_leg_that_ends_in_its_estimate_may_change_the_expert_at_its_last_evaluation():
    legs = plan(simple(8, 5), 4, boundary=I2V)
    assert counts(legs) == [(0, 0, 3), (0, 1, 1), (1, 1, 4)]
    assert legs[1].sigmas.tolist() == [pytest.approx(5 * 0.625 / (1 + 4 * 0.625), abs=2e-3), 0.0]
    assert [leg.begins for leg in legs] == [START, LEFTOVER, ESTIMATE]


def test_without_a_boundary_there_are_the_two_legs_of_a_switch():
    legs = plan(flow_sigmas(8, 3.0), 3)
    assert counts(legs) == [(0, 0, 3), (1, 0, 5)]
    assert counts(plan(flow_sigmas(8, 3.0), 0)) == [(1, 0, 8)]
    assert counts(plan(flow_sigmas(8, 3.0), 8)) == [(0, 0, 8)]


@pytest.mark.parametrize("sigma_policy", SIGMA_POLICIES)
@pytest.mark.parametrize("handover", ["reuse", "evaluate"])
def test_a_switch_to_the_same_size_keeps_every_sigma_and_the_noise(sigma_policy, handover):
    sigmas = flow_sigmas(8, 3.0)
    legs = plan(sigmas, 3, ratio=1.0, sigma_policy=sigma_policy, handover=handover)
    assert [leg.begins for leg in legs] == [START, LEFTOVER]
    assert torch.equal(legs[0].sigmas, sigmas[:4])
    assert torch.equal(legs[1].sigmas, sigmas[3:])
    fresh = plan(sigmas, 3, ratio=1.0, keeps_noise=False)
    assert [leg.begins for leg in fresh] == [START, ESTIMATE]


def test_several_switches_are_one_list():
    sigmas = flow_sigmas(20, 3.0)
    turns = [Turn(step=10, ratio=4 / 3), Turn(step=15, ratio=1.5)]
    legs = plan_legs(sigmas, turns, sigma_policy="snr_equal")
    assert counts(legs) == [(0, 0, 10), (1, 0, 5), (2, 0, 5)]
    assert legs[1].sigmas[0].item() == pytest.approx(snr_equal_sigma(sigmas[10].item(), 4 / 3))
    chain(legs)
    both = plan_legs(sigmas, turns, boundary=0.5)
    assert sum(n for *_, n in counts(both)) == 20
    chain(both)
    assert counts(plan_legs(sigmas, [Turn(step=0, ratio=2.0), Turn(step=5, ratio=2.0)])) == [
        (1, 0, 5), (2, 0, 15),
    ]  # fmt: skip


def test_steps_low_spaces_the_rest_anew():
    sigmas = flow_sigmas(20, 3.0)
    legs = plan(sigmas, 5, steps_low=4)
    assert counts(legs) == [(0, 0, 5), (1, 0, 4)]
    assert legs[1].sigmas[0] == sigmas[5]
    # 15 steps as 4: each is 3.75 of them long.
    assert legs[1].sigmas[2].item() == pytest.approx((sigmas[12] + sigmas[13]).item() / 2, abs=1e-6)
    assert counts(plan(sigmas, 0, steps_low=4)) == [(1, 0, 4)]
    assert torch.equal(plan(sigmas, 0, steps_low=20)[0].sigmas, sigmas)


def test_a_noisy_latent_is_estimated_before_it_is_resized_and_only_then():
    sigmas = flow_sigmas(8, 3.0)[2:]
    assert plan(sigmas, 0, holds_noise=True)[0].begins == ESTIMATE
    assert plan(sigmas, 2, holds_noise=True)[0].begins == START
    same = plan(sigmas, 0, ratio=1.0, holds_noise=True)
    assert [leg.begins for leg in same] == [START]
    assert torch.equal(same[0].sigmas, sigmas)


def test_the_schedule_is_not_changed_and_not_shared():
    sigmas = flow_sigmas(8, 3.0)
    before = sigmas.clone()
    for leg in plan(sigmas, 3, boundary=I2V) + plan(sigmas, 8):
        leg.sigmas.fill_(7)
    assert torch.equal(sigmas, before)


@pytest.mark.parametrize(
    ("turns", "settings", "words"),
    [
        ([Turn(step=9, ratio=2.0)], {}, "0 to 8"),
        ([Turn(step=5, ratio=2.0), Turn(step=5, ratio=2.0)], {}, "later step"),
        ([Turn(step=5, ratio=2.0), Turn(step=3, ratio=2.0)], {}, "later step"),
        ([Turn(step=2, ratio=2.0), Turn(step=9, ratio=2.0)], {}, "0 to 8"),
        ([Turn(step=2, ratio=2.0)], {"boundary": 1.5}, "expert_boundary must lie within"),
        ([Turn(step=2, ratio=2.0)], {"boundary": -0.1}, "expert_boundary must lie within"),
        ([Turn(step=2, ratio=2.0)], {"steps_low": -1}, "steps_low must lie within"),
        ([Turn(step=2, ratio=2.0)], {"sigma_policy": "lower"}, "sigma_policy"),
        ([Turn(step=2, ratio=2.0)], {"handover": "both"}, "handover"),
    ],
)
def test_what_cannot_be_cut_is_refused(turns, settings, words):
    with pytest.raises(ValueError, match=words):
        plan_legs(flow_sigmas(8, 3.0), turns, **settings)
