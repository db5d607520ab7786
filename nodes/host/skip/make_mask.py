"""Make a mask: upsample the preview, score its tokens, choose those to refine.

Dims: B batch, C latent channels, T latent frames, H, W latent cells, F pixel frames.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from math import sqrt
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from ....surf_core.checks import check_choice, check_range
from ....surf_core.skip import Mask, MaskPredictor, choose, pixel_detail, pixel_net, token_scores
from ....surf_core.skip.predictor import load
from ..latents import open_latent
from ..leftover_noise import warn_of_noise
from ..models import cell_side, patch_side, target_cells
from ..refiner import named_file
from ..vae import (
    UPSAMPLE_METHODS,
    check_vae,
    check_values,
    decode_frames,
    encode_frames,
    upsample_latent,
)
from .skip_mask import CHOICES, SkipMask

FOOTAGE = "footage"
"""The network on pixels."""
BUILT_IN = ("detail", FOOTAGE)
"""Predictors that need no file of the user's; a saved workflow knows their names."""
LEAST_KEEP = 0.05
MOST_TAU = 255.0
MOST_DILATE = 8


@dataclass(frozen=True, kw_only=True, slots=True)
class Choice:
    """How to score tokens, and how many to refine."""

    predictor: str
    """One of BUILT_IN, or a file of the folder of diffusion models."""
    choose: str
    """One of CHOICES: which of the next two counts."""
    keep: float
    """Share of tokens to refine."""
    tau: float
    """Score from which on a token is refined, see surf_core.skip.oracle."""
    dilate: int = 0
    """Tokens to every side of a refined one that are refined too."""

    def __post_init__(self):
        check_choice(self.choose, "choose", CHOICES)
        check_range(self.keep, "keep", LEAST_KEEP, 1.0, "use 0.5 for half of the tokens")
        check_range(self.tau, "tau", 0.0, MOST_TAU, "use 3, or 0 to refine everything")
        check_range(self.dilate, "dilate", 0, MOST_DILATE, "use 0 or 1")

    def criterion(self) -> dict[str, float]:
        """Return {"keep": share} or {"tau": threshold}, an argument of `surf_core.skip.choose`."""
        return {"keep": self.keep} if self.choose == "keep ratio" else {"tau": self.tau}


def make_mask(
    model: Any,
    latent: dict,
    choice: Choice,
    *,
    upsample: str,
    vae: Any = None,
    image: Tensor | None = None,
    **target: Any,
) -> tuple[SkipMask, Tensor | None]:
    """Choose which tokens of a preview to refine.

    Args:
        model: the MODEL that will refine; not changed and not run.
        latent: the preview, in the latent space of `model`; not changed.
        upsample: "pixel" (through `vae`) or "latent".
        image: [F, height, width, 3] in 0..1, frames of the target size that take the place of the
            upsampled preview, encoded by `vae`.
        target: resolution, scale, width and height, as in `target_cells`.

    Returns:
        The mask, and the preview's frames [B * F, 3, height, width] where there is a VAE.

    Raises:
        ValueError: anything that does not fit, or a tau that nothing reaches.
    """
    samples = _open_video(model, latent)
    size, _ = target_cells(model, samples, **target)
    check_choice(upsample, "upsample", UPSAMPLE_METHODS)
    if upsample == "pixel" or vae is not None:
        check_vae(vae, samples)
    if image is not None:
        check_image(image, samples, size, upsample, vae)
    check_sees_frames(choice.predictor, vae is not None)
    predictor = find_predictor(model, choice.predictor)
    frames = None if vae is None else [decode_frames(vae, x) for x in samples.split(1)]
    clips = frames if image is None else image.movedim(-1, 1).chunk(len(samples))
    upsampled = _upsample(samples, size, upsample, vae, clips)
    if predictor is None and clips is not None:
        mask = _choose_by_pixels(model, clips, samples, size, choice)
    else:
        mask = _choose_tokens(model, upsampled, predictor, choice)
    if not mask.tokens.any():
        raise ValueError(
            f"expected a tau that some token reaches, got {choice.tau} where the highest "
            f"score is {mask.scores.max():.3g}; take a lower tau, or choose by keep ratio."
        )
    skip_mask = SkipMask(
        mask=mask, size=size, upsampled=upsampled, upsample=upsample, samples=samples
    )
    if frames is not None and len(frames) > 1:
        frames = [torch.cat(frames)]
    return skip_mask, None if frames is None else frames[0]


def _open_video(model: Any, latent: dict) -> Tensor:
    """Take the samples [B, C, T, H, W] out of a LATENT."""
    samples = open_latent(model, latent, "latent")
    warn_of_noise(samples, "latent")
    if samples.ndim != 5:
        raise ValueError(
            f"expected a video latent [B, C, T, H, W], got {tuple(samples.shape)}; connect "
            "a video model and its preview."
        )
    return samples


def _choose_tokens(
    model: Any, upsampled: Tensor, predictor: MaskPredictor | None, choice: Choice
) -> Mask:
    """Score the tokens of the upsampled preview, and choose those to refine."""
    side = patch_side(model)
    padding = _padding(tuple(upsampled.shape[-2:]), side)

    def padded(part: Tensor) -> Tensor:
        return F.pad(part, padding, "replicate")

    clean = model.model.process_latent_in(upsampled.float())
    scores = token_scores(clean, predictor, (1, side, side), padded)
    source = "detail" if predictor is None else "predictor"
    return choose(scores, source=source, dilate=choice.dilate, **choice.criterion())


def _choose_by_pixels(
    model: Any, clips: Sequence[Tensor], samples: Tensor, size: tuple[int, int], choice: Choice
) -> Mask:
    """Score the tokens by frames [F, 3, height, width], their detail or the network on them.

    Pixels are the same for every model and VAE; the energy of a latent is not.
    """
    side, cell = patch_side(model), cell_side(model)
    latent_frames, rows, columns = samples.shape[2:]
    rate = max(1, (len(clips[0]) - 1) // max(1, latent_frames - 1))
    ratio = max(1.0, sqrt(size[0] * size[1] / (rows * columns)))
    pixels = size[0] * cell, size[1] * cell
    score, source = pixel_detail, "pixel detail"
    if choice.predictor == FOOTAGE:
        score, source = pixel_net.load().scores, "network on pixels"
    scores = [
        score(clip.movedim(0, 1)[None], pixels, ratio, cell=(rate, cell), patch=(1, side, side))
        for clip in clips
    ]
    return choose(torch.cat(scores), source=source, dilate=choice.dilate, **choice.criterion())


def _upsample(
    samples: Tensor,
    size: tuple[int, int],
    upsample: str,
    vae: Any,
    frames: Sequence[Tensor] | None,
) -> Tensor:
    """Upsample the preview, or encode its frames or those that stand in for it."""
    if upsample == "latent":
        return upsample_latent(samples, size, upsample)
    return encode_frames(vae, frames, samples, size)


def _padding(size: tuple[int, int], side: int) -> tuple[int, ...]:
    """Return the cells missing to whole tokens, as F.pad takes them: right and below, as in models.

    Scores come from the picture's edge repeated; models pad with other content and cut it off
    again.
    """
    return (0, -size[1] % side, 0, -size[0] % side, 0, 0)


def check_image(
    image: Tensor, samples: Tensor, size: tuple[int, int], upsample: str, vae: Any
) -> None:
    """Refuse frames that cannot take the place of the upsampled preview.

    Raises:
        ValueError: not encoded but "latent", no RGB frames of 0..1, or of another number or size.
    """
    check_encoded(upsample, True)
    if image.ndim != 4 or image.shape[-1] != 3 or not image.numel():
        raise ValueError(
            f"expected an image [frames, height, width, 3], got {tuple(image.shape)}; pass the "
            "frames of an upscaler, without their alpha."
        )
    check_values(image, "image")
    ratio = vae.temporal_compression_decode() or 1
    count = len(samples) * (1 + (samples.shape[2] - 1) * ratio)
    if len(image) != count:
        raise ValueError(
            f"expected an image of {count} frames, those of the preview, got {len(image)}; "
            "enlarge the decoded preview as it is, all of its frames and no other."
        )
    rows, columns = (side * vae.spacial_compression_encode() for side in size)
    if tuple(image.shape[1:3]) != (rows, columns):
        raise ValueError(
            f"expected an image of the target size, {columns} x {rows} pixels, got "
            f"{image.shape[2]} x {image.shape[1]}; scale it to that, or choose another resolution."
        )


def check_encoded(upsample: str, has_image: bool) -> None:
    """Refuse an image that no VAE would encode."""
    if has_image and upsample != "pixel":
        raise ValueError(
            f"an image is encoded by the VAE, so upsample must be pixel, got {upsample!r}; "
            "set it to pixel here and in Surf Refiner, or take the image out."
        )


def check_sees_frames(predictor: str, has_vae: bool) -> None:
    """Refuse the network on pixels where there are none."""
    if predictor == FOOTAGE and not has_vae:
        raise ValueError(
            "the predictor footage looks at frames, got no VAE to decode them; connect the VAE of "
            "the preview's model, or take detail."
        )


def find_predictor(model: Any, name: str) -> MaskPredictor | None:
    """Load a predictor of latents by its name; "detail" and "footage" are none.

    Raises:
        ValueError: one of another latent space, or a file that is no predictor of ours.
    """
    if name in ("detail", FOOTAGE):
        return None
    path = named_file(name)
    space = model.get_model_object("latent_format")
    try:
        predictor, _ = load(path)
    except ValueError as error:
        raise ValueError(
            f"{name} cannot be used as a predictor: {error} Take detail, which needs none."
        ) from error
    channels = predictor.config.latent_channels
    if channels != space.latent_channels:
        raise ValueError(
            f"expected a predictor for {space.latent_channels} latent channels, got one for "
            f"{channels} in {name}; take detail, or the predictor that was trained with this "
            "model's latents."
        )
    return predictor
