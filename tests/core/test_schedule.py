"""Noise levels: shift, signal to noise ratio, re-spacing, the cut."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from surf.surf_core.schedule import (
    HANDOVERS,
    SIGMA_POLICIES,
    check_sigmas,
    flow_sigmas,
    reach_sigma,
    respace,
    shift_sigma,
    snr_equal_sigma,
    switch,
)

steady = settings(max_examples=50, deadline=None, derandomize=True)

sigma = st.floats(0.0, 1.0)
inner = st.floats(0.001, 0.999)
ratio = st.floats(0.25, 8.0)
shift = st.floats(0.2, 15.0)


@steady
@given(inner, shift, shift)
def test_shifts_multiply(s, first, second):
    assert shift_sigma(shift_sigma(s, first), second) == pytest.approx(
        shift_sigma(s, first * second), abs=1e-12
    )


@steady
@given(shift)
def test_shift_keeps_the_ends(by):
    assert shift_sigma(0.0, by) == 0
    assert shift_sigma(1.0, by) == pytest.approx(1)


@pytest.mark.parametrize("steps", [1, 2, 7, 40, 50])
@pytest.mark.parametrize("by", [0.5, 1.0, 3.0, 8.0])
def test_flow_sigmas_fall_from_noise_to_clean(steps, by):
    sigmas = flow_sigmas(steps, by)
    assert sigmas.shape == (steps + 1,)
    assert sigmas[0] == 1
    assert sigmas[-1] == 0
    assert (sigmas.diff() < 0).all()
    check_sigmas(sigmas)


def test_flow_sigmas_match_the_papers_tenth_of_fifty():
    assert flow_sigmas(50, 3.0)[10].item() == pytest.approx(12 / 13, abs=1e-6)


@steady
@given(inner, ratio)
def test_snr_equal_sigma_preserves_the_snr_of_a_block_mean(s, r):
    lower = snr_equal_sigma(s, r)
    before = (1 - s) / (s / r)  # the mean of r * r cells has noise of deviation s / r
    assert (1 - lower) / lower == pytest.approx(before, rel=1e-9)


def test_snr_equal_sigma_preserves_the_measured_snr_of_a_block_mean():
    s, r = 0.8, 3
    noise = torch.randn(1, 1, 600, 600, generator=torch.Generator().manual_seed(0))
    block_means = torch.nn.functional.avg_pool2d(s * noise, r)
    lower = snr_equal_sigma(s, r)
    assert (1 - s) / block_means.std().item() == pytest.approx((1 - lower) / lower, rel=0.01)


@steady
@given(sigma, ratio)
def test_snr_equal_sigma_is_undone_by_the_inverse_ratio(s, r):
    assert snr_equal_sigma(snr_equal_sigma(s, r), 1 / r) == pytest.approx(s, abs=1e-12)


@steady
@given(inner, ratio)
def test_snr_equal_sigma_is_a_shift_by_the_inverse_ratio(s, r):
    assert snr_equal_sigma(s, r) == pytest.approx(shift_sigma(s, 1 / r), rel=1e-9)


@steady
@given(sigma)
def test_snr_equal_sigma_is_identity_at_ratio_one(s):
    assert snr_equal_sigma(s, 1.0) == pytest.approx(s, abs=1e-15)


@pytest.mark.parametrize(("s", "r"), [(1.1, 2.0), (-0.1, 2.0), (0.5, 0.0), (float("nan"), 2.0)])
def test_snr_equal_sigma_rejects_values_out_of_range(s, r):
    with pytest.raises(ValueError, match="must lie within"):
        snr_equal_sigma(s, r)


@pytest.mark.parametrize(
    ("sigmas", "expected"),
    [
        (torch.zeros(0), "the schedule is empty"),
        (torch.ones(1), "the schedule is empty"),
        (torch.tensor([0.5, 0.7, 0.0]), "must fall"),
        (torch.tensor([1.0, torch.nan, 0.0]), "must fall"),
        (torch.tensor([14.6, 3.0, 0.0]), "needs a flow model"),
        (torch.tensor([1.0, 0.0, -0.1]), "within 0..1"),
        (torch.ones(2, 2), "one row"),
        (torch.tensor([1, 0]), "one row"),
    ],
    ids=["none", "one", "rising", "nan", "not flow", "negative", "matrix", "integers"],
)
def test_check_sigmas_rejects_what_is_no_flow_schedule(sigmas, expected):
    with pytest.raises(ValueError, match=expected):
        check_sigmas(sigmas)


def test_check_sigmas_takes_a_rounding_error_above_one():
    check_sigmas(torch.tensor([1.0000002, 0.5, 0.0]))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("steps", [1, 3, 17, 40])
def test_respace_is_bit_equal_to_the_tail_when_it_starts_there(steps, dtype):
    sigmas = flow_sigmas(40, 3.0).to(dtype)
    tail = sigmas[-steps - 1 :]
    result = respace(sigmas, tail[0].item(), steps)
    assert torch.equal(result, tail)
    assert result.data_ptr() != tail.data_ptr()


@steady
@given(inner, st.integers(1, 60), st.integers(1, 60), shift)
def test_respace_falls_from_start_to_the_end_in_the_asked_steps(start, total, steps, by):
    sigmas = flow_sigmas(total, by)
    result = respace(sigmas, start, steps)
    assert result.shape == (steps + 1,)
    assert result.dtype == sigmas.dtype
    assert result[0].item() == pytest.approx(start, abs=1e-7)
    assert result[-1] == sigmas[-1]
    assert (result.diff() <= 0).all()


def test_respace_cuts_a_straight_schedule_in_equal_parts():
    result = respace(torch.linspace(1, 0, 11, dtype=torch.float64), 0.73, 5)
    assert torch.allclose(result, torch.linspace(0.73, 0, 6, dtype=torch.float64), atol=1e-12)


def test_respace_keeps_the_rhythm_of_the_schedule():
    """Halving the steps from a sigma of the schedule takes every second one."""
    sigmas = flow_sigmas(40, 5.0)
    result = respace(sigmas, sigmas[10].item(), 15)
    assert torch.allclose(result, sigmas[10::2], atol=1e-6)


def test_respace_stretches_a_schedule_that_starts_below():
    sigmas = torch.tensor([0.6, 0.3, 0.1], dtype=torch.float64)
    result = respace(sigmas, 0.9, 2)
    assert torch.allclose(result, torch.tensor([0.9, 0.42, 0.1], dtype=torch.float64), atol=1e-9)


def test_respace_leaves_a_plateau_at_its_end():
    sigmas = torch.tensor([1.0, 0.5, 0.5, 0.5, 0.0])
    assert torch.allclose(respace(sigmas, 0.5, 4), torch.linspace(0.5, 0, 5))


def test_respace_ends_above_zero_when_the_schedule_does():
    result = respace(torch.tensor([1.0, 0.6, 0.2]), 0.5, 4)
    assert result[-1] == torch.tensor(0.2)
    assert (result.diff() < 0).all()


@pytest.mark.parametrize(
    ("start", "steps"), [(0.1, 3), (1.5, 3), (float("nan"), 3), (0.5, 0), (0.5, -1)]
)
def test_respace_rejects_a_start_below_the_end_and_no_steps(start, steps):
    with pytest.raises(ValueError, match="switch earlier"):
        respace(torch.tensor([1.0, 0.6, 0.2]), start, steps)


@pytest.mark.parametrize("policy", SIGMA_POLICIES)
@pytest.mark.parametrize("handover", HANDOVERS)
@pytest.mark.parametrize("step", range(1, 7))
def test_switch_spends_the_steps_of_the_schedule(step, handover, policy):
    sigmas = flow_sigmas(7, 3.0)
    cut = switch(sigmas, step, ratio=2.0, sigma_policy=policy, handover=handover)
    assert len(cut.high) - 1 == step + (handover == "evaluate")
    assert len(cut.low) - 1 == 7 - step
    assert cut.high[-1] == 0
    assert torch.equal(cut.high[:-1], sigmas[: len(cut.high) - 1])
    assert cut.low[0].item() == pytest.approx(cut.sigma, abs=1e-7)
    expected = sigmas[step].item()
    expected = expected if policy == "same" else snr_equal_sigma(expected, 2.0)
    assert cut.sigma == pytest.approx(expected)


@pytest.mark.parametrize("step", range(1, 12))
def test_switch_is_bit_equal_to_the_tail_with_the_papers_sigma(step):
    sigmas = flow_sigmas(12, 8.0)
    assert torch.equal(switch(sigmas, step, ratio=2.0).low, sigmas[step:])
    assert torch.equal(
        switch(sigmas, step, ratio=2.0, sigmas_low=sigmas.clone()).low, sigmas[step:]
    )
    same = switch(sigmas, step, ratio=1.0, sigma_policy="snr_equal")
    assert torch.equal(same.low, sigmas[step:])


@pytest.mark.parametrize("policy", SIGMA_POLICIES)
@pytest.mark.parametrize("handover", HANDOVERS)
def test_switch_at_either_end_is_the_plain_schedule(handover, policy):
    sigmas, below = flow_sigmas(5, 3.0), flow_sigmas(5, 1.0)
    options = {"ratio": 2.0, "sigma_policy": policy, "handover": handover}
    low = switch(sigmas, 0, **options)
    assert len(low.high) == 0
    assert torch.equal(low.low, sigmas)
    assert torch.equal(switch(sigmas, 0, sigmas_low=below, **options).low, below)
    high = switch(sigmas, 5, sigmas_low=below, **options)
    assert torch.equal(high.high, sigmas)
    assert len(high.low) == 0
    assert high.sigma == 0


def test_switch_follows_the_low_schedule_from_the_sigma_of_the_switch():
    sigmas, below = flow_sigmas(10, 3.0), flow_sigmas(10, 1.0)
    cut = switch(sigmas, 4, ratio=2.0, sigmas_low=below)
    assert cut.low[0] == sigmas[4]
    assert torch.allclose(cut.low.diff(), cut.low.diff()[0].expand(6), atol=1e-6)


@pytest.mark.parametrize("step", [0, 3, 5])
def test_switch_returns_no_views_and_does_not_mutate_the_schedule(step):
    sigmas = flow_sigmas(5, 3.0)
    before = sigmas.clone()
    cut = switch(sigmas, step, ratio=2.0, sigmas_low=sigmas)
    cut.high.fill_(7)
    cut.low.fill_(7)
    assert torch.equal(sigmas, before)


@pytest.mark.parametrize("policy", ["same", "snr_equal"])
def test_a_schedule_that_overshoots_one_by_a_rounding_switches_there(policy):
    """Schedulers that work through powers do; all noise stays all noise at any size."""
    sigmas = torch.tensor([1.00006, 1.00003, 0.6, 0.3, 0.0])
    cut = switch(sigmas, 1, ratio=2.0, sigma_policy=policy)
    assert cut.sigma == pytest.approx(1, abs=1e-4)
    assert len(cut.low) == 4
    assert (cut.low.diff() < 0).all()


@pytest.mark.parametrize("step", [-1, 6, 100])
def test_switch_rejects_a_step_outside_the_schedule(step):
    with pytest.raises(ValueError, match=f"within 0 to 5, .* got step={step}; use about"):
        switch(flow_sigmas(5, 3.0), step, ratio=2.0)


@pytest.mark.parametrize("wrong", [{"sigma_policy": "paper"}, {"handover": "twice"}])
def test_switch_rejects_unknown_policies(wrong):
    with pytest.raises(ValueError, match="must be one of"):
        switch(flow_sigmas(5, 3.0), 2, ratio=2.0, **wrong)


def test_switch_rejects_an_empty_schedule():
    for bad in (torch.zeros(0), torch.ones(1)):
        with pytest.raises(ValueError, match="the schedule is empty"):
            switch(bad, 0, ratio=2.0)
        with pytest.raises(ValueError, match="the schedule is empty"):
            switch(flow_sigmas(5, 3.0), 2, ratio=2.0, sigmas_low=bad)


@pytest.mark.parametrize("steps", [0, -3])
def test_flow_sigmas_reject_no_steps(steps):
    with pytest.raises(ValueError, match="at least one step"):
        flow_sigmas(steps, 3.0)


@pytest.mark.parametrize("by", [0.0, -1.0, float("nan")])
def test_shift_rejects_what_is_not_positive(by):
    with pytest.raises(ValueError, match="shift must lie"):
        shift_sigma(0.5, by)


@steady
@given(st.integers(1, 19), st.floats(0.02, 0.98), shift)
def test_a_moved_switch_is_at_its_sigma_after_its_steps(step, at, by):
    sigmas = flow_sigmas(20, by)
    moved = reach_sigma(sigmas, step, at)
    check_sigmas(moved)
    assert moved.shape == sigmas.shape
    assert moved[step].item() == pytest.approx(at, abs=1e-6)
    assert (moved[0], moved[-1]) == (sigmas[0], sigmas[-1])
    cut = switch(moved, step, ratio=2.0, sigma_policy="snr_equal")
    assert cut.sigma == pytest.approx(snr_equal_sigma(at, 2.0), abs=1e-6)
    assert (len(cut.high), len(cut.low)) == (step + 1, 21 - step)


def test_a_moved_switch_keeps_equal_distances_of_the_step_number():
    moved = reach_sigma(flow_sigmas(40, 1.0), 10, 0.5)
    assert torch.allclose(moved[:11], torch.linspace(1, 0.5, 11))
    assert torch.allclose(moved[10:], torch.linspace(0.5, 0, 31))


def test_a_switch_that_stays_leaves_the_schedule_to_the_bit():
    sigmas = flow_sigmas(40, 3.0)
    moved = reach_sigma(sigmas, 10, sigmas[10].item())
    assert torch.equal(moved, sigmas)
    moved.zero_()
    assert sigmas[0] == 1


@pytest.mark.parametrize(
    ("step", "at", "expected"),
    [(0, 0.7, "switch step"), (40, 0.7, "switch step"), (10, 1.0, "0.75"), (10, 0.0, "0.75"),
     (10, float("nan"), "0.75")],
)  # fmt: skip
def test_a_switch_that_cannot_be_moved_there_is_rejected(step, at, expected):
    with pytest.raises(ValueError, match=expected):
        reach_sigma(flow_sigmas(40, 3.0), step, at)
