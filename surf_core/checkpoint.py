"""Weights in .safetensors with their config in the metadata, and a report of what does not fit.

What a file is, and whether it fits, is read from its header: no tensor is loaded for it.
"""

import json
from collections.abc import Mapping
from contextlib import contextmanager
from dataclasses import asdict, fields
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from .refiner import RefinerConfig, SurfRefinerDiT, outline

FORMAT = 3
"""Version of the metadata; 1 knew neither block, time nor start, 2 no range of starts."""
LISTED = 20
"""Keys that an error names."""
_TUPLES = ("patch", "start_range")

Shapes = Mapping[str, tuple[int, ...]]


def save(
    path: Path,
    weights: dict[str, Tensor],
    config: RefinerConfig,
    notes: dict,
    dtype: torch.dtype = torch.float16,
) -> None:
    """Write weights in `dtype`, with the config and JSON-able `notes` (recipe, log figures)."""
    metadata = {
        "surf.format": str(FORMAT),
        "surf.config": json.dumps(asdict(config)),
        "surf.notes": json.dumps(notes),
    }
    save_file({name: w.to(dtype).contiguous() for name, w in weights.items()}, path, metadata)


def read_config(path: Path) -> tuple[RefinerConfig, dict]:
    """Read the config and the notes of a file; its header alone.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: not a file of ours, a newer format, or a config that is none.
    """
    with _opened(path) as file:
        metadata = file.metadata() or {}
    version = metadata.get("surf.format", "")
    if "surf.config" not in metadata or not version.isdecimal():
        raise ValueError(
            f"expected surf.format and surf.config in the metadata of {path}, got "
            f"{', '.join(sorted(metadata)) or 'none'}; it is not ours, use the loader of its kind."
        )
    if int(version) > FORMAT:
        raise ValueError(
            f"expected format {FORMAT} or older, got {version} in {path}; update the pack."
        )
    config = _config(metadata["surf.config"], path)
    return config, json.loads(metadata.get("surf.notes", "{}"))


def report(path: Path) -> list[str]:
    """List missing, unexpected and misshapen keys of a file, one sentence each; its header alone.

    Raises:
        FileNotFoundError, ValueError: as `read_config`.
    """
    config, _ = read_config(path)
    return mismatches(shapes_of(outline(config)), _shapes(path))


def load(path: Path) -> SurfRefinerDiT:
    """Read a model that `save` wrote; fp32, in evaluation mode.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: not a file of ours, a newer format, or keys that do not fit the config.
    """
    config, _ = read_config(path)
    check_fit(config, _shapes(path), path)
    with _opened(path) as file:
        weights = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    model = SurfRefinerDiT(config)
    model.load_state_dict(weights)
    return model.float().eval()


def check_fit(config: RefinerConfig, shapes: Shapes, name: object) -> None:
    """Refuse weights of these shapes for a model of this config.

    Raises:
        ValueError: with the keys, the first `LISTED` of them, and their number.
    """
    problems = mismatches(shapes_of(outline(config)), shapes)
    if problems:
        rest = len(problems) - LISTED
        more = f"; and {rest} more" if rest > 0 else ""
        raise ValueError(
            f"the weights of {name} do not fit their config, {len(problems)} keys: "
            f"{'; '.join(problems[:LISTED])}{more}. Use the file as its training wrote it."
        )


def mismatches(expected: Shapes, found: Shapes) -> list[str]:
    """List missing, unexpected and misshapen keys, one sentence each."""
    lines = [f"missing {name}" for name in sorted(expected.keys() - found.keys())]
    lines += [f"unexpected {name}" for name in sorted(found.keys() - expected.keys())]
    for name in sorted(expected.keys() & found.keys()):
        if expected[name] != found[name]:
            lines.append(f"{name} is {found[name]}, expected {expected[name]}")
    return lines


def shapes_of(module: nn.Module) -> Shapes:
    """Shape of every weight of a model, by name."""
    return {name: tuple(weight.shape) for name, weight in module.state_dict().items()}


def _shapes(path: Path) -> Shapes:
    with _opened(path) as file:
        names = file.keys()
        return {name: tuple(file.get_slice(name).get_shape()) for name in names}


@contextmanager
def _opened(path: Path):
    if not Path(path).exists():
        raise FileNotFoundError(f"expected weights at {path}, found nothing; restore the file.")
    try:
        with safe_open(path, "pt") as file:
            yield file
    except SafetensorError as error:
        raise ValueError(
            f"expected a .safetensors file, {path} is not one: {error}; download it again."
        ) from error


def _config(text: str, path: Path) -> RefinerConfig:
    """Parse a config; fields that a file of format 1 lacks have their defaults."""
    try:
        values = json.loads(text)
        unknown = values.keys() - {field.name for field in fields(RefinerConfig)}
        if unknown:
            raise ValueError(f"unknown fields {', '.join(sorted(unknown))}")
        pairs = {name: tuple(values[name]) for name in _TUPLES if values.get(name) is not None}
        return RefinerConfig(**values | pairs)
    except (ValueError, TypeError, KeyError, AttributeError) as error:
        raise ValueError(
            f"expected a refiner's config in {path}, got {error!r}; it is damaged, or not ours."
        ) from error
