"""List the sampling calls of a plan, with what each takes: tokens, operations, memory.

Dims: B batch, C latent channels, T latent frames, H, W latent cells.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from math import prod
from typing import Any

import comfy.model_management
import torch

from ....surf_core import cost
from ....surf_core.cost import ModelShape, PlanStage, Work
from ..conditioning import Conditioning
from ..latents import low_size, open_parts
from ..models import cell_side, check_flow, check_pair, side_multiple, target_cells
from ..nested import Parts, Shapes, sampled_shape
from ..preview import check_switch_step
from ..refine import Timeline, plan_tiles
from ..refiner import TRAITS_KEY
from .shapes import needed, shape_of

BATCH_SLACK = 1.5
"""The host runs both guidances at once where this often its estimate for both is free."""


@dataclass(frozen=True, kw_only=True, slots=True)
class PlanInputs:
    """What the nodes of the plan are set to; its fields are inputs of Surf Plan."""

    steps: int
    switch_step: int
    cfg: float
    cfg_low: float
    low_resolution: str
    low_scale: float
    low_width: int
    low_height: int
    refine_steps: int
    """0: no refinement."""
    resolution: str
    scale: float
    width: int
    height: int
    refine_cfg: float
    window: int
    keep: float = 1.0
    """Share of the tokens that a mask keeps."""
    tile: int = 0
    chunk_frames: int = 0

    def __post_init__(self) -> None:
        check_switch_step(self.steps, self.switch_step)

    @property
    def low(self) -> dict[str, Any]:
        """The low resolution, as `target_size` takes it."""
        names = ("resolution", "scale", "width", "height")
        return {name: getattr(self, f"low_{name}") for name in names}

    @property
    def target(self) -> dict[str, Any]:
        """The target, as `target_cells` takes it."""
        return {name: getattr(self, name) for name in ("resolution", "scale", "width", "height")}


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class SamplingStage:
    """One sampling call of the plan."""

    stage: PlanStage
    model: Any
    """MODEL, as it is connected."""
    shapes: Shapes
    """Of the latent's parts, at the size of the stage."""
    cfg: float
    pixels: tuple[int, int]
    """Height and width."""
    tokens: int | None
    """Of the sequence of one evaluation; None: not known."""
    memory: float
    """Bytes of activations."""
    memory_at: Callable[[int], float]
    """Latent frames at this size -> bytes of activations, counted or as the host estimates."""
    by_host: bool
    """Whether that is the host's estimate, which is a bound and no count."""
    window: int = 0
    keep: float = 1.0
    tile: int = 0
    """Pixels along a side, as the user set it; 0: chosen."""
    tiles: int = 1
    cells: tuple[int, int] = (0, 0)
    """Rows and columns of a tile."""
    chunk_frames: int = 0
    """Pixel frames of a chunk, as the user set it; 0: chosen."""
    chunks: tuple[int, ...] = ()
    """Latent frames of each chunk."""

    @property
    def network(self) -> str:
        return self.stage.network

    @property
    def time(self) -> Timeline:
        """The latent frames of the stage's video, and the frames that they stand for."""
        return Timeline(self.model, self.shapes[0][2] if len(self.shapes[0]) == 5 else 1)


def list_stages(
    model: Any, latent: dict, plan: PlanInputs, refiner: Any, text: Conditioning | None
) -> tuple[list[SamplingStage], SamplingStage, Parts]:
    """List the sampling calls of a plan, and the plain run at its target.

    Args:
        model: MODEL of the preview.
        latent: LATENT that the preview starts from; not changed.
        refiner: MODEL that refines; may be `model` itself.
        text: CONDITIONING that tells the text tokens, or None.

    Returns:
        The stages with evaluations, the plain run, and the parts of the latent.

    Raises:
        ValueError: a model without a flow, or a size that a node of the plan would refuse.
    """
    check_flow(model)
    parts = open_parts(model, latent, "latent")
    if refiner is not model:
        check_flow(refiner)
        check_pair(model, refiner, "refiner")
    size = tuple(parts.video.shape[-2:])
    low = low_size(parts.video, cell_side(model), side_multiple(model), **plan.low)
    preview = low if plan.switch_step < plan.steps else size
    target = preview
    if plan.refine_steps:
        target, _ = target_cells(refiner, _at(parts, preview), **plan.target)
    shapes, after = parts.shapes, plan.steps - plan.switch_step

    def sampling(name: str, count: int, cells: tuple[int, int], cfg: float) -> SamplingStage:
        return _stage(name, "model", model, count, _resized(shapes, cells), cfg, text)

    stages = [
        sampling("before the switch", plan.switch_step, size, plan.cfg),
        sampling("after the switch", after, low, plan.cfg_low),
    ]
    if plan.refine_steps:
        stages.append(_refinement(refiner, model, _resized(shapes, target), plan, text))
    plain = sampling("plain run", plan.steps, target if plan.refine_steps else size, plan.cfg)
    return [each for each in stages if each.stage.count], plain, parts


def _at(parts: Parts, size: tuple[int, int]) -> torch.Tensor:
    """Return video of a size without values, of which others read the shape."""
    return torch.empty((*parts.video.shape[:-2], *size), device="meta")


def _resized(shapes: Shapes, size: tuple[int, int]) -> Shapes:
    return [(*shapes[0][:-2], *size), *shapes[1:]]


def _refinement(
    refiner: Any, model: Any, shapes: Shapes, plan: PlanInputs, text: Conditioning | None
) -> SamplingStage:
    """List the refinement: its windows, and the tiles that its node will take."""
    traits = refiner.get_attachment(TRAITS_KEY)
    window = plan.window if traits is None else traits.window
    tiles = plan_tiles(
        refiner, torch.empty(shapes[0], device="meta"), plan.tile, *shapes[1:],
        chunk_frames=plan.chunk_frames, window=window,
    )  # fmt: skip
    return _stage(
        "refinement", "model" if refiner is model else "refiner", refiner, plan.refine_steps,
        shapes, plan.refine_cfg, text, window=window, keep=plan.keep, tile=plan.tile,
        cells=tiles.real(tiles.size, tiles.tile), chunk_frames=plan.chunk_frames,
        tiles=len(tiles.boxes(tiles.size, tiles.tile)),
        chunks=tuple(chunk.length for chunk in tiles.chunks(tiles.time.frames)),
    )  # fmt: skip


def _stage(
    name: str,
    network: str,
    model: Any,
    count: int,
    shapes: Shapes,
    cfg: float,
    text: Conditioning | None,
    **how: Any,
) -> SamplingStage:
    """Count what a sampling call takes: the pieces of its video, one after the other.

    Args:
        how: fields of `SamplingStage`.
    """
    frames, cells = prod(shapes[0][2:-2]), how.setdefault("cells", tuple(shapes[0][-2:]))
    chunks = how.setdefault("chunks", (frames,))
    # Context windows of another node: what they call the model with is not a piece of ours.
    chunks = chunks if len(chunks) > 1 else (frames,)
    piece = _resized(shapes, cells)
    shape = shape_of(model, piece, text)
    window, keep = how.get("window", 0), how.get("keep", 1.0)
    guidances, batch = (1 if cfg == 1 else 2), shapes[0][0]
    clips = [(length, *cells) for length in chunks]
    longest = max(clips)
    work = tokens = None
    if shape is not None:
        times = how.get("tiles", 1) * guidances * batch
        works = [cost.forward_work(shape, *c, window, _kept(shape, c, keep)) for c in clips]
        work = Work(linear=sum(x.linear for x in works), pairs=sum(x.pairs for x in works)) * times
        tokens = sum(_kept(shape, longest, keep) or [cost.tokens(shape, *longest)])
    at_once = batch * (guidances if _together(model, sampled_shape(piece, cells)) else 1)
    memory_at = _memory(model, shape, piece, window, at_once)
    cell = cell_side(model)
    return SamplingStage(
        stage=PlanStage(name=name, network=network, count=count, work=work),
        model=model, shapes=shapes, cfg=cfg, tokens=tokens, memory=memory_at(longest[0]),
        memory_at=memory_at, by_host=needed(model, shape, longest, window, at_once) is None,
        pixels=(shapes[0][-2] * cell, shapes[0][-1] * cell), **how,
    )  # fmt: skip


def _memory(
    model: Any, shape: ModelShape | None, piece: Shapes, window: int, at_once: int
) -> Callable[[int], float]:
    """Return latent frames of a piece -> bytes of activations."""
    (video, *others), cells = piece, tuple(piece[0][-2:])

    def memory_at(frames: int) -> float:
        counted = needed(model, shape, (frames, *cells), window, at_once)
        if counted is not None:
            return counted
        part = (*video[:2], frames, *cells) if len(video) == 5 else video
        return model.model.memory_required(sampled_shape([part, *others], cells))

    return memory_at


def _kept(shape: ModelShape, clip: Sequence[int], keep: float) -> list[int] | None:
    """Spread the kept share of the tokens evenly over the frames."""
    if keep == 1:
        return None
    depth, per_frame = cost.token_grid(shape, *clip)
    return [round(keep * per_frame)] * depth


def _together(model: Any, shape: list[int]) -> bool:
    """Say whether the host will run both guidances in one forward, as its memory is."""
    both = [2 * shape[0], *shape[1:]]
    free = comfy.model_management.get_free_memory(model.load_device)
    return model.model.memory_required(both) * BATCH_SLACK < free


def timed(each: SamplingStage, seconds: float | None) -> SamplingStage:
    """Return a stage with what one evaluation of it took."""
    return replace(each, stage=replace(each.stage, seconds=seconds))


def work_of(stages: Sequence[SamplingStage]) -> Work | None:
    """Add up the operations of stages; None where those of one are not known."""
    known = [each.stage.work * each.stage.count for each in stages if each.stage.work is not None]
    if len(known) < len(stages):
        return None
    return Work(linear=sum(x.linear for x in known), pairs=sum(x.pairs for x in known))
