"""What a refinement of video with audio needs: masks, whole pictures, guides apart from the video.

Dims: B batch, C latent channels, T latent frames, H, W latent cells.
"""

from math import prod
from typing import Any

import torch
from torch import Tensor

from ..conditioning import Conditioning
from ..nested import Parts, split_mask
from ..vae import upsample_latent
from .traits import RefineSettings

WITH_AUDIO = "audio is refined with the whole picture, since each tile would give another"
WITH_GUIDES = "guides of LTX-2 are refined with the whole picture, since their places are its own"


def check_joint(parts: Parts, conds: dict[str, Conditioning]) -> None:
    """Refuse prompts for a part of the picture where the host samples video and audio as one row.

    Raises:
        ValueError: an area or a mask of a prompt beside audio.
    """
    if parts.audio is None:
        return
    bound = [
        (name, key)
        for name, cond in conds.items() for entry in cond for key in ("area", "mask")
        if entry[1].get(key) is not None
    ]  # fmt: skip
    if bound:
        name, key = bound[0]
        raise ValueError(
            f"expected prompts for the whole picture beside audio, got one with {key} in the "
            f"{name} conditioning, which the host cannot place there; take Conditioning (Set Area) "
            "or (Set Mask) out."
        )


def masks_of(latent: dict, parts: Parts, refine_audio: bool) -> tuple[Tensor | None, Tensor | None]:
    """Return the noise masks of video and audio: zeros for audio that is not to be refined."""
    video, audio = split_mask(latent.get("noise_mask"))
    if parts.audio is not None and not refine_audio:
        audio = torch.zeros_like(parts.audio)
    return video, audio


def guide_frames(conds: dict[str, Conditioning], source: tuple[int, int]) -> list[int]:
    """Count the latent frames of each guide that LTX-2 has behind the video's frames.

    Args:
        source: rows and columns that the conditioning was made for.

    Raises:
        ValueError: guides on another grid.
    """
    for name, options in ((name, entry[1]) for name, cond in conds.items() for entry in cond):
        positions = options.get("keyframe_idxs")
        if positions is None:
            continue
        entries = options.get("guide_attention_entries") or ()
        counts = [int(entry["latent_shape"][0]) for entry in entries]
        tokens, per_frame = positions.shape[2], prod(source)
        if not counts:
            counts = [1] * (tokens // per_frame)
        if sum(counts) * per_frame != tokens:
            raise ValueError(
                f"expected guides in {name} for {source[0]} x {source[1]} latent cells, got "
                f"{sum(counts)} latent frames in {tokens} tokens; connect the conditioning that "
                "the preview was sampled with, of LTXVAddGuide."
            )
        return counts
    return []


def why_whole(parts: Parts, settings: RefineSettings, guides: list[int]) -> str:
    """Say why a picture must not be cut into tiles; "" where it may."""
    if guides:
        return WITH_GUIDES
    return WITH_AUDIO if parts.audio is not None and settings.refine_audio else ""


def upsample_clips(
    samples: Tensor, size: tuple[int, int], method: str, vae: Any, guides: list[int]
) -> Tensor:
    """Upsample a preview, as `upsample_latent`; the guides behind it are clips of their own.

    A guide of one latent frame is a picture. Longer ones are resized in the latent: inside of a
    video their first latent frame stands for more pictures than a VAE makes of it.
    """
    if not guides:
        return upsample_latent(samples, size, method, vae)
    clips = samples.split([samples.shape[2] - sum(guides), *guides], dim=2)
    methods = [method, *(method if count == 1 else "latent" for count in guides)]
    return torch.cat(
        [
            upsample_latent(clip, size, how, vae).to(samples)
            for clip, how in zip(clips, methods, strict=True)
        ],
        dim=2,
    )
