"""Give a model that is controlled by a latent the upsampled preview as that control.

Such a Wan takes a second latent beside the one that it samples, in its patch embedding: weights
for tile control were trained to see the blurred, enlarged video there.

Dims: B batch, C latent channels, T latent frames, H, W latent cells.
"""

from torch import Tensor

from ..conditioning import Conditioning
from ..latents import is_blank
from ..node import NodeLog

log = NodeLog(__name__)

KEY = "concat_latent_image"


def check_control(samples: Tensor, has_frames: bool) -> None:
    """Refuse an empty latent as the preview of a controlled model."""
    if not has_frames and is_blank(samples):
        raise ValueError(
            "expected a preview, which this model is controlled by, got an empty latent; connect "
            "the latent of a finished preview, or frames as image."
        )


def with_control(conds: dict[str, Conditioning], upsampled: Tensor) -> dict[str, Conditioning]:
    """Return conditioning with the upsampled preview as control, where it has none of its own.

    Args:
        upsampled: [B, C, T, H, W], VAE space; shared.
    """
    entries = [entry for cond in conds.values() for entry in cond]
    own = sum(entry[1].get(KEY) is not None for entry in entries)
    if own == len(entries):
        log.info("the conditioning brings its own %s, which stays the control.", KEY)
        return conds
    log.info("this model takes a control latent: the upsampled preview.")
    return {
        name: [
            entry if entry[1].get(KEY) is not None
            else [entry[0], {**entry[1], KEY: upsampled}, *entry[2:]]
            for entry in cond
        ]
        for name, cond in conds.items()
    }  # fmt: skip
