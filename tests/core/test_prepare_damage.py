"""Damage to a prepared folder: found by checksums, mended by the next run, refused by readers."""

import json
import random
import shutil
from dataclasses import replace

import pyarrow.parquet as pq
import pytest
import torch
from safetensors.torch import load, save
from surf.surf_core.training.data import Shards
from surf.surf_core.training.prepare import stages
from surf.surf_core.training.prepare.codecs import TinyCodec
from surf.surf_core.training.prepare.job import plan
from surf.surf_core.training.prepare.manifest import SCHEMA, Folder, read
from surf.surf_core.training.tiny.clips import write_clips

from . import prepared


@pytest.fixture(scope="module")
def videos(tmp_path_factory):
    folder = tmp_path_factory.mktemp("videos")
    write_clips(folder, 4, seed=3)
    return folder


@pytest.fixture(scope="module")
def done(videos, tmp_path_factory):
    out = tmp_path_factory.mktemp("done")
    prepared.run(videos, out)
    return out


def flip(data):
    at = len(data) - 100
    return data[:at] + bytes([data[at] ^ 4]) + data[at + 1 :]


def with_nan(data):
    size = int.from_bytes(data[:8], "little")
    tensors = load(data)
    tensors["hr"][0, 0, 0, 0] = float("nan")
    return save(tensors, json.loads(data[8 : 8 + size])["__metadata__"])


DAMAGE = {
    "emptied": lambda data: b"",
    "truncated": lambda data: data[:-7],
    "a bit flipped": flip,
    "a bit of the header flipped": lambda data: data[:40] + bytes([data[40] ^ 1]) + data[41:],
    "NaN": with_nan,
    "longer": lambda data: data + b"x",
}


@pytest.mark.parametrize("how", DAMAGE)
def test_a_damaged_shard_is_refused_by_name_and_made_again(how, videos, done, tmp_path, caplog):
    out = shutil.copytree(done, tmp_path / "out")
    row = [row for row in read(out) if row.accepted][1]
    path = Folder(out).shard(row.key)
    path.write_bytes(DAMAGE[how](path.read_bytes()))
    assert path.read_bytes() != Folder(done).shard(row.key).read_bytes()
    with pytest.raises(ValueError, match=f"{row.key}.* run surf_core.training.prepare again"):
        Shards(out).load(row.key)
    assert prepared.run(videos, out).prepared == 1
    assert f"{path} has other bytes than it was written with" in caplog.text
    assert prepared.files(out) == prepared.files(done)
    assert prepared.run(videos, out).prepared == 0


def test_a_missing_shard_is_refused_by_name(done, tmp_path):
    out = shutil.copytree(done, tmp_path / "out")
    row = read(out)[0]
    Folder(out).shard(row.key).unlink()
    again = f"{row.key}.* run surf_core.training.prepare again"
    with pytest.raises(FileNotFoundError, match=again):
        Shards(out).load(row.key)


def test_shards_are_checked_in_the_order_of_the_videos(videos, done, tmp_path):
    out = shutil.copytree(done, tmp_path / "out")
    for row in read(out)[::2]:
        Folder(out).shard(row.key).unlink()
    _, todo, _ = plan(prepared.job(videos, out), threads=3)
    assert [one.name for one in todo] == ["scene00000.mp4", "scene00002.mp4"]


@pytest.mark.parametrize("key", ["../../x", "/x", "..", "", "x" * 32, "A" * 32])
def test_keys_that_lead_elsewhere_are_refused(key, done, tmp_path):
    out = shutil.copytree(done, tmp_path / "out")
    first, *rest = pq.read_table(out / "manifest.parquet").to_pylist()
    (tmp_path / "x.safetensors").write_bytes(Folder(out).shard(first["key"]).read_bytes())
    table = pq.read_table(out / "manifest.parquet").from_pylist(
        [first | {"key": key}, *rest], SCHEMA
    )
    pq.write_table(table, out / "manifest.parquet")
    with pytest.raises(ValueError, match="expected a key of 32 hex digits .* --assemble"):
        Shards(out)


@pytest.mark.parametrize("content", ["../../victim", "..", "", "a/b"])
def test_parts_that_lead_elsewhere_are_no_parts(content, videos, done, tmp_path, caplog):
    out = shutil.copytree(done, tmp_path / "out")
    victim = tmp_path / "victim.json"
    victim.write_text("{}")
    path = next((out / "parts").glob("*.json"))
    record = json.loads(path.read_text()) | {"content": content, "size": 1}
    (out / "parts" / "planted.json").write_text(json.dumps(record))
    (out / "parts" / "kind.json").write_text(json.dumps(record | {"kind": "x"}))
    prepared.run(videos, out)
    assert victim.exists()
    for name in ("planted.json", "kind.json"):
        assert f"{name} is no part and is not counted" in caplog.text


def test_a_damaged_manifest_is_refused_or_reads_the_same(done, tmp_path):
    out = shutil.copytree(done, tmp_path / "out")
    whole, rows = (out / "manifest.parquet").read_bytes(), read(done)
    draw, refused = random.Random(0), []
    for _ in range(150):
        data = bytearray(whole)
        data[draw.randrange(len(data))] ^= 1 << draw.randrange(8)
        (out / "manifest.parquet").write_bytes(data)
        try:
            found = read(out)
        except ValueError as error:
            refused.append(str(error))
        else:
            # The footer has no checksum; what a clip is made of does.
            assert [row.key for row in found] == [row.key for row in rows]
    assert len(refused) > 75
    assert all("--assemble" in said and len(said) < 1000 for said in refused)
    for data in (b"", b"PAR1", whole[:-9]):
        (out / "manifest.parquet").write_bytes(data)
        with pytest.raises(ValueError, match="is damaged.*--assemble"):
            Shards(out)


def test_damaged_options_say_what_to_do(done, videos, tmp_path):
    out = shutil.copytree(done, tmp_path / "out")
    (out / "options.json").write_text('{"fps": 16')
    for act in (lambda: prepared.run(videos, out), lambda: Shards(out)):
        with pytest.raises(ValueError, match="options.json.* is damaged: prepare into a new"):
            act()


class Overflowing(TinyCodec):
    """Gives infinity, as half precision may."""

    def encode(self, video):
        return super().encode(video) * float("inf")


def test_a_clip_with_infinity_is_rejected_with_a_word(videos, tmp_path, caplog):
    report = prepared.run(videos, tmp_path / "out", codec=Overflowing())
    assert {row.reasons for row in report.rows} == {("not_finite",)}
    assert "NaN or infinity in hr, lr, start" in caplog.text
    assert not list((tmp_path / "out").glob("clips/*/*"))


def test_a_checksum_is_of_the_shard_and_not_in_it(done):
    for row in read(done):
        tensors, own = stages.read_shard(Folder(done), row)
        assert own == row
        assert len(row.checksum) == 32
        assert "checksum" not in row.to_json()
        assert all(torch.isfinite(tensor).all() for tensor in tensors.values())
        with pytest.raises(ValueError, match="got other bytes"):
            stages.read_shard(Folder(done), replace(row, checksum=""))
