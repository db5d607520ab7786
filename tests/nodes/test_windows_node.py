"""Surf Windowed Attention: the node hands `with_windows` its model, its window and its name."""

import copy

import host_stub
import pytest
import torch
from surf.nodes.host.attention import windows
from surf.nodes.windows import SurfWindowedAttention


class WanModel(torch.nn.Module):
    patch_size = (1, 2, 2)


def model():
    patcher = host_stub.Patcher()
    patcher.model.diffusion_model = WanModel()
    return patcher


def test_the_node_clones_and_does_not_mutate_its_model():
    given = model()
    before = copy.deepcopy((given.object_patches, given.wrappers, given.model_options))
    [out] = SurfWindowedAttention.execute(given, 2).args
    assert out is not given
    assert (given.object_patches, given.wrappers, given.model_options) == before
    assert windows.OVERRIDE in out.model_options["transformer_options"]
    assert out.wrappers["diffusion_model"].keys() == {windows.WRAPPER_KEY}


def test_window_zero_hands_the_model_on():
    given = model()
    assert SurfWindowedAttention.execute(given, 0).args == (given,)


def test_two_nodes_in_a_row_leave_one_wrapper():
    [once] = SurfWindowedAttention.execute(model(), 4).args
    [twice] = SurfWindowedAttention.execute(once, 2).args
    assert len(twice.wrappers["diffusion_model"][windows.WRAPPER_KEY]) == 1
    override = twice.model_options["transformer_options"][windows.OVERRIDE]
    assert getattr(override, windows.REPLACED) is None


@pytest.mark.parametrize("window", [1, -3])
def test_a_bad_window_is_rejected_in_the_nodes_name(window):
    with pytest.raises(ValueError, match="^Surf Windowed Attention: window must"):
        SurfWindowedAttention.execute(model(), window)


def test_an_unknown_model_is_rejected_in_the_nodes_name():
    with pytest.raises(ValueError, match="^Surf Windowed Attention: .*expected one of WanModel"):
        SurfWindowedAttention.execute(host_stub.Patcher(), 4)


def test_the_default_window_is_four_latent_frames():
    [_, window] = SurfWindowedAttention.define_schema().inputs
    assert (window.default, window.min) == (4, 0)
