"""Write and read the state of a sampling run as a .safetensors file, sealed against damage.

Dims: B batch; the other axes are the sampler's.
"""

import hashlib
import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from .header import FLOATS, Header, config_of, read_header, short, version_of, write

FORMAT = 1
VERSION_KEY, ABOUT_KEY, SEAL_KEY = "surf.run.format", "surf.run.config", "surf.run.seal"
ENDING = ".run.safetensors"
LATENT = "latent"


@dataclass(frozen=True, kw_only=True, slots=True)
class Progress:
    """How far a run is, and which run it is: all of a state but the latent."""

    graph: str
    """Digest of the graph above the node, without the numbers of nodes."""
    inputs: str
    """Digest of what was sampled: latents, masks, conditioning, settings."""
    files: str
    """Digest of the weight files' names, sizes and times."""
    versions: str
    """Of the host, of torch, of the pack, and the device."""
    done: int
    """Steps that are finished."""
    steps: int
    """Steps of the run."""
    tile: tuple[int, int]
    """Rows and columns of its tiles, latent cells."""
    most: int
    """Latent frames of a chunk at most."""

    def __post_init__(self) -> None:
        """Refuse a run that has nothing to go on from, or nothing left to do."""
        if not 0 < self.done < self.steps:
            raise ValueError(f"{self.done} of {self.steps} steps done")
        if min(*self.tile, self.most) < 1:
            raise ValueError(f"tiles of {self.tile} and chunks of {self.most}")


def digest(value: Any) -> str:
    """Return a digest of tensors, numbers and texts in lists and dictionaries, bit for bit.

    Of other objects, such as models, only the class counts.
    """
    sha = hashlib.sha256()
    _feed(sha, value)
    return sha.hexdigest()[:32]


def _feed(sha: Any, value: Any) -> None:
    if isinstance(value, Tensor):
        sha.update(f"tensor {value.dtype} {tuple(value.shape)};".encode())
        # A view as bytes needs an axis.
        flat = value.detach().cpu().contiguous().reshape(-1)
        sha.update(flat.view(torch.uint8).numpy().data)
    elif isinstance(value, Mapping):
        sha.update(f"map {len(value)};".encode())
        for key in sorted(value, key=str):
            _feed(sha, str(key))
            _feed(sha, value[key])
    elif isinstance(value, list | tuple):
        sha.update(f"list {len(value)};".encode())
        for each in value:
            _feed(sha, each)
    elif value is None or isinstance(value, bool | int | float | str):
        text = repr(value).encode()
        sha.update(f"{type(value).__name__} {len(text)};".encode() + text)
    else:
        sha.update(f"object {type(value).__qualname__};".encode())


def save_state(path: Path, latent: Tensor, progress: Progress) -> None:
    """Write a state, whole or not at all.

    Args:
        latent: [B, ...], the sampler's, after the steps that are done.

    Raises:
        ValueError: NaN or infinity.
        OSError: a folder that is full or must not be written to.
    """
    about = json.dumps(asdict(progress), sort_keys=True)
    metadata = {VERSION_KEY: str(FORMAT), ABOUT_KEY: about, SEAL_KEY: digest([about, latent])}
    write(path, {LATENT: latent}, metadata)


def read_progress(path: Path) -> Progress:
    """Read all of a state but the latent, from the file's header; the seal is not checked.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: no state of ours, one of a newer format, or a damaged one.
    """
    return _progress(read_header(path))


def load_state(path: Path) -> tuple[Progress, Tensor]:
    """Read a state that `save_state` wrote, bit for bit.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: no state of ours, one of a newer format, or a damaged one.
    """
    header = read_header(path)
    progress = _progress(header)
    latent = header.tensors()[LATENT]
    if digest([header.metadata[ABOUT_KEY], latent]) != header.metadata.get(SEAL_KEY):
        raise ValueError(
            f"expected the seal of what {short(path)} holds, got another; the file is damaged, "
            "delete it."
        )
    return progress, latent


def _progress(header: Header) -> Progress:
    metadata, path = header.metadata, header.path
    if not {VERSION_KEY, ABOUT_KEY} <= metadata.keys():
        raise ValueError(
            f"expected the state of a run in {short(path)}, got another file; delete it."
        )
    version_of(metadata[VERSION_KEY], FORMAT, path)
    try:
        progress = config_of(Progress, metadata[ABOUT_KEY])
        if list(header.dtypes) != [LATENT] or header.dtypes[LATENT] not in FLOATS:
            raise ValueError(f"tensors {short(dict(header.dtypes))}")
    except ValueError as error:
        raise ValueError(
            f"expected the state of a run in {short(path)}, got {short(error)}; the file is "
            "damaged, delete it."
        ) from error
    return progress
