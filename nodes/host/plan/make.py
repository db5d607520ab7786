"""Make a plan: list its stages, time them where that is asked for, and price them."""

from dataclasses import replace
from typing import Any

import torch

from ....surf_core.cost import price
from ..attention import check_tokens_known, check_window
from ..audio_length import check_length
from ..conditioning import (
    Conditioning,
    Grid,
    check_areas,
    check_frames_beside,
    check_keyframes,
    check_text_width,
    source_cells,
)
from ..finite import check_conditioning
from ..models import check_grid
from ..nested import Parts
from ..node import NodeLog
from ..refiner import TRAITS_KEY
from ..skip import cell_weights
from ..vae import DecodePlan, plan_decode
from .measure import Measured, even_mask, measure
from .report import PricedPlan, room, warnings
from .stages import PlanInputs, SamplingStage, list_stages, timed

log = NodeLog(__name__)


def make_plan(
    model: Any,
    latent: dict,
    inputs: PlanInputs,
    *,
    calibrate: bool,
    refiner: Any = None,
    vae: Any = None,
    positive: Conditioning | None = None,
    negative: Conditioning | None = None,
) -> PricedPlan:
    """Price a plan; with `calibrate`, from evaluations of the real models.

    Args:
        model: MODEL of the preview; not changed.
        latent: LATENT that the preview starts from; not changed.
        refiner: MODEL that refines; None for `model`.
        vae: VAE that decodes the result; None leaves the decode out.
        positive, negative: CONDITIONING; needed to run a model.

    Raises:
        ValueError: what the nodes of the plan would refuse, or no prompt to calibrate with.
    """
    refiner = model if refiner is None else refiner
    conds = {"positive": positive, "negative": positive if negative is None else negative}
    if positive is not None:
        check_conditioning(conds)
        for each in (model, refiner):
            check_text_width(each, conds)
    elif calibrate:
        raise ValueError(
            "calibrate runs the model, which needs a prompt, got none; connect positive, or set "
            "calibrate to false."
        )
    stages, plain, parts = list_stages(model, latent, inputs, refiner, positive)
    if positive is not None:
        _check_prompt(model, conds, parts)
    _check_windows(stages)
    _check_mask(stages)
    decode = _decode(vae, stages, parts)
    failed: set[str] = set()
    if calibrate:
        source = source_cells(model, conds, latent, parts.video, (0, 0))
        stages, failed = _with_times(stages, measure(stages, conds, source))
        plain = _plain_with_time(plain, stages, conds, source)
    prices = price([each.stage for each in stages])
    [plain_price] = price([plain.stage], [each.stage for each in stages])
    made = PricedPlan(
        stages=stages, prices=prices, plain=plain, plain_price=plain_price, decode=decode,
        failed=frozenset(failed), calibrated=calibrate, vae=vae,
    )  # fmt: skip
    for line in warnings(made):
        log.warning("%s", line)
    return made


def _check_prompt(model: Any, conds: dict[str, Conditioning], parts: Parts) -> None:
    """Refuse what the sampler of the preview would refuse in a prompt."""
    size, frames = tuple(parts.video.shape[-2:]), tuple(parts.video.shape[2:-2])
    check_areas(conds, (*frames, *size), Grid.of(model))
    check_frames_beside(conds, model, frames)
    check_keyframes(conds, size)
    check_grid(model, *size)
    check_length(model, parts)


def _check_windows(stages: list[SamplingStage]) -> None:
    """Refuse windows for a network whose order of tokens is not known, as its node would."""
    for each in stages:
        if each.window and each.model.get_attachment(TRAITS_KEY) is None:
            check_window(each.window)
            check_tokens_known(each.model.get_model_object("diffusion_model"))


def _check_mask(stages: list[SamplingStage]) -> None:
    """Refuse a mask for a network that cannot skip tokens, as its node would."""
    for each in stages:
        if each.keep < 1:
            cell_weights(even_mask(each), each.model, torch.empty(each.shapes[0], device="meta"), 0)


def _with_times(
    stages: list[SamplingStage], found: list[Measured]
) -> tuple[list[SamplingStage], set[str]]:
    """Put what was measured into the stages; and list those that ran out of memory."""
    made, failed = [], set()
    for each, measured in zip(stages, found, strict=True):
        each = timed(each, measured.seconds)
        if measured.memory is not None:
            each = replace(each, memory=measured.memory, by_host=False)
        if measured.seconds is None:
            failed.add(each.stage.name)
        made.append(each)
    return made, failed


def _plain_with_time(
    plain: SamplingStage,
    stages: list[SamplingStage],
    conds: dict[str, Conditioning],
    source: tuple[int, int],
) -> SamplingStage:
    """Time the plain run, too, where that at most doubles what the calibration takes.

    Rates of smaller sizes, and of windows, tell less of it than an evaluation. What was timed with
    the same operations is not run again.
    """
    [guess] = price([plain.stage], [each.stage for each in stages])
    took = [each.stage.seconds for each in stages]
    if guess.timed or guess.seconds is None or None in took:
        return plain
    cheap = guess.seconds / plain.stage.count <= sum(took)
    if not cheap or plain.memory > room(plain.model.load_device):
        return plain
    made, _ = _with_times([plain], measure([plain], conds, source))
    return made[0]


def _decode(vae: Any, stages: list[SamplingStage], parts: Parts) -> DecodePlan | None:
    """Plan the decode of the last stage's latent."""
    if vae is None:
        return None
    shape = stages[-1].shapes[0]
    return plan_decode(vae, parts.video.new_empty(shape, device="meta"))
