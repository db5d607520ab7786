"""Tensors that outlive a transformer block are made outside of the host's record of its memory.

Hosts after 0.33 have `comfy.model_prefetch.pause_malloc_graph`, and end the process without it.
Here a stand-in takes its place: none of this has run on such a host.
"""

import contextlib
import sys
from types import SimpleNamespace

import pytest
import torch
from surf.nodes.host import compiling
from surf.nodes.host.attention import windows
from surf.nodes.host.skip import wan_tokens
from surf.tests.nodes import test_gather as wan


@pytest.fixture
def paused(monkeypatch):
    """How deep the record is paused: one number in a list."""
    depth = [0]

    @contextlib.contextmanager
    def pause():
        depth[0] += 1
        try:
            yield
        finally:
            depth[0] -= 1

    stand_in = SimpleNamespace(pause_malloc_graph=pause)
    monkeypatch.setitem(sys.modules, "comfy.model_prefetch", stand_in)
    return depth


def noting(function, depth, seen):
    def call(*args, **kwargs):
        seen.append((function.__name__, depth[0]))
        return function(*args, **kwargs)

    return call


def test_tokens_of_a_mask_are_gathered_and_scattered_while_the_record_is_paused(
    paused, monkeypatch
):
    seen, keep = [], wan.some((5, 3, 4)).tokens
    plain = wan.through(wan.WanModel(), keep)
    for name in ("pack", "unpack"):
        monkeypatch.setattr(wan_tokens, name, noting(getattr(wan_tokens, name), paused, seen))
    out = wan.through(wan.WanModel(), keep)
    assert torch.equal(out, plain)
    # Tokens and positions once, then the way back.
    assert seen == [("pack", 1), ("pack", 1), ("unpack", 1)]
    assert paused == [0]


def test_windows_attend_while_the_record_is_paused(paused, monkeypatch):
    seen = []
    monkeypatch.setattr(windows, "attend_ranges", noting(windows.attend_ranges, paused, seen))
    wan.through(wan.WanModel(), window=2)
    assert seen == [("attend_ranges", 1)] * 4
    assert paused == [0]


@pytest.mark.parametrize("host", [SimpleNamespace(), None])
def test_hosts_that_record_nothing_need_no_pause(host, monkeypatch):
    monkeypatch.setitem(sys.modules, "comfy.model_prefetch", host)
    with compiling.outside_memory_graph() as nothing:
        assert nothing is None
