"""Find the scene cuts of a latent video, so that chunks in time can meet there.

Dims: B batch, C channels, T latent frames, H, W latent cells.
"""

import torch
from torch import Tensor
from torch.nn import functional as F

SIDE = 4
"""Rows and columns that a frame is averaged to: the motion of what is in it counts little."""
AROUND = 4
"""Frames to each side that a change is compared with."""
RATIO = 2.5
"""A cut changes this many times as much as the frames around it, at least."""
LEAST_CHANGE = 0.45
"""Of the deviation of the averaged frames: less is no new picture, whatever is around."""


def scene_cuts(video: Tensor) -> list[int]:
    """Find the frames at which a new scene begins.

    A cut is where the frames before and after one differ by far more than they do around it, and
    go on to: a flash comes back. A dissolve is not found, and neither is a cut to a picture of the
    same layout and colours.

    Args:
        video: [B, C, T, H, W], a clean latent; not changed.

    Returns:
        Rising frames, each the first of a scene. A latent frame that holds the end of one scene and
        the start of the next counts to the one it is nearer to. Of a batch, what all items have.

    Source: the adaptive threshold on the change of content is that of PySceneDetect's
    AdaptiveDetector, which works on pixels; here with a median in place of the mean, and over two
    frames, as a latent frame may hold two scenes. The limits are set by tests/core/test_cuts.py.
    """
    found = [set(_cuts(item)) for item in video]
    return sorted(found[0].intersection(*found[1:]))


def _cuts(item: Tensor) -> list[int]:
    """Find the cuts of one video [C, T, H, W]."""
    if item.shape[1] < 3:
        return []
    maps = F.adaptive_avg_pool2d(item.float().movedim(1, 0), (SIDE, SIDE))
    change = (maps[2:] - maps[:-2]).abs().mean((1, 2, 3))
    step = (maps[1:] - maps[:-1]).abs().mean((1, 2, 3))
    least = LEAST_CHANGE * float(maps.std(correction=0))
    cuts = []
    for i, here in enumerate(change.tolist()):
        around = torch.cat([change[max(0, i - 1 - AROUND) : max(0, i - 1)],
                            change[i + 2 : i + 2 + AROUND]])  # fmt: skip
        # Where there is nothing to compare with, there is no telling a cut from motion.
        if not len(around) or here <= max(least, RATIO * float(around.median())):
            continue
        near = change[max(0, i - 2) : i + 3]
        if here == float(near.max()) and _stays(maps, i + 1, here):
            cuts.append(i + 1 + int(step[i + 1] > step[i]))
    return sorted(set(cuts))


def _stays(maps: Tensor, at: int, change: float) -> bool:
    """Say whether three frames after and three before differ by most of a change, too."""
    before, after = (
        part.median(0).values for part in (maps[max(0, at - 3) : at], maps[at + 1 : at + 4])
    )
    return float((after - before).abs().mean()) >= change / 2
