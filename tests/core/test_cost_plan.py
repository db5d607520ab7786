"""Seconds of a plan follow from timed evaluations: exact where the clock keeps two rates."""

from dataclasses import replace

import pytest
from surf.surf_core.cost import (
    HUNYUAN_VIDEO,
    WAN_1_3B,
    WAN_14B,
    PlanStage,
    Rate,
    Work,
    fit,
    forward_flops,
    forward_work,
    network_bytes,
    price,
    tokens,
)

CLOCK = Rate(linear=3e-14, pairs=7e-14)
"""A machine: seconds an operation."""
HIGH, LOW, TARGET = (480, 832), (240, 416), (1080, 1920)


def stage(size, count, *, timed, window=0, forwards=2, network="model", clock=CLOCK):
    work = forward_work(WAN_14B, 81, *size, window) * forwards
    took = clock.seconds(work) if timed else None
    return PlanStage(name=str(size), network=network, count=count, work=work, seconds=took)


def test_work_adds_up_to_the_operations_of_a_forward():
    work = forward_work(WAN_14B, 81, 720, 1280)
    assert work.flops == forward_flops(WAN_14B, 81, 720, 1280)
    assert work.pairs == 40 * 4 * 75600**2 * 5120
    assert (work * 3).pairs == 3 * work.pairs
    # Windows change self-attention alone.
    windowed = forward_work(WAN_14B, 81, 720, 1280, 4)
    assert windowed.linear == work.linear
    assert windowed.pairs < work.pairs


def test_a_plan_on_a_clock_with_two_rates_is_priced_exactly():
    plan = [
        stage(HIGH, 10, timed=True), stage(LOW, 30, timed=True),
        stage(TARGET, 10, timed=False, window=4), stage(TARGET, 40, timed=False),
    ]  # fmt: skip
    for each in price(plan):
        assert each.seconds == pytest.approx(each.stage.count * CLOCK.seconds(each.stage.work))
    assert [each.timed for each in price(plan)] == [True, True, False, False]
    rate = fit(plan)
    assert (rate.linear, rate.pairs) == pytest.approx((CLOCK.linear, CLOCK.pairs))


def test_what_was_timed_is_multiplied_whatever_the_rates_say():
    odd = replace(stage(HIGH, 7, timed=True), seconds=1.25)
    [priced] = price([odd], [stage(LOW, 1, timed=True)])
    assert priced.seconds == 7 * 1.25
    assert priced.timed


def test_a_plain_run_at_a_size_that_was_timed_is_that_many_times_as_long():
    """Although the rates of three sizes would say something else."""
    odd = [replace(stage(size, 1, timed=True), seconds=s) for size, s in ((LOW, 1.0), (HIGH, 3.0))]
    odd.append(replace(stage(TARGET, 1, timed=True, window=4), seconds=20.0))
    [plain] = price([stage(HIGH, 40, timed=False)], odd)
    assert (plain.seconds, plain.timed) == (120.0, True)
    [other] = price([stage(HIGH, 40, timed=False, network="refiner")], odd)
    assert other.seconds is None


def test_one_size_tells_one_rate():
    timed = stage(HIGH, 10, timed=True)
    rate = fit([timed])
    assert rate.linear == rate.pairs == timed.seconds / timed.work.flops


def test_rates_are_never_negative():
    """The small size took as long as the large one: overhead, from which no rates follow."""
    slow = replace(stage(LOW, 30, timed=True), seconds=5.0)
    large = replace(stage(HIGH, 10, timed=True), seconds=5.0)
    rate = fit([slow, large])
    assert rate.linear == rate.pairs == 5.0 / large.work.flops


def test_three_sizes_are_met_by_least_squares_of_relative_errors():
    plan = [stage(size, 1, timed=True) for size in (LOW, HIGH, TARGET)]
    noisy = [replace(x, seconds=x.seconds * (1 + e)) for x, e in zip(plan, (0.02, -0.02, 0.01))]  # noqa: B905
    best = fit(noisy)

    def error(rate):
        return sum((rate.seconds(x.work) / x.seconds - 1) ** 2 for x in noisy)

    for change in (0.999, 1.001):
        assert error(best) < error(replace(best, linear=best.linear * change))
        assert error(best) < error(replace(best, pairs=best.pairs * change))


def test_the_rates_of_one_network_price_no_other():
    plan = [stage(HIGH, 10, timed=True), stage(TARGET, 5, timed=False, network="refiner")]
    assert price(plan)[1].seconds is None


def test_without_a_clock_or_operations_there_are_no_seconds():
    assert fit([]) is None
    assert fit([stage(HIGH, 1, timed=False)]) is None
    unknown = PlanStage(name="?", network="model", count=3)
    assert unknown.flops is None
    assert price([unknown], [stage(HIGH, 1, timed=True)])[0].seconds is None
    timed = replace(unknown, seconds=2.0)
    assert price([timed])[0].seconds == 6.0


def test_operations_of_a_stage_are_those_of_all_its_evaluations():
    assert stage(HIGH, 10, timed=False).flops == 20 * forward_flops(WAN_14B, 81, *HIGH)
    assert Work(linear=2, pairs=3).flops == 5


def test_network_bytes_are_live_vectors_of_every_token():
    shape = replace(WAN_1_3B, live=16.0)
    count = tokens(shape, 81, 480, 832)
    assert network_bytes(shape, 81, 480, 832) == 16 * 2 * 1536 * count
    assert network_bytes(shape, 81, 480, 832, itemsize=4, batch=3) == 6 * 16 * 2 * 1536 * count
    joint = replace(HUNYUAN_VIDEO, live=1.0)
    assert network_bytes(joint, 1, 16, 16) == 2 * 3072 * (1 + 256)
    with pytest.raises(ValueError, match="ask its host"):
        network_bytes(WAN_1_3B, 81, 480, 832)
