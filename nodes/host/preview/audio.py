"""Keep the sound of MiniMax H3 on its own schedule while its video changes resolution.

A smaller video has the signal to noise ratio of the larger one at a lower sigma: that is a shift by
1 / ratio. MiniMax H3 has a shift for each part, and the sampler's sigma is the video's. With the
video's shift divided by the ratio, the sound's sigmas stay as they were.

Dims: N steps.
"""

from typing import Any

import torch
from torch import Tensor

from ....surf_core.schedule import snr_equal_sigma
from .. import models
from ..nested import has_audio


def carries(guider: Any, model: Any, sigma_policy: str) -> bool:
    """Say whether a switch leaves the sound on its own schedule.

    Raises:
        ValueError: a model whose sound has no schedule of its own, or a guider with a second model,
            whose schedule cannot be changed.
    """
    if sigma_policy == "same" or not has_audio(model):
        return False
    if getattr(model.get_model_object("model_sampling"), "audio_shift", None) is None:
        raise ValueError(
            f"expected sigma_policy same for {type(model.model).__name__}, whose sound has no "
            f"schedule of its own, got {sigma_policy}, which would take sound and video to "
            "another noise level; set it to same."
        )
    if getattr(guider, "uncond_model_patcher", None) is not None:
        raise ValueError(
            f"expected sigma_policy same for {type(guider).__name__}, whose second model keeps its "
            f"own schedule, got {sigma_policy}; set it to same, or take a guider of one model."
        )
    return True


def for_ratio(model: Any, ratio: float) -> Any:
    """Clone a MODEL for a video smaller by `ratio` per side: the shift of its sound stays."""
    return models.with_shift(model, model.get_model_object("model_sampling").shift / ratio)


def lowered(sigmas: Tensor, ratio: float) -> Tensor:
    """Lower a schedule to an equal signal to noise ratio: [N + 1], a new tensor."""
    return torch.tensor(
        [snr_equal_sigma(sigma, ratio) for sigma in sigmas.tolist()], dtype=sigmas.dtype
    )
