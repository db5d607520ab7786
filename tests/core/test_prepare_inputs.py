"""Captions beside videos, and the files of a folder: what is found, in which order, what is not."""

import json
import os

import pytest
from surf.surf_core.training.prepare.captions import Captions
from surf.surf_core.training.prepare.sources import (
    content_hash,
    content_hashes,
    find,
    of_part,
)


def names(sources):
    return [source.name for source in sources]


def put(path, data=b"x"):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(data if isinstance(data, bytes) else data.encode())
    return path


def test_side_files_come_before_tables_and_the_folder_before_the_input(tmp_path):
    video = put(tmp_path / "a" / "clip.mp4")
    layers = [
        (tmp_path / "captions.csv", 'file,caption\na/clip.mp4,"six, of six"\n', "six, of six"),
        (tmp_path / "captions.jsonl", '{"file": "a/clip.mp4", "caption": "five"}', "five"),
        (tmp_path / "a" / "captions.csv", "file,caption\n./clip.mp4,four\n", "four"),
        (tmp_path / "a" / "captions.jsonl", '{"file": "clip.mp4", "caption": "three"}', "three"),
        (tmp_path / "a" / "clip.json", '{"caption": "two", "fps": 16}', "two"),
        (tmp_path / "a" / "clip.txt", "one", "one"),
    ]
    assert Captions(tmp_path).of(video) == ""
    for path, text, expected in layers:
        put(path, text)
        assert Captions(tmp_path).of(video) == expected


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("clip.txt", b"\xef\xbb\xbfa red\r\n  circle\r\n"),
        ("clip.json", b'\xef\xbb\xbf{"caption":\r\n "a red\\n circle"}\r\n'),
        ("captions.jsonl", b'\xef\xbb\xbf{"file": "clip.mp4", "caption": "a red circle"}\r\n\r\n'),
        ("captions.csv", b'\xef\xbb\xbffile,caption\r\nclip.mp4,"a red\r\ncircle"\r\n'),
    ],
)
def test_byte_order_marks_and_line_ends_do_not_matter(tmp_path, name, text):
    put(tmp_path / name, text)
    captions = Captions(tmp_path)
    assert captions.of(put(tmp_path / "clip.mp4")) == "a red circle"
    assert captions.broken == []


def test_words_and_names_of_any_script_are_kept(tmp_path):
    words, name = "un cr\u00e9puscule \u2028 \u6771\u4eac", "\u6620 \u753b 1.mp4"
    put(tmp_path / "captions.jsonl", json.dumps({"file": name, "caption": words}))
    assert Captions(tmp_path).of(put(tmp_path / name)) == "un cr\u00e9puscule \u6771\u4eac"


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("clip.json", b'{"caption": "cut o'),
        ("clip.json", b"[1, 2]"),
        ("clip.json", b'{"a":' * 5000),
        ("captions.jsonl", b"[" * 5000 + b"\n"),
        ("clip.json", b'{"caption": 7}'),
        ("clip.txt", b"\xff\xfe\x00latin"),
        ("captions.jsonl", b'{"file": "clip.mp4"'),
        ("captions.jsonl", b"3\n"),
        ("captions.jsonl", b'{"name": "clip.mp4", "caption": "x"}\n'),
        ("captions.csv", b"path,caption\nclip.mp4,words\n"),
        ("captions.csv", b"\xff\xff\n"),
    ],
)
def test_a_broken_side_file_is_reported_and_the_next_one_used(tmp_path, caplog, name, text):
    put(tmp_path / name, text)
    put(tmp_path / "in" / "captions.csv", "file,caption\nclip.mp4,last resort\n")
    video = tmp_path / "clip.mp4"
    captions = Captions(tmp_path)
    assert captions.of(video) == ""
    assert captions.broken == [tmp_path / name]
    assert name in caplog.text
    put(tmp_path / ("clip.txt" if name != "clip.txt" else "clip.json"), '{"caption": "next"}')
    assert Captions(tmp_path).of(video)


def test_one_bad_line_of_a_table_does_not_cost_the_others(tmp_path):
    lines = ['{"file": "a.mp4", "caption": "first"}', "{", '{"file": "b.mp4", "caption": "second"}']
    put(tmp_path / "captions.jsonl", "\n".join(lines))
    captions = Captions(tmp_path)
    assert [captions.of(tmp_path / name) for name in ("a.mp4", "b.mp4")] == ["first", "second"]
    assert len(captions.broken) == 1


def test_a_folder_is_searched_with_all_below_it_and_sorted(tmp_path):
    for name in ("b.MP4", "a b/\u00e9 1.mkv", "a b/c.webm", "c.txt", "d.json", ".hidden/x.mov"):
        put(tmp_path / name)
    expected = [".hidden/x.mov", "a b/c.webm", "a b/\u00e9 1.mkv", "b.MP4"]
    assert names(find(tmp_path)) == expected


def test_links_are_followed_but_not_in_circles(tmp_path, caplog):
    put(tmp_path / "videos" / "a.mp4")
    put(tmp_path / "elsewhere" / "b.mp4")
    (tmp_path / "videos" / "more").symlink_to(tmp_path / "elsewhere")
    (tmp_path / "videos" / "up").symlink_to(tmp_path / "videos")
    (tmp_path / "elsewhere" / "round").symlink_to(tmp_path / "videos")
    (tmp_path / "videos" / "self.mp4").symlink_to(tmp_path / "videos" / "self.mp4")
    (tmp_path / "videos" / "gone.mp4").symlink_to(tmp_path / "nowhere")
    found = find(tmp_path / "videos")
    assert names(found) == ["a.mp4", "gone.mp4", "more/b.mp4", "self.mp4"]
    assert [source.size for source in found] == [1, -1, 1, -1]
    assert "leads back" in caplog.text


def test_a_list_names_videos_relative_to_itself(tmp_path):
    put(tmp_path / "v" / "a.mp4")
    put(tmp_path / "b c.mkv")
    text = b"\xef\xbb\xbfv/a.mp4\r\n\r\nb c.mkv\r\nmissing.mp4\r\nv/a.mp4\r\n"
    found = find(put(tmp_path / "list.txt", text))
    assert names(found) == ["b c.mkv", "missing.mp4", "v/a.mp4"]
    assert names(find(tmp_path / "b c.mkv")) == ["b c.mkv"]


def test_names_that_are_no_text_are_written_out(tmp_path):
    try:
        put(tmp_path / os.fsdecode(b"bad\xff.mp4"))
    except OSError:
        pytest.skip("this file system takes text only")
    assert names(find(tmp_path)) == ["bad\\udcff.mp4"]


def test_nothing_to_find_is_refused(tmp_path):
    put(tmp_path / "readme.md")
    for given in (tmp_path, tmp_path / "none", put(tmp_path / "empty.txt", b"\n")):
        with pytest.raises(ValueError, match="pass a folder, a video"):
            find(given)


@pytest.mark.parametrize("parts", [1, 2, 7])
def test_parts_share_the_videos_and_keep_copies_together(tmp_path, parts):
    for i in range(40):
        put(tmp_path / f"{i:02d}.mp4", b"x" * (i // 2))
    found = find(tmp_path)
    shares = [of_part(found, part, parts) for part in range(1, parts + 1)]
    assert sorted(name for share in shares for name in names(share)) == names(found)
    assert all(len({s.size for s in share}) * 2 == len(share) for share in shares)
    assert parts == 1 or max(map(len, shares)) < 40
    for part in (0, parts + 1):
        with pytest.raises(ValueError, match="expected a part"):
            of_part(found, part, parts)


def test_hashes_tell_bytes_apart_and_survive_what_cannot_be_read(tmp_path, caplog):
    paths = [put(tmp_path / name, data) for name, data in (("a", b"1"), ("b", b"1"), ("c", b"2"))]
    first, second, third, nothing = content_hashes([*paths, tmp_path / "none"], threads=3)
    assert first == second == content_hash(paths[0])
    assert len({first, third, nothing}) == 3
    assert (len(first), nothing) == (32, "")
    assert "cannot be read" in caplog.text
