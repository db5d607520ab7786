"""Train the second refiner: previews of 64 pixels become videos of 256.

A start is what an enlarged preview is: the scene averaged down to 64 pixels, encoded, disturbed a
little in the latent as a sampler's leftovers do, decoded, enlarged, encoded again.

Dims: B samples, N scenes, C channels, T latent frames, H, W latent cells, L phrases, V words.
"""

from dataclasses import dataclass, replace

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


@torch.no_grad()
def pairs(model: vae.TinyVAE, index: Tensor, seed: int, group: int = 8) -> Pairs:
    """Paint scenes and make a pair of each, on the device of the index.

    Source: low-resolution round trip and latent noise as SURF 3.3; the amounts are ours.
    """
    half = index.device.type == "cuda"
    times = torch.linspace(-0.5, 0.5, 13, device=index.device)
    sharp, start, words = [], [], []
    for part in index.split(group):
        scenes = draw(seed, part)
        video = paint(scenes, times, LARGE)
        dice = torch.Generator(part.device).manual_seed(seed * 7919 + int(part[0]))
        with torch.autocast(part.device.type, torch.bfloat16, enabled=half):
            sharp.append(model.encode(video).half().contiguous())
            preview = model.encode(resize(video, (SMALL, SMALL), "area"))
            level = DISTURBED * torch.rand(
                len(part), 1, 1, 1, 1, generator=dice, device=part.device
            )
            noise = torch.randn(preview.shape, generator=dice, device=part.device)
            shown = model.decode(preview + level * noise).float().clamp(-1, 1)
            start.append(model.encode(resize(shown, (LARGE, LARGE), "bicubic")).half().contiguous())
        words.append(scenes.words().bool())
    return Pairs(sharp=torch.cat(sharp), start=torch.cat(start), words=torch.cat(words))


def config(layers: int) -> RefinerConfig:
    """Windows of two latent frames, the paper's time, conditioned on s."""
    return replace(
        RefinerConfig.tiny(window=2), layers=layers, time="t", sigma_start=START,
        sigma_start_range=STRENGTHS,
    )  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class Enlarge(FlowMap):
    """The flow map of `surf_core.training.flow_map`, on pairs of painted scenes."""

    known: Pairs
    """What is learned from."""
    kept_back: Pairs
    """What the held-out loss is of."""
    device: str = "cpu"
    """Where batches are drawn."""

    def batch(self, step: int, rank: int, world: int) -> Batch:
        dice = torch.Generator(self.device).manual_seed(self.seed * 1_000_003 + step)
        count, (least, greatest) = self.batch_size, self._strengths
        index = torch.randint(len(self.known.sharp), (count,), generator=dice, device=self.device)
        drop = torch.rand(2, count, generator=dice, device=self.device)
        levels = draw_levels(count, dice)
        tensors = self._given(self.known, index, dice) | {
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

    def _given(self, of: Pairs, index: Tensor, dice: torch.Generator) -> dict[str, Tensor]:
        hr = of.sharp[index].float()
        return {
            "hr": hr,
            "start": of.start[index].float(),
            "noise": torch.randn(hr.shape, generator=dice, device=self.device),
            "text": of.words[index].float() @ vectors().to(self.device),
        }

    @torch.no_grad()
    def held_out(self, model: torch.nn.Module) -> dict[str, float]:
        """Mean loss over levels, of scenes that nothing is trained on, at the file's s."""
        dice = torch.Generator(self.device).manual_seed(1)
        index = torch.arange(len(self.kept_back.sharp), device=self.device)
        given = self._given(self.kept_back, index, dice)
        given["s"] = torch.full((len(index),), START, device=self.device)
        found = []
        for t in (0.1, 0.3, 0.5, 0.7, 0.9):
            given["t"] = torch.full((len(index),), t, device=self.device)
            found.append(self._loss(model, given).item())
        return {"mean": sum(found) / len(found)}


def task(known: Pairs, kept_back: Pairs, batch: int, layers: int, device: str) -> Enlarge:
    """The second refiner's task."""
    return Enlarge(
        config=config(layers), clips=NoClips(), phases=(), batch_size=batch, shift=1.0,
        text_tokens=PHRASES, dtype=torch.float16, token_dropout=TokenDropout(share=0.0),
        known=known, kept_back=kept_back, device=device,
    )  # fmt: skip
