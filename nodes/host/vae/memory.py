"""Choose pieces of a picture that fit the memory of a VAE, and detect that memory ran out.

Dims: H, W rows and columns in pixels.
"""

from collections.abc import Callable
from typing import Any

import comfy.model_management
import torch

from ....surf_core.tiles import boxes, spans
from ..node_name import NodeLog

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
    main = USABLE_MEMORY * comfy.model_management.get_free_memory(torch.device("cpu"))

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


def check_main_memory(needed: float, what: str, advice: str) -> None:
    """Refuse frames for which the main memory is too small.

    Args:
        needed: bytes.
        what: the frames, in the plural.
        advice: what to do about it.
    """
    free = comfy.model_management.get_free_memory(torch.device("cpu"))
    if needed > free:
        raise ValueError(
            f"{what} need {needed / 2**30:.1f} GB of main memory, {free / 2**30:.1f} "
            f"GB are free; {advice}."
        )


def is_out_of_memory(error: RuntimeError) -> bool:
    """Say whether an error means that memory ran out; MPS and the CPU say it in its text only."""
    host = comfy.model_management
    if hasattr(host, "is_oom"):
        by_type = host.is_oom(error)
    else:
        by_type = host.OOM_EXCEPTION is not Exception and isinstance(error, host.OOM_EXCEPTION)
    text = str(error).lower()
    return by_type or "out of memory" in text or "can't allocate memory" in text


def _limits(length: int, cell: int) -> list[int]:
    """List limits of a piece along an axis, one for each number of pieces, falling."""
    limits = range(length, min(LEAST_PIECE, length) - 1, -cell)
    return list({spans(length, n, PIECE_OVERLAP, cell)[0][1]: n for n in limits}.values())
