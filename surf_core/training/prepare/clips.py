"""Cut a video into clips of 81 or 21 frames that lie within one scene.

Dims: T frames, H, W rows and columns in pixels, S pixels along a side of a thumbnail.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from .decode import FPS, Frame, Rejected, frames

LENGTHS = (81, 21)
"""Frames of a clip: 21 and 6 latent frames. Source: Bowtie-flow B.3."""
CUT_HISTOGRAM = 0.25
"""Share of the picture whose brightness must change class for a cut. A pan keeps its histogram."""
CUT_DIFFERENCE = 0.06
"""Mean difference of brightness, 0..1, for a cut. Flicker and noise stay below."""
_BINS = 32


@dataclass(frozen=True, kw_only=True, slots=True)
class Clip:
    """Consecutive frames of one scene, at one rate."""

    frames: Tensor
    """[T, H, W, 3] uint8, RGB."""
    index: int
    """Number of the clip in its file, from 0."""
    scene: int
    """Number of the scene in its file, from 0; gaps in the stream begin one too."""
    start: float
    """Seconds, of the file's own clock."""


def change(before: np.ndarray, after: np.ndarray) -> tuple[float, float]:
    """Measure the change between two thumbnails [S, S] uint8: (histogram, difference), 0..1.

    The first is half the L1 distance of their brightness histograms, 32 classes; the second their
    mean absolute difference.
    """
    counts = [np.bincount(x.ravel() >> 3, minlength=_BINS) for x in (before, after)]
    moved = np.abs(counts[0] - counts[1]).sum() / (2 * before.size)
    difference = np.abs(before.astype(np.int16) - after.astype(np.int16)).mean() / 255
    return float(moved), float(difference)


def is_cut(before: np.ndarray, after: np.ndarray) -> bool:
    """Whether a new scene begins at `after`: both measures of `change` are above their limits.

    Finds hard cuts, and flashes. Misses dissolves, and cuts between pictures of the same
    brightness. Source: ours; the limits are not calibrated on real footage.
    """
    moved, difference = change(before, after)
    return moved > CUT_HISTOGRAM and difference > CUT_DIFFERENCE


def _begins(before: Frame | None, frame: Frame) -> bool:
    """Whether a frame cannot continue the clip of the frame before it."""
    return (
        before is None
        or frame.gap
        or frame.pixels.shape != before.pixels.shape
        or is_cut(before.thumbnail, frame.thumbnail)
    )


def _divide(count: int, lengths: tuple[int, ...]) -> list[int]:
    """Lengths of the clips that `count` frames make, long ones first."""
    parts = []
    for length in sorted(lengths, reverse=True):
        parts += [length] * (count // length)
        count %= length
    return parts


def clips(
    path: Path, lengths: tuple[int, ...] = LENGTHS, fps: int = FPS
) -> Iterator[Clip | Rejected]:
    """Cut a file into clips without overlap, in one pass.

    Each scene gives as many clips of the longest length as fit, then shorter ones from the rest.
    Holds the frames of one longest clip, and one more while it is handed over.

    Args:
        path: any file.
        lengths: frames of a clip, each 4n + 1 as the VAE needs it.
        fps: frames a second.

    Yields:
        Clips in order; then, if there is something to say against the file, one `Rejected`.
        A file always yields something: one without a scene long enough is "short".

    Raises:
        ValueError: a length that is not 4n + 1.
        MemoryError: a clip does not fit into memory.

    Source: Bowtie-flow B.3; the measure of scene changes is ours.
    """
    if not lengths or any(length < 1 or length % 4 != 1 for length in lengths):
        raise ValueError(f"expected lengths of 4n + 1 frames, got {lengths=}; use 81 and 21.")
    return _clips(path, lengths, fps)


def _clips(path: Path, lengths: tuple[int, ...], fps: int) -> Iterator[Clip | Rejected]:
    held: list[Frame] = []
    scene, index, longest, run, verdict = -1, 0, 0, 0, None
    before = None

    def drain() -> Iterator[Clip]:
        nonlocal index
        for length in _divide(len(held), lengths):
            start = held[0].time
            pixels = np.empty((length, *held[0].pixels.shape), np.uint8)
            for place in range(length):  # Each is let go of as it is copied.
                pixels[place] = held.pop(0).pixels
            yield Clip(frames=torch.from_numpy(pixels), index=index, scene=scene, start=start)
            index += 1
        held.clear()

    for item in frames(path, fps):
        if isinstance(item, Rejected):
            verdict = item
            continue
        if _begins(before, item):
            yield from drain()
            scene, run = scene + 1, 0
        held.append(item)
        before, run = item, run + 1
        longest = max(longest, run)
        if len(held) == max(lengths):
            yield from drain()
    yield from drain()
    if verdict is None and index == 0:
        verdict = Rejected(reason="short", numbers={"frames": longest})
    if verdict is not None:
        yield verdict
