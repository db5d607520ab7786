"""Encode scenes once, for models that are trained on latents, and keep them in shards on disk.

A shard is written whole or not at all, so a stopped run loses one shard at most. Its name holds a
hash of everything that its tensors depend on but the code that draws the scenes; for that, its
first scenes are computed again when it is read.

Dims: N scenes, B scenes that are computed at once, C latent channels, t latent frames, h, w latent
cells, L phrases, V words.
"""

import json
import logging
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from hashlib import blake2b
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

from ...header import write
from ...tiny import vae
from .paint import paint
from .world import draw

log = logging.getLogger(__name__)
SHARD = 128
"""Scenes of a shard."""
PROBED = 2
"""First scenes of a shard that are computed again when it is read."""
TOLERANCE = 0.02
"""Mean absolute difference of those up to which a shard is used: other machines round otherwise."""

Tensors = dict[str, Tensor]


@dataclass(frozen=True, kw_only=True, slots=True)
class SceneShards:
    """Where the tensors of scenes are kept, and what they depend on."""

    folder: Path | None
    """None keeps nothing on disk."""
    kind: str
    """What the tensors are, for people."""
    key: str
    """Hash of what the tensors depend on, see `hash_of`."""

    def path(self, start: int, stop: int) -> Path | None:
        """The file of the scenes start..stop."""
        if self.folder is None:
            return None
        return self.folder / f"{self.kind}-{self.key}-{start:06d}-{stop:06d}.safetensors"


def hash_of(model: nn.Module, settings: dict) -> str:
    """Hash weights and JSON-able settings: 16 hex digits."""
    state = blake2b(json.dumps(settings, sort_keys=True).encode(), digest_size=8)
    for name, weight in sorted(model.state_dict().items()):
        state.update(f"{name} {weight.dtype} {tuple(weight.shape)}".encode())
        state.update(weight.detach().cpu().contiguous().view(-1).view(torch.uint8).numpy())
    return state.hexdigest()


def compute(
    shards: SceneShards,
    count: int,
    scenes_to_tensors: Callable[[Tensor], Tensors],
    device: str,
    group: int = 8,
    seconds: float | None = None,
) -> Tensors:
    """Compute tensors of the scenes 0..N-1, or read those that are on disk.

    Args:
        shards: where they are kept.
        count: N.
        scenes_to_tensors: maps numbers of scenes [B] to tensors [B, ...]; each scene's depend on
            its number alone.
        device: where numbers and tensors are.
        group: B, at most.
        seconds: stop with fewer scenes after that long, at a whole shard.

    Returns:
        Tensors [N, ...].
    """
    began = time.monotonic()
    parts: list[Tensors] = []
    for start in range(0, count, SHARD):
        if parts and seconds is not None and time.monotonic() - began > seconds:
            break
        index = torch.arange(start, min(start + SHARD, count), device=device)
        path = shards.path(start, start + len(index))
        tensors = None if path is None else _read(path, index, scenes_to_tensors)
        if tensors is None:
            tensors = _joined([scenes_to_tensors(some) for some in index.split(group)])
            if path is not None:
                path.parent.mkdir(parents=True, exist_ok=True)
                write(path, {n: t.cpu() for n, t in tensors.items()}, {})
                log.info("%s: %d of %d scenes", shards.kind, start + len(index), count)
        parts.append(tensors)
    return _joined(parts)


def _joined(parts: list[Tensors]) -> Tensors:
    return {name: torch.cat([part[name] for part in parts]) for name in parts[0]}


def _read(
    path: Path, index: Tensor, scenes_to_tensors: Callable[[Tensor], Tensors]
) -> Tensors | None:
    """Read a shard; None where there is none, or where its scenes look different today."""
    if not path.exists():
        return None
    try:
        tensors = load_file(path, device=str(index.device))
    except SafetensorError as error:
        log.warning("%s is damaged and computed again: %s", path, error)
        return None
    for name, again in scenes_to_tensors(index[:PROBED]).items():
        stored = tensors.get(name)
        if (
            stored is None
            or stored.shape != (len(index), *again.shape[1:])
            or (stored[:PROBED].float() - again.float()).abs().mean() > TOLERANCE
        ):
            log.warning("%s: the scenes are drawn in another way, computed again", path)
            return None
    return tensors


@dataclass(frozen=True, kw_only=True, slots=True)
class ScenePlan:
    """Which scenes, and what of them is encoded."""

    size: int
    """Pixels along a side."""
    frames: int
    """Frames from the first one on, of 13."""
    seed: int
    """Of the scenes."""
    clip: int = 13
    """Frames of the whole clip."""

    def times(self) -> Tensor:
        """Times of the frames: [T], -0.5..0.5."""
        return torch.linspace(-0.5, 0.5, self.clip)[: self.frames]


@dataclass(frozen=True, kw_only=True, slots=True)
class EncodedScenes:
    """Encoded scenes with their prompts, on one device."""

    latents: Tensor
    """[N, C, t, h, w] fp16."""
    words: Tensor
    """[N, L, V] bool, see `surf_core.tiny.caption.multi_hot`."""

    def __len__(self) -> int:
        return len(self.latents)


@torch.no_grad()
def encode(model: vae.TinyVAE, plan: ScenePlan, index: Tensor) -> Tensors:
    """Paint and encode the scenes [B] of a plan, on the device of their numbers.

    Returns:
        latents [B, C, t, h, w] fp16, and words [B, L, V] bool.
    """
    scenes = draw(plan.seed, index)
    video = paint(scenes, plan.times(), plan.size)
    device = index.device.type
    with torch.autocast(device, torch.bfloat16, enabled=device == "cuda"):
        latents = model.encode(video)
    return {"latents": latents.half().contiguous(), "words": scenes.words().bool()}


def encode_scenes(
    model: vae.TinyVAE,
    plan: ScenePlan,
    count: int,
    device: str,
    folder: Path | None = None,
    group: int = 8,
    seconds: float | None = None,
) -> EncodedScenes:
    """Encode the first scenes of a plan, or read them from the folder.

    Args:
        model: on the device, in evaluation mode.
        plan: what to encode.
        count: N.
        device: where painting, model and result are.
        folder, group, seconds: see `compute`.
    """
    kind = f"{plan.size}x{plan.frames}-seed{plan.seed}"
    shards = SceneShards(folder=folder, kind=kind, key=hash_of(model, asdict(plan)))
    tensors = compute(
        shards, count, lambda index: encode(model, plan, index), device, group, seconds
    )
    return EncodedScenes(**tensors)
