"""Write drawn scenes as video files with captions beside them, for the tiny suite and for tests.

Dims: T frames, S pixels along a side.
"""

from pathlib import Path

import av
import numpy as np
import torch
from torch import Tensor

from .scenes import render

FPS = 16
CRF = 4
"""Quality of H.264, where 0 is lossless: at 4, with colours at full size, errors are invisible."""


def write_video(path: Path, video: Tensor, fps: int = FPS, crf: int = CRF) -> None:
    """Write [3, T, S, S] in -1..1 as H.264, one thread, the same bytes every time."""
    pixels = ((video.clamp(-1, 1) + 1) * 127.5).round().byte().permute(1, 2, 3, 0).numpy()
    with av.open(str(path.absolute()), "w", options={"fflags": "+bitexact"}) as container:
        stream = container.add_stream("libx264", rate=fps)
        stream.height, stream.width = pixels.shape[1:3]
        stream.pix_fmt = "yuv444p"
        stream.codec_context.thread_count = 1
        # Without the macroblock tree, which is not the same twice on every processor.
        stream.options = {"crf": str(crf), "preset": "veryfast", "x264-params": "mbtree=0"}
        for picture in pixels:
            frame = av.VideoFrame.from_ndarray(np.ascontiguousarray(picture), format="rgb24")
            container.mux(stream.encode(frame))
        container.mux(stream.encode())


def write_clips(
    folder: Path, count: int, seed: int, size: int = 128, frames: int = 5
) -> list[Path]:
    """Render scenes into `scene00000.mp4`, ..., each with its prompt in a .txt beside it.

    Scene i depends on (seed, i) alone: a larger count adds to a smaller one.

    Args:
        folder: made if it is missing.
        count: scenes.
        seed: 0 or more; other seeds give other scenes.
        size: S, even.
        frames: T; objects cross half of the picture in 5, and leave it in 9.

    Returns:
        The videos, in order.

    Raises:
        ValueError: a size that is odd, or nothing to write.

    Source: ours.
    """
    if size < 16 or size % 2 or frames < 1 or count < 1:
        raise ValueError(
            f"expected an even size from 16, and frames and count from 1, got {size=}, {frames=}, "
            f"{count=}; e.g. 128, 5 and 200."
        )
    folder.mkdir(parents=True, exist_ok=True)
    paths = []
    for i in range(count):
        generator = torch.Generator().manual_seed(seed * 1_000_003 + i)
        scene = render(1, frames, size, generator)
        path = folder / f"scene{i:05d}.mp4"
        write_video(path, scene.video[0])
        path.with_suffix(".txt").write_text(scene.prompts[0] + "\n", encoding="utf-8")
        paths.append(path)
    return paths
