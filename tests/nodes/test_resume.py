"""Runs taken up on the fake host: from the step they were at, to the bit; no other run's state."""

import os
import random
import shutil
from types import SimpleNamespace

import host_stub
import host_stub_files
import pytest
import torch
from host_stub import Patcher
from surf.nodes.host.nested import Parts, tensors_of
from surf.nodes.host.refine import RefineSettings, refine
from surf.nodes.host.refiner.loading import TRAITS_KEY, RefinerTraits
from surf.nodes.host.resume import QueuedNode, key, store
from surf.nodes.host.resume.key import Key, ancestors, key_of, queued_node, weight_files
from surf.surf_core.run_state import load_state

STEPS = 7
GRAPH = {
    "1": {"class_type": "Loader", "inputs": {"name": "wan.safetensors"}},
    "2": {"class_type": "Text", "inputs": {"text": "a cat", "model": ["1", 1]}},
    "3": {
        "class_type": "SurfRefiner",
        "inputs": {"model": ["1", 0], "positive": ["2", 0], "steps": 7, "resume": True},
    },
    "4": {"class_type": "Decode", "inputs": {"samples": ["3", 0]}},
}


class KilledRun(BaseException):
    """Ends a run from inside of an evaluation."""


@pytest.fixture(autouse=True)
def user(monkeypatch, tmp_path):
    monkeypatch.setitem(host_stub_files.FOLDERS, "user", str(tmp_path))
    monkeypatch.setattr(store, "log", log := SaidLines())
    monkeypatch.setattr("surf.nodes.host.resume.run.log", log)
    monkeypatch.setattr("surf.nodes.host.resume.key.log", log)
    # Steps of the fake host take no time, next to saving.
    monkeypatch.setattr("surf.nodes.host.resume.run.SHARE", 0)
    return SimpleNamespace(folder=tmp_path / "__surf" / "runs", log=log)


class SaidLines(list):
    """Log lines."""

    def warning(self, text, *args):
        self.append(text % args)

    info = warning


def node(graph=GRAPH, number="3"):
    return QueuedNode(find=graph.__getitem__, number=number, leave_out=("resume",))


def run(killed_at=None, resume=True, steps=STEPS, **changes):
    """Refine on the fake host; (samples, evaluations)."""
    calls = []

    def velocity(x, sigma, cond):
        calls.append(float(sigma.flatten()[0]))
        if len(calls) - 1 == killed_at:
            raise KilledRun
        return torch.tanh(x * 1.7 + cond) * (1 + sigma)

    settings = {
        "seed": 3, "sigma_start": 0.65, "cfg": 1.0, "window": 0, "low_band_lock": 0.0,
        "colour_match": False, "steps": steps,
    }  # fmt: skip
    settings |= {k: v for k, v in changes.items() if k in settings or k == "chunk_frames"}
    generator = torch.Generator().manual_seed(changes.get("latent_seed", 1))
    latent = {"samples": torch.randn(1, 16, 8, 4, 6, generator=generator)}
    latent = changes.get("latent", latent)
    model = Patcher(velocity=velocity)
    if "made" in changes:
        model = changes["made"](velocity)
    if "noise_mask" in changes:
        latent["noise_mask"] = changes["noise_mask"]
    prompt = [[torch.full((1, 3, 8), changes.get("prompt", 0.1)), {}]]
    try:
        out, _, _ = refine(
            model, prompt, prompt, latent, RefineSettings(**settings),
            upsample="latent", resume=node(changes.get("graph", GRAPH)) if resume else None,
            resolution="by scale", scale=2.0, width=0, height=0,
        )  # fmt: skip
    except KilledRun:
        return None, calls
    return out["samples"], calls


@pytest.mark.parametrize("seed", range(6))
@pytest.mark.parametrize("mask", [False, True])
def test_a_run_killed_anywhere_and_again_is_that_of_an_undisturbed_run(user, seed, mask):
    draw, changes = random.Random(seed), {}
    if mask:
        changes["noise_mask"] = (torch.rand(1, 1, 8, 4, 6) > 0.5).float()
    undisturbed, _ = run(resume=False, **changes)
    done = 0
    while True:
        out, calls = run(killed_at=draw.choice([0, 1, 2, 3, None]), **changes)
        assert calls[0] == pytest.approx(0.65 * (1 - done / STEPS), abs=1e-5)
        done += len(calls) - (out is None)
        if out is not None:
            break
        assert len(list(user.folder.glob("*"))) == (done > 0)
    assert done == STEPS
    assert torch.equal(out, undisturbed)
    assert list(user.folder.glob("*")) == []


def flow_map(velocity):
    """A refiner of ours that goes from the preview to the result."""
    made = Patcher(velocity=velocity)
    traits = {"sigma_start": 0.2, "window": 3, "time": "t", "text_dim": 8}
    made.set_attachments(TRAITS_KEY, RefinerTraits(**traits))
    return made


def with_sound(velocity):
    made = Patcher(128, velocity, base=type("LTXAV", (), {}))
    made.model.diffusion_model.patch_size = (1, 1, 1)
    return made


@pytest.mark.parametrize("made", [flow_map, with_sound])
def test_flow_maps_and_video_with_sound_go_on_too(user, made):
    changes = {"made": made}
    if made is with_sound:
        generator = torch.Generator().manual_seed(0)
        shapes = (1, 128, 3, 4, 6), (1, 8, 17, 16)
        parts = Parts(*(torch.randn(shape, generator=generator) for shape in shapes))
        changes["latent"] = {"samples": parts.joined()}
    undisturbed, _ = run(resume=False, **changes)
    run(killed_at=4, **changes)
    out, calls = run(**changes)
    assert len(calls) == STEPS - 4
    assert all(map(torch.equal, tensors_of(out), tensors_of(undisturbed)))
    assert list(user.folder.glob("*")) == []


def test_saving_changes_nothing_and_off_nothing_is_saved(user):
    plain, _ = run(resume=False)
    assert not user.folder.exists()
    assert torch.equal(run()[0], plain)
    run(resume=False, killed_at=4)
    assert list(user.folder.glob("*")) == []


def test_a_step_is_counted_where_it_is_in_the_whole_run(user, monkeypatch):
    said = []
    monkeypatch.setattr("surf.nodes.host.refine.run.show_status", said.append)
    run(killed_at=3)
    host_stub.BARS.clear()
    said.clear()
    run()
    assert host_stub.BARS[-1].shown == [(n, STEPS) for n in range(4, STEPS + 1)]
    assert said[0].endswith(f"3/{STEPS} steps, resumed after step 3")
    assert said[-1].endswith(f"{STEPS}/{STEPS} steps, resumed after step 3")
    assert user.log == [f"resumed after step 3 of {STEPS}."]


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"prompt": 0.2}, "what the graph makes of its files and prompts has changed"),
        ({"latent_seed": 2}, "what the graph makes of its files and prompts has changed"),
        ({"seed": 4}, "what the graph makes of its files and prompts has changed"),
        ({"chunk_frames": 5000}, "what the graph makes of its files and prompts has changed"),
        ({"steps": STEPS + 1}, "what the graph makes of its files and prompts has changed"),
    ],
)
def test_another_run_of_the_graph_starts_anew_aloud_and_leaves_the_state(user, changes, words):
    run(killed_at=4)
    [before] = user.folder.iterdir()
    whole = before.read_bytes()
    out, calls = run(**changes)
    assert len(calls) == changes.get("steps", STEPS)
    assert torch.equal(out, run(resume=False, **changes)[0])
    assert [words in line for line in user.log] == [True]
    assert before.read_bytes() == whole
    assert len(run()[1]) == STEPS - 4


def test_states_of_other_versions_and_other_weights_are_passed_over_aloud(user, monkeypatch):
    run(killed_at=4)
    monkeypatch.setattr(key, "versions", lambda device: "ComfyUI 9, torch 9, SURF 9, cpu")
    assert len(run()[1]) == STEPS
    assert "it is of ComfyUI 0.0.0, torch" in user.log[0]
    assert "this is ComfyUI 9, torch 9, SURF 9, cpu" in user.log[0]
    monkeypatch.undo()
    monkeypatch.setitem(host_stub_files.FOLDERS, "user", str(user.folder.parents[1]))
    monkeypatch.setattr(key, "weight_files", lambda graph: [("loras", "a", 1, 2)])
    monkeypatch.setattr(store, "log", log := SaidLines())
    assert len(run()[1]) == STEPS
    assert [line for line in log if "a weight file has changed" in line] == log != []


@pytest.mark.parametrize("damage", ["cut", "flipped", "empty", "foreign", "folder", "renamed"])
def test_what_is_no_state_of_this_run_is_passed_over_aloud(user, damage):
    run(killed_at=4)
    [path] = user.folder.iterdir()
    whole = path.read_bytes()
    if damage == "cut":
        path.write_bytes(whole[:-5])
    elif damage == "flipped":
        path.write_bytes(whole[:-5] + bytes([whole[-5] ^ 1]) + whole[-4:])
    elif damage == "empty":
        path.write_bytes(b"")
    elif damage == "foreign":
        path.write_bytes(b"PK\x03\x04" + bytes(100))
    elif damage == "folder":
        path.unlink()
        path.mkdir()
    else:
        run(killed_at=4, prompt=0.3)
        [other] = [each for each in user.folder.iterdir() if each != path]
        shutil.move(other, path)
        user.log.clear()
    out, calls = run()
    assert len(calls) == STEPS
    assert torch.equal(out, run(resume=False)[0])
    assert user.log[0].startswith("starting from the first step: the saved state is no use")
    # Whole, and with nothing to do: the next save takes its place.
    assert [word for word in ("...", "delete") if word in user.log[0]] == []


def test_a_folder_that_takes_nothing_is_said_once_and_the_run_goes_on(user):
    user.folder.parent.parent.mkdir(exist_ok=True)
    user.folder.parent.write_text("no folder")
    out, calls = run()
    assert len(calls) == STEPS
    assert torch.equal(out, run(resume=False)[0])
    assert ["cannot save the run" in line for line in user.log] == [True]


def test_a_disk_that_fills_up_leaves_the_step_before(user, monkeypatch):
    save, count = store.save_state, []

    def full(*args):
        count.append(args)
        if len(count) > 2:
            raise OSError(28, "No space left on device")
        save(*args)

    monkeypatch.setattr(store, "save_state", full)
    run(killed_at=5)
    assert len(count) == 3
    assert "No space left on device" in user.log[0]
    monkeypatch.setattr(store, "save_state", save)
    assert len(run()[1]) == STEPS - 2


def test_a_run_that_fails_by_itself_keeps_no_bad_latent(user):
    def velocity(x, sigma, cond):
        return x * (float("nan") if float(sigma.flatten()[0]) < 0.3 else 1)

    prompt = [[torch.zeros(1, 3, 8), {}]]
    settings = RefineSettings(
        seed=3, sigma_start=0.65, steps=STEPS, cfg=1.0, window=0, low_band_lock=0.0,
        colour_match=False,
    )  # fmt: skip
    with pytest.raises(ValueError, match="finite"):
        refine(
            Patcher(velocity=velocity), prompt, prompt, {"samples": torch.ones(1, 16, 3, 4, 6)},
            settings, upsample="latent", resume=node(), resolution="by scale", scale=2.0, width=0,
            height=0,
        )  # fmt: skip
    [path] = user.folder.iterdir()
    assert load_state(path)[1].isfinite().all()


def test_a_few_states_stay_and_what_is_not_ours_does(user, monkeypatch):
    monkeypatch.setattr(store, "MOST_FILES", 3)
    user.folder.mkdir(parents=True)
    (user.folder / "mine.txt").touch()
    for number in range(5):
        run(killed_at=2, prompt=float(number))
        for path in user.folder.glob("*-*"):
            age = os.stat(path).st_mtime_ns - 10**9
            os.utime(path, ns=(age, age))
    names = sorted(path.name for path in user.folder.iterdir())
    assert len(names) == 4
    assert "mine.txt" in names
    assert len(run(prompt=2.0)[1]) == STEPS - 2
    monkeypatch.setattr(store, "MOST_BYTES", 1)
    run(killed_at=2, prompt=9.0)
    assert len(list(user.folder.iterdir())) == 2


def test_what_kills_leave_while_saving_is_counted_and_goes(user, monkeypatch):
    monkeypatch.setattr(store, "MOST_FILES", 2)
    for number in range(4):
        left = user.folder / f"{'0' * 16}-{number:016}.run.safetensors.tmp"
        left.mkdir(parents=True)
        (left / ".tmpA1b2C3").write_bytes(bytes(1000))
        os.utime(left, (left.stat().st_mtime - 60 + number,) * 2)
    run(killed_at=2)
    [state, newest] = sorted(user.folder.iterdir(), key=lambda path: path.is_dir())
    assert newest == left
    monkeypatch.setattr(store, "MOST_BYTES", state.stat().st_size + 500)
    run(killed_at=2, prompt=9.0)
    [state] = user.folder.iterdir()
    state.with_name(f"{state.name}.tmp").mkdir()
    run(prompt=9.0)
    assert not list(user.folder.iterdir())


def test_saving_takes_a_small_share_of_the_time(user, monkeypatch):
    monkeypatch.setattr("surf.nodes.host.resume.run.SHARE", 20)
    clock, saved = [0.0], []
    monkeypatch.setattr("surf.nodes.host.resume.run.time.monotonic", lambda: clock[0])
    save = store.save_state

    def slow(path, latent, progress):
        saved.append(progress.done)
        clock[0] += 0.1
        save(path, latent, progress)

    monkeypatch.setattr(store, "save_state", slow)
    tick = torch.tanh

    def tanh(x):
        clock[0] += 0.7
        return tick(x)

    monkeypatch.setattr(torch, "tanh", tanh)
    run(steps=12)
    assert saved == [1, 4, 7, 10]


def renumbered(graph, names):
    """The same graph under other numbers, in another order, with titles."""
    made = {}
    for number in sorted(graph, reverse=True):
        each = graph[number]
        inputs = {
            name: [names[value[0]], value[1]] if isinstance(value, list) else value
            for name, value in reversed(each["inputs"].items())
        }
        made[names[number]] = each | {"inputs": inputs, "_meta": {"title": number}}
    return made


def test_numbers_titles_and_what_comes_after_do_not_count():
    names = {"1": "70", "2": "5:3", "3": "9", "4": "1"}
    other = renumbered(GRAPH, names)
    assert ancestors(node(other, "9")) == ancestors(node())
    assert [kind for kind, _ in ancestors(node())] == ["Loader", "Text", "SurfRefiner"]
    assert "resume" not in ancestors(node())[-1][1]


@pytest.mark.parametrize(
    ("number", "name", "value"),
    [
        ("1", "name", "other.safetensors"),
        ("2", "text", "a dog"),
        ("2", "model", ["1", 0]),
        ("3", "steps", 8),
        ("3", "extra", 1),
    ],
)
def test_every_value_and_link_above_counts(number, name, value):
    changed = {n: each | {"inputs": dict(each["inputs"])} for n, each in GRAPH.items()}
    changed[number]["inputs"][name] = value
    assert ancestors(node(changed)) != ancestors(node())
    first, second = (key_of(node(graph), [], torch.device("cpu")) for graph in (GRAPH, changed))
    assert first.name != second.name


def test_a_long_chain_of_nodes_is_followed():
    chain = {"0": {"class_type": "A", "inputs": {}}}
    for n in range(1, 3000):
        link = [str(n - 1), 0]
        chain[str(n)] = {"class_type": "A", "inputs": {"a": link, "b": link}}
    assert len(ancestors(node(chain, "2999"))) == 3000


def test_weight_files_count_by_name_size_and_time(monkeypatch, tmp_path):
    monkeypatch.setitem(host_stub_files.folder_names_and_paths, "loras", ([str(tmp_path)], set()))
    path = tmp_path / "wan.safetensors"
    graph = [*ancestors(node()), ("Text", {"text": "a\0b"}), ("Text", {"text": "x" * 5000})]
    assert weight_files(graph) == []
    path.write_bytes(b"1234")
    os.utime(path, ns=(5, 7))
    assert weight_files(graph) == [("loras", "wan.safetensors", 4, 7)]


def test_outside_of_a_queued_graph_nothing_is_saved_aloud(user):
    assert queued_node(None, "resume") is None
    assert queued_node(SimpleNamespace(dynprompt=None), "resume") is None
    assert len(user.log) == 2


def test_names_of_files_begin_with_the_graph():
    one = Key(graph="a" * 32, inputs="b", files="c", versions="d")
    assert store.OURS.fullmatch(f"{one.name}.run.safetensors")[0].startswith("a" * 16 + "-")
