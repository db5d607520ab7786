"""Put the switch round a GUIDER that another node has made."""

import inspect
import re
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from ....surf_core.checks import check_range
from .. import models
from ..conditioning import Conditioning
from ..latents import low_size
from .after_switch import check_stretches
from .guider import ReshiftGuider
from .legs import Course
from .pictures import Pictures
from .plan import Policies, Size, Stage, Switch
from .sides import check_can_switch

LADDER = "10: 0.75, 20: 0.5"
"""Default of a text of sizes."""
RUNG = re.compile(r"\s*(\d{1,5})\s*:\s*(\d*\.?\d+)\s*")
MOST_RUNGS = 16


def parse_ladder(sizes: str) -> tuple[tuple[int, float], ...]:
    """Read a text of steps and sizes, e.g. "10: 0.75, 20: 0.5".

    Returns:
        (evaluations before, factor per side of the first size) of each switch, in order.

    Raises:
        ValueError: another form, steps that do not rise, or factors that do not fall.
    """
    parts = [part for part in re.split(r"[,\n]", sizes) if part.strip()]
    found = [RUNG.fullmatch(part) for part in parts]
    if not parts or len(parts) > MOST_RUNGS or not all(found):
        bad = next((part for part, match in zip(parts, found, strict=True) if not match), sizes)
        raise ValueError(
            "expected steps and factors such as '10: 0.75, 20: 0.5', at most "
            f"{MOST_RUNGS}, got {bad.strip()!r:.99}; write the evaluations before a size, a colon, "
            "and its factor of the first size."
        )
    rungs = tuple((int(match[1]), float(match[2])) for match in found if match)
    for (step, factor), (later, smaller) in zip(rungs, rungs[1:], strict=False):
        if later <= step or smaller >= factor:
            raise ValueError(
                f"expected later steps and smaller sizes along the list, got {later}: {smaller} "
                f"after {step}: {factor}; put them in order."
            )
    for _, factor in rungs:
        check_range(factor, "a factor of sizes", 0.1, 1.0, "use 0.5 for half of the sides")
    return rungs


@dataclass(frozen=True, kw_only=True, slots=True)
class Ladder(Policies):
    """Several switches, one after the other; its fields are inputs of a node."""

    sizes_text: str
    """See `parse_ladder`."""
    steps_low: int = 0
    """As a Switch has it; always 0."""

    def sizes(self, model: Any, samples: Tensor) -> list[tuple[int, Size]]:
        """List the switches of a latent: (steps before it, size after it)."""
        cell, multiple = models.cell_side(model), models.side_multiple(model)
        rungs = parse_ladder(self.sizes_text)
        return [
            (step, low_size(samples, cell, multiple, resolution="by scale", scale=factor,
                            width=0, height=0))
            for step, factor in rungs
        ]  # fmt: skip


def reshift_any(
    guider: Any,
    plan: Switch | Ladder,
    *,
    model_low: Any = None,
    cfg_low: float = 0.0,
    pictures: Pictures | None = None,
    **low: Conditioning | None,
) -> ReshiftGuider:
    """Put the switch round a GUIDER of any class.

    Args:
        model_low: another MODEL after the switch.
        cfg_low: guidance after the switch; 0 for the guider's own.
        pictures: that are encoded anew for the size after the switch.
        low: positive_low, middle_low and negative_low, made for the size after the switch; None
            where the guider's own is resized.

    Raises:
        ValueError: a guider that cannot be copied for a leg, one that has not what is replaced, or
            models that do not go together.
    """
    _check_guider(guider)
    own = guider.model_patcher
    other = own if model_low is None else model_low
    for model in (own, other):
        check_can_switch(model)
    models.check_pair(own, other)
    _check_second_model(guider, model_low, plan)
    conds = {name.removesuffix("_low"): cond for name, cond in low.items() if cond is not None}
    for name in conds:
        if name not in guider.original_conds:
            raise ValueError(
                f"{name}_low stands in for the guider's own {name}, got a "
                f"{type(guider).__name__} that has {', '.join(guider.original_conds)}; "
                f"disconnect {name}_low."
            )
    if cfg_low:
        _check_one_cfg(guider)
    course = Course(
        plan=plan,
        high=Stage(models=(own,)),
        low=Stage(models=(other,), cfg=cfg_low or None, conds=conds),
        pictures=pictures or Pictures(),
    )
    return ReshiftGuider(guider, course)


def _check_guider(guider: Any) -> None:
    """Refuse what is no guider of the host's kind, and one that has a switch."""
    if isinstance(guider, ReshiftGuider):
        raise ValueError(
            "expected a guider without a switch, got one of Surf Reshift Guider or of this kind; "
            "connect the guider that goes into that node, or use Surf Reshift Ladder for more "
            "than one switch."
        )
    needed = (
        *("model_patcher", "model_options", "original_conds", "cfg"),
        *("set_conds", "inner_set_conds", "sample"),
    )
    missing = [name for name in needed if not hasattr(guider, name)]
    if missing:
        raise ValueError(
            f"expected a guider as the host makes them, got {type(guider).__name__} without "
            f"{', '.join(missing)}; connect Basic Guider or CFG Guider, for instance."
        )


def _check_second_model(guider: Any, model_low: Any, plan: Policies) -> None:
    """Refuse a model after the switch beside one of the negative prompt, which would stay.

    Of Dual Model Guider, whose second model is checked as the first.
    """
    second = getattr(guider, "uncond_model_patcher", None)
    if second is None:
        return
    if model_low is not None:
        raise ValueError(
            f"model_low stands in for the one model of a guider, got a {type(guider).__name__} "
            "with a second one for the negative prompt, which would stay; disconnect model_low."
        )
    check_can_switch(second)
    models.check_pair(guider.model_patcher, second, "the second model of the guider")
    if plan.rope_scale_low != 1:
        check_stretches(second)


def _check_one_cfg(guider: Any) -> None:
    """Refuse another guidance scale for a guider that has none, or several."""
    settable = inspect.signature(guider.set_cfg).parameters if hasattr(guider, "set_cfg") else ()
    if len(settable) != 1 or "negative" not in guider.original_conds:
        raise ValueError(
            f"cfg_low needs a guider with one guidance scale and a negative prompt, got "
            f"{type(guider).__name__}; set cfg_low to 0, which leaves its own."
        )
