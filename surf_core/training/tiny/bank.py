"""Scenes encoded once, for models that are trained on latents: the same ones on every call.

Dims: N scenes, C latent channels, t latent frames, h, w latent cells, L phrases, V words.
"""

import logging
import time
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from ...tiny import vae
from .paint import paint
from .world import draw

log = logging.getLogger(__name__)
SHARD = 512
"""Scenes of a file, and of what is lost when the preparation is stopped."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Plan:
    """Which scenes, and how they are encoded."""

    count: int
    """N."""
    size: int
    """Pixels along a side."""
    frames: int
    """Frames from the first one on, of 13."""
    seed: int
    """Of the scenes."""
    clip: int = 13
    """Frames of the whole clip."""

    def times(self) -> Tensor:
        """Of the frames, -0.5..0.5."""
        return torch.linspace(-0.5, 0.5, self.clip)[: self.frames]


@dataclass(frozen=True, kw_only=True, slots=True)
class Bank:
    """Encoded scenes, on one device."""

    latents: Tensor
    """[N, C, t, h, w] fp16."""
    words: Tensor
    """[N, L, V] bool, see `surf_core.tiny.caption.multi_hot`."""

    def __len__(self) -> int:
        return len(self.latents)


@torch.no_grad()
def encoded(model: vae.TinyVAE, plan: Plan, index: Tensor, half: bool) -> tuple[Tensor, Tensor]:
    """Paint and encode scenes [B] on the device of the index: latents fp16, and words."""
    scenes = draw(plan.seed, index)
    video = paint(scenes, plan.times(), plan.size)
    with torch.autocast(index.device.type, torch.bfloat16, enabled=half):
        latents = model.encode(video)
    return latents.half().contiguous(), scenes.words().bool()


def fill(
    model: vae.TinyVAE,
    plan: Plan,
    device: str,
    folder: Path | None = None,
    group: int = 32,
    seconds: float | None = None,
) -> Bank:
    """Encode a plan's scenes, or read those that a folder has already.

    Args:
        model: on the device, in evaluation mode.
        plan: what to encode.
        device: where the bank is to be.
        folder: where to keep shards of it; None keeps nothing.
        group: scenes that are painted at once.
        seconds: stop with fewer scenes after that long, at a whole shard.
    """
    began = time.monotonic()
    half = torch.device(device).type == "cuda"
    latents, words = [], []
    for start in range(0, plan.count, SHARD):
        if start and seconds is not None and time.monotonic() - began > seconds:
            break
        stop = min(start + SHARD, plan.count)
        name = f"{plan.size}x{plan.frames}-{plan.seed}-{start:06d}-{stop:06d}.safetensors"
        path = None if folder is None else folder / name
        if path is not None and path.exists():
            shard = load_file(path, device=device)
            latents.append(shard["latents"])
            words.append(shard["words"])
            continue
        parts = [
            encoded(model, plan, torch.arange(i, min(i + group, stop), device=device), half)
            for i in range(start, stop, group)
        ]
        latents.append(torch.cat([part[0] for part in parts]))
        words.append(torch.cat([part[1] for part in parts]))
        if path is not None:
            path.parent.mkdir(parents=True, exist_ok=True)
            save_file({"latents": latents[-1], "words": words[-1]}, path)
            log.info("encoded %d of %d scenes", stop, plan.count)
    return Bank(latents=torch.cat(latents), words=torch.cat(words))
