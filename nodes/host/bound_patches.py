"""Find functions of other nodes that hold something made for another grid than a run will have.

A patch or wrapper is a function, and nothing says for which size it was made. What it holds does:
InfiniteTalk's speaker masks have a value for each token of a frame, its motion frames the rows and
columns of the first latent. Ours; by looking at closures and attributes, never by a call.

Dims: T latent frames, H, W latent cells.
"""

from collections.abc import Iterator, Sequence
from functools import partial
from math import ceil
from types import FunctionType
from typing import Any

import torch
from torch import Tensor

from .models import patch_side
from .node import NodeLog
from .others import is_ours, name_of

log = NodeLog(__name__)

Grid = tuple[int, int]
"""Rows and columns of latent cells."""
OUTER_SAMPLE = "outer_sample"
"""The host's wrappers round a sampling call."""


def check_bound(model: Any, shape: Sequence[int], earlier: set[Grid]) -> None:
    """Refuse what was made for an earlier grid and would fail, or lie elsewhere, on this one.

    Masks of tokens and latents that are pasted are refused. Other token maps are warned of: many
    are made anew when the size changes.

    Args:
        model: MODEL that will run.
        shape: [B, C, (T,) H, W] of the latent that it will run on.
        earlier: grids that something may have been made for.

    Raises:
        ValueError: names the function, what it holds, and what to do.
    """
    patch, grid = patch_side(model), (int(shape[-2]), int(shape[-1]))
    frames = int(shape[2]) if len(shape) == 5 else 1
    for function, is_wrapper in _functions(model):
        for held in _held(function):
            for other in earlier - {grid}:
                if _is_map(held, other, frames, patch) and not _is_map(held, grid, frames, patch):
                    _report(name_of(function), held, other, grid, is_wrapper)


def _report(name: str, held: Tensor, other: Grid, grid: Grid, is_wrapper: bool) -> None:
    text = (
        f"{name}, which another node put on this model, holds {tuple(held.shape)} for "
        f"{other[0]} x {other[1]} latent cells, and the model will run on {grid[0]} x {grid[1]}"
    )
    if not held.is_floating_point() or is_wrapper:
        raise ValueError(f"{text}; make it for that size, or take that node out.")
    log.warning("%s; if the run fails or looks wrong, take that node out.", text)


def _is_map(held: Tensor, grid: Grid, frames: int, patch: int) -> bool:
    """Say whether a tensor has the tokens of a grid on an axis, or its cells on the last two.

    The last axis of numbers is a width: only masks have tokens there.
    """
    if held.ndim == 5 and held.is_floating_point():
        return tuple(held.shape[-2:]) == grid
    tokens = ceil(grid[0] / patch) * ceil(grid[1] / patch)
    axes = held.shape if not held.is_floating_point() else held.shape[1:-1]
    return any(size in (tokens, tokens * frames) for size in axes)


def _functions(model: Any) -> Iterator[tuple[Any, bool]]:
    """Yield (function, is a wrapper of the whole run) of other nodes."""
    options = model.model_options.get("transformer_options", {})
    for patches in options.get("patches", {}).values():
        yield from ((patch, False) for patch in patches if not is_ours(patch))
    for wrappers in model.wrappers.get(OUTER_SAMPLE, {}).values():
        yield from ((wrapper, True) for wrapper in wrappers if not is_ours(wrapper))


def _held(function: Any, depth: int = 2) -> Iterator[Tensor]:
    """Yield the tensors in a function's closure, arguments, or object; no weights."""
    if isinstance(function, partial):
        values = [function.func, *function.args, *function.keywords.values()]
    elif hasattr(function, "__self__"):
        values = list(getattr(function.__self__, "__dict__", {}).values())
    elif isinstance(function, FunctionType):
        values = [cell.cell_contents for cell in function.__closure__ or () if _is_full(cell)]
        values += function.__defaults__ or ()
    else:
        values = list(getattr(function, "__dict__", {}).values())
    for value in values:
        for each in value if isinstance(value, list | tuple) else [value]:
            if isinstance(each, Tensor) and not isinstance(each, torch.nn.Parameter):
                yield each
            elif depth and callable(each) and not isinstance(each, torch.nn.Module | type):
                yield from _held(each, depth - 1)


def _is_full(cell: Any) -> bool:
    """Say whether the variable of a closure has a value."""
    try:
        cell.cell_contents  # noqa: B018 reading it is the test
    except ValueError:
        return False
    return True
