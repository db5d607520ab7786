"""Write what a plan takes as a table, and what will not fit, with the widget to turn first."""

from dataclasses import dataclass
from typing import Any

import comfy.model_management
import torch

from ....surf_core.cost import StagePrice
from ..refine import reserved
from ..skip import flops_text
from ..vae import ADVICE, DecodePlan, most_main_memory
from .shapes import KNOWN
from .stages import SamplingStage, work_of

GB = 2**30
COLUMNS = ("stage", "pixels", "evaluations", "tokens", "operations", "memory", "time")
KNOBS = {
    "before the switch": "switch_step (fewer steps before the switch)",
    "after the switch": "low_scale, then steps",
    "refinement": "refine_steps, then window, then a mask (keep)",
}
"""Stage -> the widget that makes it cheaper first."""


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class PricedPlan:
    """A plan, priced."""

    stages: list[SamplingStage]
    prices: list[StagePrice]
    """Of the stages."""
    plain: SamplingStage
    plain_price: StagePrice
    failed: frozenset[str]
    """Names of the stages that ran out of memory when they were measured."""
    calibrated: bool
    decode: DecodePlan | None
    vae: Any = None

    @property
    def seconds(self) -> float | None:
        """Of all stages; None where that of one is not known, or one does not fit."""
        if self.failed:
            return None
        known = [each.seconds for each in self.prices if each.seconds is not None]
        return sum(known) if len(known) == len(self.prices) else None

    @property
    def flops(self) -> int | None:
        work = work_of(self.stages)
        return None if work is None else work.flops

    @property
    def plain_flops(self) -> int | None:
        return self.plain.stage.flops


def time_text(price: StagePrice | None, seconds: float | None, failed: bool = False) -> str:
    """Write seconds; "about" where they were not timed."""
    if failed:
        return "out of memory"
    if seconds is None:
        return "-"
    about = "" if price is None or price.timed else "about "
    if seconds < 100:
        return f"{about}{seconds:.3g} s"
    return f"{about}{seconds / 60:.3g} min" if seconds < 6000 else f"{about}{seconds / 3600:.3g} h"


def size_text(size: tuple[int, int]) -> str:
    return f"{size[1]} x {size[0]}"


def write(plan: PricedPlan) -> str:
    """Write table, warnings and advice."""
    priced = zip(plan.stages, plan.prices, strict=True)
    rows = [_row(each, price, each.stage.name in plan.failed) for each, price in priced]
    whole = "-" if plan.flops is None else flops_text(plan.flops)
    rows.append(("in all", "", "", "", whole, "", time_text(None, plan.seconds)))
    rows.append(_row(plan.plain, plan.plain_price, False))
    lines = _aligned([COLUMNS, *rows])
    return "\n".join([*lines, "", *_gain(plan), *_unknown(plan), *warnings(plan), *_pieces(plan),
                      *_first(plan)])  # fmt: skip


def _row(each: SamplingStage, price: StagePrice, failed: bool) -> tuple[str, ...]:
    stage, memory = each.stage, f"{each.memory / GB:.3g} GB"
    twice = "" if each.cfg == 1 else " x 2"
    return (
        stage.name, size_text(each.pixels), f"{stage.count}{twice}",
        "-" if each.tokens is None else str(each.tokens),
        "-" if stage.flops is None else flops_text(stage.flops),
        f"host says {memory}" if each.by_host else memory,
        time_text(price, price.seconds, failed),
    )  # fmt: skip


def _aligned(rows: list[tuple[str, ...]]) -> list[str]:
    widths = [max(len(row[i]) for row in rows) for i in range(len(COLUMNS))]
    return ["  ".join(map(str.ljust, row, widths)).rstrip() for row in rows]


def _gain(plan: PricedPlan) -> list[str]:
    lines = []
    if plan.seconds and plan.plain_price.seconds:
        line = _faster(plan.plain_price.seconds / plan.seconds)
        timed = plan.plain_price.timed or line.startswith("about")
        lines.append(line if timed else f"about {line}")
    elif plan.flops and plan.plain_flops:
        lines.append(_fewer(plan.plain_flops / plan.flops))
    if not plan.calibrated:
        lines.append("counted, not timed: set calibrate to time two evaluations at each size here.")
    return [*lines, "text encoder, VAE and loading are not in it."]


def _faster(gain: float) -> str:
    """Compare a plan with the plain run, in seconds."""
    ratio = _two_digits(max(gain, 1 / gain))
    if ratio == 1:
        return "about as fast as the plain run."
    how = f"{ratio:g} times as fast as" if gain > 1 else f"takes {ratio:g} times as long as"
    return f"{how} the plain run."


def _fewer(gain: float) -> str:
    """Compare a plan with the plain run, in operations."""
    ratio = _two_digits(max(gain, 1 / gain))
    if ratio == 1:
        return "about as many operations as the plain run."
    how = "fewer operations than" if gain > 1 else "the operations of"
    return f"{ratio:g} times {how} the plain run."


def _two_digits(ratio: float) -> float:
    return float(f"{ratio:.2g}")


def _unknown(plan: PricedPlan) -> list[str]:
    unknown = {type(each.model.model).__name__ for each in plan.stages if each.stage.work is None}
    return [
        f"operations of {name} with this conditioning are not known; known are {KNOWN}. "
        "calibrate times any model."
        for name in sorted(unknown)
    ]


def warnings(plan: PricedPlan) -> list[str]:
    """Say what will not fit, and what to change first."""
    lines = []
    for each in plan.stages:
        name, free = each.stage.name, room(each.model.load_device)
        weights = each.model.model_size()
        needs = f"{name} needs {each.memory / GB:.3g} GB beside {weights / GB:.3g} GB of weights"
        if name in plan.failed:
            lines.append(f"will not fit: memory ran out {name}; {_smaller(each, free)}.")
        elif each.memory > free:
            lines.append(
                f"will not fit: {needs}, {free / GB:.3g} GB can be freed; {_smaller(each, free)}."
            )
        elif each.memory + weights > free:
            fit, why = _weights(each.model)
            lines.append(f"{fit}: {needs}, {free / GB:.3g} GB can be freed; {why}.")
    return lines + _frames(plan.decode)


def _weights(model: Any) -> tuple[str, str]:
    """Say what becomes of a model whose activations fit, and whose weights do not beside them."""
    host, smaller = comfy.model_management, "a model in fp8 or GGUF helps first"
    if model.load_device.type in ("cpu", "mps"):
        return "tight", f"the system will page to disk, which is slow; {smaller}"
    streams = getattr(model, "is_dynamic", lambda: False)()
    if host.vram_state is host.VRAMState.HIGH_VRAM and not streams:
        return "will not fit", (
            "the weights must stay on the device; start ComfyUI without --highvram and "
            "--gpu-only, or use a model in fp8 or GGUF"
        )
    return "tight", f"weights will be moved during each evaluation, which is slower; {smaller}"


def _smaller(each: SamplingStage, free: float) -> str:
    """Name the widget that makes a stage fit."""
    if each.tile:
        return "set tile to 0, which chooses one that fits"
    if each.chunk_frames and len(each.chunks) > 1:
        return "set chunk_frames to 0, which chooses as many as fit"
    length = _shorter(each, free)
    if length is None:
        return "use a smaller size, or a model in fp8"
    whole = each.time.pixels(each.time.frames)
    return (
        f"set length to {length} instead of {whole} in the node that makes the latent, or use a "
        "smaller size"
    )


def _shorter(each: SamplingStage, free: float) -> int | None:
    """Find the frames of the longest shorter video that fits; None where none does.

    The memory of chunks does not depend on the length, and nobody knows what would fit where memory
    ran out below what is free.
    """
    time = each.time
    if len(each.chunks) > 1 or each.memory <= free:
        return None
    # Where memory was measured, it is more or less than what was counted.
    scale = each.memory / (each.memory_at(time.frames) or 1)
    shorter = (n for n in range(time.frames - 1, 0, -1) if time.is_length(n))
    fitting = (n for n in shorter if scale * each.memory_at(n) <= free)
    found = next(fitting, None)
    return None if found is None else time.pixels(found)


def _frames(decode: DecodePlan | None) -> list[str]:
    """Say whether Surf VAE Decode will find room in the main memory, page, or refuse."""
    free = comfy.model_management.get_free_memory(torch.device("cpu"))
    if decode is None or decode.main_memory <= free:
        return []
    needs = (
        f"the decoded frames need {decode.main_memory / GB:.3g} GB of main memory, "
        f"{free / GB:.3g} GB are free"
    )
    most = most_main_memory()
    if decode.main_memory > most:
        return [
            f"will not fit: {needs}, {most / GB:.3g} GB with all that ComfyUI holds and with swap "
            f"space; {ADVICE}."
        ]
    return [
        f"tight: {needs}; ComfyUI's caches will be emptied, and what they do not hold is paged to "
        f"disk, which is slow. To avoid it, {ADVICE}."
    ]


def _pieces(plan: PricedPlan) -> list[str]:
    """Say which tiles and which pieces of the VAE will be taken."""
    lines = []
    for each in plan.stages:
        if each.tiles > 1:
            cell = each.pixels[0] // each.shapes[0][-2]
            tile = size_text((each.cells[0] * cell, each.cells[1] * cell))
            lines.append(f"{each.stage.name} in {each.tiles} tiles of {tile} pixels.")
        if len(each.chunks) > 1:
            longest, whole = each.time.pixels(max(each.chunks)), each.time.pixels(each.time.frames)
            lines.append(
                f"{each.stage.name} in {len(each.chunks)} chunks of {longest} of {whole} frames."
            )
    if plan.decode is not None:
        piece = f"{plan.decode.count} pieces of {size_text(plan.decode.piece)} pixels"
        whole = "one piece" if plan.decode.count == 1 else piece
        lines.append(
            f"VAE decode of {size_text(plan.decode.size)} pixels in {whole}, "
            f"{plan.decode.at_a_time} frames at a time, {plan.decode.needed / GB:.3g} GB as the "
            "host estimates."
        )
    return lines


def _first(plan: PricedPlan) -> list[str]:
    """Name the widget of the largest stage."""
    sizes = [
        price.seconds if plan.seconds is not None else each.stage.flops
        for each, price in zip(plan.stages, plan.prices, strict=True)
    ]  # fmt: skip
    if not sizes or None in sizes or not sum(sizes):
        return []
    most = max(range(len(sizes)), key=lambda index: sizes[index])
    name = plan.stages[most].stage.name
    share = sizes[most] / sum(sizes)
    return [f"to make it cheaper, turn first: {KNOBS[name]}; {name} is {share:.0%} of the plan."]


def room(device: torch.device) -> float:
    """Return the bytes of a device that a sampling can have, once the host moves models away."""
    host = comfy.model_management
    loaded = sum(each.loaded_size() for each in host.loaded_models() if each.load_device == device)
    return host.get_free_memory(device) + loaded - reserved()
