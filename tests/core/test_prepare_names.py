"""Names that FFmpeg would take for addresses, files that are none, folders that lead in circles."""

import os
import threading
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path

import av
import pytest
from PIL import Image
from surf.surf_core.training.prepare import decode, sources
from surf.surf_core.training.prepare.decode import Frame, Rejected, frames
from surf.surf_core.training.prepare.sources import content_hash, find

from . import prepared


@contextmanager
def server():
    """(port, paths that were asked for) of a web server on this machine."""
    asked = []

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self):
            asked.append(self.path)
            self.send_error(404)

        def log_message(self, *_):
            pass

    serving = HTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=serving.serve_forever, daemon=True)
    thread.start()
    try:
        yield serving.server_port, asked
    finally:
        serving.shutdown()
        thread.join()


def ends(call, *args):
    """What a call gives, if it ends."""
    results = []
    thread = threading.Thread(target=lambda: results.append(call(*args)), daemon=True)
    thread.start()
    thread.join(60)
    assert results, "it waits"
    return results[0]


def test_a_relative_folder_that_looks_like_an_address_is_read_from_the_disk(tmp_path, monkeypatch):
    with server() as (port, asked):
        folder = tmp_path / "http:" / f"127.0.0.1:{port}"
        try:
            folder.mkdir(parents=True)
        except OSError:
            pytest.skip("names have no colons here")
        prepared.write(folder / "x.mp4", 8)
        monkeypatch.chdir(tmp_path)
        (source,) = find(Path())
        found = list(frames(source.path))
    assert asked == []
    assert [type(one) for one in found] == [Frame] * 8


@pytest.mark.parametrize("name", ["concat:z.mp4", "file:y.mp4", "pipe:0.mp4", "12:30 cut.mkv"])
def test_names_with_a_colon_are_names(name, tmp_path, monkeypatch):
    try:
        (tmp_path / name).write_bytes(b"")
    except OSError:
        pytest.skip("names have no colons here")
    plain = prepared.write(tmp_path / f"plain{Path(name).suffix}", 8)
    plain.rename(tmp_path / name)
    monkeypatch.chdir(tmp_path)
    for path in (Path(name), tmp_path / name):
        assert [type(one) for one in frames(path)] == [Frame] * 8


@pytest.mark.parametrize("name", ["list.mp4", "list.m3u8"])
@pytest.mark.parametrize("address", ["http://127.0.0.1:{}/a.ts", "tcp://127.0.0.1:{}"])
def test_a_playlist_is_not_followed_to_the_network(name, address, tmp_path):
    with server() as (port, asked):
        lines = ["#EXTM3U", "#EXT-X-TARGETDURATION:9", "#EXTINF:9,", address.format(port)]
        (tmp_path / name).write_text("\n".join([*lines, "#EXT-X-ENDLIST", ""]))
        found = list(frames(tmp_path / name))
    assert asked == []
    assert [type(one) for one in found] == [Rejected]


def test_ffmpeg_is_given_whole_paths_and_no_protocol_but_that_of_files(tmp_path, monkeypatch):
    path, real, given = prepared.write(tmp_path / "a.mp4", 8), av.open, []

    def opened(name, **options):
        given.append((name, options["container_options"]))
        return real(name, **options)

    monkeypatch.setattr(decode.av, "open", opened)
    monkeypatch.chdir(tmp_path)
    assert len(list(frames(Path("a.mp4")))) == 8
    assert given == [(str(path), {"protocol_whitelist": "file"})]


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="there are no pipes here")
def test_a_pipe_is_unreadable_and_not_waited_for(tmp_path, caplog):
    os.mkfifo(tmp_path / "pipe.mp4")
    prepared.write(tmp_path / "video.mp4", 8)
    assert ends(content_hash, tmp_path / "pipe.mp4") == ""
    assert ends(lambda path: list(frames(path)), tmp_path / "pipe.mp4") == [
        Rejected(reason="unreadable", numbers={"code": 2})
    ]
    assert [one.size > 0 for one in find(tmp_path)] == [False, True]
    report = ends(prepared.run, tmp_path, tmp_path / "out")
    assert [row.reasons for row in report.rows if row.source == "pipe.mp4"] == [("unreadable",)]
    assert "pipe.mp4 cannot be read: it is no regular file" in caplog.text
    assert any(row.accepted for row in report.rows)


def test_folders_that_link_to_each_other_are_searched_once(tmp_path, monkeypatch, caplog):
    names = [f"f{index}" for index in range(8)]
    for name in names:
        (tmp_path / name).mkdir()
        (tmp_path / name / f"{name}.mp4").write_bytes(b"x")
    for name in names:
        for other in names:
            if other != name:
                (tmp_path / name / f"to {other}").symlink_to(tmp_path / other)
    listed, scandir = [], os.scandir

    def counted(folder):
        listed.append(folder)
        return scandir(folder)

    monkeypatch.setattr(sources.os, "scandir", counted)
    found = find(tmp_path)
    assert [one.name for one in found] == [f"{name}/{name}.mp4" for name in names]
    assert len(listed) == 9
    assert caplog.text.count("leads back to") == 56


def pictures(path, count):
    made = [Image.new("RGB", (128, 128), (30 * index, 90, 90)) for index in range(count)]
    made[0].save(path, save_all=True, append_images=made[1:], duration=62)


def test_an_animated_webp_gets_a_row_and_what_is_not_looked_at_is_said(tmp_path, caplog):
    pictures(tmp_path / "moving.webp", 8)
    pictures(tmp_path / "still.webp", 1)
    prepared.write(tmp_path / "video.mp4", 8)
    for name in ("a.jpg", "b.JPG", "c.avif", "words.txt", "captions.csv", "README"):
        (tmp_path / name).write_bytes(b"")
    report = prepared.run(tmp_path, tmp_path / "out")
    reasons = {row.source: row.reasons for row in report.rows}
    assert reasons == {"moving.webp": ("no_decoder",), "video.mp4": ()}
    said = [line for line in caplog.messages if "not looked at" in line]
    kinds = "2 .jpg, 1 without a suffix, 1 .avif, 1 .webp"
    assert said == [f"{tmp_path}: not looked at, by their names: {kinds}"]
    assert "moving.webp: no_decoder" in caplog.text
