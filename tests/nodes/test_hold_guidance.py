"""Hold Guidance: what the clone does with the two estimates of an evaluation."""

import copy
from types import SimpleNamespace

import host_stub
import pytest
import torch
from surf.nodes.guidance import SurfHoldGuidance
from surf.nodes.host import guidance

Z = torch.linspace(-1, 1, 2 * 16 * 9).view(2, 16, 1, 3, 3)
ASKED = []


def estimates(model, conds, x, sigma, options):
    """Clean estimates of a velocity that is the conditioning."""
    ASKED.append([cond is not None for cond in conds])
    level = sigma.view(-1, 1, 1, 1, 1)
    return [torch.zeros_like(x) if cond is None else x - level * cond for cond in conds]


@pytest.fixture(autouse=True)
def host(monkeypatch):
    ASKED.clear()
    made = SimpleNamespace(calc_cond_batch=estimates)
    monkeypatch.setattr(guidance.comfy, "samplers", made)


def held(model, every):
    [out] = SurfHoldGuidance.execute(model, every).args
    return out


def run(model, sigmas, conds, z=Z):
    """One sampling call: its wrapper round evaluations at these sigmas."""

    def evaluations():
        make = model.model_options[guidance.SLOT]
        return [
            make({"conds": conds, "input": z, "sigma": torch.tensor(pair), "model": None,
                  "model_options": {}})
            for pair in sigmas
        ]  # fmt: skip

    [wrapper] = model.wrappers["outer_sample"][guidance.WRAPPER_KEY]
    return wrapper(evaluations)


SIGMAS = ([0.9, 0.9], [0.8, 0.7], [0.5, 0.6], [0.2, 0.3])


def test_a_constant_difference_of_velocities_is_held_exactly():
    out = run(held(host_stub.Patcher(), 3), SIGMAS, [1.5, -0.5])
    assert ASKED == [[True, True], [True, False], [True, False], [True, True]]
    for pair, sigma in zip(out, SIGMAS, strict=True):
        level = torch.tensor(sigma).view(-1, 1, 1, 1, 1)
        torch.testing.assert_close(pair[0], Z - 1.5 * level)
        torch.testing.assert_close(pair[1], Z + 0.5 * level)


def test_every_sampling_call_begins_anew_and_lets_go():
    model = held(host_stub.Patcher(), 3)
    run(model, SIGMAS[:2], [1.0, 2.0])
    run(model, SIGMAS[:1], [1.0, 2.0])
    assert ASKED == [[True, True], [True, False], [True, True]]


def test_a_missing_prompt_is_passed_on():
    run(held(host_stub.Patcher(), 3), SIGMAS, [1.0, None])
    assert ASKED == [[True, False]] * 4


def test_outside_of_a_sampling_call_nothing_is_held():
    make = held(host_stub.Patcher(), 3).model_options[guidance.SLOT]
    args = {"conds": [1.0, 2.0], "input": Z, "sigma": torch.tensor([0.5]), "model": None}
    for _ in range(2):
        make({**args, "model_options": {}})
    assert ASKED == [[True, True]] * 2


def test_the_node_clones_and_does_not_mutate_its_model():
    given = host_stub.Patcher()
    before = copy.deepcopy((given.patches, given.wrappers, given.model_options))
    out = held(given, 2)
    assert out is not given
    assert (given.patches, given.wrappers, given.model_options) == before


def test_one_undoes_an_earlier_node():
    out = held(held(host_stub.Patcher(), 4), 1)
    assert guidance.SLOT not in out.model_options
    assert not out.wrappers["outer_sample"]


@pytest.mark.parametrize("every", [0, -3])
def test_rejects_a_number_below_one_in_the_nodes_name(every):
    with pytest.raises(ValueError, match="^Hold Guidance: every must lie"):
        held(host_stub.Patcher(), every)


def test_rejects_what_is_no_flow_model():
    with pytest.raises(ValueError, match="^Hold Guidance: expected a flow model"):
        held(host_stub.Patcher(kind=(host_stub.DiscreteFlow, host_stub.Eps)), 3)
