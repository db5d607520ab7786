"""Weights in .safetensors with their config in the metadata, and a report of what does not fit."""

import json
from dataclasses import asdict
from pathlib import Path

from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from .refiner import RefinerConfig, SurfRefinerDiT

FORMAT = 1
"""Version of the metadata; a newer file is refused."""


def save(path: Path, weights: dict[str, Tensor], config: RefinerConfig, notes: dict) -> None:
    """Write fp16 weights with the config and JSON-able `notes` (recipe, log figures)."""
    metadata = {
        "surf.format": str(FORMAT),
        "surf.config": json.dumps(asdict(config)),
        "surf.notes": json.dumps(notes),
    }
    save_file({name: w.half().contiguous() for name, w in weights.items()}, path, metadata)


def load(path: Path) -> SurfRefinerDiT:
    """Read a model that `save` wrote; fp32, in evaluation mode.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: not a file of ours, a newer format, or keys that do not fit the config.
    """
    if not Path(path).exists():
        raise FileNotFoundError(f"expected weights at {path}, found nothing; restore the file.")
    try:
        with safe_open(path, "pt") as file:
            metadata = file.metadata() or {}
            weights = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    except SafetensorError as error:
        raise ValueError(f"expected a .safetensors file, {path} is not one: {error}.") from error
    if "surf.config" not in metadata:
        raise ValueError(f"expected surf.config in the metadata of {path}; it is not ours.")
    if int(metadata["surf.format"]) > FORMAT:
        raise ValueError(
            f"expected format {FORMAT} or older, got {metadata['surf.format']} in {path}; "
            "update the pack."
        )
    fields = json.loads(metadata["surf.config"])
    model = SurfRefinerDiT(RefinerConfig(**fields | {"patch": tuple(fields["patch"])}))
    problems = mismatches(model, weights)
    if problems:
        raise ValueError(f"the weights of {path} do not fit their config: {'; '.join(problems)}.")
    model.load_state_dict(weights)
    return model.float().eval()


def mismatches(model: nn.Module, weights: dict[str, Tensor]) -> list[str]:
    """List missing, unexpected and misshapen keys, one sentence each."""
    expected = model.state_dict()
    report = [f"missing {name}" for name in sorted(expected.keys() - weights.keys())]
    report += [f"unexpected {name}" for name in sorted(weights.keys() - expected.keys())]
    for name in sorted(expected.keys() & weights.keys()):
        if expected[name].shape != weights[name].shape:
            report.append(
                f"{name} is {tuple(weights[name].shape)}, expected {tuple(expected[name].shape)}"
            )
    return report
