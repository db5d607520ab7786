"""Compare frames of the host, after checking that they can be.

Dims: F frames, H, W pixels.
"""

from torch import Tensor

from ....surf_core.signature import Survival, survival


def compare(video: Tensor, reference: Tensor, other: Tensor | None, rows: int) -> Survival:
    """Compare a video with its reference, between the floor of another seed and a faithful copy.

    Args:
        video, reference, other: IMAGE [F, H, W, channels] of one video each; not changed.
        rows: pixels along the shorter side at which they are compared, at most; 0 is all.

    Raises:
        ValueError: see `survival`.
    """
    given = (video, reference) if other is None else (video, reference, other)
    return survival(*(_video(frames) for frames in given), rows=rows)


def _video(frames: Tensor) -> Tensor:
    """[F, H, W, channels] -> [1, 3, F, H, W]: alpha is left out, grey is three times the same."""
    few = frames.shape[-1] < 3
    colours = frames[..., :1].expand(*frames.shape[:3], 3) if few else frames[..., :3]
    return colours.movedim(-1, 0)[None]
