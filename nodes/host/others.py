"""List and log patches of other nodes on a MODEL, and their effect on windows, tiles, masks."""

import re
from collections.abc import Iterator
from functools import partial
from typing import Any

from .node import NodeLog

log = NodeLog(__name__)

OURS = __name__.split(".nodes.")[0]
"""The package as the host has imported it."""
OVERRIDE = "optimized_attention_override"
"""Slot of an attention kernel in transformer_options; there is one."""
ATTENTION, WRAPPER, PATCH, BLOCK, FUNCTION, OBJECT = (
    "attention", "wrapper", "patch", "block replacement", "function wrapper", "object patch",
)  # fmt: skip
AROUND_A_CALL = ("diffusion_model", "apply_model")
"""Kinds of the host's wrappers that run round each call of the network."""


def name_of(function: Any) -> str:
    """Name a function of another node by where it was written."""
    while isinstance(function, partial):
        function = function.func
    named = function if hasattr(function, "__qualname__") else type(function)
    return f"{named.__module__.split('.')[-1]}.{named.__qualname__}"


def is_ours(function: Any) -> bool:
    """Say whether a function was made by this package."""
    while isinstance(function, partial):
        function = function.func
    named = function if hasattr(function, "__qualname__") else type(function)
    return named.__module__.split(".nodes.")[0] == OURS


def patches_on(model: Any) -> Iterator[tuple[str, str]]:
    """Yield (kind, name) of what other nodes have put on a MODEL, the LoRAs left out.

    Kinds are ATTENTION, WRAPPER, PATCH, BLOCK, FUNCTION and OBJECT.
    """
    options = model.model_options.get("transformer_options", {})
    override = options.get(OVERRIDE)
    if override is not None and not is_ours(override):
        yield ATTENTION, name_of(override)
    for everything in (model.wrappers, options.get("wrappers", {})):
        for kind in AROUND_A_CALL:
            for key, wrappers in everything.get(kind, {}).items():
                if not all(map(is_ours, wrappers)):
                    yield WRAPPER, str(key)
    for name, value in getattr(model, "object_patches", {}).items():
        if name.startswith("diffusion_model") and not is_ours(value):
            # One name for all blocks.
            yield OBJECT, f"{re.sub(r'[.][0-9]+', '', name)} of {name_of(value)}"
    for name, patches in options.get("patches", {}).items():
        if patches:
            yield PATCH, f"{name} of {name_of(patches[0])}"
    for patches in options.get("patches_replace", {}).values():
        for patch in patches.values():
            if not is_ours(patch):
                yield BLOCK, name_of(patch)
    function = model.model_options.get("model_function_wrapper")
    if function is not None and not is_ours(function):
        yield FUNCTION, name_of(function)


def log_patches(model: Any, what: str, fates: dict[str, str]) -> None:
    """Log in one line what other nodes have put on a MODEL, and how it goes with something.

    Args:
        what: e.g. "windows".
        fates: kind -> what becomes of it; other kinds are left out.
    """
    patches = dict.fromkeys(
        f"{name} ({fates[kind]})" for kind, name in patches_on(model) if kind in fates
    )
    if patches:
        log.info("%s with what other nodes put on this model: %s.", what, ", ".join(patches))
