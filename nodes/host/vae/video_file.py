"""Encode frames as they come into an mp4 of the host's temporary folder, with its sound.

The settings are those of the host's own Save Video, which then copies the streams as they are.
"""

from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from fractions import Fraction
from pathlib import Path
from typing import Any
from uuid import uuid4

import comfy.model_management
import folder_paths
from torch import Tensor

from ..disk import writing
from ..node import NodeLog, show_status
from .decode import checked
from .frame_count import kept_frames
from .streaming import Streaming
from .video_sound import Sound, SoundTrack, sound_of

log = NodeLog(__name__)

ENCODER = "libx264"
LOOKAHEAD = 40
"""Frames that x264 looks ahead by itself; fewer are asked for where they would fill the memory."""
THREADS = 4
"""Of the encoder above 1080p: each holds frames."""
PIXEL, PIXEL_AHEAD = 46, 3.1
"""Bytes of x264 for each pixel of a frame, and for each of every frame that it looks ahead: 337 MiB
were measured at 1080p with 40 frames, 482 at 4K with 4."""
ROOM = 400 * 2**20
"""Bytes of the encoder up to which it looks ahead as far as by itself."""
COLOUR = {"color_primaries": 1, "color_trc": 13, "colorspace": 1, "color_range": 1}
"""BT.709 with sRGB's transfer in the range 16..235, as numbers of ITU-T H.273: what Save Video of
current hosts writes. Older ones name nothing and convert by BT.601, which players take for BT.709
from 720p on."""


def decode_to_file(
    vae: Any, latent: dict, width: int, height: int, *, fps: float, audio: dict | None, crf: int,
    side: int, memory: float,
) -> Path:  # fmt: skip
    """Decode a LATENT into a video file, a few frames at a time.

    Args:
        vae, latent, width, height, side: see `decode_latent`; one video, or pictures in a row.
        fps: frames a second.
        audio: AUDIO of the host, cut to the length of the frames; None is silence.
        crf: quality of x264, 0 (lossless) to 51; 23 is its default.
        memory: bytes of main memory for frames and encoder.

    Returns:
        The file, in the host's folder for temporary files. What was written is removed if the run
        is interrupted or fails.

    Raises:
        ValueError: see `decode_latent`; sound that is none, memory that is too small, an odd size,
            a VAE with transparency, a folder that cannot be written, a full disk.
    """
    samples, (rows, columns) = checked(vae, latent, width, height, side)
    check_even("width", columns)
    check_even("height", rows)
    sound, rate = sound_of(audio), Fraction(round(fps * 1000), 1000)
    if vae.latent_dim == 2 and samples.ndim == 5:
        samples = samples[:, :, 0]
    held = encoder_bytes(rows, columns)
    videos = [Streaming(vae, item, memory, held) for item in samples.split(1)]
    keep = kept_frames(latent, samples, vae)
    counts = [min(keep or n, n) for n in (video.whole.frames() for video in videos)]
    frames = (
        block[:, :rows, :columns]
        for video, n in zip(videos, counts, strict=True)
        for block in first_frames(video.blocks(side), n)
    )
    count, said = sum(counts), ""
    if sound is not None:
        said = sound.beside(count / rate, 1 / rate)
        sound = sound.cut(count / rate)
    if said:
        log.warning("%s.", said)
    path = Path(folder_paths.get_temp_directory()) / f"surf_{uuid4().hex}.mp4"
    with _opened(path) as container:
        _write(container, frames, count, (rows, columns), rate=rate, sound=sound, crf=crf)
    show_status("; ".join(filter(None, (f"encoded {count} frames", said))))
    return path


def check_even(name: str, pixels: int) -> None:
    """Refuse a side that H.264 does not have in the colours that players show."""
    if pixels % 2:
        raise ValueError(
            f"{name} must be even, as H.264 needs, got {pixels}; set {name} to {pixels - 1}."
        )


def first_frames(blocks: Iterable[Tensor], count: int) -> Iterator[Tensor]:
    """Yield blocks until there are so many frames; a video was filled up with the rest."""
    for block in blocks:
        if count > 0:
            yield block[:count]
        count -= len(block)


def encoder_frames(rows: int, columns: int) -> int:
    """Count the frames that the encoder looks ahead: x264's own number where they fit ROOM."""
    fitting = (ROOM / (rows * columns) - PIXEL) / PIXEL_AHEAD
    return max(4, min(LOOKAHEAD, int(fitting)))


def encoder_bytes(rows: int, columns: int) -> int:
    """Estimate the memory of the encoder."""
    ahead = encoder_frames(rows, columns)
    return int(rows * columns * (PIXEL + PIXEL_AHEAD * ahead))


def _write(
    container: Any, blocks: Iterable[Tensor], count: int, size: tuple[int, int], *,
    rate: Fraction, sound: Sound | None, crf: int,
) -> None:  # fmt: skip
    video = _add_video(container, size, rate, crf)
    track = None if sound is None else SoundTrack(container, sound)
    done = 0
    for block in blocks:
        _check_colours(block)
        for pixels in block.numpy():
            comfy.model_management.throw_exception_if_processing_interrupted()
            _mux(container, video.encode(_frame(pixels)))
        done += len(block)
        show_status(f"encoded {done}/{count} frames")
    _mux(container, video.encode(None))
    if track is not None:
        _mux(container, track.packets())


def _add_video(container: Any, size: tuple[int, int], rate: Fraction, crf: int) -> Any:
    """Add an H.264 stream as Save Video does; the encoder holds no more than `encoder_bytes`."""
    video = container.add_stream(ENCODER, rate=rate)
    video.height, video.width = size
    video.pix_fmt = "yuv420p"
    video.options = {"crf": str(crf)}
    if (ahead := encoder_frames(*size)) < LOOKAHEAD:
        less = f"rc-lookahead={ahead}:sync-lookahead=0"
        video.options = {**video.options, "x264-params": less}
        video.codec_context.thread_count = THREADS
    _name_colours(video.codec_context)
    return video


def _frame(pixels: Any) -> Any:
    import av

    frame = av.VideoFrame.from_ndarray(pixels, format="rgb24")
    frame = frame.reformat(format="yuv420p", dst_colorspace=COLOUR["colorspace"])
    _name_colours(frame)
    return frame


def _name_colours(target: Any) -> None:
    """Name the colours of an encoder or a frame."""
    for name, value in COLOUR.items():
        # Frames of older PyAV have neither primaries nor a transfer.
        if hasattr(target, name):
            setattr(target, name, value)


def _check_colours(frames: Tensor) -> None:
    if frames.shape[-1] != 3:
        raise ValueError(
            f"expected frames of red, green and blue, got {frames.shape[-1]} values a pixel, and "
            "H.264 has no transparency; decode with Surf VAE Decode and save with Save WEBM."
        )


def _mux(container: Any, packets: Iterable[Any]) -> None:
    with writing("temp"):
        for packet in packets:
            container.mux(packet)


@contextmanager
def _opened(path: Path) -> Iterator[Any]:
    """Open a file for a block; it is removed unless the block ends well."""
    import av

    if ENCODER not in av.codecs_available:
        raise ValueError(
            f"expected a PyAV with {ENCODER}, got {av.__version__} without; install PyAV anew from "
            "PyPI, or decode with Surf VAE Decode."
        )
    container = None
    try:
        with writing("temp"):
            path.parent.mkdir(parents=True, exist_ok=True)
            options = {"movflags": "use_metadata_tags+faststart"}
            container = av.open(str(path), "w", format="mp4", options=options)
        yield container
        with writing("temp"):
            container.close()
    except BaseException:
        if container is not None:
            # The end of a file that goes away anyway; what is raised is the reason.
            with suppress(OSError):
                container.close()
        with suppress(OSError):
            path.unlink(missing_ok=True)
        raise
