"""The folder of shards: one file a clip, a small part file a video, one manifest of everything.

    clips/<key[:2]>/<key>.safetensors   a clip
    parts/<content>.json                a finished video: its rows; written after its clips
    options.json                        what all of them were made with
    manifest.parquet                    the rows of all parts, sorted by (source, index)

A part is the only progress there is: what has none is done again, with the same keys and bytes.
"""

import json
import logging
import re
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass
from hashlib import blake2b
from io import BytesIO
from math import isfinite
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from ...checks import check_choice
from ...header import json_object, short
from .options import differences
from .sources import content_hash
from .storage import write_whole

log = logging.getLogger(__name__)

SCHEMA = pa.schema(
    {
        "key": pa.string(),
        "source": pa.string(),
        "index": pa.int32(),
        "scene": pa.int32(),
        "start": pa.float64(),
        "frames": pa.int32(),
        "rows": pa.int32(),
        "columns": pa.int32(),
        "bucket": pa.string(),
        "caption": pa.string(),
        "reasons": pa.list_(pa.string()),
        "numbers": pa.string(),
        "degradation": pa.string(),
        "content": pa.string(),
        "checksum": pa.string(),
    }
)
KINDS = ("clips", "duplicate", "unread")
_MOST = 2**26
"""Characters of a part: of a film of thousands of clips, 2**22."""
_KEY = re.compile(r"[0-9a-f]{32}")


@dataclass(frozen=True, kw_only=True, slots=True)
class Row:
    """A clip, kept or rejected; or, with index -1, what there is to say against a whole file."""

    key: str
    """Names the clip: see `key_of`."""
    source: str
    """Its video, relative to the input."""
    content: str
    """Hash of the video's bytes; "" if they cannot be read."""
    index: int = -1
    """Number of the clip in its video."""
    scene: int = -1
    """Number of the scene in its video."""
    start: float = 0.0
    """Seconds, of the video's own clock."""
    frames: int = 0
    """Frames of the clip."""
    rows: int = 0
    """Pixels of the video, before it is brought to its bucket."""
    columns: int = 0
    """Pixels of the video, before it is brought to its bucket."""
    bucket: str = ""
    """Rows x columns x frames, as in "704x1280x81"; "" if rejected."""
    caption: str = ""
    """Words that belong to the video."""
    reasons: tuple[str, ...] = ()
    """What speaks against it; empty if it is kept."""
    numbers: str = "{}"
    """What was measured, JSON."""
    degradation: str = ""
    """What was done to the low-resolution clip, JSON of a `Degradation`."""
    checksum: str = ""
    """Hash of the shard's bytes; "" if there is none."""

    @property
    def accepted(self) -> bool:
        return not self.reasons

    def to_json(self) -> str:
        """All of it but for the checksum, which is of what holds this text."""
        record = asdict(self)
        del record["checksum"]
        return json.dumps(record, sort_keys=True)

    @classmethod
    def from_json(cls, text: str) -> "Row":
        record = json.loads(text)
        return cls(**{**record, "reasons": tuple(record["reasons"])})


@dataclass(frozen=True, kw_only=True, slots=True)
class Part:
    """Everything known of one video."""

    kind: str
    """clips; duplicate, of a video with the same bytes; unread, to be tried again."""
    source: str
    """Relative to the input."""
    size: int
    """Bytes."""
    changed: int
    """When it was last written, in nanoseconds."""
    content: str
    """Hash of its bytes."""
    caption: str
    """What its clips were captioned with."""
    rows: tuple[Row, ...]
    """A row a clip, then perhaps one for the file."""

    def __post_init__(self) -> None:
        check_choice(self.kind, "kind", KINDS)

    @property
    def name(self) -> str:
        if self.kind == "clips":
            return self.content
        return f"{self.kind}-{blake2b(self.source.encode(), digest_size=16).hexdigest()}"


def key_of(content: str, index: int, options: str) -> str:
    """Name a clip by the hashes of its video and of the options: 32 hex digits, on any machine."""
    return blake2b(f"{content}/{index}/{options}".encode(), digest_size=16).hexdigest()


def as_numbers(numbers: Mapping) -> str:
    """JSON of what was measured; numbers that are not finite become null."""
    plain = {
        name: None if isinstance(value, float) and not isfinite(value) else value
        for name, value in numbers.items()
    }
    return json.dumps(plain, sort_keys=True)


class Folder:
    """Where shards, parts and the manifest lie.

    Args:
        root: the folder; made when something is written.
        scratch: name of the folder below tmp/ for unfinished files; one for each process that runs
            beside others.
    """

    def __init__(self, root: Path, scratch: str = "1-1"):
        self.root, self.scratch = Path(root), Path(root) / "tmp" / scratch

    @property
    def manifest(self) -> Path:
        return self.root / "manifest.parquet"

    def shard(self, key: str) -> Path:
        """Where a clip lies.

        Raises:
            ValueError: a key that is none; the name of a file elsewhere, for one.
        """
        if not _KEY.fullmatch(key):
            raise ValueError(
                f"expected a key of 32 hex digits in {self.root}, got {short(key)}; write the "
                "manifest anew with surf_core.training.prepare --assemble."
            )
        return self.root / "clips" / key[:2] / f"{key}.safetensors"

    def write(self, path: Path, data: bytes) -> None:
        """Write a file whole or not at all; see `write_whole`."""
        write_whole(path, data, self.scratch)

    def identity(self) -> dict:
        """What the folder was prepared with; {} for a new one."""
        path = self.root / "options.json"
        if not path.exists():
            return {}
        try:
            return json_object(path.read_text(encoding="utf-8"))
        except ValueError as error:
            raise ValueError(
                f"expected options in {path}, got {short(error)}; it is damaged: prepare into a "
                "new folder, or write it anew from one with the same options."
            ) from error

    def claim(self, identity: dict) -> None:
        """Make the folder one of these options.

        Raises:
            ValueError: it was prepared with others.
        """
        if not self.identity():
            text = json.dumps(identity, indent=1, sort_keys=True) + "\n"
            self.write(self.root / "options.json", text.encode())
        if found := differences(self.identity(), identity):
            raise ValueError(
                f"expected a new folder or the options of {self.root}, got others ("
                f"{'; '.join(found)}); choose another folder, or the same options."
            )

    def _part(self, name: str) -> Path:
        return self.root / "parts" / f"{name}.json"

    def save(self, part: Part) -> None:
        """Record a finished video; its clips must be on the disk."""
        self.write(self._part(part.name), (json.dumps(asdict(part), sort_keys=True)).encode())

    def drop(self, part: Part) -> None:
        """Forget a video."""
        self._part(part.name).unlink(missing_ok=True)

    def parts(self) -> list[Part]:
        """All finished videos; a file that is none is reported and counts as not there."""
        parts = []
        for path in sorted((self.root / "parts").glob("*.json")):
            try:
                record = json_object(path.read_text(encoding="utf-8"), _MOST)
                rows = tuple(
                    Row(**{**row, "reasons": tuple(row["reasons"])}) for row in record["rows"]
                )
                part = Part(**{**record, "rows": rows})
                if self._part(part.name) != path:  # Which may lead out of the folder.
                    raise ValueError(f"it is the part {short(part.name)}")
                parts.append(part)
            except (ValueError, TypeError, KeyError) as error:
                log.warning("%s is no part and is not counted: %s", path, error)
        return parts

    def complete(self, part: Part) -> bool:
        """Whether all clips of a part are there, with the bytes that they were written with."""
        for row in part.rows:
            if not row.accepted:
                continue
            path = self.shard(row.key)
            if not path.is_file():
                log.warning("%s is missing and is made again", path)
                return False
            if content_hash(path) != row.checksum:
                log.warning("%s has other bytes than it was written with, it is made again", path)
                return False
        return True

    def assemble(self) -> list[Row]:
        """Write the manifest of all parts so far, and return its rows.

        Rows are sorted, so its bytes depend on what is finished, not on who did it or when.

        Raises:
            OSError: the disk is full.
        """
        rows = sorted(_rows(self.parts()), key=lambda row: (row.source, row.index))
        table = pa.Table.from_pylist([asdict(row) for row in rows], schema=SCHEMA)
        buffer = BytesIO()
        pq.write_table(table, buffer, compression="zstd", write_page_checksum=True)
        self.write(self.manifest, buffer.getvalue())
        return rows


def _rows(parts: Iterable[Part]) -> list[Row]:
    """Rows of parts; a duplicate or an unread file that was read since counts no more."""
    by_kind: dict[str, list[Part]] = {"clips": [], "duplicate": [], "unread": []}
    for part in parts:
        by_kind[part.kind].append(part)
    contents = {part.content for part in by_kind["clips"]}
    sources = {part.source for part in by_kind["clips"]}
    valid = list(by_kind["clips"])
    for part in by_kind["duplicate"] + by_kind["unread"]:
        known = part.kind == "unread" or part.content in contents
        if known and part.source not in sources:
            valid.append(part)
            sources.add(part.source)
    return [row for part in valid for row in part.rows]


def read(root: Path) -> list[Row]:
    """The rows of a folder's manifest, sorted.

    Raises:
        FileNotFoundError: it has none.
        ValueError: it is damaged, or names files elsewhere.
    """
    folder = Folder(root)
    path = folder.manifest
    if not path.exists():
        raise FileNotFoundError(
            f"expected {path}, got no such file; prepare the folder with "
            "surf_core.training.prepare, or finish with --assemble."
        )
    try:
        records = pq.read_table(path, page_checksum_verification=True).to_pylist()
        rows = [Row(**{**record, "reasons": tuple(record["reasons"])}) for record in records]
    except (pa.ArrowException, OSError, ValueError, TypeError, KeyError) as error:
        raise ValueError(
            f"expected a manifest, {path} is damaged: {short(error)}; write it anew with "
            "surf_core.training.prepare --assemble."
        ) from error
    for row in rows:
        folder.shard(row.key)
    return rows
