"""A real host killed at random moments: the refinement goes on, and its result is the same bits."""

import os
import random
import shutil
from dataclasses import replace

import pytest
import torch
from surf.surf_core.run_state import load_state, save_state
from surf.tests.host import resumed
from surf.tests.host.server import Server

KILLS, STEPS = 10, 90

pytestmark = [
    pytest.mark.host,
    pytest.mark.skipif("COMFYUI_PATH" not in os.environ, reason="COMFYUI_PATH is not set"),
]


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    folder = tmp_path_factory.mktemp("resume")
    resumed.prepare(folder)
    return folder


@pytest.fixture(scope="module")
def undisturbed(base):
    """The result of a process that saves nothing."""
    with Server(base) as server:
        for steps in (STEPS, resumed.STEPS):
            server.run(resumed.latent_graph(resume=False, steps=steps))
    assert resumed.states(base) == []
    return dict(zip((STEPS, resumed.STEPS), resumed.saved_latents(base), strict=True))


def log_of(server):
    return server.log.read_text(encoding="utf-8", errors="replace")


def test_a_run_killed_at_ten_random_moments_is_that_of_an_undisturbed_run(base, undisturbed):
    draw, prompt, done = random.Random(20), resumed.latent_graph(steps=STEPS), [0]
    for _ in range(KILLS):
        done.append(resumed.killed_later(base, prompt, draw, most=STEPS // 3))
    assert done == sorted(done)
    assert STEPS // 9 < done[-1] < STEPS, done
    with Server(base) as server:
        # Other numbers of nodes, as after loading the workflow anew.
        again = {f"n{name}": each for name, each in reversed(prompt.items())}
        for each in again.values():
            links = {k: v for k, v in each["inputs"].items() if isinstance(v, list)}
            each["inputs"] |= {name: [f"n{link[0]}", link[1]] for name, link in links.items()}
        server.run(again)
        assert f"Surf Refiner: resumed after step {done[-1]} of {STEPS}." in log_of(server)
    assert torch.equal(resumed.saved_latents(base)[-1], undisturbed[STEPS])
    assert resumed.states(base) == []


def graph(request):
    """A graph for each test: what the host has made of one, it does not make again."""
    return resumed.latent_graph(negative=sum(map(ord, request.node.name)))


@pytest.fixture(scope="module")
def server(base, undisturbed):
    with Server(base) as running:
        yield running


@pytest.fixture
def state(server, base, request):
    """The state of a run that the user has interrupted."""
    server.post(graph(request))
    resumed.wait_for(lambda: resumed.steps_done(base) >= 3)
    resumed.interrupt(server)
    resumed.wait_for(lambda: not server.get("/queue")["queue_running"])
    [path] = resumed.states(base)
    yield path
    for left in resumed.states(base):
        left.unlink()


def check_same(request, server, base, undisturbed, *said):
    """Run to the end, and compare."""
    before, count = log_of(server), len(resumed.saved_latents(base))
    server.run(graph(request))
    found = resumed.saved_latents(base)
    assert len(found) == count + 1
    assert torch.equal(found[-1], undisturbed[resumed.STEPS])
    new = log_of(server)[len(before) :]
    for words in said:
        assert words in new, new[-3000:]
    return new


def test_an_interrupted_run_goes_on_and_is_removed_when_it_is_done(
    request, server, base, state, undisturbed
):
    done = resumed.steps_done(base)
    check_same(request, server, base, undisturbed, f"resumed after step {done} of")
    assert resumed.states(base) == []


def test_a_damaged_state_is_passed_over_aloud(request, server, base, state, undisturbed):
    whole = bytearray(state.read_bytes())
    whole[-100] ^= 4
    state.write_bytes(whole)
    check_same(
        request, server, base, undisturbed, "starting from the first step", "the file is damaged"
    )
    assert resumed.states(base) == []


def test_a_state_of_another_version_is_passed_over_aloud_and_stays(
    request, server, base, state, undisturbed
):
    progress, latent = load_state(state)
    other = state.with_name(state.name[:17] + "0" * 16 + ".run.safetensors")
    save_state(other, latent, replace(progress, versions="ComfyUI 0.1.0, torch 1.0"))
    state.unlink()
    check_same(
        request,
        server,
        base,
        undisturbed,
        "starting from the first step",
        "of ComfyUI 0.1.0, torch 1.0",
    )
    assert resumed.states(base) == [other]


def test_changed_weights_start_anew(request, server, base, state, undisturbed):
    path = base / "models" / "diffusion_models" / "tiny_wan_t2v.safetensors"
    os.utime(path, ns=(0, path.stat().st_mtime_ns + 1))
    check_same(request, server, base, undisturbed, "a weight file has changed")


def test_a_folder_that_takes_nothing_does_not_end_the_run(request, server, base, undisturbed):
    folder = base / resumed.STATES
    shutil.rmtree(folder)
    folder.write_text("no folder")
    try:
        log = check_same(request, server, base, undisturbed, "cannot save the run")
        assert log.count("cannot save the run") == 1
    finally:
        folder.unlink()
