"""Surf Plan with calibrate on the fake host: seconds by a fake clock, each size timed once."""

import host_stub
import pytest
import torch
from surf.tests.node_calls import changes, kept
from surf.tests.nodes.plan_runs import Clock, latent, prompt, rows_of, run
from surf.tests.nodes.skip_node import Unpriced


def test_seconds_are_those_of_the_clock(monkeypatch):
    """Three sizes and two rates: what is timed and what is predicted are both exact."""
    clock = Clock(monkeypatch)
    small = {"samples": torch.zeros(1, 16, 5, 12, 20)}
    model = clock.model()
    report = run(model, small, scale=4.0, calibrate=True, positive=prompt())[1]
    rows = rows_of(report)
    expected = {
        "before the switch": 10 * 2 * clock.of(5, 12, 20),
        "after the switch": 30 * clock.of(5, 6, 10),
        "refinement": 8 * clock.of(5, 24, 40),
    }
    for name, seconds in expected.items():
        assert rows[name][-1] == f"{seconds:.3g} s", name
    assert rows["in all"][-1] == f"{sum(expected.values()):.3g} s"
    assert rows["plain run"][-1] == f"about {40 * 2 * clock.of(5, 24, 40):.3g} s"
    assert "counted, not timed" not in report


def test_the_plain_run_is_timed_where_that_at_most_doubles_the_calibration(monkeypatch):
    """Windows and full attention have rates of their own: what is timed is exact."""
    clock, small = Clock(monkeypatch), {"samples": torch.zeros(1, 16, 5, 12, 20)}
    model, inner = clock.model(), clock.of
    clock.of = lambda frames, rows, *rest: inner(frames, rows, *rest) * (3 if rows == 18 else 1)
    given = {"calibrate": True, "positive": prompt(), "scale": 3.0, "cfg": 1.0, "keep": 0.5}
    rows = rows_of(run(model, small, **given)[1])
    assert clock.sizes == [(12, 20)] * 2 + [(6, 10)] * 2 + [(18, 30)] * 4
    assert rows["plain run"][-1] == f"{40 * clock.of(5, 18, 30):.3g} s"
    # Recalled, as each size of the plan is.
    run(model, small, **given, steps=20)
    assert len(clock.sizes) == 8
    # Guided, it is predicted to take longer than all others together.
    rows = rows_of(run(model, small, **{**given, "cfg": 7.5, "scale": 4.0})[1])
    assert rows["plain run"][-1].startswith("about ")
    assert len(clock.sizes) == 8 + 4 + 2


def test_a_plain_run_that_does_not_fit_is_not_tried(monkeypatch):
    clock, small = Clock(monkeypatch), {"samples": torch.zeros(1, 16, 5, 12, 20)}
    given = {"calibrate": True, "positive": prompt(), "scale": 3.0, "cfg": 1.0, "keep": 0.5}
    monkeypatch.setattr("surf.nodes.host.plan.make.room", lambda device: 0)
    rows = rows_of(run(clock.model(), small, **given)[1])
    assert rows["plain run"][-1].startswith("about ")
    assert clock.sizes == [(12, 20)] * 2 + [(6, 10)] * 2 + [(18, 30)] * 2
    monkeypatch.undo()
    clock, failing = Clock(monkeypatch), [0]
    model, inner = clock.model(), clock.model().velocity

    def velocity(x, sigma, cond):
        failing[0] += x.shape[-2] == 18
        if failing[0] > 2:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return inner(x, sigma, cond)

    model.velocity = velocity
    report = run(model, small, **given)[1]
    assert rows_of(report)["plain run"][-1].startswith("about ")
    assert "will not fit" not in report


def test_each_size_is_measured_once_for_a_model(monkeypatch):
    clock = Clock(monkeypatch)
    small = {"samples": torch.zeros(1, 16, 2, 8, 12)}
    model, positive = clock.model(), prompt()
    given = {"calibrate": True, "positive": positive}
    first = run(model, small, **given)[1]
    assert clock.sizes == [(8, 12)] * 4 + [(4, 6)] * 2 + [(8, 12)] * 2
    count = len(clock.sizes)
    second = run(model, small, **given, steps=20, switch_step=5, refine_steps=16)[1]
    assert len(clock.sizes) == count
    assert first != second
    # Of a new size after the switch and its target, refined and plain, nothing was known.
    run(model, small, **given, low_scale=0.75)
    assert clock.sizes[count:] == [(6, 10)] * 2 + [(12, 20)] * 2 + [(12, 20)] * 4
    # Another prompt of as many tokens takes as long; another MODEL may not.
    count = len(clock.sizes)
    run(model, small, calibrate=True, positive=prompt(1))
    assert len(clock.sizes) == count
    run(model.clone(), small, **given)
    assert len(clock.sizes) > count


def test_nothing_of_the_user_changes(monkeypatch):
    clock = Clock(monkeypatch)
    model, samples, positive = clock.model(), latent(2, 8, 12), prompt()
    before, state = kept((model, samples, positive)), torch.random.get_rng_state()
    out = run(model, samples, calibrate=True, positive=positive, negative=prompt(1))
    assert out[0] is model
    assert not changes(before, kept((model, samples, positive)), "inputs")
    assert torch.equal(state, torch.random.get_rng_state())


def test_memory_that_runs_out_is_a_finding_and_is_tried_again(monkeypatch):
    clock = Clock(monkeypatch)
    model, given = clock.model(), {"calibrate": True, "positive": prompt(), "scale": 3.0}
    inner, full = model.velocity, [True]

    def velocity(x, sigma, cond):
        if full[0] and x.shape[-1] == 18:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return inner(x, sigma, cond)

    model.velocity = velocity
    report = run(model, latent(2, 8, 12), **given)[1]
    rows = rows_of(report)
    assert rows["refinement"][-1] == "out of memory"
    assert rows["before the switch"][-1].endswith(" s")
    assert rows["in all"][-1] == "-"
    assert "will not fit: memory ran out refinement" in report
    full[0] = False
    assert rows_of(run(model, latent(2, 8, 12), **given)[1])["refinement"][-1].endswith(" s")


def test_an_interrupt_passes_and_other_errors_too(monkeypatch):
    clock = Clock(monkeypatch)
    for error in (host_stub.Interrupted(), RuntimeError("another")):
        model = clock.model()

        def stop(x, sigma, cond, error=error):
            raise error

        model.velocity = stop
        with pytest.raises(type(error)):
            run(model, latent(2, 8, 12), calibrate=True, positive=prompt())


def test_a_network_that_nobody_priced_has_sizes_and_with_calibrate_seconds(monkeypatch):
    clock = Clock(monkeypatch)
    model = clock.model()
    model.model.diffusion_model = Unpriced()
    report = run(model, latent(2, 8, 12))[1]
    assert rows_of(report)["before the switch"][2:5] == ["-", "-", "host says 0 GB"]
    assert "known are Wan" in report
    timed = rows_of(run(model, latent(2, 8, 12), calibrate=True, positive=prompt())[1])
    seconds = 10 * 2 * clock.of(2, 8, 12)
    assert timed["before the switch"][-1] == f"{seconds:.3g} s"
    # The preview is 4 x 6 cells, so that the target has the size of the latent.
    assert timed["plain run"][-1] == "-"
