"""Run a host model on a video of any size and length: in overlapping tiles and chunks of time.

A wrapper round the model call cuts the latent, and all that lies on its grid, to one tile of one
chunk after the other and blends the results; to the model each is a video, with positions from 0.
The noise is drawn once, for all of them. When memory runs out, smaller ones repeat that evaluation.

Dims: B batch, C channels, T latent frames, H, W latent cells.
"""

from collections.abc import Callable, Sequence
from typing import Any

import comfy.model_management
from torch import Tensor

from ....surf_core.chunks import Chunk, in_chunks
from ....surf_core.tiles import Box, in_tiles
from ..attention import KEEP_KEY
from ..conditioning import Conditioning, Grid, maps
from ..nested import SHAPES_KEY, Parts, unpack
from ..vae import MEMORY_ERRORS, is_out_of_memory
from .crops import crop, cut_time
from .tile_plan import Size, TilePlan

WRAPPER_KEY = "surf_tiles"
PLAN_KEY = "surf_tile_plan"
"""Attachment of a clone: its `TilePlan`."""


def with_tiles(
    model: Any,
    shape: Tensor,
    tile_pixels: int,
    audio: Sequence[int] | None = None,
    whole: str = "",
    conds: dict[str, Conditioning] | None = None,
    chunk_frames: int = 0,
    window: int = 0,
    preview: Tensor | None = None,
) -> Any:
    """Return a clone that computes a video of the size of `shape` in tiles and chunks.

    Args:
        model: host MODEL; its weights are shared, it is not changed. A function wrapper that it
            has already still sees the whole picture.
        shape: [B, C, (T,) H, W], the latent that will be sampled, on any device.
        tile_pixels: pixels along the side of a tile, rounded up to whole patches; 0 takes the
            whole picture when it fits the device beside the weights, else the cheapest tiles that
            do.
        audio: shape of the audio that is sampled with it: every tile hears its chunk's.
        whole: why the picture must not be cut, a clause; "" where it may.
        conds: at this size; checked where there are tiles or chunks.
        chunk_frames: pixel frames that the model sees at once, rounded up to latent frames; 0 takes
            those that it was made for, fewer where memory asks for it.
        window: latent frames of its attention windows.
        preview: [B, C, T, h, w], clean, whose scenes chunks begin with; None looks for none.

    Returns:
        A clone. One tile of one chunk is the plain model, bit for bit, until memory runs out.

    Raises:
        ValueError: a tile or chunk that does not hold two overlaps, or a window; one of a video
            that is not cut, or one that conditioning cannot follow.
    """
    import comfy.patcher_extension

    plan = plan_tiles(
        model, shape, tile_pixels, audio, whole, chunk_frames=chunk_frames, window=window,
        preview=preview,
    )  # fmt: skip
    check_tiled(plan, conds or {}, Grid.of(model))
    clone = model.clone()
    clone.set_attachments(PLAN_KEY, plan)
    earlier = clone.model_options.get("model_function_wrapper")
    clone.set_model_unet_function_wrapper(make_wrapper(plan, earlier))
    clone.add_wrapper_with_key(
        comfy.patcher_extension.WrappersMP.PREPARE_SAMPLING, WRAPPER_KEY, make_estimate(plan)
    )
    return clone


def plan_tiles(
    model: Any,
    shape: Tensor,
    tile_pixels: int,
    audio: Sequence[int] | None = None,
    whole: str = "",
    *,
    chunk_frames: int = 0,
    window: int = 0,
    preview: Tensor | None = None,
) -> TilePlan:
    """Choose the tiles and chunks of a latent; arguments as in `with_tiles`."""
    called = _in_context(model, shape, chunk_frames)
    shapes = [tuple(part) for part in (called.shape, audio) if part]
    plan = TilePlan(model, shapes, whole, window, preview)
    if called is not shape:
        # How long they are is for their node to say.
        plan.time.made_for = None
    plan.choose(model, tile_pixels, chunk_frames)
    return plan


def _in_context(model: Any, shape: Tensor, chunk_frames: int) -> Tensor:
    """Return the shape that a model is called with: under context windows, that of one.

    Raises:
        ValueError: chunks by hand beside them.
    """
    windows = model.model_options.get("context_handler")
    length = getattr(windows, "context_length", None)
    if length is None or getattr(windows, "dim", None) != 2 or shape.ndim != 5:
        return shape
    if chunk_frames:
        raise ValueError(
            f"expected chunks by this node or by the model's own context windows, got both, "
            f"{chunk_frames=} and windows of {length}; take Context Windows out, or set "
            "chunk_frames to 0."
        )
    # The host may put the frame before a window in front of it.
    return shape[:, :, : length + 1]


def check_tiled(plan: TilePlan, conds: dict[str, Conditioning], grid: Grid) -> None:
    """Refuse a ControlNet, or a map of half of the cells, that would have to follow tiles."""
    controls = [entry[1].get("control") for cond in conds.values() for entry in cond]
    if len(plan.chunks(plan.time.frames)) > 1:
        for control in controls:
            cut_time(control, Chunk(0, plan.most), plan.time.frames, "control", plan)
    if len(plan.boxes(plan.size, plan.tile)) == 1:
        return
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
            pack = [noise_shape[0], *plan.sampled(plan.tile, plan.most)[1:]]
            return executor(model, pack, *args, **kwargs)
        size = tuple(noise_shape[-2:])
        piece = [*noise_shape[:-2], *plan.real(size, plan.tile)]
        if len(piece) == 5:
            piece[2] = plan.time.longest(piece[2], plan.most)
        return executor(model, piece, *args, **kwargs)

    return estimate


def evaluate(
    plan: TilePlan, apply_model: Callable, x: Tensor, t: Tensor, conditioning: dict
) -> Tensor:
    """Call the model piece by piece; on running out of memory, again with smaller ones.

    Args:
        apply_model: the host's, (x, t, **conditioning) -> clean estimate like x.
        conditioning: what the host would hand the model with x; not changed.
    """
    parts = unpack(x, conditioning.get(SHAPES_KEY))
    size, frames = tuple(parts.video.shape[-2:]), _frames(parts.video)
    while True:
        tile, most = plan.tile, plan.most
        call = _Pieces(plan, plan.boxes(size, tile), plan.chunks(frames, most), tile)
        try:
            return call(apply_model, x, t, conditioning)
        except MEMORY_ERRORS as error:
            if not is_out_of_memory(error) or not plan.shrink(size, frames, tile, most):
                raise
        # Outside of the except block, where the tensors of the failed call are free.
        comfy.model_management.soft_empty_cache()


class _Pieces:
    """One evaluation in the tiles of each chunk."""

    def __init__(self, plan: TilePlan, boxes: list[Box], chunks: list[Chunk], tile: Size):
        self.plan, self.boxes, self.chunks, self.tile = plan, boxes, chunks, tile

    def __call__(self, apply_model: Callable, x: Tensor, t: Tensor, conditioning: dict) -> Tensor:
        if len(self.boxes) == len(self.chunks) == 1:
            return apply_model(x, t, **conditioning)
        plan, parts = self.plan, unpack(x, conditioning.get(SHAPES_KEY))
        plan.caches.log_once()
        conditioning = plan.caches.without_step_cache(conditioning)
        frames = _frames(parts.video)
        with plan.caches.checked(apply_model) as checked:

            def run(video: Tensor, chunk: Chunk) -> Tensor:
                here = conditioning
                if len(self.chunks) > 1:
                    here = self._cut(conditioning, chunk, frames)
                heard = Parts(video, self._sound(parts.audio, chunk, frames))
                return self._in_tiles(checked, heard, t, here)

            if parts.video.ndim == 5:
                video = in_chunks(run, parts.video, self.chunks)
            else:
                video = run(parts.video, self.chunks[0])
        # Every piece hears the audio, and none may change it.
        return parts.with_video(video).packed()

    def _cut(self, conditioning: dict, chunk: Chunk, frames: int) -> dict:
        cut = {
            name: cut_time(value, chunk, frames, name, self.plan)
            for name, value in conditioning.items()
        }
        options = cut.get("transformer_options", {})
        if KEEP_KEY in options:
            keep = options[KEEP_KEY][chunk.start : chunk.stop]
            cut["transformer_options"] = {**options, KEEP_KEY: keep}
        return cut

    def _sound(self, audio: Tensor | None, chunk: Chunk, frames: int) -> Tensor | None:
        if audio is None or len(self.chunks) == 1:
            return audio
        axis = self.plan.audio_axis
        sound = self.plan.time.sound(chunk, frames, audio.shape[axis])
        return audio.narrow(axis, sound.start, sound.stop - sound.start)

    def _in_tiles(self, apply_model: Callable, parts: Parts, t: Tensor, conditioning: dict):
        """Compute the video of one chunk."""
        plan, size = self.plan, tuple(parts.video.shape[-2:])

        def call(part: Tensor, box: Box) -> Tensor:
            crops = conditioning
            if len(self.boxes) > 1:
                crops = {name: crop(value, box, size, name, plan) for name, value in crops.items()}
            options = crops.get("transformer_options", {})
            if KEEP_KEY in options:
                keep = options[KEEP_KEY][(..., *box)]
                if not keep.any():
                    # Anything will do: `with_mask` puts the upsampled preview where it skips.
                    return part
                crops = {**crops, "transformer_options": {**options, KEEP_KEY: keep}}
            here = parts.with_video(part)
            if parts.audio is not None:
                crops = {**crops, SHAPES_KEY: here.shapes}
            return unpack(apply_model(here.packed(), t, **crops), here.shapes).video

        return in_tiles(call, parts.video, self.tile, plan.overlap, plan.patch)


def _frames(video: Tensor) -> int:
    return video.shape[2] if video.ndim == 5 else 1
