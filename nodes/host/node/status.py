"""Text under a node while it works, by the host's own progress text."""

import sys
from itertools import chain
from textwrap import wrap
from typing import Any

LINE = 26
"""Characters of a line that fit below a node of 210 pixels; beyond them the front end breaks words,
and a break that stands there already is kept or becomes a space."""


def _loaded(module: str, name: str) -> Any:
    """Return a name of a host module that the host has loaded, None elsewhere."""
    return getattr(sys.modules.get(module), name, None)


def _wrapped(line: str) -> list[str]:
    return wrap(line, LINE, break_long_words=False, break_on_hyphens=False)


def running_node_id() -> str | None:
    """Return the graph's id of the running node; None outside of a queued prompt."""
    context_of = _loaded("comfy_execution.utils", "get_executing_context")
    context = context_of() if context_of is not None else None
    return None if context is None else context.node_id


def show_status(text: str, node_id: str | None = None) -> None:
    """Show a text under a node: what it does, at which size, how far it is.

    Args:
        text: replaces the one before it; a line, or two, since more than that is not seen.
        node_id: of the graph; None is the running node. Without a server nothing is shown.
    """
    node_id = node_id or running_node_id()
    server = getattr(_loaded("server", "PromptServer"), "instance", None)
    if node_id is not None and server is not None:
        lines = (_wrapped(line) for line in text.splitlines())
        server.send_progress_text("\n".join(chain(*lines)), node_id)
