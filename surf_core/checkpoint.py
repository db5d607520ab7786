"""A refiner's weights in .safetensors with its config in the metadata, and what does not fit.

What a file is, and whether it fits, is read from its header: no tensor is loaded for it.
"""

import json
from dataclasses import asdict, replace
from math import prod
from pathlib import Path

import torch
from torch import Tensor

from .header import (
    LISTED,
    Header,
    check_finite,
    config_of,
    json_object,
    listed,
    read_header,
    repeated,
    shapes_of,
    short,
    version_of,
    write,
)
from .refiner import RefinerConfig, SurfRefinerDiT, outline

__all__ = [
    "FORMAT",
    "LISTED",
    "check_finite",
    "listed",
    "load",
    "read_config",
    "report",
    "save",
    "short",
]

FORMAT = 3
"""Version of the metadata; 1 knew neither block, time nor start, 2 no range of starts."""


def save(
    path: Path,
    weights: dict[str, Tensor],
    config: RefinerConfig,
    notes: dict,
    dtype: torch.dtype = torch.float16,
) -> None:
    """Write weights in `dtype`, with the config and JSON-able `notes` (recipe, log figures).

    Raises:
        ValueError: a weight is not finite, or not any more in `dtype`.
    """
    metadata = {
        "surf.format": str(FORMAT),
        "surf.config": json.dumps(asdict(config)),
        "surf.notes": json.dumps(notes),
    }
    write(path, {name: weight.to(dtype) for name, weight in weights.items()}, metadata)


def read_config(path: Path) -> tuple[RefinerConfig, dict]:
    """Read the config and the notes of a file; its header alone.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: not a file of ours, a newer format, or a config that is none.
    """
    header = read_header(path)
    config = _config(header)
    try:
        return config, json_object(header.metadata.get("surf.notes", "{}"))
    except ValueError as error:
        raise ValueError(
            f"expected notes in {short(path)}, got {short(error)}; it is damaged."
        ) from error


def report(path: Path) -> list[str]:
    """List missing, unexpected and misshapen keys of a file, one sentence each; its header alone.

    Raises:
        FileNotFoundError, ValueError: as `read_config`.
    """
    header = read_header(path)
    return _misfits(header, _config(header))


def load(path: Path) -> SurfRefinerDiT:
    """Read a model that `save` wrote; fp32, in evaluation mode.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: not a file of ours, a newer format, keys that do not fit the config, or weights
            that are not finite.
    """
    header = read_header(path)
    config = _config(header)
    problems = _misfits(header, config)
    if problems:
        raise ValueError(
            f"the weights of {short(path)} do not fit their config, {len(problems)} keys: "
            f"{listed(problems)}. Use the file as its training wrote it."
        )
    model = SurfRefinerDiT(config)
    model.load_state_dict(header.weights())
    return model.float().eval()


def _misfits(header: Header, config: RefinerConfig) -> list[str]:
    one = shapes_of(outline(replace(config, layers=min(1, config.layers))))
    return header.misfits(repeated(one, config.layers))


def _config(header: Header) -> RefinerConfig:
    """Parse a config; fields that a file of format 1 lacks have their defaults."""
    metadata, path = header.metadata, header.path
    version = metadata.get("surf.format", "")
    if "surf.config" not in metadata or not version.isdecimal():
        raise ValueError(
            f"expected surf.format and surf.config in the metadata of {short(path)}, got "
            f"{listed(sorted(metadata), ', ') or 'none'}; it is not ours, use the loader of its "
            "kind."
        )
    version_of(version, FORMAT, header)
    try:
        config = config_of(RefinerConfig, metadata["surf.config"])
        header.check_room(config.layers, _largest(config))
    except ValueError as error:
        raise ValueError(
            f"expected a refiner's config in {short(path)}, got {error}; it is damaged, or not "
            "ours."
        ) from error
    return config


def _largest(config: RefinerConfig) -> dict[str, int]:
    """Numbers of one weight for each size of a config."""
    token = config.latent_channels * prod(config.patch)
    sizes = {"dim": config.dim, "text_dim": config.text_dim, "freq_dim": config.freq_dim}
    if config.layers:
        sizes["ffn_dim"] = config.ffn_dim
    sizes["latent_channels * patch"] = token
    return {f"dim * {name}": config.dim * size for name, size in sizes.items()}
