"""Estimate the bytes of `surf_core.refiner`: its weights, and one forward without gradients."""

from collections.abc import Sequence
from math import prod

from ..window import segments, token_bounds
from .operations import audio_tokens, count_kept, token_grid, tokens
from .shapes import ModelShape

FFN_ROWS = 16384
"""`SurfRefinerDiT.rows`: tokens that the feed-forward network takes at once."""
NORM_ROWS = 8192
"""`refiner.fused.ROWS`: tokens that plain torch norms and turns at once, in float32."""


def activation_bytes(
    shape: ModelShape,
    frames: int,
    height: int,
    width: int,
    window: int = 0,
    *,
    itemsize: int = 2,
    segmentwise: bool = True,
    batch: int = 1,
    kept: Sequence[int] | None = None,
) -> int:
    """Estimate the peak memory of one forward of `surf_core.refiner` without gradients.

    It is the token stream, the rotary table of one segment, and the largest set of temporaries in a
    layer: queries, keys, values and their input or output, of one segment; or some thousand rows in
    the feed-forward network, in float32 between norm and rotation, or before the head.

    Args:
        frames: pixel frames.
        height, width: pixels.
        window: latent frames of a self-attention window; 0 is full attention.
        itemsize: bytes of a value: 2 for half precision, 4 for fp32.
        segmentwise: as `SurfRefinerDiT.segmentwise`.
        batch: samples of the forward, 2 for guidance at once.
        kept: as in `forward_flops`; includes their positions, and the rows of the rotary table
            that a segment gathers.

    Returns:
        Bytes beyond weights, input latent and text; without workspaces inside kernels and the
        allocator's fragmentation.

    Raises:
        ValueError: as `forward_flops`, or a model with joint text or sound.

    Source: ours; benchmarks/cost/block_memory.py measures it.
    """
    _check_ours(shape)
    depth, per_frame = token_grid(shape, frames, height, width)
    counts = count_kept(kept, depth, per_frame)
    cuts = [segments(depth, window, shifted) for shifted in (False, True)]
    frames_in = max(stop - start for cut in cuts for start, stop in cut)
    longest = max(stop - start for cut in cuts for start, stop in token_bounds(counts, cut))
    stream = sum(counts)
    at_once = longest if segmentwise else stream
    tensors = 4 if at_once == longest else 5
    value = shape.dim * itemsize
    row = 2 * (shape.dim // shape.heads) * (8 if itemsize == 8 else 4)
    rotations = 0 if kept is None else at_once * row // batch
    peaks = (
        tensors * at_once * value + rotations,
        3 * at_once * value
        + min(at_once, NORM_ROWS) * shape.dim * max(14, 3 * itemsize)
        + rotations,
        min(at_once, FFN_ROWS) * (shape.dim + 2 * shape.ffn_dim) * itemsize,
        min(stream, FFN_ROWS) * value + min(stream, NORM_ROWS) * shape.dim * 2 * max(4, itemsize),
    )
    table = frames_in * per_frame * row
    indices = 0 if kept is None else 3 * 8 * stream
    text = 3 * shape.text_tokens * value
    return batch * (stream * value + max(peaks) + text) + table + indices


def network_bytes(
    shape: ModelShape, frames: int, height: int, width: int, *, itemsize: int = 2, batch: int = 1
) -> int:
    """Estimate the peak memory of one forward of a host's network without gradients.

    `shape.live` vectors of every token of the longest sequence; windows change nothing, since
    queries, keys and values of all tokens are there before they are cut.

    Args:
        frames: pixel frames.
        height, width: pixels.
        itemsize: bytes of a value: 2 for half precision, 4 for fp32.
        batch: samples of the forward, 2 for guidance at once.

    Returns:
        Bytes beyond weights; without workspaces inside kernels and the allocator's fragmentation.

    Raises:
        ValueError: a network whose `live` is not known.

    Source: ours; within 15 % of live tensors on the host's networks (tests/host/plan_cases.py).
    """
    if not shape.live:
        raise ValueError(
            f"expected a network whose live tensors are known, got {shape.name}; ask its host for "
            "its memory."
        )
    joined = shape.text_tokens * shape.joint_text
    if shape.audio and not shape.audio.dim:
        joined += audio_tokens(shape, frames)
    sequence = tokens(shape, frames, height, width) + joined
    return round(batch * sequence * shape.dim * itemsize * shape.live)


def weight_bytes(shape: ModelShape, itemsize: int = 2) -> int:
    """Count the bytes of a model's weights, all of them in one dtype.

    Raises:
        ValueError: a model with joint text or sound.
    """
    _check_ours(shape)
    dim, patch = shape.dim, shape.latent_channels * prod(shape.patch)

    def linear(wide: int, out: int) -> int:
        return wide * out + out

    def through(wide: int, hidden: int, out: int) -> int:
        return linear(wide, hidden) + linear(hidden, out)

    wan = shape.block == "wan"
    norm = dim if wan else dim // shape.heads
    block = 8 * linear(dim, dim) + 4 * norm + through(dim, shape.ffn_dim, dim)
    block += 8 * dim if wan else linear(dim, 3 * dim)
    ends = linear(patch, dim) + linear(dim, patch)
    ends += through(shape.text_dim, dim, dim) + through(shape.freq_dim, dim, dim)
    ends += linear(dim, 6 * dim) + 2 * dim if wan else linear(dim, dim)
    return itemsize * (shape.layers * block + ends)


def _check_ours(shape: ModelShape) -> None:
    if shape.joint_text or shape.audio:
        raise ValueError(
            f"expected a model of video alone with cross-attention, got {shape.name}; ask its host "
            "for its memory."
        )
