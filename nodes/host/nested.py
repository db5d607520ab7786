"""Take latents of video and audio apart, and put them together again; no other file does.

MiniMax H3 and LTX-2 make both in one run. The host hands such a latent on as a nested tensor of two
parts, and samples it as one pack: one row of numbers per item, the video's first.

Dims: B batch, C channels, T latent frames, H, W latent cells, N numbers of an item's parts.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from math import prod
from typing import Any

import comfy.nested_tensor
import comfy.utils
import torch
from torch import Tensor

from ...surf_core.checks import check_latent

SHAPES_KEY = "latent_shapes"
"""Key under which the host hands the shapes of the parts to a model, beside the pack."""
JOINT_MODELS = ("MiniMaxH3", "LTXAV")
"""The host's models of video and audio; those that derive from them, too."""
NEEDS_AUDIO = ("MiniMaxH3",)
"""Those of them that cannot run on video alone."""
H3_STEREO = 2
"""Channels of sound, left and right, in MiniMax H3's audio latents."""
Shapes = Sequence[Sequence[int]]
"""Shape of each part of a pack, the video's first."""


@dataclass(frozen=True, slots=True, eq=False)
class Parts:
    """The parts of a latent, a clean estimate, or noise."""

    video: Tensor
    """[B, C, T, H, W]; of a plain latent [B, C, (T,) H, W], the latent itself."""
    audio: Tensor | None = None
    """Four axes: [B, C, 2, N] of MiniMax H3, [B, C, N, bins] of LTX-2. None in a plain latent."""

    @property
    def tensors(self) -> list[Tensor]:
        """The parts there are, the video's first."""
        return [self.video] if self.audio is None else [self.video, self.audio]

    @property
    def shapes(self) -> list[tuple[int, ...]]:
        return [tuple(part.shape) for part in self.tensors]

    def joined(self) -> Any:
        """Return what the host takes as samples: the plain tensor, or a nested one."""
        return self.video if self.audio is None else comfy.nested_tensor.NestedTensor(self.tensors)

    def packed(self) -> Tensor:
        """Return what the host samples: the plain tensor, or the pack [B, 1, N]."""
        return self.video if self.audio is None else comfy.utils.pack_latents(self.tensors)[0]

    def with_video(self, video: Tensor) -> Parts:
        """Return other video with the same audio."""
        return Parts(video, self.audio)

    def each(self, change: Callable[[Tensor], Tensor]) -> Parts:
        """Change every part alike, by a function that looks at no axis."""
        return Parts(*map(change, self.tensors))


def is_joint(samples: Any) -> bool:
    """Say whether samples, or a noise mask, have parts."""
    return getattr(samples, "is_nested", False)


def tensors_of(samples: Any) -> list[Any]:
    """Return the parts of samples, or of a noise mask, as they are; what has none is the one."""
    return list(samples.unbind()) if is_joint(samples) else [samples]


def split(samples: Any, name: str) -> Parts:
    """Take samples apart.

    Args:
        samples: of a LATENT, plain or of video and audio.
        name: what errors call it.

    Returns:
        Parts that share memory with the samples.

    Raises:
        ValueError: parts of another kind or number, of different batches, or no usable latents.
    """
    parts = tensors_of(samples)
    if is_joint(samples) and [part.ndim for part in parts] != [5, 4]:
        shapes = [tuple(part.shape) for part in parts]
        raise ValueError(
            f"{name}: expected two nested parts, video [B, C, T, H, W] and then audio of 4 axes, "
            f"got {len(parts)} of {shapes}; join one video and one audio latent with "
            "LTXVConcatAVLatent."
        )
    for part in parts:
        check_latent(part, name)
    if len({len(part) for part in parts}) > 1:
        raise ValueError(
            f"{name}: expected as many audios as videos, got {[len(part) for part in parts]}; "
            "join latents of the same batch size."
        )
    return Parts(*parts)


def unpack(x: Tensor, shapes: Shapes | None) -> Parts:
    """Take apart what the host samples: x, a clean estimate, the noise between them.

    Args:
        x: the pack [B, 1, N], or a plain latent.
        shapes: of the parts; of a plain latent, one or None. B need not be theirs.

    Returns:
        Parts that share memory with x.
    """
    return Parts(x) if shapes is None else Parts(*comfy.utils.unpack_latents(x, shapes))


def sampled_shape(shapes: Shapes, size: tuple[int, int]) -> list[int]:
    """Return the shape of what the host samples, the video having `size` rows and columns."""
    video, *others = shapes
    resized = [*video[:-2], *size]
    if not others:
        return resized
    return [video[0], 1, sum(prod(shape[1:]) for shape in (resized, *others))]


def split_mask(mask: Any) -> tuple[Tensor | None, Tensor | None]:
    """Take a noise mask apart into (video, audio), None where all of a part is sampled.

    As the host does, a plain mask is the video's.
    """
    parts = tensors_of(mask)
    return parts[0], parts[1] if len(parts) > 1 else None


def join_mask(video: Tensor | None, audio: Tensor | None, parts: Parts) -> Any:
    """Put together a noise mask for these parts; None where all of both is sampled."""
    if parts.audio is None or (video is None and audio is None):
        return video
    masks = (video, parts.video), (audio, parts.audio)
    return Parts(*(torch.ones_like(x) if mask is None else mask for mask, x in masks)).joined()


def has_audio(model: Any) -> bool:
    """Say whether a MODEL makes audio beside video."""
    return _derives(model, JOINT_MODELS)


def needs_audio(model: Any) -> bool:
    """Say whether a MODEL cannot run on video alone."""
    return _derives(model, NEEDS_AUDIO)


def _derives(model: Any, names: tuple[str, ...]) -> bool:
    return any(kind.__name__ in names for kind in type(model.model).__mro__)


def video_channels(model: Any) -> int:
    """Return the channels of a MODEL's video latents.

    The latent format of MiniMax H3 names the larger number of both parts.
    """
    known = model.get_model_object("latent_format").latent_channels
    return model.model.diffusion_model.latents_dim if needs_audio(model) else known


def check_mask_parts(mask: Any, name: str) -> None:
    """Refuse a noise mask of more parts than video and audio, or with the video's second.

    Raises:
        ValueError: says what a mask has.
    """
    parts = tensors_of(mask)
    if len(parts) > 2 or (len(parts) == 2 and parts[1] is not None and parts[1].ndim > 4):
        raise ValueError(
            f"{name}: expected a noise mask of the video, or one of the video and then one of the "
            f"audio, got {len(parts)} of {[tuple(part.shape) for part in parts]}; set the mask of "
            "each with Set Latent Noise Mask, and join the latents with LTXVConcatAVLatent."
        )


def check_parts(model: Any, parts: Parts, name: str) -> None:
    """Refuse audio for a model without, and video alone for one that makes both.

    Raises:
        ValueError: names the node that splits or makes both.
    """
    kind = type(model.model).__name__
    if parts.audio is not None and not has_audio(model):
        raise ValueError(
            f"{name}: expected one video latent for {kind}, which has no audio, got nested video "
            f"and audio {parts.shapes}; separate the video with LTXVSeparateAVLatent, or connect "
            "the model that made both."
        )
    if parts.audio is None and needs_audio(model):
        raise ValueError(
            f"{name}: expected video and audio for {kind}, which makes both in one run, got "
            f"video alone {parts.shapes[0]}; make both with MiniMaxH3ImageToVideo or "
            "EmptyMiniMaxH3LatentAV, or join them with LTXVConcatAVLatent."
        )


def check_audio(model: Any, audio: Tensor | None, name: str) -> None:
    """Refuse audio of another model, whose axes are others; None is no audio.

    Raises:
        ValueError: says what this model's audio has.
    """
    if audio is None:
        return
    network, kind = model.model.diffusion_model, type(model.model).__name__
    if needs_audio(model):
        shape = getattr(network, "audio_latents_dim", None), H3_STEREO, None
    else:
        channels, bins = (
            getattr(network, key, None) for key in ("num_audio_channels", "audio_frequency_bins")
        )
        shape = channels, None, bins
    found = tuple(audio.shape)
    if any(fits not in (None, side) for fits, side in zip(shape, found[1:], strict=True)):
        expected = ", ".join("any" if side is None else str(side) for side in shape)
        raise ValueError(
            f"{name}: expected audio [B, {expected}] for {kind}, got {found}; connect "
            "the audio that this model or its audio VAE made."
        )
