"""What a node of ours is to the host: its schema, the check of its inputs, its name in errors."""

from .declared import ABSENT, checks_inputs, refusal
from .name import NodeLog, label, name_error, names_errors, reporting_as, running_node
from .schema import declare
from .status import running_node_id, show_status

__all__ = [
    "ABSENT",
    "NodeLog",
    "checks_inputs",
    "declare",
    "label",
    "name_error",
    "names_errors",
    "refusal",
    "reporting_as",
    "running_node",
    "running_node_id",
    "show_status",
]
