"""A whole run in this process: what is kept, what is reported, and how it goes on."""

import errno
import json
import shutil
from collections import Counter
from dataclasses import replace

import pytest
import torch
from surf.surf_core.degrade import degrade
from surf.surf_core.training.prepare import job as jobs
from surf.surf_core.training.prepare import local, stages, storage
from surf.surf_core.training.prepare.clips import Clip, clips
from surf.surf_core.training.prepare.manifest import Folder, read
from surf.surf_core.training.prepare.options import tiny
from surf.surf_core.training.tiny import codec
from surf.surf_core.training.tiny.clips import write_clips
from surf.surf_core.training.tiny.prompt import encode_prompt

from . import prepared


@pytest.fixture(scope="module")
def videos(tmp_path_factory):
    return prepared.write_all(tmp_path_factory.mktemp("videos"))


@pytest.fixture(scope="module")
def done(videos, tmp_path_factory):
    """(folder, report) of an uninterrupted run."""
    out = tmp_path_factory.mktemp("done")
    return out, prepared.run(videos, out)


def test_every_file_is_accounted_for(videos, done):
    _, report = done
    by_source = {}
    for row in report.rows:
        by_source.setdefault(row.source, []).append(row)
    assert len(by_source) == 15
    assert {name: by_source[name][0].reasons for name in prepared.REASONS} == {
        name: (reason,) for name, reason in prepared.REASONS.items()
    }
    for name in ("scene00000.mp4", "scene00001.mp4", "scene00002.mp4"):
        (row,) = by_source[name]
        assert (row.accepted, row.index, row.bucket) == (True, 0, "128x128x5")
        assert row.caption == (videos / name).with_suffix(".txt").read_text().strip()
    assert [row.index for row in by_source["sub folder/long.mp4"]] == [0, 1]
    assert all(row.accepted for row in by_source["sub folder/long.mp4"])
    assert [row.accepted for row in by_source["variable.mkv"]].count(True) >= 2
    assert len({row.key for row in report.rows}) == len(report.rows)


def test_damaged_files_give_their_good_clips_and_a_row_of_their_own(done):
    _, report = done
    for name in ("half.mp4", "hurt.mkv", "short.mkv"):
        rows = [row for row in report.rows if row.source == name]
        assert rows[0].index == -1
        assert [row.index for row in rows[1:]] == list(range(len(rows) - 1))
        assert len(rows) >= 2
        assert all(row.accepted for row in rows[1:])


def test_the_report_counts(done):
    _, report = done
    lines = report.lines()
    kept = [row for row in report.rows if row.accepted]
    assert report.prepared == 13  # Neither the copy nor the missing file.
    assert report.reasons() == Counter(prepared.REASONS.values())
    assert "15 videos, 13 of them prepared now" in lines[0]
    assert f"{len(kept)} clips accepted, 10 rows rejected (unreadable 3" in lines[1]
    assert lines[2] == f"captions: 3 with, {len(kept) - 3} without, 0 side files unusable"


def test_a_shard_holds_what_can_be_made_again_from_its_row(videos, done):
    out, report = done
    accepted = [row for row in report.rows if row.accepted]
    assert len(accepted) > 5
    for row in accepted:
        tensors, own = stages.read_shard(Folder(out), row)
        assert own == row
        found = [c for c in clips(videos / row.source, (5,)) if isinstance(c, Clip)]
        frames = found[row.index].frames.movedim(-1, 1).float() / 255
        assert tensors["hr"].dtype == torch.float16
        expected = codec.encode(frames.movedim(1, 0)[None] * 2 - 1)[0]
        assert torch.allclose(tensors["hr"].float(), expected, atol=2e-3, rtol=1e-3)
        low = degrade(frames, stages.replay(row)).movedim(1, 0)[None] * 2 - 1
        assert low.shape[-2:] == (32, 32)
        expected = codec.encode(low)[0]
        assert torch.allclose(tensors["lr"].float(), expected, atol=2e-3, rtol=1e-3)
        assert tensors["start"].shape == tensors["hr"].shape == (16, 5, 32, 32)
        enlarged = codec.decode(tensors["start"].float()[None])
        assert (enlarged.mean() - low.mean()).abs() < 0.02
        words = encode_prompt(row.caption)[0]
        assert torch.allclose(tensors["text"].float(), words, atol=2e-3)


def test_a_second_run_does_nothing_and_leaves_the_same_bytes(videos, done, tmp_path, monkeypatch):
    out = shutil.copytree(done[0], tmp_path / "out")
    before = prepared.files(out)
    monkeypatch.setattr(jobs, "content_hashes", lambda paths, threads: [""] * len(paths))
    report = prepared.run(videos, out)
    assert (report.prepared, report.clips) == (0, 0)
    assert report.rows == done[1].rows
    assert prepared.files(out) == before


def test_only_what_is_missing_is_done_again(videos, done, tmp_path):
    out = shutil.copytree(done[0], tmp_path / "out")
    rows = [row for row in done[1].rows if row.accepted]
    Folder(out).shard(rows[0].key).unlink()
    (out / "parts" / f"{rows[-1].content}.json").write_text("{")
    report = prepared.run(videos, out)
    assert report.prepared == len({rows[0].content, rows[-1].content}) == 2
    assert prepared.files(out) == prepared.files(done[0])


def test_parts_of_the_work_add_up_in_any_order(videos, done, tmp_path):
    for part in (3, 1, 2):
        prepared.run(videos, tmp_path, part=(part, 3))
    assert prepared.files(tmp_path) == prepared.files(done[0])


@pytest.mark.parametrize("when", [1, 4, 14, 18])
def test_a_full_disk_stops_the_run_and_loses_nothing(tmp_path, monkeypatch, when):
    write_clips(tmp_path / "v", 4, seed=2)
    prepared.run(tmp_path / "v", tmp_path / "whole")
    real, calls = storage.os.fsync, []

    def full(handle):
        calls.append(handle)
        if len(calls) >= when:
            raise OSError(errno.ENOSPC, "No space left on device")
        real(handle)

    monkeypatch.setattr(storage.os, "fsync", full)
    out = tmp_path / "out"
    with pytest.raises(OSError, match="full disk"):
        prepared.run(tmp_path / "v", out)
    monkeypatch.undo()
    recorded = {row.key for part in Folder(out).parts() for row in part.rows}
    assert recorded <= {path.stem for path in out.glob("clips/*/*.safetensors")}
    prepared.run(tmp_path / "v", out)
    assert prepared.files(out) == prepared.files(tmp_path / "whole")
    assert list(out.glob("tmp/*/*")) == []


def test_new_captions_and_new_bytes_are_taken_up(tmp_path):
    given, out = tmp_path / "v", tmp_path / "out"
    write_clips(given, 3, seed=3)
    before = prepared.run(given, out).rows
    (given / "scene00000.txt").write_text("red circle moving up, on checks")
    shutil.copy(given / "scene00001.mp4", given / "scene00002.mp4")
    report = prepared.run(given, out)
    assert report.rows[0].caption == "red circle moving up, on checks"
    assert report.rows[0].key == before[0].key
    assert report.rows[1] == before[1]
    assert report.rows[2].reasons == ("duplicate",)
    prepared.run(given, tmp_path / "fresh")
    manifests = [(path / "manifest.parquet").read_bytes() for path in (out, tmp_path / "fresh")]
    assert manifests[0] == manifests[1]


def test_rows_of_files_that_are_gone_stay(tmp_path):
    write_clips(tmp_path / "v", 2, seed=4)
    before = prepared.run(tmp_path / "v", tmp_path / "out").rows
    (tmp_path / "v" / "scene00000.mp4").unlink()
    assert prepared.run(tmp_path / "v", tmp_path / "out").rows == before


def test_words_that_the_encoder_does_not_know_reject_the_clip(tmp_path):
    write_clips(tmp_path / "v", 2, seed=5)
    (tmp_path / "v" / "scene00001.txt").write_text("a purple hexagon")
    report = prepared.run(tmp_path / "v", tmp_path / "out")
    assert [row.reasons for row in report.rows] == [(), ("caption",)]
    assert len(list((tmp_path / "out").glob("clips/*/*"))) == 1


def test_without_text_and_start_neither_is_stored(tmp_path):
    write_clips(tmp_path / "v", 1, seed=6)
    options = replace(tiny(), start="latent", dtype="fp32", mix=(0.0, 0.0, 1.0))
    (row,) = prepared.run(tmp_path / "v", tmp_path / "out", options=options, text="none").rows
    tensors, _ = stages.read_shard(Folder(tmp_path / "out"), row)
    assert {name: tensor.dtype for name, tensor in tensors.items()} == {
        "hr": torch.float32,
        "lr": torch.float32,
    }
    assert json.loads(row.degradation)["level"] == "full"


def test_filters_and_buckets_reject_with_their_numbers(tmp_path):
    (tmp_path / "v").mkdir()
    prepared.write(tmp_path / "v" / "dark.mp4", 6, level=8)
    prepared.write(tmp_path / "v" / "good.mp4", 6)

    def strict(frames):
        return 12.0

    rows = prepared.run(tmp_path / "v", tmp_path / "a").rows
    assert [row.reasons for row in rows] == [("dark", "clipped"), ()]
    limits = replace(tiny().limits, quality=40.0)
    options = replace(tiny(), limits=limits)
    rows = prepared.run(tmp_path / "v", tmp_path / "b", options=options, scorer=strict).rows
    assert [row.reasons for row in rows] == [("dark", "clipped", "poor"), ("poor",)]
    assert json.loads(rows[1].numbers)["quality"] == 12
    assert json.loads(rows[1].numbers)["scorer"] == "strict"
    large = replace(tiny(), resolutions=("720p",), scales=(3.0,), low_unit=16)
    rows = prepared.run(tmp_path / "v", tmp_path / "c", options=large).rows
    assert [row.reasons for row in rows] == [("dark", "clipped"), ("small",)]
    assert json.loads(rows[1].numbers)["rows"] == 128


def test_memory_that_runs_out_costs_the_rest_of_one_file(tmp_path, monkeypatch):
    write_clips(tmp_path / "v", 2, seed=7)
    real = stages.clips

    def greedy(path, lengths, fps):
        yield from real(path, lengths, fps)
        if path.name == "scene00000.mp4":
            raise MemoryError

    monkeypatch.setattr(stages, "clips", greedy)
    rows = prepared.run(tmp_path / "v", tmp_path / "out").rows
    assert [(row.index, row.reasons) for row in rows] == [(-1, ("memory",)), (0, ()), (0, ())]


def test_a_runner_that_loses_items_is_found_out(tmp_path):
    write_clips(tmp_path / "v", 2, seed=8)
    job = prepared.job(tmp_path / "v", tmp_path / "out")

    def lossy(job, sources):
        yield from list(local.run(job, sources))[1:]

    with pytest.raises(RuntimeError, match="the runner lost items"):
        jobs.prepare(job, lossy)
    assert len(jobs.prepare(job, local.run).rows) == 2


def test_items_survive_the_way_to_another_process():
    frames = torch.arange(24, dtype=torch.uint8).reshape(2, 2, 2, 3)
    row = stages.Row(key="k", source="\u00e9", content="c", index=1, reasons=("x",))
    for item in (
        stages.Item(content="c", row=row, tensors={"frames": frames}),
        stages.Item(content="c", row=row),
        stages.Item(content="c", count=3),
    ):
        back = stages.unpack(stages.pack(item))
        assert (back.content, back.row, back.count) == (item.content, item.row, item.count)
        assert all(torch.equal(back.tensors[name], item.tensors[name]) for name in item.tensors)


def test_the_manifest_is_read_back(done):
    assert read(done[0]) == done[1].rows
