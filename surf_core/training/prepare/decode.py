"""Read a video once, frame by frame, at one rate, 16 a second; name what is wrong with a file.

Frames are skipped, never repeated or blended, so a stretch with fewer frames a second than that
cannot be used. Where it cannot be bridged the stream has a gap, and no clip goes across.

Dims: H, W rows and columns in pixels, S pixels along a side of a thumbnail.
"""

from collections.abc import Iterator
from dataclasses import dataclass, field
from errno import ENOENT
from math import inf
from pathlib import Path
from typing import Any

import av
import numpy as np
from av.stream import Disposition

from .sources import is_animated_webp

FPS = 16
"""Frames a second of every clip. Source: Bowtie-flow B.3, and Wan 2.1."""
SLOWEST = 0.99
"""Frames a second of a usable file, of those asked for: all, but for the clock that wrote it."""
THUMBNAIL = 64
"""S: what scene changes are measured on, whatever the shape of the picture."""
_EARLY, _LATE = 0.25, 0.8
"""Ticks a frame may be off its tick. Early: room for timestamps in whole milliseconds. Late: a
frame skipped as just too early is followed within a tick by the one that is taken."""
_MISSING = 0.25
"""Seconds that a file may be shorter than it says."""
_HD_ROWS = 720
_BT709, _UNSPECIFIED = 1, 2
_HDR_TRANSFERS = (16, 18)


@dataclass(frozen=True, kw_only=True, slots=True)
class Rejected:
    """Why a file, or what is left of it, gives no more clips."""

    reason: str
    """One stable word: "unreadable", "memory", "no_video", "no_decoder", "no_frames", "no_times",
    "anamorphic", "hdr", "slow", "corrupt", "truncated", "short"."""
    numbers: dict[str, float] = field(default_factory=dict)
    """What was measured."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Frame:
    """One frame of those asked for."""

    pixels: np.ndarray
    """[H, W, 3] uint8, RGB, upright."""
    thumbnail: np.ndarray
    """[S, S] uint8, luma in full range, area means."""
    time: float
    """Seconds, of the file's own clock."""
    gap: bool
    """Whether the frame before it is missing, damaged or too long ago."""


class Ticks:
    """Choose frames by their timestamps: the first one that is due, at ticks of 1/fps second."""

    def __init__(self, fps: int = FPS) -> None:
        self.fps = fps
        self.start, self.count, self.last = 0.0, 0, inf

    def choose(self, time: float, broken: bool = False) -> tuple[bool, bool]:
        """Say whether the frame at `time` seconds is taken, and whether a gap comes before it.

        Args:
            time: of the next frame in order of presentation.
            broken: start over: what came before does not belong together with this frame.
        """
        due = self.start + self.count / self.fps
        if broken or time > due + _LATE / self.fps or time < self.last - 1 / self.fps:
            self.start, self.count, self.last = time, 1, time
            return True, True
        if time < due - _EARLY / self.fps or time <= self.last:
            self.last = max(self.last, time)
            return False, False
        self.count, self.last = self.count + 1, time
        return True, False


def _unfit(stream: Any, fps: int) -> Rejected | None:
    """Reject a stream for what its header says."""
    if stream.codec_context is None:
        return Rejected(reason="no_decoder")
    aspect = stream.sample_aspect_ratio
    if aspect and aspect != 1:
        return Rejected(reason="anamorphic", numbers={"pixel_aspect": float(aspect)})
    if stream.codec_context.color_trc in _HDR_TRANSFERS:
        return Rejected(reason="hdr", numbers={"transfer": stream.codec_context.color_trc})
    if stream.average_rate and stream.average_rate < SLOWEST * fps:
        return Rejected(reason="slow", numbers={"fps": float(stream.average_rate)})
    return None


def _picture(frame: av.VideoFrame, gap: bool) -> Frame:
    """Convert to RGB as the file says, BT.709 where a large picture says nothing, and upright."""
    if frame.colorspace == _UNSPECIFIED and min(frame.width, frame.height) >= _HD_ROWS:
        frame.colorspace = _BT709
    small = frame.reformat(
        width=THUMBNAIL, height=THUMBNAIL, format="gray", interpolation="AREA"
    ).to_ndarray()
    pixels = np.rot90(frame.to_ndarray(format="rgb24"), round(frame.rotation / 90))
    return Frame(
        pixels=np.ascontiguousarray(pixels), thumbnail=small.copy(), time=frame.time, gap=gap
    )


def _promised(container: Any, stream: Any) -> float:
    """Return the seconds that the header says; 0 where it says nothing of the video."""
    if stream.duration:
        return float(stream.duration * stream.time_base)
    alone = len(container.streams) == 1 and container.duration
    return container.duration / av.time_base if alone else 0.0


@dataclass(slots=True)
class _Tally:
    """Counts of the frames read so far."""

    seen: int = 0
    """Usable frames, taken or skipped."""
    damaged: int = 0
    """Packets and frames that were not."""
    timeless: int = 0
    """Frames without a timestamp."""
    first: float = 0.0
    last: float = 0.0
    """Seconds, of the earliest and the latest frame."""
    length: float = 0.0
    """Seconds that the newest frame lasts, if the file says so."""

    def add(self, frame: av.VideoFrame) -> None:
        self.first = min(self.first, frame.time) if self.seen else frame.time
        self.last = max(self.last, frame.time) if self.seen else frame.time
        self.length = float((frame.duration or 0) * (frame.time_base or 0))
        self.seen += 1

    def verdict(self, promised: float, fps: int) -> Rejected | None:
        """Reject a file that is damaged, too slow or shorter than its header says."""
        numbers: dict[str, float] = {"frames": self.seen, "damaged": self.damaged}
        span = self.last - self.first
        if not self.seen:
            return Rejected(reason="no_times" if self.timeless else "no_frames", numbers=numbers)
        if self.damaged:
            return Rejected(reason="corrupt", numbers=numbers)
        if span + self.length < promised - _MISSING:
            numbers |= {"seconds": span + self.length, "promised": promised}
            return Rejected(reason="truncated", numbers=numbers)
        if self.seen > 1 and self.seen - 1 < SLOWEST * fps * span:
            return Rejected(reason="slow", numbers={"fps": (self.seen - 1) / span})
        return None


def _packets(container: Any, stream: Any, tally: _Tally) -> Iterator[av.Packet]:
    """Yield the packets of a stream, as far as PyAV can read the file."""
    try:
        yield from container.demux(stream)
    except IndexError:
        # PyAV 18 knows the streams of the header only; one that begins later ends the reading.
        tally.damaged += 1


def _usable(container: Any, stream: Any, tally: _Tally) -> Iterator[tuple[Any, bool]]:
    """Decode; yield (frame, whether frames before it were lost).

    Frames that refer to a damaged one are damaged too: all up to the next key frame are dropped.
    """
    broken = waiting = False
    for packet in _packets(container, stream, tally):
        decoded = None if packet.is_corrupt else _decode(packet)
        if decoded is None:
            tally.damaged, broken, waiting = tally.damaged + 1, True, True
            continue
        for frame in decoded:
            if frame.is_corrupt or (waiting and not frame.key_frame):
                tally.damaged += frame.is_corrupt
                broken = waiting = True
            elif frame.time is None:
                tally.timeless, broken, waiting = tally.timeless + 1, True, False
            else:
                tally.add(frame)
                yield frame, broken
                broken = waiting = False


def _frames(container: Any, fps: int) -> Iterator[Frame | Rejected]:
    streams = [
        stream
        for stream in container.streams.video
        if not stream.disposition & Disposition.attached_pic
    ]
    verdict = _unfit(streams[0], fps) if streams else Rejected(reason="no_video")
    if verdict is None:
        stream, tally, ticks = streams[0], _Tally(), Ticks(fps)
        stream.codec_context.thread_count = 1
        for frame, broken in _usable(container, stream, tally):
            taken, gap = ticks.choose(frame.time, broken or tally.seen == 1)
            if taken:
                yield _picture(frame, gap)
        verdict = tally.verdict(_promised(container, stream), fps)
    if verdict is not None:
        yield verdict


def _decode(packet: Any) -> list[Any] | None:
    """Decode the frames that a packet completes; None where it is damaged."""
    try:
        return packet.decode()
    except av.error.MemoryError:
        raise
    except av.error.FFmpegError:
        return None


def frames(path: Path, fps: int = FPS) -> Iterator[Frame | Rejected]:
    """Read a file's video in one pass, `fps` frames a second, holding one frame at a time.

    Args:
        path: any file. Of several video streams the first is read; cover pictures are none.
        fps: frames a second to take.

    Yields:
        Frames in order of presentation; then, if there is something to say against the file, one
        `Rejected`. A damaged or truncated file gives its good frames first.

    Raises:
        MemoryError: a picture does not fit into memory. Nothing else: what is wrong with a file is
            a result. FFmpeg's own "memory" is one too, since damaged headers ask for any amount; it
            has its own word, for who wants to try again.

    Source: ours.
    """
    if not path.is_file():
        yield Rejected(reason="unreadable", numbers={"code": ENOENT})
        return
    if is_animated_webp(path):
        # FFmpeg 8 reads the first picture of a .webp at most.
        yield Rejected(reason="no_decoder")
        return
    # A relative name may look like an address, as may a name inside a playlist.
    name, options = str(path.absolute()), {"protocol_whitelist": "file"}
    try:
        with av.open(name, metadata_errors="replace", container_options=options) as container:
            yield from _frames(container, fps)
    except av.error.MemoryError as error:
        yield Rejected(reason="memory", numbers={"code": error.errno or 0})
    except av.error.FFmpegError as error:
        yield Rejected(reason="unreadable", numbers={"code": error.errno or 0})
