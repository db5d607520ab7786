"""Guidance of a host model with a held difference, as a clone.

The host asks for both estimates of an evaluation at one place; there the one without the prompt is
made of the difference, so that guidance, and whatever else looks at the two, sees a pair as ever.

Dims: B batch, C channels, T latent frames, H, W latent cells.
"""

import logging
from collections.abc import Callable
from typing import Any

import comfy.samplers
from torch import Tensor

from ...surf_core.guidance import HeldDifference
from .models import check_flow

log = logging.getLogger(__name__)

SLOT = "sampler_calc_cond_batch_function"
"""Where the host looks for a function that makes the estimates of an evaluation."""
WRAPPER_KEY = "surf_hold_guidance"
REPLACED = "surf_replaced"
"""Attribute of our function: the one that it took the place of, or None."""


def holding(model: Any, every: int, who: str) -> Any:
    """Clone a MODEL so that guided evaluations share runs without the prompt.

    Args:
        model: host MODEL of a flow; its weights are shared, it is not changed.
        every: evaluations that one such run serves; 1 gives plain guidance, and undoes an earlier
            call.
        who: the node, for errors and the log.

    Returns:
        A clone; a function of another node in the same slot is called for every evaluation.
        Every sampling call begins anew, so both legs of a preview do.

    Raises:
        ValueError: no flow model, or a bad number.
    """
    import comfy.patcher_extension

    check_flow(model, who)
    try:
        HeldDifference(every)
    except ValueError as error:
        raise ValueError(f"{who}: {error}") from error
    clone, kind = model.clone(), comfy.patcher_extension.WrappersMP.OUTER_SAMPLE
    clone.remove_wrappers_with_key(kind, WRAPPER_KEY)
    options = {key: value for key, value in clone.model_options.items() if key != SLOT}
    earlier = model.model_options.get(SLOT)
    earlier = getattr(earlier, REPLACED, earlier)
    if every > 1:
        run: dict[str, HeldDifference] = {}
        options[SLOT] = make_estimates(run, earlier)
        clone.add_wrapper_with_key(kind, WRAPPER_KEY, make_run(run, every, who))
    elif earlier is not None:
        options[SLOT] = earlier
    clone.model_options = options
    return clone


def make_run(run: dict[str, HeldDifference], every: int, who: str) -> Callable:
    """Build the wrapper of a sampling call: a difference of its own, let go at the end."""

    def sample(executor: Callable, *args: Any, **kwargs: Any) -> Any:
        outer, held = run.get("held"), HeldDifference(every)
        run["held"] = held
        try:
            result = executor(*args, **kwargs)
        finally:
            run["held"] = outer
        if held.guided:
            log.info(
                "%s: %d of %d evaluations ran without the prompt, too.",
                who, held.guided, held.evaluations,
            )  # fmt: skip
        return result

    return sample


def make_estimates(run: dict[str, HeldDifference], earlier: Callable | None) -> Callable:
    """Build the function that makes the estimates [with the prompt, without] of an evaluation.

    Estimates are clean ones, whose difference shrinks with sigma; that of the velocities is held.

    Args:
        earlier: the function that was installed before, or None.
    """

    def estimate(args: dict, conds: list) -> list[Tensor]:
        if earlier is not None:
            return earlier({**args, "conds": conds})
        return comfy.samplers.calc_cond_batch(
            args["model"], conds, args["input"], args["sigma"], args["model_options"]
        )

    def estimates(args: dict) -> list[Tensor]:
        conds, held = args["conds"], run.get("held")
        if held is None or len(conds) != 2 or any(cond is None for cond in conds):
            return estimate(args, conds)
        sigma = args["sigma"].view(-1, *[1] * (args["input"].ndim - 1))
        if held.due(args["input"]):
            out = estimate(args, conds)
            # Velocities: an estimate is x - sigma * velocity.
            held.learn(sigma, (out[1] - out[0]) / sigma)
            return out
        out = estimate(args, [conds[0], None])
        return [out[0], out[0] + sigma * held.at(sigma), *out[2:]]

    setattr(estimates, REPLACED, earlier)
    return estimates
