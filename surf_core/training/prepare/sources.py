"""Find the videos of a folder or a list, name them, and identify them by their bytes."""

import logging
import os
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from hashlib import blake2b
from pathlib import Path
from stat import S_ISREG

from .storage import file_hash

log = logging.getLogger(__name__)

SUFFIXES = frozenset([
    ".3gp", ".apng", ".asf", ".avi", ".f4v", ".flv", ".gif", ".m2ts", ".m4v", ".mkv", ".mov",
    ".mp4", ".mpeg", ".mpg", ".mts", ".mxf", ".ogv", ".ts", ".vob", ".webm", ".wmv", ".y4m",
])  # fmt: skip
"""What a video's name ends with; an animated .webp is one too. Other files of a folder are counted
and named by kind, but for those that hold captions."""
BESIDE = frozenset([".csv", ".json", ".jsonl", ".lock", ".txt"])
"""What the name of a file with captions, or of a lock of ours, ends with."""
_KINDS = 8


@dataclass(frozen=True, kw_only=True, slots=True)
class Source:
    """A file that may be a video."""

    path: Path
    """Where it is."""
    name: str
    """Relative to the input's root, with "/"; bytes that are no UTF-8 are written as \\udcff"""
    size: int
    """Bytes; -1 where the file cannot be looked at."""
    changed: int
    """When it was last written, in nanoseconds."""
    content: str = ""
    """Hash of its bytes, 32 hex digits; "" where they cannot be read, or were not yet."""
    caption: str = ""
    """Words that belong to it."""


def _source(path: Path, root: Path) -> Source:
    inner = os.path.relpath(path, root).replace(os.sep, "/")
    name = inner.encode("utf-8", "backslashreplace").decode()
    try:
        stat = path.stat()
    except OSError:
        return Source(path=path, name=name, size=-1, changed=0)
    if not S_ISREG(stat.st_mode):
        return Source(path=path, name=name, size=-1, changed=0)
    return Source(path=path, name=name, size=stat.st_size, changed=stat.st_mtime_ns)


def _walk(folder: Path, skipped: Counter) -> Iterator[Path]:
    """Files below a folder; links are followed, last, and no folder is searched twice.

    Args:
        skipped: counts the files that are left out, by kind.
    """
    seen: dict[str, Path] = {}
    folders: list[Path] = [folder]
    links: list[Path] = []
    while folders or links:
        here = folders.pop() if folders else links.pop(0)
        real = os.path.realpath(here)
        if real in seen:
            log.warning("%s leads back to %s and is not followed", here, seen[real])
            continue
        seen[real] = here
        try:
            entries = sorted(os.scandir(here), key=lambda entry: entry.name)
        except OSError as error:
            log.warning("%s cannot be listed: %s", here, error)
            continue
        for entry in entries:
            path = Path(entry.path)
            kind = path.suffix.lower()
            if _is_folder(entry):
                (links if entry.is_symlink() else folders).append(path)
            elif kind in SUFFIXES or (kind == ".webp" and is_animated_webp(path)):
                yield path
            elif kind not in BESIDE:
                skipped[kind or "without a suffix"] += 1


def _is_folder(entry: os.DirEntry) -> bool:
    try:
        return entry.is_dir()
    except OSError:  # A link to itself.
        return False


def is_animated_webp(path: Path) -> bool:
    """Whether a file is a .webp of several pictures, by its header."""
    try:
        if not path.is_file():
            return False
        with path.open("rb") as file:
            head = file.read(21)
    except OSError:
        return False
    # RIFF, four bytes of size, WEBP, VP8X, four bytes of size, then flags.
    return head[:4] + head[8:16] == b"RIFFWEBPVP8X" and len(head) == 21 and bool(head[20] & 2)


def root_of(given: Path) -> Path:
    """The folder that names of sources are relative to: a folder itself, a file's folder else."""
    return given if given.is_dir() else given.parent


def find(given: Path) -> list[Source]:
    """List the videos of an input, sorted by name.

    Args:
        given: a folder, searched with all below it; a video; or a .txt that names a video a line,
            relative to its own folder.

    Raises:
        ValueError: no such input, or nothing in it that could be a video.
    """
    skipped: Counter = Counter()
    if given.is_dir():
        paths = list(_walk(given, skipped))
    elif given.suffix.lower() == ".txt" and given.is_file():
        lines = given.read_text(encoding="utf-8-sig").splitlines()
        paths = [given.parent / line.strip() for line in lines if line.strip()]
    else:
        paths = [given] if given.is_file() else []
    if skipped:
        kinds = ", ".join(f"{count} {kind}" for kind, count in skipped.most_common(_KINDS))
        rest = "" if len(skipped) <= _KINDS else f" and {len(skipped) - _KINDS} kinds more"
        log.warning("%s: not looked at, by their names: %s%s", given, kinds, rest)
    root = root_of(given)
    by_name = {source.name: source for source in (_source(path, root) for path in paths)}
    if not by_name:
        raise ValueError(
            f"expected videos ({', '.join(sorted(SUFFIXES))}) in {str(given)!r}, got none; pass a "
            "folder, a video, or a .txt with a path a line."
        )
    return sorted(by_name.values(), key=lambda source: source.name)


def of_part(sources: list[Source], part: int, parts: int) -> list[Source]:
    """The sources of part 1..parts, chosen by size: files with the same bytes stay together."""
    if not 1 <= part <= parts:
        raise ValueError(f"expected a part within 1 to {parts}, got {part=}; write e.g. 2/8.")

    def number(source: Source) -> int:
        return int.from_bytes(blake2b(str(source.size).encode()).digest()[:8], "big") % parts

    return [source for source in sources if number(source) == part - 1]


def content_hash(path: Path) -> str:
    """Hash a file's bytes: 32 hex digits, "" where they cannot be read."""
    try:
        if not S_ISREG(path.stat().st_mode):  # A pipe would be waited for.
            raise OSError("it is no regular file")
        return file_hash(path)
    except OSError as error:
        log.warning("%s cannot be read: %s", path, error)
        return ""


def content_hashes(paths: list[Path], threads: int) -> list[str]:
    """Hash files side by side; hashing lets go of Python's lock."""
    with ThreadPoolExecutor(max(1, threads)) as pool:
        return list(pool.map(content_hash, paths))
