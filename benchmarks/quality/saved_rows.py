"""Values of a long benchmark kept batch by batch, so that a run that is stopped goes on.

One .safetensors file for each batch of videos, written beside and renamed when it is whole.
"""

import hashlib
from collections.abc import Callable
from pathlib import Path

import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor

Values = dict[str, dict[str, Tensor]]
"""Method -> measure -> [B], one value for each video."""
BETWEEN = " :: "


def fingerprint(*parts: object) -> str:
    """Hash what the values depend on: files by their bytes, all else by its repr."""
    digest = hashlib.sha256()
    for part in parts:
        digest.update(part.read_bytes() if isinstance(part, Path) else repr(part).encode())
    return digest.hexdigest()[:16]


class SavedRows:
    """A folder of batches.

    Args:
        folder: made if absent; None keeps nothing.
        made_of: see `fingerprint`; batches of other settings are refused.
    """

    def __init__(self, folder: Path | None, made_of: str):
        self.folder, self.made_of = folder, made_of
        if folder:
            folder.mkdir(parents=True, exist_ok=True)

    def batch(self, numbers: list[int], make: Callable[[], Values]) -> Values:
        """Return the values of the videos `numbers`: those that are kept, or made and kept now.

        Raises:
            ValueError: a batch that was made of other weights or settings.
        """
        if self.folder is None:
            return make()
        path = self.folder / f"{numbers[0]:05}-{numbers[-1]:05}.safetensors"
        if path.exists():
            return self._load(path)
        values = make()
        flat = {
            method + BETWEEN + name: value.double().clone(memory_format=torch.contiguous_format)
            for method, found in values.items()
            for name, value in found.items()
        }
        beside = path.with_suffix(".part")
        save_file(flat, beside, {"made_of": self.made_of, "rows": "\n".join(values)})
        beside.rename(path)
        return values

    def _load(self, path: Path) -> Values:
        with safe_open(path, "pt") as file:
            notes = file.metadata() or {}
            if notes.get("made_of") != self.made_of or "rows" not in notes:
                raise ValueError(
                    f"expected values of these weights and settings in {path}, got those of "
                    f"{notes.get('made_of')}; give --state another folder."
                )
            # The file lists its tensors by name, and rows stand in the order of their making.
            values: Values = {name: {} for name in notes["rows"].split("\n")}
            for key in file.keys():  # noqa: SIM118
                method, _, name = key.partition(BETWEEN)
                values[method][name] = file.get_tensor(key)
        return values
