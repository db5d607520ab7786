"""Train the refiner: previews of 64 pixels become videos of 256.

A start is what an enlarged preview is: the scene averaged down to 64 pixels, encoded, disturbed a
little in the latent as a sampler's leftovers do, decoded, enlarged, encoded again.

Dims: B samples, N scenes, C channels, T latent frames, H, W latent cells, L phrases, V words, D
width of text tokens.
"""

from dataclasses import dataclass, replace
from pathlib import Path

import torch
from torch import Tensor

from ...refiner import RefinerConfig
from ...resample import resize
from ...schedule import shift_sigma
from ...tiny import vae
from ...tiny.caption import PHRASES, vectors
from ..clip_source import NoClips
from ..flow_map import FlowMap
from ..task import Batch
from ..token_dropout import TokenDropout
from .bank import SceneShards, Tensors, compute, hash_of
from .paint import paint
from .videos import draw_levels
from .world import draw

LARGE, SMALL = 256, 64
"""Pixels along a side of refined videos, and of previews."""
DISTURBED = 0.25
"""Most noise on the latent of a preview, in its deviations."""
STRENGTHS = (0.0, 0.4)
"""Least and greatest s of a start, see `RefinerConfig.sigma_start_range`."""
START = 0.05
"""The s that the file names."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Pairs:
    """Sharp latents and the starts that belong to them, on one device."""

    sharp: Tensor
    """[N, C, T, H, W] fp16."""
    start: Tensor
    """[N, C, T, H, W] fp16."""
    words: Tensor
    """[N, L, V] bool."""

    def __len__(self) -> int:
        return len(self.sharp)


@torch.no_grad()
def pair_up(model: vae.TinyVAE, index: Tensor, seed: int) -> Tensors:
    """Paint scenes [B] and make a pair of each, on the device of their numbers.

    Returns:
        sharp and start [B, C, T, H, W] fp16, words [B, L, V] bool.

    Source: low-resolution round trip and latent noise as SURF 3.3; the amounts are ours.
    """
    device = index.device
    times = torch.linspace(-0.5, 0.5, 13, device=device)
    scenes = draw(seed, index)
    video = paint(scenes, times, LARGE)
    with torch.autocast(device.type, torch.bfloat16, enabled=device.type == "cuda"):
        sharp = model.encode(video)
        preview = model.encode(resize(video, (SMALL, SMALL), "area"))
        shown = model.decode(_disturbed(preview, index, seed)).float().clamp(-1, 1)
        start = model.encode(resize(shown, (LARGE, LARGE), "bicubic"))
    return {
        "sharp": sharp.half().contiguous(),
        "start": start.half().contiguous(),
        "words": scenes.words().bool(),
    }


def _disturbed(preview: Tensor, index: Tensor, seed: int) -> Tensor:
    """Add up to DISTURBED of noise to latents [B, C, T, h, w]; each scene's by its number alone."""
    noisy = []
    for latent, number in zip(preview, index.tolist(), strict=True):
        dice = torch.Generator(preview.device).manual_seed(seed * 1_000_003 + number)
        level = DISTURBED * torch.rand(1, generator=dice, device=preview.device)
        noise = torch.randn(latent.shape, generator=dice, device=preview.device)
        noisy.append(latent + level * noise)
    return torch.stack(noisy)


def pairs(
    model: vae.TinyVAE,
    first: int,
    count: int,
    seed: int,
    device: str,
    folder: Path | None = None,
    seconds: float | None = None,
) -> Pairs:
    """Make the pairs of scenes first..first + N, or read them from the folder.

    Args:
        model: on the device, in evaluation mode.
        first: number of the first scene.
        count: N.
        seed: of scenes and noise.
        device: where painting, model and result are.
        folder, seconds: see `surf_core.training.tiny.bank.compute`.
    """
    settings = {"seed": seed, "first": first, "sizes": (LARGE, SMALL), "disturbed": DISTURBED}
    shards = SceneShards(folder=folder, kind=f"pairs-seed{seed}", key=hash_of(model, settings))
    tensors = compute(
        shards, count, lambda index: pair_up(model, index + first, seed), device, seconds=seconds
    )
    return Pairs(**tensors)


def config(layers: int) -> RefinerConfig:
    """Windows of two latent frames, the paper's time, conditioned on s."""
    return replace(
        RefinerConfig.tiny(window=2), layers=layers, time="t", sigma_start=START,
        sigma_start_range=STRENGTHS,
    )  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class Enlarge(FlowMap):
    """The flow map of `surf_core.training.flow_map`, on pairs of painted scenes."""

    training_pairs: Pairs
    """Pairs that are trained on."""
    held_out_pairs: Pairs
    """Pairs that the held-out loss is taken of."""
    device: str = "cpu"
    """Where batches are drawn."""

    def batch(self, step: int, rank: int, world: int) -> Batch:
        dice = torch.Generator(self.device).manual_seed(self.seed * 1_000_003 + step)
        count, (least, greatest) = self.batch_size, self._strengths
        index = torch.randint(
            len(self.training_pairs), (count,), generator=dice, device=self.device
        )
        drop = torch.rand(2, count, generator=dice, device=self.device)
        levels = draw_levels(count, dice)
        tensors = self._tensors(self.training_pairs, index, dice) | {
            "t": shift_sigma(levels, self.shift),
            "s": least + (greatest - least) * drop[0],
            "drop_tokens": torch.rand(1, generator=dice, device=self.device).expand(count)
            < self.token_dropout.share,
        }
        tensors["text"] = tensors["text"] * (drop[1] >= self.dropout)[:, None, None]
        places = range(rank, count, world)
        return Batch(
            tensors={name: value[rank::world] for name, value in tensors.items()},
            keys=tuple(f"{step}/{place}" for place in places),
        )

    def _tensors(self, pairs: Pairs, index: Tensor, dice: torch.Generator) -> dict[str, Tensor]:
        """Select pairs [B]: hr, start, noise [B, C, T, H, W] and text [B, L, D]."""
        hr = pairs.sharp[index].float()
        return {
            "hr": hr,
            "start": pairs.start[index].float(),
            "noise": torch.randn(hr.shape, generator=dice, device=self.device),
            "text": pairs.words[index].float() @ vectors().to(self.device),
        }

    @torch.no_grad()
    def held_out(self, model: torch.nn.Module) -> dict[str, float]:
        """Return the mean loss over levels, of scenes that are not trained on, at the file's s."""
        dice = torch.Generator(self.device).manual_seed(1)
        index = torch.arange(len(self.held_out_pairs), device=self.device)
        tensors = self._tensors(self.held_out_pairs, index, dice)
        tensors["s"] = torch.full((len(index),), START, device=self.device)
        losses = []
        for t in (0.1, 0.3, 0.5, 0.7, 0.9):
            tensors["t"] = torch.full((len(index),), t, device=self.device)
            losses.append(self._loss(model, tensors).item())
        return {"mean": sum(losses) / len(losses)}


def task(
    training_pairs: Pairs, held_out_pairs: Pairs, batch: int, layers: int, device: str
) -> Enlarge:
    """Return the refiner's task."""
    return Enlarge(
        config=config(layers), clips=NoClips(), phases=(), batch_size=batch, shift=1.0,
        text_tokens=PHRASES, dtype=torch.float16, token_dropout=TokenDropout(share=0.0),
        training_pairs=training_pairs, held_out_pairs=held_out_pairs, device=device,
    )  # fmt: skip
