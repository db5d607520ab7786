"""The folder of states: what killed processes leave goes, and other processes are left in peace."""

import os
from types import SimpleNamespace

import host_stub_files
import pytest
import torch
from surf.nodes.host.resume import store
from surf.nodes.host.resume.key import Key
from surf.surf_core.run_state import Progress

NAMES = {"inputs": "i", "files": "f", "versions": "v"}


@pytest.fixture(autouse=True)
def said(monkeypatch, tmp_path):
    monkeypatch.setitem(host_stub_files.FOLDERS, "user", str(tmp_path))
    lines = []
    log = SimpleNamespace(warning=lambda text, *args: lines.append(text % args))
    monkeypatch.setattr(store, "log", log)
    return lines


def save(graph="a"):
    key = Key(graph=graph * 32, **NAMES)
    state = Progress(graph=key.graph, done=1, steps=2, tile=(4, 6), most=3, **NAMES)
    return store.Store(key).save(torch.zeros(1, 4), state)


def names():
    return sorted(path.name for path in store.folder().iterdir())


def left(name, age):
    """What a process that was killed some seconds ago was saving, in a folder or in a file."""
    path = store.folder() / name
    if name.startswith(".tmp"):
        path.write_bytes(bytes(9))
    else:
        path.mkdir()
    time = path.stat().st_mtime - age
    os.utime(path, (time, time))
    return name


def test_what_kills_left_goes_and_what_may_be_going_on_or_is_not_ours_stays(said):
    save()
    [state] = names()
    other = f"{'b' * 16}-{'1' * 16}.run.safetensors.tmp"
    new = f"{'c' * 16}-{'1' * 16}.run.safetensors.tmp"
    for name in (other, ".tmpA1b2C3", "mine.tmp"):
        left(name, 7200)
    for name in (new, ".tmpD1b2C3"):
        left(name, 60)
    save("d")
    assert set(names()) - {state} == {new, ".tmpD1b2C3", "mine.tmp", names()[-2]}
    assert names()[-2].startswith("d" * 16)
    assert said == []


def test_hidden_files_of_killed_processes_count(monkeypatch, said):
    monkeypatch.setattr(store, "MOST_FILES", 2)
    save()
    for number in range(3):
        left(f".tmpA1b2C{number}", 60 * number)
    save("d")
    assert len(names()) == 2
    assert len(said) == 3


def test_a_state_that_another_process_takes_away_meanwhile_ends_no_saving(monkeypatch, said):
    save()
    listed, gone = type(store.folder()).iterdir, f"{'b' * 16}-{'1' * 16}.run.safetensors"
    monkeypatch.setattr(
        type(store.folder()), "iterdir", lambda path: iter([*listed(path), path / gone])
    )
    assert save("d")
    assert said == []


def test_what_failed_is_said_in_full_however_long_the_path_is(monkeypatch, tmp_path, said):
    user = tmp_path / ("long" * 20) / ("path" * 20)
    user.mkdir(parents=True)
    (user / "__surf").write_text("no folder")
    monkeypatch.setitem(host_stub_files.FOLDERS, "user", str(user))
    assert not save()
    assert "..." not in said[0]
    assert f"cannot save the run in {user}/__surf/runs (" in said[0]
