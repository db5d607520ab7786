"""Check that pictures beside a video have as many latent frames as it, before a model finds out.

Dims: T latent frames.
"""

from typing import Any

from ..input_channels import joins_picture
from .grid import Conditioning, tensors

PICTURE, MASK = "concat_latent_image", "concat_mask"


def check_frames_beside(
    conds: dict[str, Conditioning], model: Any, frames: tuple[int, ...]
) -> None:
    """Refuse the start images of another length than the latent, where a Wan joins both.

    Args:
        frames: (T,) of the latent, () of an image.

    Raises:
        ValueError: a picture of other frames, or a mask of more: the host fills up a shorter one.
    """
    if not frames or not joins_picture(model):
        return
    for name, options in ((name, entry[1]) for name, cond in conds.items() for entry in cond):
        for key in (PICTURE, MASK):
            for each in tensors(options.get(key)):
                count = each.shape[-3] if each.ndim == 5 else frames[0]
                if count > frames[0] or (key == PICTURE and count != frames[0]):
                    raise ValueError(
                        f"expected {key} of the {name} conditioning with the latent's {frames[0]} "
                        f"latent frames, got {count}; set the same length in the node that makes "
                        "it as in the one that makes the latent."
                    )
