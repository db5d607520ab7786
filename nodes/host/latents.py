"""Open, check and close LATENT dictionaries, never changing one in place.

Dims: B batch, C channels, T latent frames, H, W latent cells.
"""

import inspect
from collections.abc import Sequence
from numbers import Integral
from typing import Any

import comfy.model_management
import comfy.sample
import torch
from torch import Tensor
from torch.nn import functional as F

from ...surf_core.checks import check_choice, check_latent
from ...surf_core.resample import METHODS, cell_pixels, resize, target_size
from .draft_record import KEY as RECORD_KEY
from .draft_record import check_made_of
from .leftover_noise import warn_of_noise
from .nested import (
    Parts,
    check_audio,
    check_parts,
    is_joint,
    join_mask,
    split,
    split_mask,
    tensors_of,
    video_channels,
)
from .noise_mask import check_mask_count, check_noise_mask

LEAST_SIDE = 8
"""Pixels that each side is a multiple of, for all models: the smallest patch, or a whole cell."""
LARGEST_CELL = 32
"""Pixels per side of a cell that is a patch of its own: LTX-Video, HunyuanImage 2.1."""
RATIO_KEYS = ("downscale_ratio_spacial", "downscale_ratio_temporal")
"""What newer hosts write into an empty latent, for the sampler only; spelled as there."""


def check_plain(samples: Any, name: str) -> None:
    """Refuse what is not one finite latent, such as joint audio and video latents."""
    if is_joint(samples):
        raise ValueError(
            f"{name}: expected one video latent, got nested video and audio, which this node does "
            "not take; of LTX-2, separate the video with LTXVSeparateAVLatent and sample it "
            "alone. MiniMax H3 has no video alone: take Surf Reshift Any Guider for both."
        )
    check_latent(samples, name)


def open_latent(model: Any, latent: dict, name: str) -> Tensor:
    """Take the samples out of a LATENT as this model's own sampler would.

    An empty latent gets the model's channels and frame axis; the dictionary stays as it is.

    Args:
        model: the MODEL whose latent format counts.
        latent: LATENT dictionary.
        name: what errors call it, e.g. "Surf Reshift KSampler: latent_image".

    Returns:
        [B, C, H, W] or [B, C, T, H, W]; may be the tensor in `latent`.

    Raises:
        ValueError: nested, not finite, not of this model's channels, or a video for an image model
            and the reverse.
    """
    check_plain(latent.get("samples"), name)
    parts = open_parts(model, latent, name)
    # The host gives an empty latent its audio, where the model needs one.
    check_plain(parts.joined(), name)
    return parts.video


def open_parts(model: Any, latent: dict, name: str) -> Parts:
    """Take the samples out of a LATENT, plain or of video and audio; otherwise as `open_latent`.

    Raises:
        ValueError: as `open_latent`, audio for a model without, or none for one that needs it.
    """
    video = split(latent.get("samples"), name).video
    check_made_of(model, latent, name)
    check_frames(model, video, name)
    check_companions(latent, video, name)
    accepted = inspect.signature(comfy.sample.fix_empty_latent_channels).parameters
    ratios = {key: latent[key] for key in RATIO_KEYS if key in latent and key in accepted}
    samples = comfy.sample.fix_empty_latent_channels(model, latent["samples"], **ratios)
    check_channels(model, samples, name)
    return split(samples, name)


def check_companions(latent: dict, samples: Tensor, name: str) -> None:
    """Refuse a batch_index or a noise mask that cannot belong to the samples."""
    index = latent.get("batch_index")
    if index is not None and not _numbers(index, len(samples)):
        raise ValueError(
            f"{name}: batch_index must number each of the {len(samples)} items from 0, got "
            f"{str(index)[:200]}; take items out of a batch with Latent From Batch."
        )
    mask = latent.get("noise_mask")
    check_noise_mask(mask, name)
    if samples.ndim == 5:
        check_mask_count(split_mask(mask)[0], samples)


def _numbers(index: Any, count: int) -> bool:
    """Say whether these are so many whole numbers from 0."""
    values = index.tolist() if hasattr(index, "tolist") else index
    listed = isinstance(values, Sequence) and not isinstance(values, str) and len(values) == count
    return listed and all(isinstance(value, Integral) and value >= 0 for value in values)


def check_frames(model: Any, samples: Tensor, name: str) -> None:
    """Refuse a video for an image model, and an image for a video model unless it is empty.

    Families share numbers of channels: 16 are those of Flux, SD3, Wan and HunyuanVideo.
    """
    takes_video = model.get_model_object("latent_format").latent_dimensions == 3
    if takes_video == (samples.ndim == 5) or (takes_video and is_blank(samples)):
        return
    kinds = "an image latent [B, C, H, W]", "a video latent [B, C, T, H, W]"
    raise ValueError(
        f"{name}: expected {kinds[takes_video]} for {type(model.model).__name__}, got "
        f"{kinds[not takes_video]}, {tuple(samples.shape)}; connect the latent of a model with "
        "the same VAE, or decode it and encode the frames with this model's."
    )


def check_channels(model: Any, samples: Any, name: str) -> None:
    """Refuse a latent, plain or of video and audio, that was encoded for another model family."""
    parts = split(samples, name)
    check_frames(model, parts.video, name)
    check_parts(model, parts, name)
    check_latent(parts.video, name, channels=video_channels(model))
    check_audio(model, parts.audio, name)


def to_intermediate(samples: Any) -> Any:
    """Move a result, plain or nested, to the device and dtype in which this host keeps latents."""
    host = comfy.model_management
    # Newer hosts can keep latents in half precision.
    dtype = host.intermediate_dtype() if hasattr(host, "intermediate_dtype") else samples.dtype
    return samples.to(device=host.intermediate_device(), dtype=dtype)


def resize_mask(mask: Tensor, size: tuple[int, int]) -> Tensor:
    """Resize a noise mask in space: [..., H, W] with any leading axes, values stay in 0..1."""
    if tuple(mask.shape[-2:]) == size:
        return mask.clone()
    flat = mask.reshape(-1, 1, *mask.shape[-2:]).float()
    smaller = size[0] <= mask.shape[-2] and size[1] <= mask.shape[-1]
    how = {"mode": "area"} if smaller else {"mode": "bilinear", "align_corners": False}
    return F.interpolate(flat, size=size, **how).reshape(*mask.shape[:-2], *size).to(mask.dtype)


def close_latent(latent: dict, samples: Any) -> dict:
    """Put new samples into a copy of a LATENT: batch_index stays, the noise mask fits the size.

    What made the old samples did not make the new ones, so their record goes.

    Args:
        samples: plain, or of video and audio; of the latter, the video's size counts.
    """
    out = {key: x for key, x in latent.items() if key not in (*RATIO_KEYS, RECORD_KEY)}
    out["samples"] = samples
    if out.get("noise_mask") is not None:
        old, new = (tuple(tensors_of(x)[0].shape[-2:]) for x in (latent["samples"], samples))
        if new != old:
            out["noise_mask"] = _resize_video_mask(out["noise_mask"], new, samples)
    return out


def _resize_video_mask(mask: Any, size: tuple[int, int], samples: Any) -> Any:
    """Resize the video's noise mask in space; that of the audio stays."""
    video, audio = split_mask(mask)
    return join_mask(resize_mask(video, size), audio, Parts(*tensors_of(samples)))


def downscale_latent(
    latent: dict,
    resolution: str,
    scale: float,
    width: int,
    height: int,
    method: str,
    vae: Any = None,
) -> dict:
    """Make a LATENT smaller in space, noise mask included.

    Args:
        latent: LATENT, 4-D or 5-D samples, or video and audio, which stays; not changed.
        resolution: "by scale", "by size" or a bucket.
        scale: factor per side for "by scale".
        width, height: pixels for "by size".
        method: one of surf_core.resample.METHODS.
        vae: the host's VAE of the latent, which knows its cells.

    Raises:
        ValueError: no usable latent, a size that does not fit, one above the input's, or one in
            pixels for a latent whose cells are not known.
    """
    parts = split(latent.get("samples"), "samples")
    samples = parts.video
    check_companions(latent, samples, "samples")
    cell = known_cell(latent, samples, vae, resolution)
    # Without a MODEL at hand, a patch of two cells is assumed: right for Wan, safe for others. The
    # largest cells are patches by themselves.
    multiple = cell if cell >= LARGEST_CELL else 2 * cell
    size = low_size(
        samples, cell, multiple, resolution=resolution, scale=scale, width=width, height=height
    )
    warn_of_noise(samples, "samples")
    check_choice(method, "method", METHODS)
    small = parts.with_video(resize(samples, size, method)).joined()
    out = {**latent, "samples": small}
    if latent.get("noise_mask") is not None:
        out["noise_mask"] = _resize_video_mask(latent["noise_mask"], size, small)
    return out


def known_cell(latent: dict, samples: Tensor, vae: Any, resolution: str) -> int:
    """Find the pixels per side of a latent cell: from the VAE, the latent, or its channels.

    Raises:
        ValueError: unknown, where a size in pixels is asked for; a scale needs none.
    """
    if vae is not None:
        if vae.latent_channels != samples.shape[1]:
            raise ValueError(
                f"expected the VAE of the latent's {samples.shape[1]} channels, got one with "
                f"{vae.latent_channels}; connect the VAE that belongs to the model."
            )
        return int(vae.spacial_compression_encode())
    known = latent.get(RATIO_KEYS[0]) or cell_pixels(samples.shape[1], video=samples.ndim == 5)
    if not known and resolution != "by scale":
        raise ValueError(
            f"the latent {tuple(samples.shape)} does not tell how many pixels a cell is, got "
            f"{resolution=}; connect its VAE, or choose by scale."
        )
    return int(known or 8)


def check_sides(resolution: str, width: int, height: int) -> None:
    """Refuse a size in pixels that no model takes, whatever its cells."""
    if resolution == "by size":
        target_size((1, 1), resolution=resolution, width=width, height=height, multiple=LEAST_SIDE)


def low_size(samples: Tensor, cell: int, multiple: int, **target: Any) -> tuple[int, int]:
    """Find the low resolution in latent cells.

    Args:
        samples: the high-resolution latent, [..., H, W].
        cell: pixels per latent cell side.
        multiple: pixels that sides must be multiples of.
        target: resolution, scale, width and height for `target_size`.

    Returns:
        (rows, cols), neither above the input's.

    Raises:
        ValueError: with the node's name in front.
    """
    rows, cols = samples.shape[-2:]
    high, wide = target_size((rows * cell, cols * cell), multiple=multiple, **target)
    if high // cell > rows or wide // cell > cols:
        raise ValueError(
            f"the low resolution must not be above the input's {cols * cell} x "
            f"{rows * cell} pixels, got {wide} x {high}; choose a lower one, or start from a "
            "larger latent."
        )
    return high // cell, wide // cell


def is_blank(samples: Any) -> bool:
    """Say whether all values are zero: an empty latent, or noise that is off."""
    return not any(bool(torch.count_nonzero(part)) for part in tensors_of(samples))
