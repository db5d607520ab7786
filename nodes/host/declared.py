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

from ...surf_core.checks import check_choice, check_range

ABSENT: Any = object()
"""Default of what `validate_inputs` names: nothing is connected and nothing was set."""
KINDS = {"INT": (Integral, "a whole number"), "FLOAT": (Real, "a number")}


def check_number(item: Any, value: Any) -> None:
    """Refuse a value of another kind than an input of a schema declares, or out of its range."""
    kind, words = KINDS.get(item.get_io_type(), (None, ""))
    if kind is None or item.min is None or item.max is None:
        return
    if isinstance(value, bool) or not isinstance(value, kind):
        raise ValueError(f"{item.id} must be {words}, got {value!r}; use {item.default}.")
    check_range(value, item.id, item.min, item.max, f"use {item.default}")


def checks_numbers(execute: Callable[..., Any]) -> Callable[..., Any]:
    """Decorate a node's `execute`, below `names_errors`: refuse numbers out of declared ranges."""
    signature = inspect.signature(execute)

    @functools.wraps(execute)
    def run(cls: Any, *args: Any, **kwargs: Any) -> Any:
        given = dict(signature.bind(cls, *args, **kwargs).arguments)
        for name, parameter in signature.parameters.items():
            if parameter.kind is inspect.Parameter.VAR_KEYWORD:
                given |= given.pop(name, {})
        for item in cls.define_schema().inputs:
            if item.id in given:
                check_number(item, given[item.id])
        return execute(cls, *args, **kwargs)

    return run


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
                check_number(item, known[item.id])
                if getattr(item, "options", None):
                    check_choice(known[item.id], item.id, tuple(item.options))
        for check in checks:
            names = inspect.signature(check).parameters
            if names.keys() <= known.keys():
                check(**{name: known[name] for name in names})
    except ValueError as error:
        return str(error)
    return True
