"""Guidance with a held difference: exact where it is due, cheap where it is not."""

import pytest
import torch
from surf.surf_core.cost import WAN_1_3B, Stage
from surf.surf_core.flow import euler, model_velocity
from surf.surf_core.guidance import HeldDifference, held_forwards
from surf.surf_core.schedule import flow_sigmas
from surf.surf_core.tiny.model import TinyT2V

Z = torch.linspace(-1, 1, 2 * 3 * 4 * 4).view(2, 3, 1, 4, 4)


class Model:
    """A velocity that knows its text, and how often it was asked with which."""

    def __init__(self, change=0.0):
        self.asked, self.change = [], change

    def __call__(self, z, timestep, context):
        self.asked.append(context.item())
        level = timestep[0] / 1000
        return (0.3 * z + 0.2) * (1 + context) + self.change * context * level


WITH, WITHOUT = torch.tensor(1.0), torch.tensor(-0.5)


def followed(model, every, steps=7, cfg=4.0):
    velocity = model_velocity(model, WITH, WITHOUT, cfg, every)
    return euler(velocity, Z, flow_sigmas(steps, 3.0))


def test_every_first_of_so_many_evaluations_runs_without_the_prompt():
    model = Model()
    followed(model, 3)
    assert model.asked == [1, -0.5, 1, 1, 1, -0.5, 1, 1, 1, -0.5]


def test_holding_for_one_evaluation_is_plain_guidance_bit_for_bit():
    def plain(z, sigma):
        t = torch.tensor([1000 * sigma])
        model = Model(change=1.0)
        with_text, without = model(z, t, WITH), model(z, t, WITHOUT)
        return without + 4.0 * (with_text - without)

    assert torch.equal(followed(Model(change=1.0), 1), euler(plain, Z, flow_sigmas(7, 3.0)))


@pytest.mark.parametrize("every", [2, 3, 5])
def test_a_difference_that_changes_along_a_line_is_met_from_the_second_one_on(every):
    held, met = HeldDifference(every), []
    for level in torch.linspace(1, 0.1, 19):
        difference = 2 * Z + level * (Z + 1)
        if held.due(Z):
            held.learn(level, difference)
        else:
            met.append(torch.allclose(held.at(level), difference, atol=1e-5))
    assert not any(met[: every - 1])
    assert all(met[every - 1 :])


def test_a_line_goes_no_further_than_its_two_ends_lie_apart():
    held = HeldDifference(2)
    for level, value in ((1.0, 0.0), (0.9, 1.0)):
        assert held.due(Z)
        held.learn(torch.tensor(level), torch.full_like(Z, value))
        held.due(Z)
    for level, value in ((0.85, 1.5), (0.2, 2.0), (0.95, 0.5), (1.5, 0.0)):
        torch.testing.assert_close(held.at(torch.tensor(level)), torch.full_like(Z, value))


def test_two_differences_of_one_level_make_no_line():
    held = HeldDifference(1)
    for value in (1.0, 2.0):
        held.due(Z)
        held.learn(torch.tensor(0.5), torch.full_like(Z, value))
    for level in (0.5, 0.4):
        assert torch.equal(held.at(torch.tensor(level)), torch.full_like(Z, 2.0))


def test_samples_may_stand_at_levels_of_their_own():
    held, levels = HeldDifference(1), (torch.tensor([1.0, 0.8]), torch.tensor([0.9, 0.4]))
    for value, level in zip((0.0, 1.0), levels, strict=True):
        held.due(Z)
        held.learn(level.view(2, 1, 1, 1, 1), torch.full_like(Z, value))
    out = held.at(torch.tensor([0.85, 0.2]).view(2, 1, 1, 1, 1))
    torch.testing.assert_close(out[:, 0, 0, 0, 0], torch.tensor([1.5, 1.5]))


def test_what_is_missed_grows_with_the_evaluations_that_a_difference_serves():
    class Curved(Model):
        def __call__(self, z, timestep, context):
            return super().__call__(z, timestep, context) + context * (timestep[0] / 1000) ** 3

    plain = followed(Curved(), 1, steps=24)
    off = [(followed(Curved(), every, 24) - plain).norm() for every in (2, 4, 8)]
    assert 0 < off[0] < off[1] < off[2]


def test_another_size_begins_anew():
    held, small = HeldDifference(4), Z[..., :2, :2]
    due = []
    for z in (Z, Z, small, small, Z):
        due.append(held.due(z))
        if due[-1]:
            held.learn(torch.tensor(0.5), z)
    assert due == [True, False, True, False, True]
    assert (held.evaluations, held.guided) == (5, 3)


@pytest.mark.parametrize("every", [0, -1])
def test_rejects_a_number_below_one(every):
    with pytest.raises(ValueError, match="every must lie"):
        HeldDifference(every)


@pytest.mark.parametrize(
    ("steps", "every", "forwards"), [(10, 1, 20), (10, 3, 14), (1, 3, 2), (0, 3, 0)]
)
def test_forwards_of_a_stage_match_what_a_run_asks(steps, every, forwards):
    stage = Stage(shape=WAN_1_3B, steps=steps, frames=9, height=64, width=96, every=every)
    assert stage.forwards == held_forwards(steps, every) == forwards
    if steps:
        model = Model()
        followed(model, every, steps)
        assert len(model.asked) == forwards


def test_the_embedded_model_is_guided_as_before_where_nothing_is_held():
    tiny = TinyT2V(["red circle moving right, on stripes"])
    z = tiny.noise([3])

    def plain(z, sigma):
        context = torch.cat([tiny.context, torch.zeros_like(tiny.context)])
        t = torch.full((2,), 1000 * float(sigma))
        with torch.inference_mode():
            with_text, without = tiny.model(torch.cat([z, z]), t, context).chunk(2)
        return without + 4.0 * (with_text - without)

    sigmas = flow_sigmas(20, 3.0)
    expected = euler(plain, z, sigmas)
    assert torch.equal(euler(tiny.velocity(4.0), z, sigmas), expected)
    held = euler(tiny.velocity(4.0, every=2), z, sigmas)
    assert 0 < (held - expected).norm() < 0.2 * expected.norm()


def test_nothing_is_read_back_from_the_device():
    # Reading a tensor on the meta device raises, as it would make a GPU wait.
    held, z = HeldDifference(2), Z.to("meta")
    for level in torch.linspace(1, 0.1, 5).to("meta"):
        if held.due(z):
            held.learn(level, z)
        else:
            assert held.at(level).shape == z.shape
