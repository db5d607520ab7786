"""Check a node's inputs against its schema: when a graph is queued, and in every call.

The host checks ranges when a graph is queued, and only of constants: what a link brings, or a
program that calls a node, is checked here. It leaves out inputs that a node's `validate_inputs`
names, so `refusal` repeats the check for these.
"""

import functools
import inspect
from collections.abc import Callable
from numbers import Integral, Real
from typing import Any

from torch import Tensor

from ....surf_core.checks import check_choice, check_range

ABSENT: Any = object()
"""Default of what `validate_inputs` names: nothing is connected and nothing was set."""
NUMBERS = {"INT": (Integral, "a whole number"), "FLOAT": (Real, "a number")}
WIDGETS = {"BOOLEAN": (bool, "True or False"), "STRING": (str, "a text"),
           "COMBO": (str, "the name of an option")}  # fmt: skip
LINKS: dict[str, Callable[[Any], bool]] = {
    "MODEL": lambda value: hasattr(value, "get_model_object"),
    "VAE": lambda value: (
        not isinstance(value, str)
        and (hasattr(value, "latent_channels") or hasattr(value, "encode"))
    ),
    "GUIDER": lambda value: hasattr(value, "sample") and hasattr(value, "model_patcher"),
    "LATENT": lambda value: isinstance(value, dict),
    "IMAGE": lambda value: isinstance(value, Tensor) and value.ndim == 4,
    "SURF_MASK": lambda value: hasattr(value, "mask"),
    "CONDITIONING": lambda value: isinstance(value, list | tuple) and all(map(_is_entry, value)),
}
"""Type of a link -> what a value of it has; a muted or foreign node may bring another, or None."""


def _is_entry(entry: Any) -> bool:
    """Tell whether a value is an entry of a CONDITIONING: text [B, N, D] or None, and options."""
    if not isinstance(entry, list | tuple) or len(entry) < 2 or not isinstance(entry[1], dict):
        return False
    return entry[0] is None or (isinstance(entry[0], Tensor) and entry[0].ndim == 3)


def check_value(item: Any, value: Any) -> None:
    """Refuse a value of another kind than an input of a schema declares, or out of its range."""
    kind = item.get_io_type()
    # A number that only a link brings has no default that would take its place.
    if value is None and item.optional and (kind not in NUMBERS or item.default is None):
        return
    if kind in LINKS and not LINKS[kind](value):
        shape = f" of {tuple(value.shape)}" if isinstance(value, Tensor) else ""
        raise ValueError(
            f"{item.id} must be of type {kind}, got {type(value).__name__}{shape}; connect a "
            "node that gives this type, and see that none before it is muted or bypassed."
        )
    if kind in WIDGETS and not isinstance(value, WIDGETS[kind][0]):
        raise ValueError(
            f"{item.id} must be {WIDGETS[kind][1]}, got {type(value).__name__}; "
            "set it in the node, or connect a node that gives one."
        )
    if kind in NUMBERS and item.min is not None and item.max is not None:
        _check_number(item, value, *NUMBERS[kind])


def _check_number(item: Any, value: Any, kind: type, words: str) -> None:
    usual = item.min if item.default is None else item.default
    if isinstance(value, bool) or not isinstance(value, kind):
        raise ValueError(f"{item.id} must be {words}, got {value!r:.99}; use {usual}.")
    check_range(value, item.id, item.min, item.max, f"use {usual}")


def checks_inputs(execute: Callable[..., Any]) -> Callable[..., Any]:
    """Decorate a node's `execute`, below `names_errors`: refuse what is not as declared."""
    signature = inspect.signature(execute)

    @functools.wraps(execute)
    def run(cls: Any, *args: Any, **kwargs: Any) -> Any:
        given = dict(signature.bind(cls, *args, **kwargs).arguments)
        for name, parameter in signature.parameters.items():
            if parameter.kind is inspect.Parameter.VAR_KEYWORD:
                given |= given.pop(name, {})
        # Widgets first: they are the user's own words.
        schema = cls.define_schema()
        inputs = sorted(schema.inputs, key=lambda item: item.get_io_type() in LINKS)
        for item in inputs:
            if item.id in given:
                for value in _values(schema, given[item.id]):
                    check_value(item, value)
        return execute(cls, *args, **kwargs)

    return run


def _values(schema: Any, value: Any) -> list[Any]:
    """Return the values of an input; a node that takes lists gets several, or one of a program."""
    listed = getattr(schema, "is_input_list", False) and isinstance(value, list)
    return value if listed else [value]


def refusal(node: Any, given: dict[str, Any], *checks: Callable[..., None]) -> str | bool:
    """Say what is wrong with the constants of a node, for its `validate_inputs`.

    Args:
        node: the class of the node.
        given: every input that `validate_inputs` names, and more that the checks take. ABSENT and
            None, which stands for a link on every host, are unknown.
        checks: raise ValueError; one runs where everything that it takes is known.

    Returns:
        True, or the text that the host shows beside the node, once for each input that is named.
    """
    known = {key: x for key, x in given.items() if x is not ABSENT and x is not None}
    try:
        for item in node.define_schema().inputs:
            if item.id in known:
                check_value(item, known[item.id])
                if getattr(item, "options", None):
                    check_choice(known[item.id], item.id, tuple(item.options))
        for check in checks:
            names = inspect.signature(check).parameters
            if names.keys() <= known.keys():
                check(**{name: known[name] for name in names})
    except ValueError as error:
        return str(error)
    return True
