"""Read a video file as a tensor; the one module here that knows of files.

Dims: T frames, H, W pixels.
"""

from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ..resample import resize


def read_video(path: Path, rows: int = 480) -> tuple[Tensor, float | None]:
    """Read the frames of a video, [1, 3, T, H, W] in 0..1, fp32; and how many a second has.

    Args:
        path: any file that PyAV reads.
        rows: pixels along the shorter side that frames are brought to, if they are larger; 0
            keeps them.

    Raises:
        ValueError: PyAV is not installed; the file is not there, cannot be read, shows nothing, or
            has frames of several shapes.
    """
    try:
        import av
    except ImportError:
        raise ValueError(
            "expected PyAV to read videos, it is missing; install the package av."
        ) from None
    if not path.is_file():
        raise ValueError(f"expected a video, got {path}, which is no file; check its name.")
    try:
        with av.open(str(path)) as container:
            if not container.streams.video:
                raise ValueError(
                    f"expected a video, got {path} without a picture; convert it to mp4."
                )
            rate = container.streams.video[0].average_rate
            frames, sizes = [], []
            for frame in container.decode(video=0):
                sizes.append(f"{frame.width} x {frame.height}")
                frames.append(_frame(frame.to_ndarray(format="rgb24"), rows))
    except av.FFmpegError as error:
        raise ValueError(f"expected a video, got {path}: {error}; convert it to mp4.") from error
    if not frames:
        raise ValueError(f"expected a video, got {path} without frames; convert it to mp4.")
    if len({frame.shape for frame in frames}) > 1:
        raise ValueError(
            f"expected frames of one size, got {path} with {', '.join(dict.fromkeys(sizes))} "
            "pixels; encode it anew at one size, e.g. by ffmpeg with -vf scale=1280:720."
        )
    return torch.stack(frames, dim=1)[None], float(rate) if rate else None


def _frame(pixels: Any, rows: int) -> Tensor:
    frame = torch.from_numpy(pixels).permute(2, 0, 1).float().div(255)
    share = min(1.0, rows / min(frame.shape[-2:])) if rows else 1.0
    size = round(frame.shape[-2] * share), round(frame.shape[-1] * share)
    return resize(frame[None, :, None], size, "area")[0, :, 0] if share < 1 else frame
