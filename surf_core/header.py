"""Read and write .safetensors files of ours strictly: nothing is built before it is bounded.

A file says in its metadata what it holds, a frozen config in JSON. Its types are those of the
config's fields, and its numbers are bounded by the keys and sizes in the header: a damaged file
is refused in milliseconds, whatever it asks for.
"""

import json
import os
import re
import shutil
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import MISSING, Field, dataclass, fields
from math import prod
from pathlib import Path
from types import UnionType
from typing import Any, ClassVar, Protocol, TypeVar, get_args, get_origin

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

MOST_BYTES = 2**22
"""Of a header; a model of 1000 tensors takes 2**17."""
MOST_KEYS = 10_000
"""Tensors of a file."""
MOST_TEXT = 2**18
"""Characters of a piece of JSON."""
DEEPEST = 16
"""Levels of a piece of JSON."""
LISTED = 20
"""Keys that an error names."""
UNFINISHED = ".tmp"
"""Ending of a folder in which a file is made."""
LONGEST_SAVE = 3600
"""Seconds after which a save that is not done was killed."""
DOWNLOAD = "download it again"
"""What to do about a damaged file that others publish."""
FLOATS = ("F64", "F32", "F16", "BF16", "F8_E4M3", "F8_E5M2")
"""Dtypes of weights, in the words of the format."""
_WHOLE = 2**53
"""Bound of any number, so that products and texts of numbers stay small."""
_SHORT, _LONG = 100, 1200

Shapes = Mapping[str, tuple[int, ...]]


class Dataclass(Protocol):
    """Any dataclass."""

    __dataclass_fields__: ClassVar[dict[str, Field[Any]]]


Config = TypeVar("Config", bound=Dataclass)


@dataclass(frozen=True, kw_only=True, slots=True)
class Header:
    """The header of a file: metadata, shapes and dtypes, without tensors."""

    path: Path
    """Where it is."""
    metadata: Mapping[str, str]
    """Texts by name."""
    shapes: Shapes
    """Shape of each tensor, by name."""
    dtypes: Mapping[str, str]
    """Dtype of each tensor, by name, in the words of the format."""
    remedy: str = DOWNLOAD
    """What to do where the file turns out to be damaged."""

    def check_room(self, blocks: int, elements: Mapping[str, int]) -> None:
        """Refuse a config for more than the file can hold.

        Args:
            blocks: of the model, each with a key at least.
            elements: of some weights of the model, by a name that says which.

        Raises:
            ValueError: more blocks than keys, or a weight larger than all of them together.
        """
        if blocks > len(self.shapes):
            raise ValueError(f"{blocks} blocks where the file has {len(self.shapes)} keys")
        room = sum(prod(shape) for shape in self.shapes.values())
        for name, count in elements.items():
            if count > room:
                raise ValueError(f"{name} = {count} where the file has {room} numbers in all")

    def misfits(self, expected: Shapes) -> list[str]:
        """List missing, unexpected and misshapen keys, and dtypes that are no weights'."""
        return mismatches(expected, self.shapes) + [
            f"{short(name)} is of dtype {kind}, expected floating point"
            for name, kind in sorted(self.dtypes.items())
            if name in expected and kind not in FLOATS
        ]

    def tensors(self) -> dict[str, Tensor]:
        """Read all tensors."""
        with _opened(self.path, self.remedy) as file:
            return {name: file.get_tensor(name) for name in self.shapes}

    def weights(self) -> dict[str, Tensor]:
        """Read all tensors.

        Raises:
            ValueError: one of them has NaN or infinity.
        """
        tensors = self.tensors()
        check_finite(tensors, self.path)
        return tensors


def read_header(path: Path, remedy: str = DOWNLOAD) -> Header:
    """Read the header of a file; no tensor is loaded.

    Args:
        remedy: what to do about a damaged one, for errors.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: no .safetensors file, one that cannot be read, or one with more keys than any
            of ours.
    """
    path = Path(path)
    if not path.exists():
        raise FileNotFoundError(
            f"expected weights at {short(path)}, found nothing; restore the file, or download it."
        )
    if not path.is_file():
        raise ValueError(f"expected a .safetensors file, {short(path)} is no file; choose one.")
    with _readable(path), path.open("rb") as file:
        size = int.from_bytes(file.read(8), "little")
    if size > MOST_BYTES:
        raise ValueError(
            f"expected a .safetensors file with a header of at most {MOST_BYTES} bytes, "
            f"{short(path)} is not one: got {size}; it is not ours, or damaged: {remedy}."
        )
    with _opened(path, remedy) as file:
        names = list(file.keys())
        if len(names) > MOST_KEYS:
            raise ValueError(
                f"expected at most {MOST_KEYS} keys, got {len(names)} in {short(path)}; it is "
                "not ours, use the loader of its kind."
            )
        slices = {name: file.get_slice(name) for name in names}
        return Header(
            path=path,
            metadata=file.metadata() or {},
            shapes={name: tuple(one.get_shape()) for name, one in slices.items()},
            dtypes={name: str(one.get_dtype()) for name, one in slices.items()},
            remedy=remedy,
        )


@contextmanager
def _opened(path: Path, remedy: str) -> Iterator[Any]:
    try:
        with _readable(path), safe_open(path, "pt") as file:
            yield file
    except SafetensorError as error:
        raise ValueError(
            f"expected a .safetensors file, {short(path)} is not one: {short(error)}; {remedy}."
        ) from error


@contextmanager
def _readable(path: Path) -> Iterator[None]:
    """Say what to do where a file is there and cannot be read."""
    try:
        yield
    except OSError as error:
        raise ValueError(
            f"expected to read {short(path)}, got: {error.strerror or error}; let this program "
            "read the file, or put it elsewhere."
        ) from error


def version_of(text: str, newest: int, header: Header) -> int:
    """The version of a format, from 1, as the metadata of a file says it.

    Raises:
        ValueError: no number, or a newer one than `newest`.
    """
    known = text.isascii() and text.isdecimal() and len(text) < 10 and int(text) > 0
    if not known:
        raise ValueError(
            f"expected a format from 1 to {newest}, got {short(text)} in {short(header.path)}; the "
            f"file is damaged: {header.remedy}."
        )
    if int(text) > newest:
        raise ValueError(
            f"expected format {newest} or older, got {text} in {short(header.path)}; update the "
            "pack."
        )
    return int(text)


def json_object(text: str, most: int = MOST_TEXT) -> dict[str, Any]:
    """Parse an object in JSON.

    Raises:
        ValueError: another value, a text of more than `most` characters, or one nested deeply.
    """
    if len(text) > most:
        raise ValueError(f"{len(text)} characters of JSON, at most {most} are read")
    depth, quoted = 0, False
    for mark in re.finditer(r'\\.|["\[\]{}]', text, re.DOTALL):
        if mark[0] == '"':
            quoted = not quoted
        elif not quoted and mark[0] in "[]{}":
            depth += 1 if mark[0] in "[{" else -1
            if depth > DEEPEST:
                raise ValueError(f"JSON nested more than {DEEPEST} deep")
    value = json.loads(text)
    if not isinstance(value, dict):
        raise ValueError(f"{type(value).__name__} where JSON should hold an object")
    return value


def config_of(kind: type[Config], text: str) -> Config:
    """Build a frozen config from JSON; fields that it lacks have their defaults.

    Raises:
        ValueError: unknown or missing fields, or a value that is not of its field's type.
    """
    values, known = json_object(text), {field.name: field for field in fields(kind)}
    if unknown := sorted(values.keys() - known.keys()):
        raise ValueError(f"unknown fields {listed(unknown, ', ')}")
    lacking = (name for name, field in known.items() if field.default is MISSING)
    if missing := [name for name in lacking if name not in values]:
        raise ValueError(f"missing fields {listed(missing, ', ')}")
    return kind(**{name: _typed(value, known[name].type, name) for name, value in values.items()})


def _typed(value: Any, kind: Any, name: str) -> Any:
    """A value of JSON as one of a field's type, of these alone: int, float, str, tuple, or None."""
    if get_origin(kind) is UnionType:
        return None if value is None else _typed(value, get_args(kind)[0], name)
    if get_origin(kind) is tuple:
        inner = get_args(kind)
        if type(value) is not list or len(value) != len(inner):
            raise ValueError(f"{name} must be a list of {len(inner)}, got {short(value)}")
        return tuple(_typed(*one, name) for one in zip(value, inner, strict=True))
    words = {int: "a whole number", float: "a finite number", str: "a short word"}[kind]
    good = {int: (int,), float: (int, float), str: (str,)}[kind]
    size = len(value) / _SHORT if isinstance(value, str) else 0
    if type(value) in (int, float):
        size = abs(value) / _WHOLE if type(value) is float else abs(value) // _WHOLE
    # Written so that NaN does not pass; a bool is no number.
    if type(value) not in good or not size < 1:
        raise ValueError(f"{name} must be {words}, got {short(value)}")
    return value


def repeated(shapes: Shapes, count: int, prefix: str = "blocks.") -> dict[str, tuple[int, ...]]:
    """Shapes of a model of `count` equal blocks, from those of a model that has one."""
    first = f"{prefix}0."
    found: dict[str, tuple[int, ...]] = {}
    for name, shape in shapes.items():
        if name.startswith(first):
            rest = name.removeprefix(first)
            found |= {f"{prefix}{index}.{rest}": shape for index in range(count)}
        else:
            found[name] = shape
    return found


def shapes_of(module: nn.Module) -> dict[str, tuple[int, ...]]:
    """Shape of every weight of a model, by name."""
    return {name: tuple(weight.shape) for name, weight in module.state_dict().items()}


def mismatches(expected: Shapes, found: Shapes) -> list[str]:
    """List missing, unexpected and misshapen keys, one sentence each."""
    lines = [f"missing {name}" for name in sorted(expected.keys() - found.keys())]
    lines += [f"unexpected {short(name)}" for name in sorted(found.keys() - expected.keys())]
    for name in sorted(expected.keys() & found.keys()):
        if expected[name] != found[name]:
            lines.append(f"{name} is {short(found[name])}, expected {expected[name]}")
    return lines


def short(value: object) -> str:
    """A value as text, its middle left out where it is long."""
    try:
        text = value if isinstance(value, str) else str(value)
    except ValueError:  # A whole number of more digits than Python writes.
        return f"a {type(value).__name__} of many digits"
    most = 3 * _SHORT if isinstance(value, Path) else _SHORT
    return text if len(text) <= most else f"{text[: most // 2]}...{text[-most // 2 :]}"


def listed(lines: Sequence[str], between: str = "; ") -> str:
    """Lines one after the other: the first `LISTED`, fewer of long ones, and how many are left."""
    parts, length = [], 0
    for line in lines[:LISTED]:
        length += len(short(line))
        if length > _LONG:
            break
        parts.append(short(line))
    rest = len(lines) - len(parts)
    return between.join([*parts, f"and {rest} more"] if rest else parts)


def check_finite(weights: Mapping[str, Tensor], path: Path) -> None:
    """Refuse weights with NaN or infinity.

    Raises:
        ValueError: with the tensors' names.
    """
    wide = {torch.float8_e4m3fn, torch.float8_e5m2}
    bad = [
        key
        for key, weight in weights.items()
        if not torch.isfinite(weight.float() if weight.dtype in wide else weight).all()
    ]
    if bad:
        raise ValueError(
            f"expected finite weights in {short(path)}, got NaN or infinity in {len(bad)} of "
            f"{len(weights)} tensors: {listed(bad)}; the file is damaged, or its training "
            "diverged: use another."
        )


def write(path: Path, weights: Mapping[str, Tensor], metadata: Mapping[str, str]) -> None:
    """Write a file, whole or not at all; equal arguments give equal bytes.

    Raises:
        ValueError: NaN or infinity, of a cast to half precision for one.
        OSError: a folder that is full or must not be written to.
    """
    check_finite(weights, path)
    path = Path(path)
    folder = unfinished(path)
    discard(folder)
    try:
        folder.mkdir()
        _write(folder / "file", weights, metadata)
        # safetensors lets nobody but the owner read what it writes.
        (folder / "file").chmod(folder.stat().st_mode & 0o666)
        os.replace(folder / "file", path)
    except SafetensorError as error:
        raise OSError(short(error)) from error
    finally:
        discard(folder)


def unfinished(path: Path) -> Path:
    """Name the folder beside a file in which `write` makes it: it outlives only a killed process.

    A folder, as safetensors makes a hidden file of another name at every try.
    """
    return path.with_name(f"{path.name}{UNFINISHED}")


def was_killed(path: Path) -> bool:
    """Tell by its age whether nobody goes on with what is unfinished; another may be done now."""
    try:
        return time.time() - path.stat().st_mtime > LONGEST_SAVE
    except OSError:
        return False


def discard(path: Path) -> None:
    """Remove a file, or a folder with what is in it, as far as that can be done."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path, ignore_errors=True)
    else:
        with suppress(OSError):
            path.unlink(missing_ok=True)


def _write(path: Path, weights: Mapping[str, Tensor], metadata: Mapping[str, str]) -> None:
    save_file({name: w.contiguous() for name, w in weights.items()}, path, dict(metadata))
    with path.open("r+b") as file:
        size = int.from_bytes(file.read(8), "little")
        header = json.loads(file.read(size))
        # safetensors leaves the order of metadata to chance.
        header["__metadata__"] = dict(sorted(header["__metadata__"].items()))
        text = json.dumps(header, separators=(",", ":"), ensure_ascii=False).encode()
        assert len(text) <= size, "the same entries in another order take the same room"
        file.seek(8)
        file.write(text.ljust(size))
        file.flush()
        # Else a power cut could leave an empty file under the final name.
        os.fsync(file.fileno())
