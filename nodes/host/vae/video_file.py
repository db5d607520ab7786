"""Encode frames as they come into an mp4 of the host's temporary folder, with its sound.

The settings are those of the host's own Save Video, which then copies the streams as they are.

Dims: F frames, N samples of sound.
"""

import errno
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from fractions import Fraction
from math import ceil
from pathlib import Path
from typing import Any
from uuid import uuid4

import comfy.model_management
import folder_paths
from torch import Tensor

from ..node import NodeLog, show_status
from .decode import checked
from .frame_count import kept_frames
from .streaming import Streaming

log = NodeLog(__name__)

LOOKAHEAD = 40
"""Frames that x264 looks ahead by itself; fewer are asked for where they would fill the memory."""
THREADS = 4
"""Of the encoder above 1080p: each holds frames."""
PIXEL, PIXEL_AHEAD = 46, 3.1
"""Bytes of x264 for each pixel of a frame, and for each of every frame that it looks ahead: 337 MiB
were measured at 1080p with 40 frames, 482 at 4K with 4."""
ROOM = 400 * 2**20
"""Bytes of the encoder up to which it looks ahead as far as by itself."""
BT709, MPEG_RANGE = 1, 1
"""Of the colour standard and of the range 16..235, as FFmpeg numbers them."""
LAYOUTS = {1: "mono", 2: "stereo", 6: "5.1"}


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
            a full disk.
    """
    samples, (rows, columns) = checked(vae, latent, width, height, side)
    if rows % 2 or columns % 2:
        raise ValueError(
            f"expected an even width and height, as H.264 needs, got {columns} x {rows}; crop to "
            f"{columns - columns % 2} x {rows - rows % 2} by width and height."
        )
    _check_audio(audio)
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
    folder = Path(folder_paths.get_temp_directory())
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"surf_{uuid4().hex}.mp4"
    with _removed_on_failure(path):
        _write(path, frames, sum(counts), (rows, columns), fps=fps, audio=audio, crf=crf)
    return path


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
    path: Path, blocks: Iterable[Tensor], count: int, size: tuple[int, int], *, fps: float,
    audio: dict | None, crf: int,
) -> None:  # fmt: skip
    import av

    options = {"movflags": "use_metadata_tags+faststart"}
    rate = Fraction(round(fps * 1000), 1000)
    with av.open(str(path), "w", format="mp4", options=options) as container:
        video = container.add_stream("libx264", rate=rate)
        video.height, video.width = size
        video.pix_fmt = "yuv420p"
        video.options = {"crf": str(crf)}
        if (ahead := encoder_frames(*size)) < LOOKAHEAD:
            less = f"rc-lookahead={ahead}:sync-lookahead=0"
            video.options = {**video.options, "x264-params": less}
            video.codec_context.thread_count = THREADS
        context = video.codec_context
        context.colorspace = context.color_primaries = context.color_trc = BT709
        context.color_range = MPEG_RANGE
        sound = None if audio is None else _add_sound(container, audio)
        done = 0
        for block in blocks:
            for pixels in block.numpy():
                comfy.model_management.throw_exception_if_processing_interrupted()
                frame = av.VideoFrame.from_ndarray(pixels, format="rgb24")
                container.mux(video.encode(frame.reformat(format="yuv420p", dst_colorspace=BT709)))
            done += len(block)
            show_status(f"{done} of {count} frames decoded and encoded")
        container.mux(video.encode(None))
        if sound is not None:
            _write_sound(container, sound, audio, ceil(count * int(audio["sample_rate"]) / rate))


def _check_audio(audio: dict | None) -> None:
    """Refuse sound that is no AUDIO of the host."""
    if audio is None:
        return
    known = audio if isinstance(audio, Mapping) else {}
    waveform, rate = known.get("waveform"), known.get("sample_rate")
    if not isinstance(waveform, Tensor) or waveform.ndim != 3 or not waveform.shape[-1] or not rate:
        shape = tuple(waveform.shape) if isinstance(waveform, Tensor) else type(waveform).__name__
        raise ValueError(
            f"expected sound [B, channels, samples] and its sample_rate, got {shape} at {rate}; "
            "connect VAE Decode Audio, Load Audio or the audio of Get Video Components."
        )


def _add_sound(container: Any, audio: dict) -> Any:
    layout = LAYOUTS.get(audio["waveform"].shape[1], "stereo")
    return container.add_stream("aac", rate=int(audio["sample_rate"]), layout=layout)


def _write_sound(container: Any, stream: Any, audio: dict, samples: int) -> None:
    """Encode the sound of the first item, cut to so many samples."""
    import av

    waveform = audio["waveform"][0]
    if waveform.shape[-1] > samples:
        log.info(
            "sound is cut from %d to %d samples, the length of the frames.",
            waveform.shape[-1],
            samples,
        )
    if len(waveform) not in LAYOUTS:
        waveform = waveform[:2]
    waveform = waveform[:, :samples].float().cpu().contiguous()
    frame = av.AudioFrame.from_ndarray(waveform.numpy(), format="fltp", layout=stream.layout.name)
    frame.sample_rate, frame.pts = int(audio["sample_rate"]), 0
    container.mux(stream.encode(frame))
    container.mux(stream.encode(None))


@contextmanager
def _removed_on_failure(path: Path) -> Iterator[None]:
    """Remove a file unless the block ends well, and say so where the disk is full."""
    whole = False
    try:
        yield
        whole = True
    except OSError as error:
        if error.errno not in (errno.ENOSPC, errno.EDQUOT, errno.EACCES, errno.EROFS):
            raise
        raise ValueError(
            f"expected room for the video in {path.parent}, got: {error.strerror}; free some, or "
            "start ComfyUI with another --temp-directory."
        ) from error
    finally:
        if not whole:
            path.unlink(missing_ok=True)
