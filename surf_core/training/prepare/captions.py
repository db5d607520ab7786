"""Find the words that belong to a video, in files beside it.

The first of these that has any text wins: `clip.txt`; `clip.json`; then a table, in the video's
folder and then in the input's: `captions.jsonl`; `captions.csv`. JSON has the text under "caption".
A table names the video under "file", relative to the table's own folder. Text is UTF-8, with or
without a byte order mark; runs of white space count as one space.
"""

import csv
import logging
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, TypeVar

from ...header import json_object

log = logging.getLogger(__name__)

_MOST = 2**24
"""Characters of a side file in JSON, which may hold more than a caption."""

Content = TypeVar("Content")

TABLES = ("captions.jsonl", "captions.csv")


class Captions:
    """Captions of the videos below a folder; tables are read once.

    Args:
        root: the input folder.
    """

    def __init__(self, root: Path):
        self.root = root
        self.broken: list[Path] = []
        """Side files, or lines of tables, that could not be used; logged too."""
        self._tables: dict[Path, dict[str, str]] = {}

    def of(self, video: Path) -> str:
        """The caption of a video, "" if there is none."""
        for read, path in ((_text, video.with_suffix(".txt")), (_json, video.with_suffix(".json"))):
            if caption := self._try(read, path):
                return caption
        for folder in dict.fromkeys((video.parent, self.root)):
            name = video.relative_to(folder).as_posix() if video.is_relative_to(folder) else ""
            for table in TABLES:
                if caption := self._table(folder / table).get(name):
                    return caption
        return ""

    def _try(self, read: Callable[[Path], Content], path: Path) -> Content | None:
        try:
            return read(path) if path.is_file() else None
        except (OSError, ValueError, csv.Error) as error:
            self._report(path, error)
            return None

    def _report(self, path: Path, error: object) -> None:
        self.broken.append(path)
        log.warning("%s is no caption: %s", path, error)

    def _table(self, path: Path) -> dict[str, str]:
        if path not in self._tables:
            rows: Sequence[str | dict] | None
            if path.suffix == ".csv":
                rows = self._try(_csv_rows, path)
            else:
                rows = self._try(_json_rows, path)
            self._tables[path] = {}
            for number, row in enumerate(rows or (), 1):
                try:
                    name, words = _pair(row)
                except ValueError as error:
                    self._report(path, f"entry {number}: {error}")
                else:
                    self._tables[path].setdefault(name, words)
        return self._tables[path]


def _read(path: Path) -> str:
    return path.read_text(encoding="utf-8-sig")


def _text(path: Path) -> str:
    return " ".join(_read(path).split())


def _json(path: Path) -> str:
    return _caption(json_object(_read(path), _MOST))


def _caption(record: object) -> str:
    words = record.get("caption", "") if isinstance(record, dict) else None
    if not isinstance(words, str):
        raise ValueError(f'expected {{"caption": "text"}}, got {str(record)[:60]!r}')
    return " ".join(words.split())


def _pair(row: Any) -> tuple[str, str]:
    """(name, caption) of a table's row, a mapping or a line of JSON."""
    record = json_object(row) if isinstance(row, str) else row
    name = record.get("file") if isinstance(record, dict) else None
    if not isinstance(name, str) or not name:
        raise ValueError(f'expected "file" and "caption", got {str(record)[:60]!r}')
    return name.removeprefix("./"), _caption(record)


def _json_rows(path: Path) -> list[str]:
    # Not splitlines(): JSON may hold U+2028 inside its text.
    return [line for line in _read(path).split("\n") if line.strip()]


def _csv_rows(path: Path) -> list[dict]:
    with path.open(encoding="utf-8-sig", newline="") as file:
        return list(csv.DictReader(file))
