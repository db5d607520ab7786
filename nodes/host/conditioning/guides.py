"""Fit frames that anchor a video of MiniMax H3 or LTX-2 to another size of that video.

MiniMax H3 carries them as latents in the conditioning (`minimax_keyframes`), on the video's grid.
LTX-2 appends them to the video's frames; the conditioning says where the tokens of each lie
(`keyframe_idxs`) and how many there are (`guide_attention_entries`).

Dims: B batch, C channels, F latent frames of a guide, T latent frames, H, W latent cells.
"""

from collections.abc import Sequence
from math import prod

import comfy.ldm.common_dit
import torch
from torch import Tensor

from ....surf_core.resample import resize
from ..node import NodeLog

log = NodeLog(__name__)

Size = tuple[int, int]
"""Rows and columns in latent cells."""
KEYFRAMES = "minimax_keyframes"
"""Key of MiniMax H3's keyframes in conditioning."""
H3_PATCH = (1, 2, 2)
"""Latent cells of a token of MiniMax H3: frames, rows, columns."""


def on_grid(keyframe: dict, size: Size) -> bool:
    """Say whether a keyframe lies on the whole tokens of a video of this size, as sound does."""
    latent = keyframe.get("latent")
    return latent is None or tuple(latent.shape[-2:]) == tuple(
        -(-side // cells) * cells for side, cells in zip(size, H3_PATCH[1:], strict=True)
    )


def check_keyframes(conds: dict[str, list], size: Size) -> None:
    """Refuse MiniMax H3's keyframes that were made for another size than the latent's, in cells.

    Args:
        conds: name -> CONDITIONING of the first leg.
    """
    for name, options in ((name, entry[1]) for name, cond in conds.items() for entry in cond):
        for keyframe in options.get(KEYFRAMES) or ():
            if not on_grid(keyframe, size):
                raise ValueError(
                    f"expected keyframes of the latent's {size[0]} x {size[1]} cells in the {name} "
                    f"conditioning, got {tuple(keyframe['latent'].shape[-2:])}; take prompt and "
                    "latent from one MiniMax H3 node, at one width and height."
                )


def resize_keyframes(keyframes: Sequence[dict] | None, size: Size) -> list[dict] | None:
    """Resize the latents of MiniMax H3's keyframes to a video of another size; sound stays.

    Args:
        keyframes: `minimax_keyframes`; each may have a "latent" [1, 24, F, H, W].
        size: rows and columns of the video.

    Returns:
        New dictionaries; latents that lie on the grid of that video are shared.
    """
    if keyframes is None:
        return None
    fitted = [{**keyframe} for keyframe in keyframes]
    resized = [keyframe for keyframe in fitted if not on_grid(keyframe, size)]
    for keyframe in resized:
        keyframe["latent"] = pad_cells(resize(keyframe["latent"], size))
    if resized:
        frames = [keyframe["resolved_frame_index"] for keyframe in resized]
        log.info(
            "the keyframes at frames %s are resized to %d x %d cells; connect first_frame, "
            "last_frame and vae to have pictures encoded at that size.", frames, *reversed(size),
        )  # fmt: skip
    return fitted


def pad_cells(latent: Tensor) -> Tensor:
    """Pad rows and columns to whole tokens, as MiniMax H3 pads its video."""
    return comfy.ldm.common_dit.pad_to_patch_size(latent, H3_PATCH)


def move_guides(positions: Tensor | None, source: Size, target: Size, cell: int) -> Tensor | None:
    """Lay the tokens of LTX-2's guide frames out on another grid.

    Args:
        positions: `keyframe_idxs`, [B, 3, F * H * W, 2]: start and end of each token along time in
            frames, and along rows and columns in pixels.
        source, target: rows and columns before and after.
        cell: pixels per side of a latent cell.

    Returns:
        [B, 3, F * h * w, 2]: the times stay, what lies on the grid is made anew.

    Raises:
        ValueError: positions on another grid, or of a reference with cells of another size.
    """
    if positions is None:
        return None
    per_frame = prod(source)
    count = positions.shape[2]
    if count % per_frame:
        raise ValueError(
            f"expected guides on the latent's grid, {per_frame} tokens a frame, got {count} tokens "
            "in all; add them to this latent with LTXVAddGuide, or take them out with "
            "LTXVCropGuides."
        )
    if count and ((positions[:, 1:, :, 1] - positions[:, 1:, :, 0]) != cell).any():
        raise ValueError(
            f"expected guides with a picture of {cell} pixels in a cell, got a reference with a "
            "downscale factor of an IC-LoRA, whose cells have no place in a smaller grid; take it "
            "out, or keep the size."
        )
    rows, columns = target
    times = positions[:, :1, ::per_frame].repeat_interleave(rows * columns, dim=2)
    starts = torch.stack(
        torch.meshgrid(torch.arange(rows), torch.arange(columns), indexing="ij")
    ).flatten(1)  # fmt: skip
    starts = starts.to(positions).repeat(1, count // per_frame) * cell
    places = torch.stack([starts, starts + cell], dim=-1).expand(len(positions), -1, -1, -1)
    return torch.cat([times, places], dim=1)


def resize_entries(entries: Sequence[dict] | None, size: Size) -> list[dict] | None:
    """Count the tokens of LTX-2's guides on another grid; strengths and masks in pixels stay.

    Args:
        entries: `guide_attention_entries`.

    Returns:
        New dictionaries.
    """
    if entries is None:
        return None
    return [
        {
            **entry,
            "pre_filter_count": entry["latent_shape"][0] * prod(size),
            "latent_shape": [entry["latent_shape"][0], *size],
        }
        for entry in entries
    ]
