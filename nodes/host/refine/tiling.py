"""Run a host model on a picture of any size: in overlapping tiles where it does not fit.

A wrapper round the model call crops the latent, and all that lies on its grid, to one tile after
the other and blends the results; to the model each tile is a picture, with positions from 0. When
memory runs out, smaller tiles repeat that evaluation.

Dims: B batch, C channels, T latent frames, H, W latent cells.
"""

from collections.abc import Callable, Sequence
from math import ceil
from typing import Any

import comfy.model_management
from torch import Tensor

from ....surf_core.tiles import Box, in_tiles
from ..attention import KEEP_KEY
from ..conditioning import Conditioning, Grid, maps
from ..nested import SHAPES_KEY, unpack
from ..vae import MEMORY_ERRORS, is_out_of_memory
from .tile_plan import Size, TilePlan

WRAPPER_KEY = "surf_tiles"
NEVER_CUT = frozenset({"audio_denoise_mask", SHAPES_KEY})
"""Conditioning of the audio, whatever the size of its axes."""
OFF_GRID = frozenset({"audio_embed", "face_pixel_values", "ref_latent", "context_latents"})
"""Conditioning with rows and columns of its own: whole for each tile, unless they fit."""


def with_tiles(
    model: Any,
    shape: Tensor,
    tile_pixels: int,
    audio: Sequence[int] | None = None,
    whole: str = "",
    conds: dict[str, Conditioning] | None = None,
) -> Any:
    """Return a clone that computes a picture of the size of `shape` in tiles.

    Args:
        model: host MODEL; its weights are shared, it is not changed. A function wrapper that it
            has already still sees the whole picture.
        shape: [B, C, (T,) H, W], the latent that will be sampled, on any device.
        tile_pixels: pixels along the side of a tile, rounded up to whole patches; 0 takes the
            whole picture when it fits the device beside the weights, else the cheapest tiles that
            do.
        audio: shape of the audio that is sampled with it, and that every tile hears whole.
        whole: why the picture must not be cut, a clause; "" where it may.
        conds: at this size; checked where there are tiles.

    Returns:
        A clone. One tile is the plain model, bit for bit, until memory runs out.

    Raises:
        ValueError: a tile that does not hold two overlaps, one of a picture that is not cut, or one
            that conditioning cannot follow.
    """
    import comfy.patcher_extension

    plan = TilePlan(model, [tuple(part) for part in (shape.shape, audio) if part], whole)
    plan.tile = plan.by_hand(tile_pixels) if tile_pixels else plan.automatic(model)
    check_tiled(plan, conds or {}, Grid.of(model))
    clone = model.clone()
    earlier = clone.model_options.get("model_function_wrapper")
    clone.set_model_unet_function_wrapper(make_wrapper(plan, earlier))
    clone.add_wrapper_with_key(
        comfy.patcher_extension.WrappersMP.PREPARE_SAMPLING, WRAPPER_KEY, make_estimate(plan)
    )
    return clone


def check_tiled(plan: TilePlan, conds: dict[str, Conditioning], grid: Grid) -> None:
    """Refuse a ControlNet, or a map of half of the cells, that would have to follow tiles."""
    if len(plan.boxes(plan.size, plan.tile)) == 1:
        return
    controls = (entry[1].get("control") for cond in conds.values() for entry in cond)
    for control in controls:
        crop(control, (slice(None), slice(None)), plan.size, "control", plan)
    for name, key, size in maps(conds, grid):
        if grid.size_of(key, (2, 2)) == (1, 1):
            raise ValueError(
                f"{key} of the {name} conditioning has {size[0]} x {size[1]} cells for a video of "
                f"{plan.size[0]} x {plan.size[1]} and cannot follow its tiles of "
                f"{plan.pixels(plan.tile)} pixels; choose a size that fits in one piece."
            )


def make_wrapper(plan: TilePlan, earlier: Callable | None) -> Callable:
    """Build the model function wrapper; a plain function, because the host deep-copies options.

    Args:
        earlier: the wrapper that was installed before, or None: it calls the tiles as its model.
    """

    def run(apply_model: Callable, args: dict) -> Tensor:
        def in_pieces(x: Tensor, t: Tensor, **conditioning: Any) -> Tensor:
            return evaluate(plan, apply_model, x, t, conditioning)

        if earlier is not None:
            return earlier(in_pieces, args)
        return in_pieces(args["input"], args["timestep"], **args["c"])

    return run


def make_estimate(plan: TilePlan) -> Callable:
    """Build the wrapper that estimates memory for a tile in place of the picture."""

    def estimate(
        executor: Callable, model: Any, noise_shape: Any, *args: Any, **kwargs: Any
    ) -> Any:
        if len(plan.shapes) > 1:
            pack = [noise_shape[0], *plan.sampled(plan.tile)[1:]]
            return executor(model, pack, *args, **kwargs)
        size = tuple(noise_shape[-2:])
        return executor(model, [*noise_shape[:-2], *plan.real(size, plan.tile)], *args, **kwargs)

    return estimate


def evaluate(
    plan: TilePlan, apply_model: Callable, x: Tensor, t: Tensor, conditioning: dict
) -> Tensor:
    """Call the model tile by tile; on running out of memory, again with smaller tiles.

    Args:
        apply_model: the host's, (x, t, **conditioning) -> clean estimate like x.
        conditioning: what the host would hand the model with x; not changed.
    """
    size = tuple(unpack(x, conditioning.get(SHAPES_KEY)).video.shape[-2:])
    while True:
        tile = plan.tile
        try:
            return _evaluate_once(plan, tile, apply_model, x, t, conditioning)
        except MEMORY_ERRORS as error:
            if not is_out_of_memory(error) or not plan.shrink(size, tile):
                raise
        # Outside of the except block, where the tensors of the failed call are free.
        comfy.model_management.soft_empty_cache()


def _evaluate_once(
    plan: TilePlan, tile: Size, apply_model: Callable, x: Tensor, t: Tensor, conditioning: dict
) -> Tensor:
    parts = unpack(x, conditioning.get(SHAPES_KEY))
    size = tuple(parts.video.shape[-2:])
    if len(plan.boxes(size, tile)) == 1:
        return apply_model(x, t, **conditioning)
    plan.caches.log_once()
    conditioning = plan.caches.without_step_cache(conditioning)

    def call(part: Tensor, box: Box) -> Tensor:
        crops = {name: crop(value, box, size, name, plan) for name, value in conditioning.items()}
        options = crops.get("transformer_options", {})
        if KEEP_KEY in options:
            keep = options[KEEP_KEY][(..., *box)]
            if not keep.any():
                # Anything will do: `with_mask` puts the upsampled preview where it skips.
                return part
            crops["transformer_options"] = {**options, KEEP_KEY: keep}
        here = parts.with_video(part)
        if parts.audio is not None:
            crops[SHAPES_KEY] = here.shapes
        return unpack(checked(here.packed(), t, **crops), here.shapes).video

    with plan.caches.checked(apply_model) as checked:
        video = in_tiles(call, parts.video, tile, plan.overlap, plan.patch)
    # Every tile hears the audio, and none may change it.
    return parts.with_video(video).packed()


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
    if name == "minimax_payload":
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
    keyframes = [
        {**keyframe, "latent": keyframe["latent"][(..., *cells)]}
        if keyframe.get("latent") is not None else keyframe
        for keyframe in payload.get("keyframes") or ()
    ]  # fmt: skip
    cut = [keyframe["latent"] for keyframe in keyframes if keyframe.get("latent") is not None]
    out = {key: value for key, value in payload.items() if key != "layout"}
    if keyframes:
        out["keyframes"] = keyframes
        # The host lists the references behind them.
        out["cond_video_latents"] = cut + payload["cond_video_latents"][len(cut) :]
    return out
