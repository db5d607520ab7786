"""States of sampling runs as files: bit for bit, sealed, refused where they are something else."""

import errno
import json
import os
import resource
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import save_file
from surf.surf_core.digest import digest
from surf.surf_core.run_state import (
    ABOUT_KEY,
    SEAL_KEY,
    VERSION_KEY,
    Progress,
    load_state,
    read_progress,
    save_state,
)

ROOT = Path(__file__).parents[2]
KNOWN = {"graph": "g", "inputs": "i", "files": "f", "versions": "v", "tile": (4, 6), "most": 3}


def progress(done=2, steps=5, **more):
    return Progress(done=done, steps=steps, **(KNOWN | more))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
@pytest.mark.parametrize("shape", [(1, 16, 3, 4, 6), (2, 1, 77)])
def test_a_state_round_trips_bit_for_bit(tmp_path, dtype, shape):
    latent = torch.randn(shape).to(dtype)
    save_state(tmp_path / "a", latent, progress())
    known, found = load_state(tmp_path / "a")
    assert known == progress() == read_progress(tmp_path / "a")
    assert found.dtype == dtype
    assert torch.equal(found, latent)
    assert os.listdir(tmp_path) == ["a"]


@pytest.mark.parametrize("change", [{"done": 0}, {"done": 5}, {"tile": (0, 6)}, {"most": 0}])
def test_a_run_with_nothing_done_or_nothing_left_has_no_state(change):
    with pytest.raises(ValueError, match="steps done|tiles of"):
        progress(**change)


def edited(path, **changes):
    """Save the file again with other metadata."""
    with safe_open(path, "pt") as file:
        tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        metadata = {**file.metadata(), **changes}
    save_file(tensors, path, {key: x for key, x in metadata.items() if x is not None})


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({VERSION_KEY: "2"}, "expected format 1 or older, got 2"),
        ({VERSION_KEY: None}, "got another file: the run begins anew"),
        ({ABOUT_KEY: "{}"}, "missing fields .*damaged: the run begins anew"),
        ({ABOUT_KEY: "["}, "damaged: the run begins anew"),
        ({SEAL_KEY: None}, "expected the seal"),
        ({SEAL_KEY: "0" * 32}, "expected the seal"),
        (
            {ABOUT_KEY: json.dumps(KNOWN | {"done": 3, "steps": 5, "tile": [4, 6]})},
            "expected the seal",
        ),
    ],
)
def test_files_that_are_no_whole_states_are_refused(tmp_path, changes, words):
    save_state(tmp_path / "a", torch.randn(1, 4, 2, 2), progress())
    edited(tmp_path / "a", **changes)
    with pytest.raises(ValueError, match=words):
        load_state(tmp_path / "a")


def test_every_flipped_bit_is_found(tmp_path):
    """None of them gives another latent or another step."""
    save_state(tmp_path / "a", torch.randn(1, 4, 2, 2), progress())
    whole = (tmp_path / "a").read_bytes()
    for place in range(0, len(whole), 3):
        bad = bytearray(whole)
        bad[place] ^= 1 << place % 8
        (tmp_path / "b").write_bytes(bad)
        try:
            known, found = load_state(tmp_path / "b")
        except ValueError:
            continue
        assert known == progress()
        assert torch.equal(found, load_state(tmp_path / "a")[1])
    for length in (0, 7, 100, len(whole) - 1):
        (tmp_path / "b").write_bytes(whole[:length])
        with pytest.raises(ValueError, match="expected"):
            load_state(tmp_path / "b")


def test_a_folder_that_takes_no_more_raises_and_keeps_the_state_before(tmp_path):
    """Under the system's own limit of a file's size, at which writes fail as on a full disk."""
    save_state(tmp_path / "a", torch.zeros(1, 4), progress())
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (4096, before[1]))
    try:
        with pytest.raises(OSError):  # noqa: PT011 as safetensors words it
            save_state(tmp_path / "a", torch.zeros(1, 4096), progress(3))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert os.listdir(tmp_path) == ["a"]
    assert load_state(tmp_path / "a")[0] == progress()


def test_what_a_kill_leaves_goes_with_the_next_write(tmp_path):
    for name in ("first", "second"):
        left = tmp_path / f"{name}.tmp"
        left.mkdir()
        (left / ".tmpA1b2C3").write_bytes(bytes(100))
    save_state(tmp_path / "first", torch.zeros(1, 4), progress())
    assert sorted(os.listdir(tmp_path)) == ["first", "second.tmp"]


def test_a_killed_write_leaves_nothing_but_its_own_folder(tmp_path):
    """Of safetensors' own hidden files too, with names that nobody knows."""
    program = (
        "import os, pathlib, torch; from surf_core import header; "
        "save, header.save_file = header.save_file, "
        "lambda weights, path, about: (save(weights, path, about), "
        "(pathlib.Path(path).parent / '.tmpA1b2C3').touch(), os.kill(os.getpid(), 9)); "
        f"header.write(pathlib.Path({str(tmp_path / 'a')!r}), {{'x': torch.zeros(4)}}, {{'k': ''}})"
    )
    assert subprocess.run([sys.executable, "-c", program], cwd=ROOT, check=False).returncode == -9
    assert os.listdir(tmp_path) == ["a.tmp"]
    save_state(tmp_path / "a", torch.zeros(1, 4), progress())
    assert os.listdir(tmp_path) == ["a"]


def test_a_place_that_is_no_folder_raises(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(OSError) as caught:  # noqa: PT011 as safetensors words it
        save_state(tmp_path / "file" / "a", torch.zeros(1, 4), progress())
    assert caught.value.errno in (None, errno.ENOTDIR)


def test_digests_tell_values_apart_and_equal_ones_not():
    x = torch.randn(2, 3)
    values = [
        x, x.half(), x.reshape(3, 2), x + 1e-6, torch.tensor(1.0), None, 0, False, "", "0", [],
        [x], [x, None], {"a": x}, {"b": x}, {"a": [1, 2]}, {"a": [12]}, object(), [[1], 2],
        [1, [2]],
    ]  # fmt: skip
    assert len({digest(value) for value in values}) == len(values)
    assert digest({"a": 1, "b": x.T}) == digest({"b": x.T.clone(), "a": 1})
    assert digest(x.to(torch.float8_e4m3fn)) == digest(x.to(torch.float8_e4m3fn))
