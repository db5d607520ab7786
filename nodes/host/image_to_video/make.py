"""Make what a model starts from for one picture, at every size: as the host's own nodes do at one.

The picture is cropped once, for the high size: the video is stretched to the other sizes, and so is
the picture.

Dims: F pixel frames, T latent frames, H, W latent cells.
"""

from typing import Any

import comfy.clip_vision
import comfy.latent_formats
import comfy.model_management
import torch
from torch import Tensor

from ..conditioning import Conditioning, Grid, SizeChange, carry, with_made_for
from ..finite import check_conditioning
from ..vae import check_one_picture, encode_pictures, fit_picture, latent_frames
from .sizes import HUNYUAN, WAN_5B, Size, Sizes, VideoFamily, check_length, family_of

Pair = tuple[Conditioning, Conditioning]
"""Positive and negative."""
REACH = 117
"""Frames after which Wan's encoder has forgotten the first: 28 latent frames, by its layers. From
there on, grey frames give the same latent again."""


def image_to_video(
    pair: Pair,
    vae: Any,
    start_image: Tensor,
    length: int,
    sizes: Sizes,
    *,
    end_image: Tensor | None = None,
    vision: Any = None,
    vision_end: Any = None,
) -> tuple[list[Pair], dict]:
    """Encode a picture for the high, the low and the target size.

    Args:
        pair: positive and negative for the high size; not changed.
        start_image, end_image: [1, height, width, 3] in 0..1.
        length: frames of the video, 4n + 1.
        vision, vision_end: what CLIP vision makes of both pictures; of no size.

    Returns:
        A pair for each size, and the LATENT to start from at the high one.

    Raises:
        ValueError: anything that does not fit, before the VAE works.
    """
    family = family_of(vae)
    check_length(length)
    cells = sizes.cells(family)
    pictures = {"start_image": start_image, "end_image": end_image}
    for name, image in pictures.items():
        if image is not None:
            check_one_picture(image, name)
    _check_inputs(family, end_image, vision, vision_end)
    change = {"positive": pair[0], "negative": pair[1]}
    check_conditioning(change)
    fitted = [
        carry(change, SizeChange(source=cells[0], target=size, grid=Grid(cell=family.cell)))
        for size in cells
    ]
    images = [image for image in pictures.values() if image is not None]
    beside = {"clip_vision_output": _vision(vision, vision_end)} if vision is not None else {}
    latent: dict[str, Any] = {"samples": _blank(vae, length, cells[0])}
    if family is WAN_5B:
        latent = _begun(vae, latent["samples"], start_image)
    out = []
    for size, conds in zip(cells, fitted, strict=True):
        keys = dict(beside)
        if family is not WAN_5B:
            keys |= _concat(vae, family, images, length, cells[0], size)
        out.append(tuple(_with(conds[name], keys) for name in change))
    return out, with_made_for(latent, (sizes.height, sizes.width))


def _check_inputs(family: VideoFamily, end_image: Any, vision: Any, vision_end: Any) -> None:
    """Refuse inputs that a family, or an input that is missing, leaves without effect."""
    if end_image is not None and family in (WAN_5B, HUNYUAN):
        raise ValueError(f"{family.name} starts from one picture, got an end_image; disconnect it.")
    if vision is not None and family is WAN_5B:
        raise ValueError(
            f"{family.name} has no CLIP vision, got clip_vision_output; disconnect it."
        )
    if vision_end is not None and (end_image is None or vision is None):
        raise ValueError(
            "clip_vision_end needs end_image and clip_vision_output beside it, got "
            f"{'no end_image' if end_image is None else 'no clip_vision_output'}; connect it."
        )


def _vision(first: Any, last: Any) -> Any:
    """Join what CLIP vision makes of two pictures."""
    if last is None:
        return first
    both = comfy.clip_vision.Output()
    states = [each.penultimate_hidden_states for each in (first, last)]
    both.penultimate_hidden_states = torch.cat(states, dim=-2)
    return both


def _with(cond: Conditioning, keys: dict[str, Any]) -> Conditioning:
    """Return a CONDITIONING with keys added to each entry."""
    return [[entry[0], {**entry[1], **keys}, *entry[2:]] for entry in cond]


def _blank(vae: Any, length: int, size: Size) -> Tensor:
    """Return an empty latent."""
    device = comfy.model_management.intermediate_device()
    return torch.zeros(1, vae.latent_channels, latent_frames(vae, length), *size, device=device)


def _begun(vae: Any, samples: Tensor, image: Tensor) -> dict:
    """Put the picture into the first frame of a latent of Wan 2.2 5B, under a noise mask of 0."""
    pixels = tuple(side * WAN_5B.cell for side in samples.shape[-2:])
    first = encode_pictures(vae, fit_picture(image, pixels, pixels), "start_image, encoded")
    mask = torch.ones_like(samples[:, :1])
    mask[:, :, :1] = 0
    # A latent of zeros means this to the model.
    empty = comfy.latent_formats.Wan22().process_out(samples)
    return {"samples": torch.where(mask == 0, first.to(samples), empty), "noise_mask": mask}


def _concat(
    vae: Any, family: VideoFamily, images: list[Tensor], length: int, high: Size, size: Size
) -> dict[str, Tensor]:
    """Make the latent that the model sees beside the video, and which of its frames are given."""
    pixels = tuple(side * family.cell for side in size)
    frames = [fit_picture(image, high, pixels) for image in images]
    if family is HUNYUAN:
        latent = _blank(vae, length, size)
        latent[:, :, :1] = encode_pictures(vae, frames[0], "start_image, encoded")
    else:
        latent = _encode_wan(vae, frames, length)
    mask = torch.ones(1, 1, latent.shape[2], *size)
    mask[:, :, :1] = 0
    if len(images) > 1:
        # By frames of the video: four channels a latent frame.
        mask = mask.repeat(1, 4, 1, 1, 1)
        mask[:, -1, -1] = 0
    return {"concat_latent_image": latent, "concat_mask": mask}


def _encode_wan(vae: Any, frames: list[Tensor], length: int) -> Tensor:
    """Encode a grey video that begins, and may end, with a picture.

    With a picture at the start alone, no more frames are encoded than can depend on it.
    """
    ours = type(getattr(vae, "first_stage_model", None))
    known = ours.__name__ == "WanVAE" and ours.__module__.endswith(".wan.vae")
    count = min(length, REACH) if len(frames) == 1 and known else length
    video = torch.full((count, *frames[0].shape[1:]), 0.5)
    video[:1] = frames[0]
    if len(frames) > 1:
        video[-1:] = frames[1]
    latent = encode_pictures(vae, video, "the picture, encoded")
    rest = latent_frames(vae, length) - latent.shape[2]
    return torch.cat([latent, latent[:, :, -1:].expand(-1, -1, rest, -1, -1)], 2)
