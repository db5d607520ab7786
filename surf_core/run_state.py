"""Write and read the state of a sampling run as a .safetensors file, sealed against damage.

Dims: B batch; the other axes are the sampler's.
"""

import json
from dataclasses import asdict, dataclass
from pathlib import Path

from torch import Tensor

from .digest import digest
from .header import FLOATS, Header, config_of, read_header, short, version_of, write

FORMAT = 1
VERSION_KEY, ABOUT_KEY, SEAL_KEY = "surf.run.format", "surf.run.config", "surf.run.seal"
ENDING = ".run.safetensors"
LATENT = "latent"
_REMEDY = "the run begins anew"


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
    return _progress(read_header(path, _REMEDY))


def load_state(path: Path) -> tuple[Progress, Tensor]:
    """Read a state that `save_state` wrote, bit for bit.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: no state of ours, one of a newer format, or a damaged one.
    """
    header = read_header(path, _REMEDY)
    progress = _progress(header)
    latent = header.tensors()[LATENT]
    if digest([header.metadata[ABOUT_KEY], latent]) != header.metadata.get(SEAL_KEY):
        raise ValueError(
            f"expected the seal of what {short(path)} holds, got another; the file is damaged: "
            f"{_REMEDY}."
        )
    return progress, latent


def _progress(header: Header) -> Progress:
    metadata, path = header.metadata, header.path
    if not {VERSION_KEY, ABOUT_KEY} <= metadata.keys():
        raise ValueError(
            f"expected the state of a run in {short(path)}, got another file: {_REMEDY}."
        )
    version_of(metadata[VERSION_KEY], FORMAT, header)
    try:
        progress = config_of(Progress, metadata[ABOUT_KEY])
        if list(header.dtypes) != [LATENT] or header.dtypes[LATENT] not in FLOATS:
            raise ValueError(f"tensors {short(dict(header.dtypes))}")
    except ValueError as error:
        raise ValueError(
            f"expected the state of a run in {short(path)}, got {short(error)}; the file is "
            f"damaged: {_REMEDY}."
        ) from error
    return progress
