"""Videos to prepare, good and bad, and the job that prepares them with the embedded codec."""

from dataclasses import replace
from fractions import Fraction

import av
import numpy as np
from surf.surf_core.training.prepare import local
from surf.surf_core.training.prepare.job import PrepareJob, prepare
from surf.surf_core.training.prepare.options import tiny
from surf.surf_core.training.tiny.clips import write_clips

OPTIONS = replace(tiny(), mix=(1.0, 0.0, 0.0))
"""The embedded model's, with degradations that take no time and go through no video encoder."""
REASONS = {
    "audio.mp4": "no_video",
    "empty.mp4": "unreadable",
    "gone.mp4": "unreadable",
    "half.mp4": "corrupt",
    "hurt.mkv": "corrupt",
    "short.mkv": "truncated",
    "none.avi": "no_frames",
    "slow.mp4": "slow",
    "text.mp4": "unreadable",
    "twin \u00e9.mp4": "duplicate",
}
"""Why each of `write_bad`'s files is rejected."""


def job(given, out, **values):
    """A job of the embedded model."""
    return PrepareJob(given=given, out=out, **{"options": OPTIONS, **values})


def run(given, out, **values):
    """Prepare in this process, and return the report."""
    return prepare(job(given, out, **values), local.run)


def files(folder):
    """What counts of a prepared folder: bytes of the manifest, the options and the shards."""
    kept = [folder / "manifest.parquet", folder / "options.json", *folder.glob("clips/*/*")]
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in kept}


def write(path, count, fps=16, times=None, level=128, format=None, options=None):
    """Write a textured, moving video of 128x128; `times` are milliseconds."""
    noise = np.random.default_rng(level).normal(0, 30, (16, 64)).repeat(8, 0).repeat(8, 1)
    with av.open(str(path), "w", format=format, options=options or {}) as container:
        stream = container.add_stream("mpeg4", rate=fps)
        stream.height = stream.width = 128
        stream.pix_fmt, stream.bit_rate, stream.gop_size = "yuv420p", 2_000_000, 5
        base = Fraction(1, 1000) if times is not None else Fraction(1, fps)
        stream.time_base = stream.codec_context.time_base = base
        for i in range(count):
            grey = (level + np.roll(noise, -2 * i, 1)[:, :128]).clip(0, 255).astype(np.uint8)
            frame = av.VideoFrame.from_ndarray(grey[..., None].repeat(3, 2), format="rgb24")
            frame.pts, frame.time_base = i if times is None else times[i], base
            container.mux(stream.encode(frame))
        container.mux(stream.encode())
    return path


def write_sound(path):
    with av.open(str(path), "w") as container:
        stream = container.add_stream("aac", rate=16000)
        frame = av.AudioFrame.from_ndarray(np.zeros((1, 4096), np.float32), "fltp", "mono")
        frame.sample_rate, frame.pts = 16000, 0
        for packet in (*stream.encode(frame), *stream.encode()):
            container.mux(packet)


def write_bad(folder):
    """One file of each kind that cannot be used whole; three of them have good clips."""
    write_sound(folder / "audio.mp4")
    (folder / "empty.mp4").write_bytes(b"")
    (folder / "gone.mp4").symlink_to(folder / "nowhere")
    (folder / "text.mp4").write_text("not a video\n" * 100)
    data = write(folder / "none.avi", 2).read_bytes()
    (folder / "none.avi").write_bytes(data[: data.index(b"movi") + 4])
    write(folder / "slow.mp4", 30, fps=12)
    front = {"movflags": "faststart"}
    whole = write(folder / "half.mp4", 24, level=100, options=front).read_bytes()
    (folder / "half.mp4").write_bytes(whole[: int(len(whole) * 0.7)])
    path = write(folder / "short.mkv", 24, level=120)
    with av.open(str(path)) as container:
        end = [packet.pos for packet in container.demux(video=0) if packet.size][11]
    path.write_bytes(path.read_bytes()[:end])
    data = bytearray(write(folder / "hurt.mkv", 24, level=150).read_bytes())
    data[len(data) // 2 : len(data) // 2 + 2000] = bytes(2000)
    (folder / "hurt.mkv").write_bytes(data)


def write_all(folder, count=3):
    """Scenes with captions, a longer video, one of variable rate, bad ones, and a copy."""
    write_clips(folder, count, seed=1)
    (folder / "sub folder").mkdir()
    write(folder / "sub folder" / "long.mp4", 12)
    gaps = [20, 60, 10, 35, 50] * 4
    write(folder / "variable.mkv", 21, 30, np.cumsum([0, *gaps]).tolist())
    write_bad(folder)
    first = folder / "scene00000.mp4"
    (folder / "twin \u00e9.mp4").write_bytes(first.read_bytes())
    return folder
