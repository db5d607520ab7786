"""Tell values apart bit for bit, and seal what a file holds against damage."""

import hashlib
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor


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
