"""Let one run at a time write into a folder, and say which one does.

The system keeps the lock and takes it back from a process that ends, however it ends: none is ever
left over. Beside it lies a note of who holds it, for whom is refused.
"""

import json
import os
import socket
import sys
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

from filelock import FileLock, Timeout

from ..header import json_object, short
from .distributed import World


@contextmanager
def locked(path: Path, what: str) -> Iterator[None]:
    """Hold a lock while the body runs.

    Args:
        path: of the lock's file; made with its folder, and left behind.
        what: is being locked, for the message.

    Raises:
        ValueError: another process holds it.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    lock, note = FileLock(path, timeout=0), path.with_name(f"{path.name}.json")
    try:
        lock.acquire()
    except Timeout:
        raise ValueError(
            f"expected {what} for one run at a time, got {_holder(note)} at work in it; wait for "
            "that to end, stop it, or choose another folder."
        ) from None
    try:
        note.write_text(json.dumps(_me()), encoding="utf-8")
        yield
    finally:
        note.unlink(missing_ok=True)
        lock.release()


@contextmanager
def locked_by_first(path: Path, what: str, world: World) -> Iterator[None]:
    """The same for many processes that are one run: the first holds the lock, all learn of it."""
    with ExitStack() as stack:
        problem = ""
        if world.first:
            try:
                stack.enter_context(locked(path, what))
            except ValueError as error:
                problem = str(error)
        if problems := [said for said in world.gather(problem) if said]:
            raise ValueError(problems[0])
        yield


def _me() -> dict[str, str | int]:
    return {
        "process": os.getpid(),
        "machine": socket.gethostname(),
        "since": time.strftime("%Y-%m-%d %H:%M:%S %z"),
        "command": " ".join(sys.argv),
    }


def _holder(note: Path) -> str:
    """Who wrote a note."""
    try:
        said = json_object(note.read_text(encoding="utf-8", errors="replace"))
    except (OSError, ValueError):  # It is just being written, or that process just ends.
        return "another process"
    process, machine, since, command = (
        short(said.get(name, "?")) for name in ("process", "machine", "since", "command")
    )
    return f"process {process} on {machine} since {since} ({command})"
