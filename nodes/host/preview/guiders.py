"""Copy a GUIDER of any class for one leg: another model, conditioning or guidance scale."""

import copy
import inspect
from collections.abc import Callable
from typing import Any

from comfy.patcher_extension import WrappersMP
from torch import Tensor

from ..conditioning import KEYFRAMES, Conditioning
from ..models import with_shifts_of
from .leg import Segment

KEY = "surf_legs"
"""Of our wrapper round the prediction of a guider."""
MADE_BY_HOST = ("cross_attn", "uuid")
"""What the host adds to an entry of conditioning when a guider takes it."""
ANCHORS = (KEYFRAMES, "minimax_refs")
"""Conditions of MiniMax H3 that its network adds a little noise to."""
See = Callable[[Tensor, Tensor, Tensor], None]
"""Called with (x, sigma, x0) of each evaluation."""
Hold = Callable[[Tensor, Tensor], Tensor]
"""Called with (x0, sigma) of each evaluation: the clean estimate that the sampler gets."""


def conds_of(guider: Any) -> dict[str, Conditioning]:
    """Read the conditioning of a guider by its own names, as nodes make it."""
    return {
        name: [
            [entry.get("cross_attn"), {k: v for k, v in entry.items() if k not in MADE_BY_HOST}]
            for entry in cond
        ]
        for name, cond in guider.original_conds.items()
    }


def for_leg(guider: Any, segment: Segment, see: See, seed: int, hold: Hold | None = None) -> Any:
    """Copy a guider for one leg; the guider itself stays as it is.

    Args:
        see: called after every evaluation, outside of all other wrappers.
        seed: of the run, whatever the sampler of the leg has.
        hold: changes the estimates before anybody sees them; None leaves them.
    """
    leg = copy.copy(guider)
    if segment.model is not guider.model_patcher:
        leg.model_patcher = segment.model
        # A guider may hold options that its model has not.
        keeps = segment.own_model and guider.model_options is not guider.model_patcher.model_options
        leg.model_options = (
            with_shifts_of(segment.model, guider.model_options)
            if keeps
            else segment.model.model_options
        )
    leg.original_conds = dict(guider.original_conds)
    if segment.conds is not None:
        leg.original_conds = {}
        _set_conds(leg, segment.conds)
    _seed_anchors(leg, seed)
    if segment.cfg is not None:
        leg.set_cfg(segment.cfg)
    leg.model_options = _watched(leg.model_options, see, segment.after, hold)
    return leg


def _seed_anchors(leg: Any, seed: int) -> None:
    """Let MiniMax H3 draw the noise of keyframes and references as in the first leg.

    The host draws it anew at each sampling call, from the seed of the call or of the entry.
    """
    leg.original_conds = {
        name: [
            {"seed": seed, **entry} if any(entry.get(key) for key in ANCHORS) else entry
            for entry in cond
        ]
        for name, cond in leg.original_conds.items()
    }


def _set_conds(leg: Any, conds: dict[str, Conditioning]) -> None:
    """Give a guider conditioning by name; by its own method, which may mark one as negative."""
    if set(inspect.signature(leg.set_conds).parameters) == set(conds):
        leg.set_conds(**conds)
    else:
        leg.inner_set_conds(conds)


def _watched(options: dict[str, Any], see: See, after: Any, hold: Hold | None) -> dict[str, Any]:
    """Return a copy of model options with a wrapper round the prediction, the outermost."""

    def watch(
        executor: Any, x: Tensor, timestep: Tensor, model_options: Any, *args: Any, **kwargs: Any
    ) -> Tensor:
        if after is not None and after.rope_scale != 1:
            model_options = after.stretched(model_options, float(timestep.max()))
        x0 = executor(x, timestep, model_options, *args, **kwargs)
        if hold is not None:
            x0 = hold(x0, timestep)
        see(x, timestep, x0)
        return x0

    kind = WrappersMP.PREDICT_NOISE
    inner = options.get("transformer_options", {})
    wrappers = inner.get("wrappers", {})
    mine = {kind: {KEY: [watch], **wrappers.get(kind, {})}}
    return {**options, "transformer_options": {**inner, "wrappers": {**wrappers, **mine}}}
