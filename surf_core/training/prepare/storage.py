"""Write a file whole or not at all: under another name first, then onto the disk, then renamed."""

import os
from errno import EDQUOT, ENOSPC
from hashlib import blake2b
from pathlib import Path
from uuid import uuid4

_CHUNK = 2**20


def write_whole(path: Path, data: bytes, scratch: Path) -> None:
    """Write bytes so that `path` never holds a part of them, whenever the process is killed.

    Args:
        path: what to write or replace; its folder is made.
        data: all of it.
        scratch: folder for the unfinished file, on the same disk; made if it is missing.

    Raises:
        OSError: the disk is full, or refuses; then `path` is as it was and nothing is left behind.
    """
    unfinished = scratch / f"{path.name}.{uuid4().hex}"
    try:
        for folder in (scratch, path.parent):
            folder.mkdir(parents=True, exist_ok=True)
        with unfinished.open("xb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        os.replace(unfinished, path)
        _settle(path.parent)
    except OSError as error:
        unfinished.unlink(missing_ok=True)
        if error.errno not in (ENOSPC, EDQUOT):
            raise
        raise OSError(
            error.errno,
            f"expected room for {len(data)} bytes, got a full disk; what was complete is kept: "
            "free some space and run the same command again",
            str(path),
        ) from error


def _settle(folder: Path) -> None:
    """Put the new name onto the disk too; only POSIX lets a folder be opened for that."""
    if os.name != "posix":
        return
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def file_hash(path: Path) -> str:
    """Hash a file's bytes: 32 hex digits.

    Raises:
        OSError: it cannot be read.
    """
    state = blake2b(digest_size=16)
    with path.open("rb") as file:
        while chunk := file.read(_CHUNK):
            state.update(chunk)
    return state.hexdigest()


def clear(scratch: Path) -> int:
    """Delete what a killed run left unfinished, and return how many files that was."""
    left = [path for path in scratch.glob("*") if path.is_file()]
    for path in left:
        path.unlink(missing_ok=True)
    return len(left)
