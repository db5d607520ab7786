"""A VAE that is watched: its progress within a call, its interrupt, what it leaves behind."""

import sys

import host_stub
import pytest
import torch
from surf.nodes.host.vae.watched import PARTS, WatchedCalls
from torch import nn


class Stopped(Exception):
    """The host's interrupt."""


class CausalVae:
    """A causal VAE: its encoder sees one frame, then two at a time, through four layers."""

    def __init__(self):
        self.first_stage_model = nn.Module()
        self.first_stage_model.encoder = nn.Sequential(*(nn.Identity() for _ in range(4)))

    def encode(self, x):
        groups = [x[:, :, :1], *x[:, :, 1:].split(2, dim=2)]
        return torch.cat([self.first_stage_model.encoder(group) for group in groups], dim=2)


@pytest.fixture
def stop(monkeypatch):
    """Interrupts at a check of that number, counted from 1; 0 never."""
    state = {"at": 0, "seen": 0}

    def check():
        state["seen"] += 1
        if state["seen"] == state["at"]:
            raise Stopped

    host = sys.modules["comfy.model_management"]
    monkeypatch.setattr(host, "throw_exception_if_processing_interrupted", check)
    return state


def hooked(vae):
    return [m for m in vae.first_stage_model.modules() if m._forward_pre_hooks]


def test_progress_moves_with_the_layers_of_each_group_of_frames(stop):
    vae, x = CausalVae(), torch.rand(1, 3, 5, 2, 2)
    watched = WatchedCalls(vae, 2)
    bar = host_stub.BARS[-1]
    assert bar.total == 2 * PARTS
    assert torch.equal(watched.run(lambda: vae.encode(x), "encoder", 5), x)
    # One frame of five in four layers, then two frames in four layers, twice.
    assert bar.shown == [5, 10, 15, 20, 30, 40, 50, 60, 70, 80, 90, 100]
    watched.run(lambda: vae.encode(x), "encoder", 5)
    assert bar.shown[-1] == bar.total
    assert bar.shown == sorted(set(bar.shown))
    assert not hooked(vae)


@pytest.mark.parametrize("at", [1, 2, 7])
def test_a_call_ends_before_the_layer_that_would_run_next(stop, at):
    vae, stop["at"] = CausalVae(), at
    with pytest.raises(Stopped):
        WatchedCalls(vae, 1).run(lambda: vae.encode(torch.rand(1, 3, 5, 2, 2)), "encoder", 5)
    assert stop["seen"] == at
    assert not hooked(vae)


def test_a_compiled_vae_is_called_without_hooks(stop):
    vae = CausalVae()
    vae.first_stage_model.encoder[1]._orig_mod = nn.Identity()
    seen = []
    WatchedCalls(vae, 1).run(lambda: seen.append(hooked(vae)), "encoder", 5)
    assert seen == [[]]
    assert host_stub.BARS[-1].shown == [PARTS]


def test_a_vae_without_a_network_is_called_as_it_is(stop):
    watched = WatchedCalls(object(), 1)
    assert watched.run(lambda: 7, "decoder", 3) == 7
    assert host_stub.BARS[-1].shown == [PARTS]
