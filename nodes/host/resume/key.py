"""Tell one run from another across restarts: the graph above a node, its weights, its versions.

A MODEL has no address that outlives the process, so it is known by the graph that makes it and by
the files that this graph names.
"""

import hashlib
import json
import os
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import comfyui_version
import folder_paths
import torch

from ....surf_core.digest import digest
from ..node import NodeLog, running_node_id

log = NodeLog(__name__)

PACK = Path(__file__).parents[3]
LONGEST_NAME = 1024
"""Characters of an input that may name a file."""


@dataclass(frozen=True, kw_only=True, slots=True)
class QueuedNode:
    """A node of a queued graph."""

    find: Callable[[str], dict]
    """Number of a node -> {"class_type", "inputs"}."""
    number: str
    leave_out: tuple[str, ...]
    """Its inputs that do not change what it makes."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Key:
    """Which run it is; the fields are those of a state."""

    graph: str
    inputs: str
    files: str
    versions: str

    @property
    def name(self) -> str:
        """A file name: runs of one graph begin alike."""
        return f"{self.graph[:16]}-{digest([self.inputs, self.files, self.versions])[:16]}"

    def differences(self, other: Any) -> list[str]:
        """Say in which way another run of the same graph is another."""
        words = {
            "versions": f"it is of {other.versions}, this is {self.versions}",
            "files": "a weight file has changed",
            "inputs": "what the graph makes of its files and prompts has changed",
        }
        return [text for name, text in words.items() if getattr(self, name) != getattr(other, name)]


def queued_node(hidden: Any, *leave_out: str) -> QueuedNode | None:
    """Find the running node in the graph that was queued; None outside of one.

    Args:
        hidden: what the host hands a node beside its inputs, with the graph as it runs it.
        leave_out: inputs of the node that do not change what it makes.
    """
    graph, number = getattr(hidden, "dynprompt", None), running_node_id()
    if graph is None or number is None or not graph.has_node(number):
        log.warning("resume needs a graph that was queued; this run is not saved.")
        return None
    return QueuedNode(find=graph.get_node, number=number, leave_out=leave_out)


def key_of(node: QueuedNode, inputs: Any, device: torch.device) -> Key:
    """Make the key of a run.

    Args:
        inputs: what is sampled, and how: tensors, numbers and texts in lists and dictionaries.
        device: where the model runs.
    """
    graph = ancestors(node)
    text = json.dumps(graph, sort_keys=True, default=lambda value: type(value).__qualname__)
    return Key(
        graph=digest(text), inputs=digest(inputs), files=digest(weight_files(graph)),
        versions=versions(device),
    )  # fmt: skip


def ancestors(node: QueuedNode) -> list[tuple[str, dict]]:
    """List the class and the inputs of a node and of all above it, the first ones first.

    A link is the place of its node in this list, whatever its number in the graph: neither numbers,
    titles nor the order in which nodes were made count.
    """
    places: dict[str, int] = {}
    listed: list[tuple[str, dict]] = []
    waiting = [node.number]
    while waiting:
        number = waiting[-1]
        inputs = _inputs(node, number)
        links = [inputs[name][0] for name in sorted(inputs) if _is_link(inputs[name])]
        missing = [link for link in links if link not in places]
        if number not in places and missing:
            waiting += reversed(missing)
            continue
        waiting.pop()
        if number not in places:
            places[number] = len(listed)
            named = {
                name: {"node": places[value[0]], "output": value[1]} if _is_link(value) else value
                for name, value in inputs.items()
            }
            listed.append((node.find(number)["class_type"], named))
    return listed


def _inputs(node: QueuedNode, number: str) -> dict[str, Any]:
    inputs = node.find(number)["inputs"]
    left_out = node.leave_out if number == node.number else ()
    return {name: value for name, value in inputs.items() if name not in left_out}


def _is_link(value: Any) -> bool:
    """Tell a link as the host does."""
    return (
        isinstance(value, list) and len(value) == 2
        and isinstance(value[0], str) and type(value[1]) in (int, float)
    )  # fmt: skip


def weight_files(graph: list[tuple[str, dict]]) -> list[tuple[str, str, int, int]]:
    """List the files of the host's model folders that inputs name: folder, name, bytes, time."""
    found = set()
    names = {v for _, inputs in graph for v in inputs.values() if isinstance(v, str)}
    for name in names:
        if not 0 < len(name) <= LONGEST_NAME or not name.isprintable():
            continue
        for folder in folder_paths.folder_names_and_paths:
            path = folder_paths.get_full_path(folder, name)
            if path is not None and os.path.isfile(path):
                stat = os.stat(path)
                found.add((folder, name, stat.st_size, stat.st_mtime_ns))
    return sorted(found)


def versions(device: torch.device) -> str:
    """Name what computes: host, torch, pack, device."""
    chip = torch.cuda.get_device_name(device) if device.type == "cuda" else device.type
    return (
        f"ComfyUI {comfyui_version.__version__[:16]}, torch {torch.__version__[:24]}, "
        f"SURF {pack_digest()}, {chip[:32]}"
    )


@cache
def pack_digest() -> str:
    """Digest the pack's sources and embedded weights: its number stays the same between commits."""
    sha = hashlib.sha256()
    for folder in ("nodes", "surf_core"):
        for path in sorted((PACK / folder).rglob("*")):
            if path.suffix in (".py", ".safetensors"):
                sha.update(path.relative_to(PACK).as_posix().encode() + path.read_bytes())
    return sha.hexdigest()[:10]
