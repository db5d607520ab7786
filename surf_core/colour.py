"""Match the colours of finished frames to those of the preview; detail stays that of the frames.

Frames are compared at the size of the preview. Only a correction without detail is enlarged and
added, so no edge can ring and frames that already match come back bit for bit.

Dims: F pixel frames, H, W pixels of the frames, h, w pixels of the preview.
"""

from collections.abc import Callable, Iterator
from math import log2

import torch
from torch import Tensor

from .checks import check_choice, check_range
from .lowband import wavelet_match
from .resample import resize

METHODS = ("wavelet", "lab")
"""Ways to match, see `match_colour`."""
CHUNK_PIXELS = 2**23
"""Pixels worked on at once, at least one frame: four frames of 1080p, one of 4K."""
SLOW_SHARE = 8
"""A colour is slow where it changes over more than this part of the shorter side."""
MOST_GAIN = 2.0
"""Slow chroma is never stretched or compressed more than this."""

_STEADY = 0.01
_SAME_SHAPE = 1.1


def match_colour(
    frames: Tensor,
    reference: Tensor,
    method: str = "wavelet",
    *,
    strength: float = 1.0,
    device: torch.device | None = None,
    on_chunk: Callable[[int, int], None] | None = None,
) -> Tensor:
    """Match the colours of a video to those of its preview, frame for frame.

    "wavelet" swaps the slow part of every colour channel for the preview's: the low band of a
    frame becomes that of its preview frame, so the result flickers as the preview does. "lab"
    works in CIE LAB: the slow part of L is swapped in that way, that of a and b gets one gain and
    one offset for the whole clip (its mean and deviation become the preview's, the gain within
    1 / MOST_GAIN to MOST_GAIN), so a tint cannot flicker, and what the video shows elsewhere
    than the preview keeps its colour.

    Args:
        frames: [F, 3, H, W], RGB in 0..1, floating; not changed.
        reference: [F, 3, h, w], the decoded preview, of about the same shape; a side above that
            of the frames is brought down to it. Not changed.
        method: one of METHODS.
        strength: 0 gives a copy of the frames, 1 the full match.
        device: where to compute; None where the frames are.
        on_chunk: called with (frames done, frames in all); may raise to cancel.

    Returns:
        [F, 3, H, W] in 0..1, dtype, device and layout of `frames`, a new tensor; the memory to
        work in does not grow with F.

    Raises:
        ValueError: not RGB frames, another number or another shape of frames, an unknown method,
            or a strength outside 0..1.

    Source: "wavelet" is the colour fix of StableSR and SeedVR; "lab" is after Reinhard et al. 2001
    for a and b. Comparing at the preview's size and leaving detail out of both is ours.
    """
    check_choice(method, "method", METHODS)
    check_range(strength, "strength", 0.0, 1.0, "use 1 for the full match")
    _check_frames(frames, reference)
    work, small = device or frames.device, _common_size(frames, reference)
    pairs = _Pairs(frames, reference, small, work)
    correct = _wavelet if method == "wavelet" else _Lab(pairs)
    out = torch.empty_like(frames)
    for part in pairs.parts:
        large, low, target = pairs.take(part)
        change = correct(large, low, target)
        out[part] = (large + strength * change).clamp_(0, 1).to(out)
        if on_chunk is not None:
            on_chunk(part.stop, len(frames))
    return out


class _Pairs:
    """Frames and preview frames, a chunk at a time, in fp32 or fp64 and at a common size."""

    def __init__(
        self, frames: Tensor, reference: Tensor, size: tuple[int, int], device: torch.device
    ):
        self.frames, self.reference, self.size, self.device = frames, reference, size, device
        count = max(1, CHUNK_PIXELS // (frames.shape[-2] * frames.shape[-1]))
        self.parts = [slice(i, min(i + count, len(frames))) for i in range(0, len(frames), count)]
        self.dtype = torch.float64 if frames.dtype == torch.float64 else torch.float32

    def take(self, part: slice) -> tuple[Tensor, Tensor, Tensor]:
        """Return frames [n, 3, H, W], and frames and preview at the common size."""
        large = self.frames[part].to(self.device, self.dtype)
        target = self.reference[part].to(self.device, self.dtype)
        return large, resize(large, self.size), resize(target, self.size)

    def small(self) -> Iterator[tuple[Tensor, Tensor]]:
        """Yield (frames, preview) at the common size, chunk by chunk."""
        for part in self.parts:
            yield self.take(part)[1:]


def _wavelet(large: Tensor, low: Tensor, target: Tensor) -> Tensor:
    """Return the slow part of target - low, at the size of the frames."""
    return _resize_like(_slow(target - low), large)


class _Lab:
    """LAB statistics of the whole clip, gathered once, then applied chunk by chunk."""

    def __init__(self, pairs: _Pairs):
        chunks = [(len(low), _chroma(low), _chroma(target)) for low, target in pairs.small()]
        share = torch.tensor([count for count, _, _ in chunks], dtype=torch.float64)
        share = (share / share.sum())[:, None, None]
        mean, square = (share * torch.stack([of_low for _, of_low, _ in chunks])).sum(0)
        aim, aim_square = (share * torch.stack([of_target for *_, of_target in chunks])).sum(0)
        variance, aim_variance = square - mean.square(), aim_square - aim.square()
        gain = ((aim_variance + _STEADY) / (variance + _STEADY)).sqrt()
        gain = gain.clamp(1 / MOST_GAIN, MOST_GAIN)
        self.gain = gain.to(pairs.device, pairs.dtype)[:, None, None]
        self.offset = (aim - gain * mean).to(pairs.device, pairs.dtype)[:, None, None]

    def __call__(self, large: Tensor, low: Tensor, target: Tensor) -> Tensor:
        from kornia.color import lab_to_rgb

        seen, aim = _to_lab(low), _to_lab(target)
        lightness = _slow(aim[:, :1] - seen[:, :1])
        tint = self.offset + (self.gain - 1) * _slow(seen[:, 1:])
        before = _to_lab(large)
        after = before + _resize_like(torch.cat([lightness, tint], dim=1), large)
        # The difference of two conversions, so that the rounding of a round trip cancels.
        return lab_to_rgb(after) - lab_to_rgb(before)


def _chroma(frames: Tensor) -> Tensor:
    """Mean and mean square of the slow part of a and b over some frames: [2, 2], fp64, CPU."""
    slow = _slow(_to_lab(frames)[:, 1:])
    variance, mean = torch.var_mean(slow, dim=(0, 2, 3), correction=0)
    variance, mean = variance.cpu().double(), mean.cpu().double()
    return torch.stack([mean, variance + mean.square()])


def _resize_like(x: Tensor, other: Tensor) -> Tensor:
    """Resize x to the rows and columns of `other`."""
    return resize(x, (other.shape[-2], other.shape[-1]))


def _to_lab(frames: Tensor) -> Tensor:
    """CIE LAB of RGB frames [..., 3, H, W]: L 0..100, a and b about -100..100."""
    from kornia.color import rgb_to_lab

    return rgb_to_lab(frames)


def slow_levels(size: tuple[int, int]) -> int:
    """Count the wavelet levels that reach 1 / SLOW_SHARE of the shorter side: 5 at 240 pixels."""
    return max(1, round(log2(max(min(size), 1) / SLOW_SHARE)))


def _slow(change: Tensor) -> Tensor:
    """Low-pass a change [..., h, w]: what varies over more than 1 / SLOW_SHARE of a side."""
    levels = slow_levels((change.shape[-2], change.shape[-1]))
    return wavelet_match(torch.zeros_like(change), change, levels)


def _common_size(frames: Tensor, reference: Tensor) -> tuple[int, int]:
    """Rows and columns at which to compare: the preview's, never above those of the frames."""
    rows, columns = (
        min(pair) for pair in zip(frames.shape[-2:], reference.shape[-2:], strict=True)
    )
    return rows, columns


def _check_frames(frames: Tensor, reference: Tensor) -> None:
    for name, x in (("frames", frames), ("reference", reference)):
        if x.ndim != 4 or x.shape[1] != 3 or not x.is_floating_point() or not x.numel():
            raise ValueError(
                f"expected {name} [F, 3, H, W], RGB and floating, got {tuple(x.shape)}, "
                f"{x.dtype}; decode a video with its VAE."
            )
    if len(frames) != len(reference):
        raise ValueError(
            f"expected as many frames in the reference as in the video, got {len(reference)} for "
            f"{len(frames)}; decode the preview that this video was made from."
        )
    (rows, columns), (low, across) = frames.shape[-2:], reference.shape[-2:]
    stretch = (columns * low) / (rows * across)
    if not 1 / _SAME_SHAPE <= stretch <= _SAME_SHAPE:
        raise ValueError(
            f"expected a reference in the shape of the video, {columns} x {rows} pixels, got "
            f"{across} x {low}; crop neither, or both."
        )
