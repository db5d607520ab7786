"""Take up a sampling run that was killed, from its last finished step, when it is queued again."""

from .key import Key, QueuedNode, queued_node
from .run import KeptRun, keep_run

__all__ = ["KeptRun", "Key", "QueuedNode", "keep_run", "queued_node"]
