"""Find undamaged checkpoints, and read their metadata without running code from them.

Checksums detect damage, not attack: who can write into a folder can write its checksums too. The
one pickle in a checkpoint, DCP's `.metadata`, is read by an unpickler that finds the classes of DCP
and of torch's sizes and dtypes alone, so that a planted file is refused and runs nothing.
"""

import json
import pickle
import re
from hashlib import blake2b
from pathlib import Path
from typing import Any

import torch
import torch.distributed.checkpoint as dcp
from torch.distributed.checkpoint.metadata import Metadata, TensorStorageMetadata

from ..header import json_object, short
from .distributed import World
from .prepare.storage import file_hash

MARKER = "complete.json"
"""What a folder with all its files has."""
FORMAT = 2
"""Of the marker; 1 had no checksums."""
METADATA = ".metadata"
"""DCP's file that says where the pieces of the tensors lie."""
_MOST_TEXT = 2**24
_BROKEN = (AttributeError, EOFError, ImportError, IndexError, KeyError, TypeError, ValueError)
_NAME = re.compile(r"step-(\d{6,})")
_FINDS = {
    "torch.distributed.checkpoint.metadata": (
        "Metadata", "TensorStorageMetadata", "TensorProperties", "ChunkStorageMetadata",
        "MetadataIndex", "StorageMeta", "_MEM_FORMAT_ENCODING",
    ),
    "torch.distributed.checkpoint.filesystem": ("_StorageInfo",),
    "torch.serialization": ("_get_layout",),
    "torch": ("Size",),
    "pathlib": ("PosixPath", "WindowsPath"),
    "pathlib._local": ("PosixPath", "WindowsPath"),
}  # fmt: skip


def complete(out: Path) -> list[Path]:
    """Checkpoints that say that they have all their files, oldest first."""
    checkpoints = [path for path in _folders(out) if _NAME.fullmatch(path.name)]
    return sorted((path for path in checkpoints if (path / MARKER).exists()), key=step_of)


def half_written(out: Path) -> list[Path]:
    """Checkpoints that were never finished, or whose removal was not."""
    whole = set(complete(out))
    return [
        path
        for path in _folders(out)
        if _NAME.fullmatch(path.name.removesuffix(".tmp")) and path not in whole
    ]


def strangers(out: Path) -> list[Path]:
    """Folders with almost the name of a checkpoint: somebody's copies, which are left alone."""
    return [path for path in _folders(out) if not _NAME.fullmatch(path.name.removesuffix(".tmp"))]


def _folders(out: Path) -> list[Path]:
    return sorted(path for path in out.glob("step-*") if path.is_dir())


def step_of(path: Path) -> int:
    """Steps that a checkpoint of this name has done."""
    return int(path.name.removeprefix("step-"))


def marker(step: int, checksums: dict[str, str], notes: dict[str, Any]) -> str:
    """The text of a marker."""
    record = {"format": FORMAT, "step": step, "checksums": checksums, **notes}
    return json.dumps(record | {"checksum": _checksum(record)})


def _checksum(record: dict[str, Any]) -> str:
    text = json.dumps(record, sort_keys=True)
    return blake2b(text.encode(), digest_size=16).hexdigest()


def read_marker(path: Path) -> dict[str, Any]:
    """What a checkpoint notes; of another format, as it is.

    Raises:
        ValueError: it is damaged.
    """
    # What is no text becomes something that is no JSON of ours.
    text = (path / MARKER).read_text(encoding="utf-8", errors="replace")
    record = json_object(text, _MOST_TEXT)
    if type(record.get("format")) is int and record["format"] != FORMAT:
        return record
    checksum = record.pop("checksum", "")
    if checksum != _checksum(record) or not isinstance(record.get("checksums"), dict):
        raise ValueError(f"{MARKER} is not as it was written")
    if record.get("step") != step_of(path):
        raise ValueError(f"{MARKER} is of step {record.get('step')}")
    return record


def damage(path: Path, world: World) -> str:
    """What is wrong with a checkpoint, "" for nothing; each process looks at a share of its files.

    Raises:
        OSError: a file that is there cannot be read.
    """
    try:
        record = read_marker(path)
        if record["format"] != FORMAT:
            return ""
        names = sorted(record["checksums"])
        # The metadata first, and by each process: all of them read it.
        for name in (METADATA, *names[world.rank :: world.size]):
            _check_file(path / Path(name).name, record["checksums"].get(name))
        MetadataReader(path).read_metadata()
    except (ValueError, pickle.UnpicklingError) as error:
        return short(error)
    return ""


def _check_file(path: Path, checksum: str | None) -> None:
    if not path.is_file():
        raise ValueError(f"{short(path.name)} is missing")
    if file_hash(path) != checksum:
        raise ValueError(f"{short(path.name)} has other bytes than it was written with")


class _Unpickler(pickle.Unpickler):
    """Finds what the metadata of tensors is made of, and nothing else."""

    def find_class(self, module: str, name: str) -> Any:
        if name in _FINDS.get(module, ()):
            return super().find_class(module, name)
        if module == "torch" and isinstance(found := getattr(torch, name, None), torch.dtype):
            return found
        raise pickle.UnpicklingError(f"{METADATA} asks for {module}.{name}")


class MetadataReader(dcp.FileSystemReader):
    """Reads tensors of a folder, and its metadata without running any of it."""

    def read_metadata(self, *args: Any, **kwargs: Any) -> Metadata:
        """Read the metadata.

        Raises:
            pickle.UnpicklingError: it asks for more than metadata is made of.
        """
        with (Path(self.path) / METADATA).open("rb") as file:
            try:
                metadata = _Unpickler(file).load()
            except _BROKEN as error:
                raise pickle.UnpicklingError(f"{METADATA} cannot be read: {error!r}") from error
        entries = (
            metadata.state_dict_metadata.values() if isinstance(metadata, Metadata) else [None]
        )
        if not all(isinstance(entry, TensorStorageMetadata) for entry in entries):
            # Of anything else DCP would unpickle the contents.
            raise pickle.UnpicklingError(f"{METADATA} has more than tensors")
        places = {str(info.relative_path) for info in (metadata.storage_data or {}).values()}
        if any(Path(place).name != place for place in places):
            raise pickle.UnpicklingError(f"{METADATA} names files elsewhere")
        if metadata.storage_meta is not None:
            metadata.storage_meta.load_id = self.load_id
        return metadata
