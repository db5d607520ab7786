"""Compress a clip with a video encoder and decode it, in memory.

PyAV is optional: it is imported when a clip is encoded, never before.

Dims: F pixel frames, 3 colours, H, W pixels.
"""

import io
from fractions import Fraction
from types import ModuleType

import torch
import torch.nn.functional as F
from torch import Tensor

from ..checks import check_choice, check_range
from .record import CODECS

SMALLEST = 16
"""Least pixels along a side that every encoder takes; smaller frames are padded."""
RED, BLUE = 0.299, 0.114
"""Shares in the luma of BT.601."""
RATE = 16
"""Frames a second, those of the training clips."""


def compress(frames: Tensor, name: str, quality: int) -> Tensor:
    """Encode a clip at one quality, with 8 bits and halved chroma, and decode it.

    In one thread, so that the bits do not depend on the number of cores; they may depend on the
    encoder's version. Frames of odd or tiny sides are padded by their border and cropped again.

    Args:
        frames: [F, 3, H, W] in 0..1.
        name: one of CODECS.
        quality: libx264, the CRF; mpeg4, the quantiser. Lower is better.

    Returns:
        [F, 3, H, W] in 0..1, as many frames in the same order, dtype and device of `frames`.

    Raises:
        ValueError: an unknown encoder, or a quality outside its range.
        ImportError: PyAV is not installed.
        RuntimeError: this build of PyAV lacks the encoder, or frames were lost.
    """
    check_choice(name, "codec", tuple(CODECS))
    check_range(quality, f"{name} quality", *CODECS[name], "lower is better")
    height, width = frames.shape[-2:]
    decoded = _decode(_encode(frames, name, quality))
    if len(decoded) != len(frames):
        raise RuntimeError(
            f"{name}: expected {len(frames)} frames back, got {len(decoded)}; leave the codec out, "
            "or use another build of PyAV."
        )
    return torch.stack(decoded)[..., :height, :width].to(frames)


def _pyav() -> ModuleType:
    try:
        import av
    except ImportError as error:
        raise ImportError(
            "Compressing a clip needs PyAV, which is not installed; install the package `av`."
        ) from error
    return av


def _encode(frames: Tensor, name: str, quality: int) -> io.BytesIO:
    """Encode [F, 3, H, W] into a file in memory."""
    av = _pyav()
    level = str(quality)
    options = {
        # The encoder's macroblock tree is not deterministic on every processor.
        "libx264": {"crf": level, "preset": "veryfast", "x264-params": "mbtree=0"},
        "mpeg4": {"qmin": level, "qmax": level},
    }
    file = io.BytesIO()
    with av.open(file, "w", format="matroska") as out:
        try:
            stream = out.add_stream(name, rate=RATE, options=options[name])
        except av.error.FFmpegError as error:
            raise RuntimeError(
                f"This build of PyAV has no encoder {name} ({error}); use another build."
            ) from error
        stream.height, stream.width = (_padded(side) for side in frames.shape[-2:])
        stream.pix_fmt = "yuv420p"
        stream.codec_context.thread_count = 1
        for index, frame in enumerate(frames):
            picture = av.VideoFrame.from_ndarray(_to_planes(frame).numpy(), format="yuv420p")
            picture.pts, picture.time_base = index, Fraction(1, RATE)
            out.mux(stream.encode(picture))
        out.mux(stream.encode())
    file.seek(0)
    return file


def _decode(file: io.BytesIO) -> list[Tensor]:
    """Decode a file in memory to frames [3, H, W], in the order of showing."""
    with _pyav().open(file) as source:
        stream = source.streams.video[0]
        stream.codec_context.thread_count = 1
        return [
            _from_planes(torch.from_numpy(picture.to_ndarray(format="yuv420p")))
            for picture in source.decode(stream)
        ]


def _padded(side: int) -> int:
    return max(side + side % 2, SMALLEST)


def _to_planes(frame: Tensor) -> Tensor:
    """Convert [3, H, W] to bytes [3 * H / 2, W]: luma, then both chroma planes at half the sides.

    BT.601, limited range. The encoder library's own conversion truncates, which makes a clip one
    part in 255 darker.
    """
    frame = frame.detach().float().cpu()
    rows, columns = (_padded(side) for side in frame.shape[-2:])
    below, right = rows - frame.shape[-2], columns - frame.shape[-1]
    red, green, blue = F.pad(frame[None], (0, right, 0, below), mode="replicate")[0]
    luma = RED * red + (1 - RED - BLUE) * green + BLUE * blue
    chroma = torch.stack([(blue - luma) / (2 - 2 * BLUE), (red - luma) / (2 - 2 * RED)])
    chroma = F.avg_pool2d(chroma, 2)
    planes = torch.cat([16 + 219 * luma.flatten(), 128 + 224 * chroma.flatten()])
    return planes.round().clamp(0, 255).to(torch.uint8).reshape(rows * 3 // 2, columns)


def _from_planes(planes: Tensor) -> Tensor:
    """Convert the bytes of `_to_planes` to [3, H, W] in 0..1."""
    rows, columns = planes.shape[0] * 2 // 3, planes.shape[1]
    values = planes.float().flatten()
    luma = ((values[: rows * columns] - 16) / 219).reshape(rows, columns)
    chroma = ((values[rows * columns :] - 128) / 224).reshape(1, 2, rows // 2, columns // 2)
    from_blue, from_red = F.interpolate(chroma, (rows, columns), mode="bilinear")[0]
    blue, red = luma + (2 - 2 * BLUE) * from_blue, luma + (2 - 2 * RED) * from_red
    green = (luma - RED * red - BLUE * blue) / (1 - RED - BLUE)
    return torch.stack([red, green, blue]).clamp(0, 1)
