"""Cut what a model is called with, beside the latent, to a tile and to a chunk of time.

Dims: B batch, C channels, T latent frames, H, W latent cells.
"""

from math import ceil
from typing import Any

from torch import Tensor

from ....surf_core.chunks import Chunk
from ....surf_core.tiles import Box
from ..nested import SHAPES_KEY
from .tile_plan import Size, TilePlan

AUDIO_MASK = "audio_denoise_mask"
NEVER_CUT = frozenset({AUDIO_MASK, SHAPES_KEY})
"""Conditioning of the audio, whatever the size of its axes."""
OFF_GRID = frozenset({"audio_embed", "face_pixel_values", "ref_latent", "context_latents"})
"""Conditioning with rows and columns of its own: whole for each tile, unless they fit."""
OUT_OF_TIME = frozenset({"time_dim_concat", "ref_latent", "reference_latent", "c_crossattn"})
"""Conditioning without frames of the video, whatever the size of its axes: whole for each chunk."""
H3_PAYLOAD = "minimax_payload"


def crop(value: Any, box: Box, size: Size, name: str, plan: TilePlan) -> Any:
    """Cut conditioning to a tile where it lies on the grid of the latent, in cells or in pixels.

    Raises:
        ValueError: a ControlNet, or a map of another size.
    """
    if name == "control" and value is not None:
        raise ValueError(
            f"a ControlNet sees the whole picture and cannot follow tiles of "
            f"{plan.pixels(plan.tile)} pixels; take it out, or choose a size that fits in one "
            "piece."
        )
    if name in NEVER_CUT:
        return value
    if name == H3_PAYLOAD:
        return crop_payload(value, box, plan.patch)
    if isinstance(value, (list, tuple)):
        return type(value)(crop(each, box, size, name, plan) for each in value)
    if not isinstance(value, Tensor) or value.ndim < 4:
        return value
    for unit in (1, plan.cell):
        if tuple(value.shape[-2:]) == (size[0] * unit, size[1] * unit):
            return value[(..., *(slice(part.start * unit, part.stop * unit) for part in box))]
    if name in OFF_GRID:
        return value
    raise ValueError(
        f"conditioning {name!r} {tuple(value.shape)} does not lie on the grid of the "
        f"latent, {size[0]} x {size[1]} cells, and cannot follow its tiles; take it out, or choose "
        "a size that fits in one piece."
    )


def crop_payload(payload: dict, box: Box, patch: int) -> dict:
    """Cut the keyframes of MiniMax H3 to a tile; references keep their own grid.

    Args:
        payload: what the host hands the network of it; not changed. Its layout of tokens is left
            out, so that the network makes it for the tile.
        patch: cells of a token along a side; keyframes are padded to whole ones, the video is not.
    """
    cells = tuple(slice(part.start, part.start + ceil((part.stop - part.start) / patch) * patch)
                  for part in box)  # fmt: skip
    return _with_keyframes(payload, [
        {**keyframe, "latent": keyframe["latent"][(..., *cells)]}
        if keyframe.get("latent") is not None else keyframe
        for keyframe in payload.get("keyframes") or ()
    ])  # fmt: skip


def cut_time(value: Any, chunk: Chunk, frames: int, name: str, plan: TilePlan) -> Any:
    """Cut conditioning to a chunk where it has the frames of the latent; the rest is shared.

    A start picture beside the video lies in its first frames: later chunks go without, as under
    the host's context windows.

    Args:
        frames: T of what the model would be called with.

    Raises:
        ValueError: a ControlNet, or a map of other frames.
    """
    span = slice(chunk.start, chunk.stop)
    if name == "control" and value is not None:
        raise ValueError(f"a ControlNet {_refusal(plan)}")
    if name == H3_PAYLOAD:
        return cut_payload(value, chunk, plan)
    if name == SHAPES_KEY or name in OUT_OF_TIME:
        return value
    if isinstance(value, (list, tuple)):
        return type(value)(cut_time(each, chunk, frames, name, plan) for each in value)
    if not isinstance(value, Tensor):
        return value
    if name == AUDIO_MASK:
        sound = plan.time.sound(chunk, frames, value.shape[plan.audio_axis])
        return value.narrow(plan.audio_axis, sound.start, sound.stop - sound.start)
    if name == "audio_embed" and value.ndim > 2:
        if value.shape[1] == frames:
            return value[:, span]
    elif value.ndim < 5 or value.shape[-3] == 1:
        return value
    elif value.shape[-3] == frames:
        return value[..., span, :, :]
    elif name == "context_latents":
        return value
    raise ValueError(f"conditioning {name!r} {tuple(value.shape)} {_refusal(plan)}")


def cut_payload(payload: dict, chunk: Chunk, plan: TilePlan) -> dict:
    """Keep MiniMax H3's keyframes that a chunk holds, at their place in it; references stay."""
    begin = plan.time.pixels(chunk.start) if chunk.start else 0
    end = plan.time.pixels(chunk.stop)
    return _with_keyframes(payload, [
        {**keyframe, "resolved_frame_index": keyframe["resolved_frame_index"] - begin}
        for keyframe in payload.get("keyframes") or ()
        if begin <= keyframe["resolved_frame_index"] < end
    ])  # fmt: skip


def _with_keyframes(payload: dict, keyframes: list[dict]) -> dict:
    """Return a payload with other keyframes, and without its layout; references stay."""
    out = {key: value for key, value in payload.items() if key != "layout"}
    if not payload.get("keyframes"):
        return out
    out["keyframes"] = keyframes
    for listed, kept in (("cond_video_latents", "latent"), ("cond_audio_latents", "audio_latent")):
        if listed not in payload:
            continue
        before, after = (
            [keyframe[kept] for keyframe in each if keyframe.get(kept) is not None]
            for each in (payload["keyframes"], keyframes)
        )
        # The host lists the references behind them.
        out[listed] = after + payload[listed][len(before) :]
    return out


def _refusal(plan: TilePlan) -> str:
    whole = plan.time.pixels(plan.time.frames)
    return (
        f"belongs to the whole video and cannot follow chunks of {plan.time.pixels(plan.most)} of "
        f"its {whole} frames; take it out, refine fewer frames, or set chunk_frames to {whole} to "
        "refine them at once."
    )
