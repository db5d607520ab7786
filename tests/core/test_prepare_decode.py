"""From files to frames and clips: what is taken, where it is cut, what is said of bad files."""

import os
from fractions import Fraction

import av
import numpy as np
import pytest
import torch
from surf.surf_core.training.prepare import clips as clipping
from surf.surf_core.training.prepare import decode
from surf.surf_core.training.prepare.clips import Clip, clips
from surf.surf_core.training.prepare.decode import FPS, Frame, Rejected, Ticks, frames


def scene(seed, count, level=128, pan=0):
    """Textured frames [count, 64, 64, 3] around a brightness, moving `pan` pixels a frame."""
    noise = torch.randn(1, 1, 16, 40, generator=torch.Generator().manual_seed(seed))
    wide = torch.nn.functional.interpolate(noise, size=(64, 160), mode="bicubic")[0, 0]
    wide = (level + 30 * wide).clamp(0, 255).byte().numpy()
    rolled = [np.roll(wide, -pan * i, axis=1)[:, :64] for i in range(count)]
    return np.stack(rolled)[..., None].repeat(3, -1)


def numbered(count):
    """Frames that show their number, 0..255: a bit is a 16 x 32 block, a little dark or bright."""
    bits = np.arange(count)[:, None] >> np.arange(8) & 1
    blocks = np.where(bits, 135, 121).astype(np.uint8).reshape(count, 4, 2, 1)
    return blocks.repeat(16, 1).repeat(32, 2).repeat(3, 3)


def write(path, pixels, fps=16, times=None, codec="mpeg4", options=None, **settings):
    """Write frames; `times` are milliseconds, instead of a constant rate."""
    with av.open(str(path), "w", options=options or {}) as container:
        stream = container.add_stream(codec, rate=fps)
        stream.height, stream.width = pixels.shape[1:3]
        stream.pix_fmt, stream.bit_rate = "yuv420p", 4_000_000
        for name, value in settings.items():
            setattr(stream.codec_context, name, value)
        base = Fraction(1, 1000) if times is not None else 1 / Fraction(fps)
        stream.time_base = stream.codec_context.time_base = base
        for i, picture in enumerate(pixels):
            frame = av.VideoFrame.from_ndarray(picture, format="rgb24")
            frame.pts, frame.time_base = i if times is None else times[i], base
            container.mux(stream.encode(frame))
        container.mux(stream.encode())
    return path


def split(path, **arguments):
    """(clips, rejections) of a file."""
    found = list(clips(path, **arguments))
    return [c for c in found if isinstance(c, Clip)], [r for r in found if isinstance(r, Rejected)]


def source_numbers(clip):
    """Which of `numbered` the frames of a clip are."""
    blocks = clip.frames.float().unflatten(1, (4, 16)).unflatten(3, (2, 32)).mean((2, 4, 5))
    return ((blocks.flatten(1) > 128).int() << torch.arange(8)).sum(1).tolist()


def spans(found):
    return [(len(clip.frames), clip.scene, round(clip.start * FPS)) for clip in found]


@pytest.mark.parametrize("fps", [16, 17, Fraction(24000, 1001), 25, 30, 60])
def test_ticks_take_every_sixteenth_of_a_second_once(fps):
    ticks = Ticks()
    times = [i / float(fps) for i in range(600)]
    chosen = [(time, *ticks.choose(time, i == 0)) for i, time in enumerate(times)]
    taken = [time for time, taken, _ in chosen if taken]
    assert sum(gap for *_, gap in chosen) == 1
    assert len(taken) == pytest.approx(times[-1] * FPS + 1, abs=1)
    assert all(-0.25 <= time * FPS - tick <= 0.8 for tick, time in enumerate(taken))


def test_ticks_bridge_milliseconds_but_not_a_missing_frame():
    ticks = Ticks()
    rounded = [round(i * 62.5) / 1000 for i in range(100)]
    assert all(ticks.choose(time, not i)[0] for i, time in enumerate(rounded))
    assert ticks.choose(rounded[-1] + 1.9 / FPS) == (True, True)


def test_ticks_start_over_where_time_jumps_back_and_skip_what_comes_twice():
    ticks = Ticks()
    assert ticks.choose(5.0, True) == (True, True)
    assert ticks.choose(5.0) == (False, False)
    assert ticks.choose(0.0) == (True, True)
    assert ticks.choose(1 / FPS) == (True, False)


@pytest.mark.parametrize(("fps", "step"), [(16, 1), (32, 2), (48, 3)])
def test_frames_are_skipped_not_blended(tmp_path, fps, step):
    found, rejected = split(write(tmp_path / "a.mp4", numbered(22 * step), fps), lengths=(21,))
    assert source_numbers(found[0]) == list(range(0, 21 * step, step))
    assert (len(found), rejected) == (1, [])


def test_variable_rate_gives_the_frames_of_its_ticks(tmp_path):
    gaps = [20, 60, 10, 35, 50] * 20
    times = np.cumsum([0, *gaps])
    found, rejected = split(write(tmp_path / "v.mkv", numbered(101), 30, times), lengths=(21,))
    due = [i * 62.5 - 15.625 for i in range(21)]
    assert source_numbers(found[0]) == [int(np.argmax(times >= t)) for t in due]
    assert rejected == []


def test_a_gap_in_time_ends_a_clip(tmp_path):
    times = [i * 40 for i in range(50)] + [2500 + i * 40 for i in range(60)]
    found, _ = split(write(tmp_path / "g.mkv", numbered(110), 25, times), lengths=(21,))
    assert [clip.scene for clip in found] == [0, 1]
    assert source_numbers(found[0])[-1] < 50
    assert source_numbers(found[1])[0] == 50


@pytest.mark.parametrize("name", ["s.mp4", "s.mkv"])
def test_too_few_frames_a_second_are_refused(tmp_path, name):
    found, rejected = split(write(tmp_path / name, numbered(40), 12))
    assert found == []
    assert rejected[0].reason == "slow"
    assert rejected[0].numbers["fps"] == pytest.approx(12, rel=0.01)


def test_slow_files_that_hide_their_rate_are_refused_by_their_timestamps(tmp_path, monkeypatch):
    monkeypatch.setattr("surf.surf_core.training.prepare.decode._unfit", lambda stream, fps: None)
    found, rejected = split(write(tmp_path / "s.mp4", numbered(60), 12))
    assert (found, [r.reason for r in rejected]) == ([], ["slow"])


@pytest.mark.parametrize("codec", ["mpeg4", "libx264"])
def test_a_hard_cut_is_found_to_the_frame(tmp_path, codec):
    parts = [scene(1, 30, 80, pan=1), scene(2, 25, 170, pan=2), scene(3, 21, 90)]
    found, rejected = split(write(tmp_path / "c.mp4", np.concatenate(parts), codec=codec))
    assert spans(found) == [(21, 0, 0), (21, 1, 30), (21, 2, 55)]
    assert rejected == []


def test_pan_noise_and_flicker_are_no_cut(tmp_path):
    moving = scene(1, 81, pan=3).astype(np.int16)
    noise = np.random.default_rng(0).normal(0, 8, moving.shape)
    flicker = np.where(np.arange(81) % 2, 6, -6)[:, None, None, None]
    pixels = (moving + noise + flicker).clip(0, 255).astype(np.uint8)
    assert spans(split(write(tmp_path / "p.mp4", pixels))[0]) == [(81, 0, 0)]
    moved, difference = clipping.change(moving[0, ..., 0], moving[9, ..., 0])
    assert moved < clipping.CUT_HISTOGRAM
    assert difference > clipping.CUT_DIFFERENCE, "a pan that the difference alone would cut"


def test_long_scenes_give_long_clips_first_without_overlap(tmp_path):
    found, rejected = split(write(tmp_path / "l.mp4", numbered(127)))
    assert spans(found) == [(81, 0, 0), (21, 0, 81), (21, 0, 102)]
    assert [n for clip in found for n in source_numbers(clip)] == list(range(123))
    assert [clip.index for clip in found] == [0, 1, 2]
    assert rejected == []


def test_a_short_scene_is_named(tmp_path):
    found, rejected = split(write(tmp_path / "t.mp4", numbered(20)))
    assert (found, rejected) == ([], [Rejected(reason="short", numbers={"frames": 20})])


def test_no_more_than_one_clip_of_frames_is_held(monkeypatch):
    alive, most = set(), 0

    class Counted(Frame):
        __slots__ = ("__weakref__",)

        def __del__(self):
            alive.discard(self.time)

    def endless(path, fps):
        nonlocal most
        for i in range(2000):
            alive.add(i / FPS)
            most = max(most, len(alive))
            flat = np.zeros((4, 4, 3), np.uint8)
            yield Counted(pixels=flat, thumbnail=flat[..., 0], time=i / FPS, gap=not i)

    monkeypatch.setattr(clipping, "frames", endless)
    assert sum(isinstance(item, Clip) for item in clips("x")) == 2000 // 81 + 2000 % 81 // 21
    assert most <= 84


@pytest.mark.parametrize("lengths", [(), (20,), (0,), (81, 22)])
def test_clips_reject_lengths_that_the_vae_cannot_take(lengths):
    with pytest.raises(ValueError, match="4n \\+ 1"):
        clips("x.mp4", lengths)


def test_unreadable_files_are_a_result(tmp_path):
    (tmp_path / "noise.mp4").write_bytes(os.urandom(5000))
    (tmp_path / "empty.mp4").write_bytes(b"")
    for path in (tmp_path / "noise.mp4", tmp_path / "empty.mp4", tmp_path / "none.mp4", tmp_path):
        found, rejected = split(path)
        assert (found, [r.reason for r in rejected]) == ([], ["unreadable"])


def test_headers_that_ask_for_any_amount_of_memory_are_a_result(tmp_path, monkeypatch):
    def refuse(*args, **kwargs):
        raise av.error.MemoryError(12, "Cannot allocate memory", "a.mp4")

    (tmp_path / "a.mp4").write_bytes(b"x")
    monkeypatch.setattr(av, "open", refuse)
    assert split(tmp_path / "a.mp4") == ([], [Rejected(reason="memory", numbers={"code": 12})])


def test_a_stream_that_pyav_does_not_know_ends_the_file(tmp_path, monkeypatch):
    def packets(container, stream):
        yield from list(container.demux(stream))[:40]
        raise IndexError("list index out of range")

    class Container:
        def __init__(self, path, **kwargs):
            self.inner = opened(path, **kwargs)
            self.streams, self.duration = self.inner.streams, self.inner.duration

        def __enter__(self):
            return self

        def __exit__(self, *error):
            self.inner.close()

        def demux(self, stream):
            return packets(self.inner, stream)

    path = write(tmp_path / "i.mp4", numbered(60))
    opened = av.open
    monkeypatch.setattr(av, "open", Container)
    found, rejected = split(path)
    assert spans(found) == [(21, 0, 0)]
    assert rejected[0].reason == "corrupt"


def test_audio_alone_is_no_video(tmp_path):
    with av.open(str(tmp_path / "a.wav"), "w") as container:
        stream = container.add_stream("pcm_s16le", rate=8000)
        frame = av.AudioFrame.from_ndarray(np.zeros((1, 8000), np.int16), layout="mono")
        frame.sample_rate = 8000
        container.mux(stream.encode(frame))
    assert split(tmp_path / "a.wav") == ([], [Rejected(reason="no_video")])


def test_a_file_without_frames_is_named(tmp_path):
    path = write(tmp_path / "z.avi", numbered(2))
    data = path.read_bytes()
    path.write_bytes(data[: data.index(b"movi") + 4])
    found, rejected = split(path)
    assert found == []
    assert rejected[0].reason == "no_frames"


def test_truncated_files_keep_their_good_clips(tmp_path):
    options = {"movflags": "faststart"}
    path = write(tmp_path / "f.mp4", scene(1, 100, pan=1), options=options)
    whole, _ = split(path, lengths=(21,))
    path.write_bytes(path.read_bytes()[: int(0.7 * path.stat().st_size)])
    found, rejected = split(path, lengths=(21,))
    assert (len(whole), len(found)) == (4, 3)
    assert all(torch.equal(a.frames, b.frames) for a, b in zip(whole, found, strict=False))
    assert rejected[0].reason in ("corrupt", "truncated")
    assert rejected[0].numbers["frames"] < 100


def test_truncation_at_a_packet_is_seen_in_the_promised_length(tmp_path):
    path = write(tmp_path / "f.mkv", scene(1, 100, pan=1), 25)
    with av.open(str(path)) as container:
        end = [p.pos for p in container.demux(video=0) if p.size][60]
    path.write_bytes(path.read_bytes()[:end])
    found, rejected = split(path, lengths=(21,))
    assert (len(found), [r.reason for r in rejected]) == (1, ["truncated"])


def test_damage_costs_the_frames_up_to_the_next_key_frame_only(tmp_path):
    path = write(tmp_path / "d.mp4", scene(1, 120, pan=1), codec="libx264", gop_size=30)
    whole = [item for item in frames(path) if isinstance(item, Frame)]
    with av.open(str(path)) as container:
        hit = [p for p in container.demux(video=0) if p.size and p.is_keyframe][1]
    data = bytearray(path.read_bytes())
    data[hit.pos : hit.pos + hit.size] = b"\xff" * hit.size
    path.write_bytes(data)
    items = list(frames(path))
    kept = [item for item in items if isinstance(item, Frame)]
    assert items[-1].reason == "corrupt"
    assert 80 <= len(kept) <= 90
    originals = {round(frame.time * FPS): frame.pixels for frame in whole}
    for frame in kept:
        np.testing.assert_array_equal(frame.pixels, originals[round(frame.time * FPS)])
    found, _ = split(path, lengths=(21,))
    assert {clip.scene for clip in found} == {0, 1}


def test_any_flipped_bytes_give_a_result_never_an_exception(tmp_path):
    generator = np.random.default_rng(0)
    for name in ("a.mp4", "a.mkv", "a.avi"):
        clean = write(tmp_path / name, scene(1, 24, pan=1)).read_bytes()
        for _ in range(12):
            data = np.frombuffer(clean, np.uint8).copy()
            data[generator.integers(0, len(data), 40)] = generator.integers(0, 256, 40)
            (tmp_path / name).write_bytes(data.tobytes())
            assert list(clips(tmp_path / name))


def test_phone_videos_stand_upright(tmp_path):
    pixels = np.zeros((22, 64, 96, 3), np.uint8)
    pixels[:, :32, :48] = 255
    path = write(tmp_path / "r.mp4", pixels)
    plain = split(path)[0][0].frames
    one, identity = b"\0\1\0\0", b"\0\1\0\0" + bytes(12) + b"\0\1\0\0" + bytes(12) + b"\x40\0\0\0"
    quarter = bytes(4) + one + bytes(4) + b"\xff\xff\0\0" + bytes(16) + b"\x40\0\0\0"
    data, track = path.read_bytes(), path.read_bytes().index(b"tkhd")
    at = data.index(identity, track)
    path.write_bytes(data[:at] + quarter + data[at + len(quarter) :])
    turned = split(path)[0][0].frames
    assert turned.shape[1:3] == (96, 64)
    # A quarter turn clockwise: what was top left is top right.
    assert torch.equal(turned, plain.rot90(-1, (1, 2)))
    assert turned[0, 10, 50, 0] > 200 > 50 > turned[0, 10, 10, 0]


def test_what_would_train_wrong_shapes_or_colours_is_refused(tmp_path):
    wide = write(tmp_path / "w.mkv", numbered(22), codec="libx264", sample_aspect_ratio=2)
    hdr = write(tmp_path / "h.mkv", numbered(22), codec="libx264", color_trc=16)
    assert split(wide)[1] == [Rejected(reason="anamorphic", numbers={"pixel_aspect": 2.0})]
    assert split(hdr)[1][0].reason == "hdr"


@pytest.mark.parametrize(
    ("rows", "tagged", "red"),
    [(64, 2, (81, 90, 240)), (720, 2, (63, 102, 240)), (720, 5, (81, 90, 240))],
)
def test_colours_follow_the_tag_and_bt709_where_a_large_picture_has_none(rows, tagged, red):
    y, u, v = red
    planes = [
        np.full((rows, rows), y),
        np.full((rows // 4, rows), u),
        np.full((rows // 4, rows), v),
    ]
    frame = av.VideoFrame.from_ndarray(np.concatenate(planes).astype(np.uint8), format="yuv420p")
    frame.colorspace, frame.pts, frame.time_base = tagged, 0, Fraction(1, 16)
    error = np.abs(decode._picture(frame, True).pixels[rows // 2, rows // 2] - [255.0, 0, 0])
    assert error.max() <= 3


def test_clips_are_deterministic(tmp_path):
    path = write(tmp_path / "t.mp4", scene(1, 50, pan=1), 24)
    first, second = split(path)[0], split(path)[0]
    assert len(first) == 1
    assert torch.equal(first[0].frames, second[0].frames)
