"""Channels that a Wan takes: by its weight, by what the host keeps of it, by pending patches."""

from types import SimpleNamespace

import comfy.model_base
import pytest
import torch
from surf.nodes.host.conditioning import check_frames_beside
from surf.nodes.host.input_channels import WEIGHT, input_channels, joins_picture, takes_control
from surf.nodes.host.refine.control import check_control, with_control


def model(channels=16, patches=(), kept=None, wan=True):
    """A model of 16 latent channels."""
    concat = comfy.model_base.WAN21.concat_cond if wan else (lambda self, **more: None)
    inner = type("Inner", (), {"concat_cond": concat})()
    embedding = SimpleNamespace(weight=torch.zeros(8, channels, 1, 2, 2))
    inner.diffusion_model = SimpleNamespace(patch_embedding=embedding)
    backup = {} if kept is None else {WEIGHT: SimpleNamespace(weight=torch.zeros(8, kept, 1, 2, 2))}
    return SimpleNamespace(
        model=inner, backup=backup,
        patches={WEIGHT: [(1.0, patch, 1.0, None, None) for patch in patches]},
        get_model_object=lambda name: SimpleNamespace(latent_channels=16),
    )  # fmt: skip


def lora(reshape):
    return SimpleNamespace(name="lora", weights=(None, None, 4.0, None, None, reshape))


WIDE = torch.zeros(8, 32, 1, 2, 2)


@pytest.mark.parametrize(
    ("given", "channels"),
    [
        (model(16), 16),
        (model(32), 32),
        (model(36), 36),
        (model(16, [lora([8, 32, 1, 2, 2])]), 32),
        (model(16, [lora(None)]), 16),
        (model(16, [lora(None), lora([8, 32, 1, 2, 2]), lora(None)]), 32),
        (model(16, [("diff", (WIDE, {"pad_weight": True}))]), 32),
        (model(16, [("diff", (WIDE[:, :16],))]), 16),
        (model(16, [("set", (WIDE,))]), 32),
        # Another clone's patches are in the weight.
        (model(32, kept=16), 16),
        (model(32, [lora([8, 32, 1, 2, 2])], kept=16), 32),
        (model(32, wan=False), None),
    ],
)
def test_channels_are_those_that_will_be_sampled(given, channels):
    assert input_channels(given) == channels
    assert takes_control(given) == (channels == 32)
    assert joins_picture(given) == ((channels or 0) > 16)


def test_a_control_of_other_frames_is_refused_for_a_pending_lora():
    given = model(16, [lora([8, 32, 1, 2, 2])])
    conds = {"positive": [[None, {"concat_latent_image": torch.zeros(1, 16, 2, 4, 6)}]]}
    check_frames_beside(conds, given, (2,))
    with pytest.raises(ValueError, match="latent's 3 latent frames, got 2"):
        check_frames_beside(conds, given, (3,))


def test_the_upsampled_preview_becomes_the_control_where_there_is_none():
    own, up = torch.ones(1, 16, 2, 4, 6), torch.zeros(1, 16, 2, 4, 6)
    conds = {
        "positive": [["a", {"x": 1}], ["b", {"concat_latent_image": own}]], "negative": [["c", {}]]
    }  # fmt: skip
    out = with_control(conds, up)
    assert [entry[0] for cond in out.values() for entry in cond] == ["a", "b", "c"]
    assert out["positive"][0][1] == {"x": 1, "concat_latent_image": up}
    assert out["positive"][1][1]["concat_latent_image"] is own
    assert out["negative"][0][1]["concat_latent_image"] is up
    assert conds["negative"] == [["c", {}]]
    assert conds["positive"][0][1] == {"x": 1}
    full = {"positive": [["b", {"concat_latent_image": own}]]}
    assert with_control(full, up) is full


def test_an_empty_preview_is_refused_as_control():
    check_control(torch.ones(1, 16, 2, 4, 6), False)
    check_control(torch.zeros(1, 16, 2, 4, 6), True)
    with pytest.raises(ValueError, match="controlled by, got an empty latent; connect"):
        check_control(torch.zeros(1, 16, 2, 4, 6), False)
