"""Text under a node while it works, by the host's own progress text."""

import sys
from typing import Any


def _loaded(module: str, name: str) -> Any:
    """Return a name of a host module that the host has loaded, None elsewhere."""
    return getattr(sys.modules.get(module), name, None)


def running_node_id() -> str | None:
    """Return the graph's id of the running node; None outside of a queued prompt."""
    context_of = _loaded("comfy_execution.utils", "get_executing_context")
    context = context_of() if context_of is not None else None
    return None if context is None else context.node_id


def show_status(text: str, node_id: str | None = None) -> None:
    """Show one line under a node: what it does, at which size, how far it is.

    Args:
        text: replaces the line before it.
        node_id: of the graph; None is the running node. Without a server nothing is shown.
    """
    node_id = node_id or running_node_id()
    server = getattr(_loaded("server", "PromptServer"), "instance", None)
    if node_id is not None and server is not None:
        server.send_progress_text(text, node_id)
