"""The command in processes of its own: killed at any moment, with workers, and on Ray."""

import json
import os
import random
import shutil
import sys
import time
from pathlib import Path

import pytest
from surf.surf_core.training.prepare import cli
from surf.surf_core.training.prepare.manifest import Folder, read
from surf.surf_core.training.tiny.clips import write_clips
from surf.tests import patience

from . import prepared

ROOT = Path(__file__).parents[2]


def command(given, out, *arguments):
    return ["surf_core.training.prepare", given, out, "--preset", "tiny", *arguments]


def finish(given, out, *arguments):
    """Run the command to its end in a process of its own, and return what it printed.

    It has one thread, as those that are forked: bits depend on their number.
    """
    words = [sys.executable, "-m", *map(str, command(given, out, *arguments))]
    env = {**os.environ, "OMP_NUM_THREADS": "1", "RAY_USAGE_STATS_ENABLED": "0"}
    done = patience.run(words, 900, cwd=ROOT, env=env)
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def videos(tmp_path_factory):
    return prepared.write_all(tmp_path_factory.mktemp("videos"))


@pytest.fixture(scope="module")
def whole(videos, tmp_path_factory):
    """What an uninterrupted run leaves."""
    out = tmp_path_factory.mktemp("whole")
    finish(videos, out)
    return prepared.files(out)


@pytest.mark.slow
@pytest.mark.parametrize("workers", ["0", "2"])
def test_killed_at_any_moment_it_goes_on_without_losing_or_doubling_a_clip(
    forks, videos, whole, tmp_path, workers
):
    dice, out, deaths = random.Random(workers), tmp_path / "out", 0
    while deaths < 3:
        before = len(list(out.glob("*/*")))
        process = forks.start(*command(videos, out, "--workers", workers))
        while process.poll() is None and len(list(out.glob("*/*"))) <= before:
            time.sleep(0.01)
        # From its first new file on, at any moment.
        time.sleep(dice.uniform(0, 0.3))
        early = process.poll() is None
        process.kill()
        if not early:
            # It was done before: from the beginning, so that it dies.
            shutil.rmtree(out)
            continue
        deaths += 1
        # Whatever it left, no shard is a part of one, and all that is recorded is there.
        shards = {p.stem: p.read_bytes() for p in out.glob("clips/*/*")}
        for key, data in shards.items():
            assert data == whole[f"clips/{key[:2]}/{key}.safetensors"]
        rows = [row for part in Folder(out).parts() for row in part.rows]
        assert {row.key for row in rows if row.accepted} <= set(shards)
        assert len({row.key for row in rows}) == len(rows)
    forks.start(*command(videos, out, "--workers", workers)).finish(900)
    assert prepared.files(out) == whole
    assert list(out.glob("tmp/*/*")) == []


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc").is_dir(), reason="looks for processes in /proc")
def test_workers_end_with_the_process_that_was_killed(forks, videos, tmp_path):
    process = forks.start(*command(videos, tmp_path / "out", "--workers", "2"))
    while process.poll() is None and not list((tmp_path / "out").glob("clips/*/*")):
        time.sleep(0.02)
    members = group(process.pid)
    assert len(members) >= 3
    process.kill()
    limit = patience.Patience(200)
    while group(process.pid) and limit.lasts():
        time.sleep(0.05)
    assert group(process.pid) == []


def group(leader):
    """Living processes of a session."""
    found = []
    for path in Path("/proc").glob("[0-9]*/stat"):
        try:
            fields = path.read_text().rpartition(")")[2].split()
        except OSError:
            continue
        if fields[3] == str(leader) and fields[0] != "Z":
            found.append(int(path.parent.name))
    return found


@pytest.mark.slow
def test_ray_gives_the_same_folder(videos, whole, tmp_path):
    pytest.importorskip("ray")
    out = tmp_path / "out"
    printed = finish(videos, out, "--runner", "ray", "--workers", "1")
    assert "15 videos, 13 of them prepared now" in printed
    assert prepared.files(out) == whole


@pytest.mark.slow
def test_machines_share_the_work_and_the_last_leaves_the_whole_manifest(
    forks, videos, whole, tmp_path
):
    out = tmp_path / "out"
    both = [forks.start(*command(videos, out, "--part", f"{i}/2")) for i in (1, 2)]
    for process in both:
        process.finish(900)
    forks.start(*command(videos, out, "--part", "1/2", "--assemble")).finish(900)
    assert prepared.files(out) == whole


def test_the_command_says_what_is_missing_and_what_differs(tmp_path, capsys):
    write_clips(tmp_path / "v", 1, seed=1)
    given, out = str(tmp_path / "v"), str(tmp_path / "out")
    assert cli.main([given, out]) == 2
    assert "needs --codec and --text" in capsys.readouterr().err
    assert cli.main([given, out, "--preset", "tiny", "--start", "latent"]) == 0
    printed = capsys.readouterr().out
    assert "1 videos, 1 of them prepared now: 1 clips in" in printed
    assert "manifest: 1 clips accepted, 0 rows rejected" in printed
    assert cli.main([given, out, "--preset", "tiny"]) == 2
    assert "start: the folder has 'latent', you ask for 'pixel'" in capsys.readouterr().err
    assert cli.main([str(tmp_path / "none"), out, "--preset", "tiny", "--start", "latent"]) == 2
    assert "pass a folder" in capsys.readouterr().err
    with pytest.raises(SystemExit):
        cli.main([given, out, "--mix", "1,x,0"])
    assert "expected three numbers" in capsys.readouterr().err
    for wrong in ("0/2", "3/2", "x", "1"):
        with pytest.raises(SystemExit):
            cli.main([given, out, "--part", wrong])
        assert "expected i/n" in capsys.readouterr().err


def test_the_manifest_can_be_assembled_at_any_time(tmp_path, capsys):
    write_clips(tmp_path / "v", 3, seed=1)
    out = tmp_path / "out"
    command = [str(tmp_path / "v"), str(out), "--preset", "tiny"]
    assert cli.main(command) == 0
    whole = prepared.files(out)
    (out / "manifest.parquet").unlink()
    assert cli.main([*command, "--assemble"]) == 0
    assert prepared.files(out) == whole
    part = sorted((out / "parts").glob("*.json"))[0]
    record = json.loads(part.read_text())
    part.unlink()
    assert cli.main([*command, "--assemble"]) == 0
    assert record["source"] not in {row.source for row in read(out)}
    assert len(read(out)) == 2
    capsys.readouterr()


def test_a_full_disk_ends_the_command_with_one_line(tmp_path, capsys, monkeypatch):
    write_clips(tmp_path / "v", 1, seed=1)

    def full(*arguments, **values):
        raise OSError(28, "expected room, got a full disk", str(tmp_path))

    monkeypatch.setattr(cli.local, "run", full)
    assert cli.main([str(tmp_path / "v"), str(tmp_path / "out"), "--preset", "tiny"]) == 1
    assert capsys.readouterr().err.count("full disk") == 1
