"""Options, rows and parts: what names a clip, and what the folder of shards keeps."""

import errno
import json
import os
from dataclasses import replace

import pyarrow.parquet as pq
import pytest
from surf.surf_core.training.prepare import storage
from surf.surf_core.training.prepare.manifest import SCHEMA, Folder, Part, Row, key_of, read
from surf.surf_core.training.prepare.options import (
    Options,
    differences,
    digest,
    from_identity,
    identity,
    tiny,
    wan,
)

NAMES = {"codec": "tiny", "text": "tiny", "scorer": "compression"}


def row(source="a.mp4", index=0, **values):
    return Row(key=key_of(source, index, "o"), source=source, content=source, index=index, **values)


def part(source="a.mp4", kind="clips", content=None, rows=None):
    rows = (row(source),) if rows is None else rows
    content = source if content is None else content
    return Part(kind=kind, source=source, size=1, changed=2, content=content, caption="", rows=rows)


def test_previews_of_the_paper_are_about_240p_in_whole_tokens():
    options = wan()
    assert options.low_size("720p", (704, 1280)) == (240, 432)
    assert options.low_size("1080p", (1056, 1920)) == (240, 432)
    assert options.low_size("1080p", (1440, 1440)) == (320, 320)
    assert tiny().low_size("tiny", (128, 128)) == (32, 32)


@pytest.mark.parametrize(
    "wrong",
    [
        {"resolutions": ("4K",), "scales": (3.0,)},
        {"scales": (3.0,)},
        {"resolutions": (), "scales": ()},
        {"scales": (0.5, 3.0)},
        {"lengths": (20,)},
        {"lengths": ()},
        {"fps": 0},
        {"fps": 23.9},
        {"low_unit": 0},
        {"text_length": 0},
        {"seed": -1},
        {"mix": (0.0, 0.0, 0.0)},
        {"mix": (1.0, -1.0, 1.0)},
        {"start": "noise"},
        {"dtype": "int8"},
    ],
    ids=str,
)
def test_options_refuse(wrong):
    with pytest.raises(ValueError, match="got"):
        Options(**wrong)


@pytest.mark.parametrize("options", [wan(), tiny(), replace(wan(), start="latent", mix=(1, 0, 0))])
def test_options_round_trip_through_json(options):
    record = json.loads(json.dumps(identity(options, **NAMES)))
    assert from_identity(record) == options
    assert digest(record) == digest(identity(options, **NAMES))


def test_every_option_is_in_the_key():
    base = identity(wan(), **NAMES)
    others = [
        identity(replace(wan(), seed=1), **NAMES),
        identity(replace(wan(), limits=tiny().limits), **NAMES),
        identity(replace(wan(), scales=(4.5, 2.0)), **NAMES),
        identity(wan(), **NAMES | {"codec": "wan:x"}),
        identity(wan(), **NAMES | {"text": "none"}),
    ]
    assert len({digest(one) for one in (base, *others)}) == 6
    assert differences(base, others[0]) == ["seed: the folder has 0, you ask for 1"]
    assert set(base) >= {"fps", "dtype", "start", "mix", "lengths", "limits.sharpness", "version"}


def test_keys_are_frozen_across_versions():
    assert key_of("ab", 3, "cd") == "3c279dcdf927f308eeba73d4b3f70218"


def test_a_folder_of_other_options_is_refused_by_name(tmp_path):
    folder = Folder(tmp_path)
    folder.claim(identity(tiny(), **NAMES))
    folder.claim(identity(tiny(), **NAMES))
    with pytest.raises(ValueError, match=r"dtype: the folder has 'fp16', you ask for 'bf16'"):
        folder.claim(identity(replace(tiny(), dtype="bf16"), **NAMES))


def test_rows_round_trip_through_the_manifest(tmp_path):
    first = row(scene=2, start=1.25, frames=81, rows=720, columns=1280, bucket="704x1280x81")
    bad = row("b \u00e9.mp4", -1, reasons=("corrupt", "x"), numbers='{"a": null}', caption="\u6771")
    folder = Folder(tmp_path)
    folder.save(part("b \u00e9.mp4", rows=(bad,), content="b"))
    folder.save(part(rows=(first,)))
    assert folder.assemble() == [first, bad] == read(tmp_path)
    assert pq.read_schema(folder.manifest).equals(SCHEMA)
    assert Row.from_json(bad.to_json()) == bad


def test_the_manifest_has_the_same_bytes_whatever_the_order_of_work(tmp_path):
    parts = [part(name, rows=(row(name, 1), row(name, 0))) for name in ("c", "a", "b")]
    written = []
    for number, order in enumerate((parts, parts[::-1])):
        folder = Folder(tmp_path / str(number), f"{number}-2")
        for one in order:
            folder.save(one)
        folder.assemble()
        written.append(folder.manifest.read_bytes())
    assert written[0] == written[1]


def test_a_copy_counts_while_its_first_does_and_an_unread_file_until_it_is_read(tmp_path):
    folder = Folder(tmp_path)
    copy = row("b", -1, reasons=("duplicate",))
    folder.save(part("b", "duplicate", content="a", rows=(copy,)))
    folder.save(part("u", "unread", content="", rows=(row("u", -1, reasons=("unreadable",)),)))
    assert [one.source for one in folder.assemble()] == ["u"]
    folder.save(part("a"))
    folder.save(part("u", content="u"))
    assert [(one.source, one.accepted) for one in folder.assemble()] == [
        ("a", True),
        ("b", False),
        ("u", True),
    ]


def test_a_damaged_part_counts_as_not_there(tmp_path, caplog):
    folder = Folder(tmp_path)
    folder.save(part("a"))
    for name, text in (("x", '{"kind": "cl'), ("y", "{}"), ("z", "3"), ("d", "[" * 5000)):
        (tmp_path / "parts" / f"{name}.json").write_text(text)
    assert [one.source for one in folder.parts()] == ["a"]
    assert caplog.text.count("is no part") == 4


def test_a_file_is_written_whole_or_not_at_all(tmp_path, monkeypatch):
    path, scratch = tmp_path / "out" / "file", tmp_path / "tmp"
    storage.write_whole(path, b"old", scratch)

    def full(handle):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(storage.os, "fsync", full)
    with pytest.raises(OSError, match="free some space and run the same command again") as caught:
        storage.write_whole(path, b"new", scratch)
    assert caught.value.errno == errno.ENOSPC
    assert path.read_bytes() == b"old"
    assert list(scratch.iterdir()) == []


def test_other_errors_of_the_disk_keep_their_name(tmp_path):
    if not hasattr(os, "geteuid"):
        pytest.skip("needs POSIX")
    (tmp_path / "taken").write_bytes(b"")
    with pytest.raises((FileExistsError, NotADirectoryError)):
        storage.write_whole(tmp_path / "taken" / "file", b"x", tmp_path / "tmp")


def test_unfinished_files_are_cleared(tmp_path):
    (tmp_path / "a.123").write_bytes(b"half")
    assert storage.clear(tmp_path) == 1
    assert storage.clear(tmp_path / "none") == 0


def test_a_folder_without_manifest_says_what_to_do(tmp_path):
    with pytest.raises(FileNotFoundError, match="surf_core.training.prepare"):
        read(tmp_path)
