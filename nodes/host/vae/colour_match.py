"""Match colours on the host's device, with its progress bar and its interrupt.

Dims: F pixel frames.
"""

import comfy.model_management
import comfy.utils
from torch import Tensor

from ....surf_core.colour import match_colour
from ..finite import VAE_CAUSES, check_finite

FRAMES_AT_ONCE = 16
WORKING_MEMORY = 2 * 2**30
"""Bytes that a chunk of frames needs, at most."""


def match_images(image: Tensor, reference: Tensor, method: str, strength: float) -> Tensor:
    """Match IMAGE [F, height, width, 3] to a preview IMAGE: a new tensor, the inputs stay.

    Raises:
        ValueError: NaN, frames that do not belong together, or settings out of range.
    """
    for name, frames in (("image", image), ("reference", reference)):
        for chunk in frames.split(FRAMES_AT_ONCE):
            check_finite(chunk, name, VAE_CAUSES)
    device = comfy.model_management.get_torch_device()
    comfy.model_management.free_memory(WORKING_MEMORY, device)
    bar = comfy.utils.ProgressBar(len(image))

    def report_progress(done: int, total: int) -> None:
        comfy.model_management.throw_exception_if_processing_interrupted()
        bar.update_absolute(done, total)

    matched = match_colour(
        image.movedim(-1, 1),
        reference.movedim(-1, 1),
        method,
        strength=strength,
        device=device,
        on_chunk=report_progress,
    )
    return matched.movedim(1, -1)
