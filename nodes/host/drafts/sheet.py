"""Show all drafts in one moving picture, numbered, and keep it until the drafts change.

One picture: of several moving ones, front ends show the first alone.

Dims: F frames, h, w pixels of a draft in the picture.
"""

import hashlib
from math import ceil, sqrt
from pathlib import Path
from typing import Any
from weakref import WeakKeyDictionary

import folder_paths
import torch
import torch.nn.functional as F
from torch import Tensor

from ..drawing import saved_frames
from ..nested import tensors_of
from ..node import NodeLog
from .pictures import decoded, frames_beside, latent_format, previewed

log = NodeLog(__name__)

WIDEST, LARGEST, LEAST = 1280, 512, 192
"""Pixels: of the picture's side, and of the longer side of a draft in it, at most and at least."""
KEPT = 8
"""Pictures that are kept for a VAE."""
DIGITS = ("111101101101111", "010110010010111", "111001111100111", "111001111001111",
          "101101111001001", "111100111001111", "111100111101111", "111001001001001",
          "111101111101111", "111101111001111")  # fmt: skip
"""Rows of three, five a digit."""
_shown: WeakKeyDictionary[Any, dict[str, Any]] = WeakKeyDictionary()
"""VAE, or class of latents -> digest of drafts -> the picture in the folder of temporary files."""


def show(drafts: list[dict], fps: float, vae: Any, model: Any) -> Any:
    """Return a picture of all drafts for the node.

    It is made once: choosing another draft decodes nothing again.

    Args:
        drafts: LATENTs of one item each.
        fps: frames a second of the videos.
        vae: decodes them; None to colour latents as the host's previews do.
        model: the MODEL of these latents; None for what the drafts say themselves.

    Returns:
        What the host shows; None where nothing can be shown.
    """
    kind = None if vae is not None or not drafts else latent_format(drafts[0], model)
    if not drafts or (vae is None and kind is None):
        log.info("connect a vae, or the model, to see the drafts; they are passed on unseen.")
        return None
    kept = _shown.setdefault(type(kind) if vae is None else vae, {})
    digest = _digest(drafts, fps)
    if digest not in kept or not _is_there(kept[digest]):
        images = sheet(drafts, vae, kind)
        if images is None:
            log.info("the host has no colours for these latents; connect a vae to see the drafts.")
            return None
        rate = fps if vae is not None else fps / frames_beside(kind)
        kept[digest] = saved_frames(images, "surf_drafts", rate, lossless=False)
        for old in [*kept][:-KEPT]:
            del kept[old]
    return kept[digest]


def sheet(drafts: list[dict], vae: Any, kind: Any) -> Tensor | None:
    """Draw drafts beside and below each other, each with its number: [F, height, width, 3]."""
    columns = ceil(sqrt(len(drafts)))
    clips = []
    for number, draft in enumerate(drafts, 1):
        frames = previewed(draft, kind) if vae is None else decoded(draft, vae)
        if frames is None:
            return None
        clips.append(numbered(fitted(frames, columns), number))
    count = max(len(clip) for clip in clips)
    high, wide = (max(clip.shape[axis] for clip in clips) for axis in (1, 2))
    cells = [_padded(clip, count, high, wide) for clip in clips]
    cells += [torch.zeros_like(cells[0])] * (-len(cells) % columns)
    rows = [torch.cat(cells[i : i + columns], 2) for i in range(0, len(cells), columns)]
    return torch.cat(rows, 1)


def fitted(frames: Tensor, columns: int) -> Tensor:
    """Resize frames [F, h, w, 3] to fit so many columns; small ones to whole multiples."""
    longest, most = max(frames.shape[1:3]), min(LARGEST, WIDEST // columns)
    channels_first = frames.float().movedim(-1, 1)
    if longest > most:
        size = [max(1, round(side * most / longest)) for side in frames.shape[1:3]]
        channels_first = F.interpolate(channels_first, size, mode="area")
    elif 2 * longest <= LEAST:
        channels_first = F.interpolate(channels_first, scale_factor=LEAST // longest)
    return channels_first.movedim(1, -1).clamp(0, 1)


def numbered(frames: Tensor, number: int) -> Tensor:
    """Draw a number into the top left corner of frames [F, h, w, 3]: white on black."""
    digits = [torch.tensor([*map(int, DIGITS[int(d)])]).view(5, 3) for d in str(number)]
    label = F.pad(torch.cat([F.pad(digit, (1, 0)) for digit in digits], 1), (0, 1, 1, 1)).float()
    block = max(1, max(frames.shape[1:3]) // 40)
    label = label.repeat_interleave(block, 0).repeat_interleave(block, 1)
    label = label[: frames.shape[1], : frames.shape[2], None].to(frames)
    out = frames.clone()
    out[:, : label.shape[0], : label.shape[1]] = label
    return out


def _padded(clip: Tensor, count: int, high: int, wide: int) -> Tensor:
    """Give a clip more frames, its last one again, and a black border at the right and below."""
    clip = torch.cat([clip, clip[-1:].expand(count - len(clip), -1, -1, -1)])
    return F.pad(clip, (0, 0, 0, wide - clip.shape[2], 0, high - clip.shape[1]))


def _digest(drafts: list[dict], fps: float) -> str:
    digest = hashlib.sha256(repr(fps).encode())
    for draft in drafts:
        for part in tensors_of(draft["samples"]):
            digest.update(repr((part.dtype, tuple(part.shape))).encode())
            digest.update(part.detach().cpu().contiguous().view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()


def _is_there(picture: Any) -> bool:
    [saved] = picture.results
    return Path(folder_paths.get_temp_directory(), saved["subfolder"], saved["filename"]).is_file()
