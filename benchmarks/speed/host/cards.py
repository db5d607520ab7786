"""Find which card the refiner fits: one evaluation under a limit on the allocator.

The host reads a card of that size, so that it and the refiner plan for it; what does not fit
all the same raises as it would there, and the refiner goes on in smaller tiles. What the driver
keeps for itself on a card, some hundred MiB, is outside of the limit.
"""

import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any
from unittest import mock

import torch

from benchmarks.page import NOT_MEASURED, table
from benchmarks.timing import FAILURES, reason
from surf_core import cost

from .budget import GUESS
from .calls import HostCalls
from .plans import GUIDANCE
from .stages import Machine, TimedStage

COLUMNS = ("card, GiB | size | refiner | guidance | blocks | fitted | peak, GiB | tiles "
           "| first evaluation, s")  # fmt: skip


@contextmanager
def small_card(limit: int | None) -> Iterator[None]:
    """Let the allocator refuse what a card of `limit` bytes would, and the host know its size."""
    if limit is None:
        yield
        return
    whole = torch.cuda.get_device_properties(0).total_memory

    def mem_get_info(device=None) -> tuple[int, int]:
        return max(0, limit - torch.cuda.memory_reserved()), limit

    torch.cuda.set_per_process_memory_fraction(limit / whole)
    try:
        with mock.patch.object(torch.cuda, "mem_get_info", mem_get_info):
            yield
    finally:
        torch.cuda.set_per_process_memory_fraction(1.0)


def memory_table(
    calls: HostCalls,
    args: Any,
    machine: Machine,
    deadline: float,
    publish: Callable[[list[str]], None],
) -> None:
    """Run one evaluation of each refiner on cards of each size; publish the table after each.

    Args:
        args: limit_gb, limit_size and cfg of the command line.
    """
    if not torch.cuda.is_available():
        publish(["not run: needs CUDA"])
        return
    rows = []
    for size in args.limit_size:
        for name, model in calls.refiners.items():
            stage = one_evaluation(calls, size, name, GUIDANCE[args.cfg[0]][-1])
            stage.guess = GUESS * machine.floor(stage)
            network = model.model.diffusion_model
            for limit, segmentwise in cards(args.limit_gb, hasattr(network, "segmentwise")):
                if segmentwise is not None:
                    network.segmentwise = segmentwise
                blocks = {None: "-", True: "segment-wise", False: "whole"}[segmentwise]
                card = "no limit" if limit is None else f"{limit:g}"
                result = on_card(calls, stage, limit, deadline)
                rows.append([card, size, name, stage.cfg, blocks, *result])
                print(*rows[-1], sep=", ", file=sys.stderr, flush=True)
                publish(table(COLUMNS, rows))


def one_evaluation(calls: HostCalls, size: str, name: str, cfg: str) -> TimedStage:
    """Describe a refiner's evaluation at a size."""
    (shape, window), (height, width) = calls.setting.refiners[name], calls.setting.sides[size]
    work = cost.Evaluations(
        shape=shape, steps=1, frames=calls.setting.frames, height=height, width=width,
        window=window, guided=cfg != "off",
    )  # fmt: skip
    return TimedStage(target=size, cfg=cfg, name=name, refiner=name, work=work)


def cards(limits: list[float], segments: bool) -> Iterator[tuple[float | None, bool | None]]:
    """Yield GiB of a card, None for this one, and how the blocks run where that can be chosen."""
    if segments:
        yield None, False
    for limit in (None, *limits):
        yield limit, True if segments else None


def on_card(calls: HostCalls, stage: TimedStage, limit: float | None, deadline: float) -> list:
    """Run one evaluation on a card, if there is time; return what `fitting` does, or why not."""
    whole = torch.cuda.get_device_properties(0).total_memory / 2**30
    left = deadline - time.perf_counter()
    if limit is not None and limit > whole:
        return [f"{NOT_MEASURED}: this card has {whole:.3g}", "-", "-", "-"]
    if stage.needs(1) > left:
        return [
            f"{NOT_MEASURED}: about {stage.needs(1):.3g} s, {left:.3g} s are left",
            "-",
            "-",
            "-",
        ]
    return fitting(calls, stage, None if limit is None else int(limit * 2**30))


def fitting(calls: HostCalls, stage: TimedStage, limit: int | None) -> list:
    """Run one evaluation on a card of `limit` bytes: whether it fitted, peak, tiles, seconds."""
    import comfy.model_management

    comfy.model_management.unload_all_models()
    torch.cuda.empty_cache()
    torch.cuda.reset_peak_memory_stats()
    fitted = "yes"
    with small_card(limit):
        try:
            calls.refine(stage, upsample="latent")
        except FAILURES as error:
            # Libraries that find no memory for themselves raise what is not torch's own error.
            fitted = f"no: {reason(error)}"
    peak = torch.cuda.max_memory_allocated() / 2**30
    if fitted != "yes":
        return [fitted, peak, "-", "-"]
    # Tiles of one size; larger ones before them are of an attempt that ran out of memory.
    size = calls.profiler.evaluations[-1].calls[-1][1:]
    batches = [
        batch for batch, *side in calls.profiler.evaluations[-1].calls if tuple(side) == size
    ]
    tiles = sum(batches) // (1 + stage.work.guided)
    rows, columns = (cells * 8 for cells in size)
    return [fitted, peak, f"{tiles} of {columns} x {rows}", stage.alone[-1]]
