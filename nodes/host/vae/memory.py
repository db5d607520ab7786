"""Choose pieces of a picture that fit the memory of a VAE, and make room in the main memory.

Dims: H, W rows and columns in pixels.
"""

import gc
import sys
from collections.abc import Callable
from typing import Any

import comfy
import comfy.model_management
import torch

from ....surf_core.tiles import boxes, spans
from ..node import NodeLog
from .out_of_memory import MEMORY_ERRORS, is_out_of_memory

log = NodeLog(__name__)

LEAST_PIECE = 256
"""Pixels along a side, below which no piece is chosen ahead of time."""
PIECE_OVERLAP = 64
USABLE_MEMORY = 0.8
PIXEL_BYTES = 3 * 4

Size = tuple[int, int]
"""Height and width in pixels."""


def choose_piece(
    vae: Any,
    size: Size,
    cell: int,
    on_device: Callable[[Size], float],
    in_memory: Callable[[Size], float] = lambda piece: 0.0,
    room: float = 0.0,
) -> Size:
    """Choose the whole picture, or the pieces with the fewest pixels in all, that fit.

    Compared with the whole device, because the host moves other models away for a VAE; and with the
    free part of the main memory.

    Args:
        size: the picture.
        cell: pixels of a latent cell; pieces are whole cells.
        on_device, in_memory: height and width of a piece -> bytes.
        room: bytes of the device that a piece may take; 0 asks the host.

    Returns:
        What the pieces may be at most, see `real_piece`; the smallest where none fits.
    """
    device = room or USABLE_MEMORY * comfy.model_management.get_total_memory(vae.device)
    main = USABLE_MEMORY * free_main_memory(in_memory(size))

    def fits(limit: Size) -> bool:
        piece = real_piece(size, limit, cell)
        return on_device(piece) <= device and in_memory(piece) <= main

    def cost(limit: Size) -> tuple[int, int]:
        rows, columns = real_piece(size, limit, cell)
        count = len(boxes(size, limit, PIECE_OVERLAP, cell))
        return count * rows * columns, abs(rows - columns)

    if fits(size):
        return size
    rows, columns = (_limits(length, cell) for length in size)
    choices = [(high, wide) for high in rows for wide in columns]
    fitting = [choice for choice in choices if fits(choice)]
    return min(fitting, key=cost) if fitting else (rows[-1], columns[-1])


def real_piece(size: Size, limit: Size, cell: int) -> Size:
    """Return the size of all pieces of a picture, where `limit` is the most that they may be.

    Raises:
        ValueError: a limit that does not hold two overlaps.
    """
    rows, columns = boxes(size, limit, PIECE_OVERLAP, cell)[0]
    return rows.stop, columns.stop


def halve(size: Size, limit: Size, cell: int) -> Size | None:
    """Halve the sides of pieces that did not fit; None where that holds no two overlaps."""
    side = max(real_piece(size, limit, cell)) // 2 // cell * cell
    overlaps = -(-PIECE_OVERLAP // cell) * cell
    return (min(side, size[0]), min(side, size[1])) if side >= 2 * overlaps else None


def log_piece(vae: Any, size: Size, limit: Size, cell: int, needed: float, task: str) -> None:
    """Log what was chosen, in one line."""
    total = comfy.model_management.get_total_memory(vae.device)
    count = len(boxes(size, limit, PIECE_OVERLAP, cell))
    piece = real_piece(size, limit, cell)
    log.info(
        "VAE %s of %d x %d pixels in %s (needs %.1f GB of %.1f GB)", task, size[1], size[0],
        "one piece" if count == 1 else f"{count} pieces of {piece[1]} x {piece[0]}",
        needed / 2**30, total / 2**30,
    )  # fmt: skip


def retry_smaller(run: Callable[[Size], Any], size: Size, limit: Size, cell: int, task: str) -> Any:
    """Run a task of the VAE; if memory runs out, run it again from its start in smaller pieces.

    Args:
        run: called with the most that a piece may be.
        size, limit, cell: as in `real_piece`.
        task: "decoding" or "encoding".
    """
    while True:
        try:
            return run(limit)
        except MEMORY_ERRORS as error:
            smaller = halve(size, limit, cell)
            if not is_out_of_memory(error) or smaller is None:
                raise
        # Outside of the except block, where the tensors of the failed call are free.
        (rows, columns), (fewer, narrower) = (real_piece(size, x, cell) for x in (limit, smaller))
        log.warning(
            "out of memory with %d x %d pixels at a time; %s begins anew, with %d x %d.",
            columns, rows, task, narrower, fewer,
        )  # fmt: skip
        limit = smaller
        comfy.model_management.soft_empty_cache()


def check_main_memory(needed: float, what: str, advice: str) -> None:
    """Make room in the main memory for frames, and warn if the system has to page for them.

    Args:
        needed: bytes.
        what: the frames, in the plural.
        advice: what to do about it.

    Raises:
        ValueError: frames that do not fit into what is free, swap space included.
    """
    free = free_main_memory(needed)
    if needed <= free:
        return
    text = (
        f"{what} need {needed / 2**30:.1f} GB of main memory, {free / 2**30:.1f} GB are free "
        "after emptying ComfyUI's caches"
    )
    if needed > free + _swap():
        raise ValueError(f"{text}, and there is too little swap space; {advice}.")
    log.warning("%s; the system will page to disk, which is slow. To avoid it, %s.", text, advice)


def free_main_memory(needed: float) -> float:
    """Return the bytes of main memory that are free; empty the host's caches first if too few.

    Those are unused weights, pinned ones, and results of earlier prompts.
    """
    host, cpu = comfy.model_management, torch.device("cpu")
    if needed > host.get_free_memory(cpu):
        gc.collect()
        host.free_memory(needed, cpu)
        host.soft_empty_cache()
        # Not in older hosts.
        caches = getattr(comfy, "memory_management", None)
        for owner, name in ((host, "ensure_pin_budget"), (caches, "extra_ram_release")):
            release = getattr(owner, name, None)
            if release is not None:
                release(int(needed))
    return host.get_free_memory(cpu)


def most_main_memory() -> float:
    """Return the bytes that frames can have at most: what is free, held by this process, or swap.

    What it holds are the caches that `free_main_memory` empties, and what it needs itself, which
    nobody counts apart: whatever is above this does not fit for certain.
    """
    host = comfy.model_management
    held = host.psutil.Process().memory_info().rss
    return host.get_free_memory(torch.device("cpu")) + held + _swap()


def _swap() -> float:
    """Return the bytes that can be paged to disk.

    Windows and macOS enlarge their swap space when it is needed; taken as the main memory's size.
    """
    host = comfy.model_management
    free = host.psutil.swap_memory().free
    growing = sys.platform in ("win32", "darwin")
    return max(free, host.get_total_memory(torch.device("cpu"))) if growing else free


def _limits(length: int, cell: int) -> list[int]:
    """List limits of a piece along an axis, one for each number of pieces, falling."""
    limits = range(length, min(LEAST_PIECE, length) - 1, -cell)
    return list({spans(length, n, PIECE_OVERLAP, cell)[0][1]: n for n in limits}.values())
