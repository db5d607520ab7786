"""Time evaluations of the real models at the sizes of a plan, and read what they take of memory.

Each is a sampling call of the host: its loading, its guider, its conditioning, with the LoRA,
attention and patches of the MODEL. Of two evaluations the first loads and warms up, the second is
timed. No input is changed; on CUDA, the allocator's record of its peak starts anew.

Dims: B batch, C latent channels, T latent frames, H, W latent cells.
"""

import time
from collections.abc import Hashable
from dataclasses import dataclass
from typing import Any
from weakref import WeakKeyDictionary

import comfy.model_management
import comfy.samplers
import comfy.utils
import torch
from torch import Tensor

from ....surf_core.skip import Mask
from ..attention import with_windows
from ..conditioning import Conditioning, SizeChange, carry
from ..models import patch_side, without_step_caches
from ..nested import Parts, tensors_of
from ..node import NodeLog
from ..preview import cfg_guider, schedule
from ..refine import with_tiles
from ..refiner import SIGMA_START_KEY, TRAITS_KEY
from ..skip import cell_weights, with_mask
from ..vae import MEMORY_ERRORS, is_out_of_memory
from .stages import SamplingStage

log = NodeLog(__name__)
clock = time.perf_counter
EVALUATIONS = 2
STEPS = 4
"""Of the schedule whose middle is evaluated: any noise level takes as long."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Measured:
    """What one evaluation took."""

    seconds: float | None
    """None: memory ran out."""
    memory: float | None = None
    """Bytes at its peak beyond what was allocated before; None: the device keeps no record."""


_CACHE: WeakKeyDictionary[Any, dict[Hashable, Measured]] = WeakKeyDictionary()
"""MODEL -> size, device and settings -> what was measured; gone with the MODEL."""


def measure(
    stages: list[SamplingStage], conds: dict[str, Conditioning], source: tuple[int, int]
) -> list[Measured]:
    """Time two evaluations of each stage, or recall them; the user can interrupt as in a sampling.

    Args:
        conds: "positive" and "negative"; fitted to each size, not changed.
        source: rows and columns that they were made for.
    """
    bar = comfy.utils.ProgressBar(EVALUATIONS * len(stages))
    found = []
    for index, each in enumerate(stages):
        comfy.model_management.throw_exception_if_processing_interrupted()
        known = _CACHE.setdefault(each.model, {})
        key = _key(each, conds)
        if key not in known:
            measured = _attempt(each, conds, source, bar, EVALUATIONS * index)
            if measured.seconds is None:
                found.append(measured)
                continue
            known[key] = measured
        found.append(known[key])
        bar.update_absolute(EVALUATIONS * (index + 1))
    return found


def _key(each: SamplingStage, conds: dict[str, Conditioning]) -> Hashable:
    """Return all that an evaluation's time depends on beside the MODEL."""
    said = tuple(
        (name, tuple(getattr(entry[0], "shape", ())), tuple(sorted(map(str, entry[1]))))
        for name, cond in conds.items() for entry in cond
    )  # fmt: skip
    settings = each.cfg == 1, each.window, each.keep, each.tile, each.cells, each.chunks
    return (tuple(map(tuple, each.shapes)), str(each.model.load_device), *settings, said)


def _attempt(
    each: SamplingStage,
    conds: dict[str, Conditioning],
    source: tuple[int, int],
    bar: Any,
    done: int,
) -> Measured:
    """Measure; out of memory is a finding, and no error."""
    try:
        return _sample(each, conds, source, bar, done)
    except MEMORY_ERRORS as error:
        if not is_out_of_memory(error):
            raise
    # Outside of the except block, where the tensors of the failed call are free.
    comfy.model_management.soft_empty_cache()
    log.warning(
        "out of memory %s, at %d x %d pixels.", each.stage.name, each.pixels[1], each.pixels[0]
    )
    return Measured(seconds=None)


def _sample(
    each: SamplingStage,
    conds: dict[str, Conditioning],
    source: tuple[int, int],
    bar: Any,
    done: int,
) -> Measured:
    size = tuple(each.shapes[0][-2:])
    fitted = carry(conds, SizeChange.of(each.model, source, size))
    model = _prepared(each, fitted)
    guider = cfg_guider(model, fitted["positive"], fitted["negative"], each.cfg)
    sigmas = schedule(model, STEPS, "euler", "simple", 1.0)[1 : EVALUATIONS + 2].clone()
    watch = EvaluationTimer(model.load_device, bar, done)
    noise, blank = (Parts(*tensors).joined() for tensors in (_noise(each), _blank(each)))
    guider.sample(
        noise, blank, comfy.samplers.sampler_object("euler"), sigmas, callback=watch.see,
        disable_pbar=True, seed=0,
    )  # fmt: skip
    return watch.measured()


def _prepared(each: SamplingStage, conds: dict[str, Conditioning]) -> Any:
    """Clone a MODEL as its node will: with windows, tiles and a mask, without step caches."""
    model = without_step_caches(each.model)
    if each.stage.name != "refinement":
        return model
    traits = model.get_attachment(TRAITS_KEY)
    if traits is None:
        model = with_windows(model, each.window)
    elif traits.sigma_start_range is not None:
        model = model.clone()
        options = model.model_options.get("transformer_options", {})
        options = {**options, SIGMA_START_KEY: traits.sigma_start}
        model.model_options = {**model.model_options, "transformer_options": options}
    video = torch.empty(each.shapes[0], device="meta")
    sound = each.shapes[1] if len(each.shapes) > 1 else None
    model = with_tiles(
        model, video, each.tile, sound, conds=conds, chunk_frames=each.chunk_frames,
        window=each.window,
    )  # fmt: skip
    if each.keep == 1:
        return model
    weights = cell_weights(even_mask(each), each.model, video, 0)
    return with_mask(model, torch.zeros(each.shapes[0]), weights) if weights else model


def even_mask(each: SamplingStage) -> Mask:
    """Make a mask that keeps the share of a stage, evenly spread over every frame."""
    side = patch_side(each.model)
    frames, (rows, columns) = each.shapes[0][2], (-(-x // side) for x in each.shapes[0][-2:])
    places = torch.arange(rows * columns + 1, dtype=torch.float64) * each.keep
    kept = places.add(1e-9).floor().diff() > 0
    tokens = kept.view(1, rows, columns).repeat(frames, 1, 1)
    return Mask(tokens=tokens, scores=tokens.float(), source="plan", tau=0.5)


def _noise(each: SamplingStage) -> list[Tensor]:
    """Draw noise from a generator of its own: zeros would take less of a GPU's power and time."""
    generator = torch.Generator().manual_seed(0)
    return [torch.randn(shape, generator=generator) for shape in each.shapes]


def _blank(each: SamplingStage) -> list[Tensor]:
    return [torch.zeros(shape) for shape in each.shapes]


class EvaluationTimer:
    """A callback of a sampling call that reads clock and allocator between two evaluations."""

    def __init__(self, device: torch.device, bar: Any, done: int):
        self.device, self.bar, self.done = device, bar, done
        self.records = torch.device(device).type == "cuda"
        self.times: list[float] = []
        self.before = self.peak = 0

    def see(self, step: int, x0: Any, x: Any, total: int) -> None:
        # A value that is read has been computed, on any device.
        tensors_of(x0)[0].flatten()[0].item()
        self.times.append(clock())
        if self.records:
            self.peak = torch.cuda.max_memory_allocated(self.device)
            torch.cuda.reset_peak_memory_stats(self.device)
            self.before = self.before if step else torch.cuda.memory_allocated(self.device)
        self.bar.update_absolute(self.done + step + 1)

    def measured(self) -> Measured:
        assert len(self.times) == EVALUATIONS
        memory = float(self.peak - self.before) if self.records else None
        return Measured(seconds=self.times[1] - self.times[0], memory=memory)
