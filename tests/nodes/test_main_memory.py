"""Main memory: caches go first, then the system pages, and only what cannot fit is refused."""

import logging
import sys
from types import SimpleNamespace

import pytest
import torch
from surf.nodes.host.vae import decode_latent, memory, upsample_latent
from surf.tests.nodes.vaes import Vae

GB = 2**30


@pytest.fixture
def machine(monkeypatch):
    """Bytes free and in swap; `cached` is what each cache of the host gives back when asked."""
    state = SimpleNamespace(free=100 * GB, swap=0, total=0, cached={}, emptied=[])
    module = sys.modules["comfy.model_management"]

    def giving(name):
        def release(*args, **kwargs):
            state.emptied.append(name)
            state.free += state.cached.pop(name, 0)

        return release

    counter = SimpleNamespace(swap_memory=lambda: SimpleNamespace(free=state.swap))
    monkeypatch.setattr(module, "get_free_memory", lambda device: state.free)
    monkeypatch.setattr(module, "get_total_memory", lambda device: max(state.total, 1000 * GB))
    monkeypatch.setattr(module, "psutil", counter)
    monkeypatch.setattr(module, "free_memory", giving("weights"))
    monkeypatch.setattr(module, "ensure_pin_budget", giving("pins"), raising=False)
    caches = SimpleNamespace(extra_ram_release=giving("results"))
    monkeypatch.setattr(sys.modules["comfy"], "memory_management", caches, raising=False)
    monkeypatch.setattr(sys, "platform", "linux")
    return state


def check(needed):
    memory.check_main_memory(needed, "the frames", "decode fewer frames at a time")


def warnings(caplog):
    return [r.getMessage() for r in caplog.records if r.levelno == logging.WARNING]


def test_caches_stay_where_there_is_room(machine, caplog):
    check(100 * GB)
    assert not machine.emptied
    assert not warnings(caplog)


@pytest.mark.parametrize("cache", ["weights", "pins", "results"])
def test_the_hosts_caches_are_emptied_first(machine, cache, caplog):
    machine.free, machine.cached = 3 * GB, {cache: 1 * GB}
    check(3.8 * GB)
    assert cache in machine.emptied
    assert not warnings(caplog)


def test_paging_is_warned_about(machine, caplog):
    machine.free, machine.swap = 3 * GB, 2 * GB
    check(3.8 * GB)
    assert warnings(caplog) == [
        "SURF: the frames need 3.8 GB of main memory, 3.0 GB are free after emptying ComfyUI's "
        "caches; the system will page to disk, which is slow. To avoid it, decode fewer frames at "
        "a time."
    ]


@pytest.mark.parametrize("system", ["win32", "darwin"])
def test_swap_space_that_grows_counts_as_the_size_of_the_memory(
    machine, monkeypatch, system, caplog
):
    machine.free = 3 * GB
    monkeypatch.setattr(sys, "platform", system)
    check(3.8 * GB)
    assert len(warnings(caplog)) == 1


def test_what_cannot_fit_is_refused(machine):
    machine.free, machine.swap = 3 * GB, 0.5 * GB
    with pytest.raises(ValueError, match="too little swap space; decode fewer frames at a time"):
        check(3.8 * GB)
    assert machine.emptied == ["weights", "pins", "results"]


def test_older_hosts_without_such_caches_do(machine, monkeypatch):
    monkeypatch.delattr(sys.modules["comfy.model_management"], "ensure_pin_budget")
    monkeypatch.delattr(sys.modules["comfy"], "memory_management")
    machine.free, machine.cached = 3 * GB, {"weights": 1 * GB}
    check(3.8 * GB)


def test_decoding_is_refused_before_the_vae_runs(machine):
    vae, machine.free = Vae(), 1e6
    with pytest.raises(
        ValueError, match="the frames need .* of main memory.* use Surf Decode Video"
    ):
        decode_latent(vae, {"samples": torch.rand(1, 16, 2, 60, 103)}, 0, 0, 0)
    assert not vae.calls


@pytest.mark.parametrize("batch", [1, 3])
def test_main_memory_must_hold_the_frames_twice(machine, batch):
    """Once as the VAE hands them over, once as they are put together, in fp32."""
    once = batch * 5 * 160 * 272 * 3 * 4
    samples = {"samples": torch.rand(batch, 16, 2, 20, 34)}
    machine.free = 1.9 * once
    with pytest.raises(ValueError, match="of main memory"):
        decode_latent(Vae(), samples, 0, 0, 0)
    machine.free = 2.1 * once
    assert len(decode_latent(Vae(), samples, 0, 0, 0)) == batch * 5


def test_pieces_to_encode_are_chosen_after_the_caches_are_empty(machine):
    samples, vae = torch.rand(1, 16, 2, 20, 34), Vae()
    machine.free, machine.cached = 40e6, {"results": 100 * GB}
    upsample_latent(samples, (60, 103), "pixel", vae)
    assert [size for kind, size in vae.calls if kind == "encode"] == [(480, 824)]
