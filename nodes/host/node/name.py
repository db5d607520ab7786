"""Put the display name of the running node in front of its errors and log lines.

`names_errors` sets it round `execute`. Functions that a node leaves in a model or guider fail
inside another node's call: they read `running_node()` when they are built, and check under
`reporting_as` of it.
"""

import functools
import logging
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any

_RUNNING: ContextVar[str] = ContextVar("surf_running_node", default="")
NAMED = "surf_node"
"""Attribute of an error that has a node's name in front."""


def running_node() -> str:
    """Return the display name of the running node, "" outside of any."""
    return _RUNNING.get()


def label() -> str:
    """Return the prefix of log lines: the running node's name, or SURF."""
    return running_node() or "SURF"


@contextmanager
def reporting_as(node: str) -> Iterator[None]:
    """Put a node's name in front of each ValueError that leaves the block, once.

    The error stays the same object, with its type and its traceback; others pass untouched, and so
    do errors that another node of ours has named. With "" the block runs as it is.
    """
    token = _RUNNING.set(node or _RUNNING.get())
    try:
        yield
    except ValueError as error:
        # Subclasses may build their text from arguments of another kind.
        if node and type(error) is ValueError:
            name_error(error, node)
        raise
    finally:
        _RUNNING.reset(token)


def name_error(error: ValueError, node: str) -> ValueError:
    """Put a node's name in front of an error's text, unless one of ours is there, and return it."""
    if not hasattr(error, NAMED):
        error.args = (f"{node}: {error}",)
        setattr(error, NAMED, node)
    return error


def names_errors(execute: Callable[..., Any]) -> Callable[..., Any]:
    """Decorate a node's `execute`, below @classmethod: errors begin with its display name."""

    @functools.wraps(execute)
    def run(cls: Any, *args: Any, **kwargs: Any) -> Any:
        with reporting_as(cls.define_schema().display_name):
            return execute(cls, *args, **kwargs)

    return run


class NodeLog(logging.LoggerAdapter):
    """A logger whose lines begin with the name of the running node."""

    def __init__(self, module: str):
        super().__init__(logging.getLogger(module), {})

    def process(self, msg: Any, kwargs: Any) -> tuple[Any, Any]:
        return f"{label()}: {msg}", kwargs
