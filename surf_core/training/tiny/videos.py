"""Train the second text-to-video model: stills, small videos and videos, in turns.

Every batch is a function of (seed, step) alone. Most of the steps see videos of full size; a few
see half of it, so that the low resolution is known and yet the weaker one, as with Wan.

Dims: B samples, C latent channels, T latent frames, H, W latent cells, L phrases, V words.
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from torch import Tensor, nn

from ... import checkpoint
from ...refiner import RefinerConfig, SurfRefinerDiT
from ...schedule import shift_sigma
from ...tiny.caption import vectors
from ..flow_map import stratified_levels
from ..task import Batch, Task
from .bank import Bank

SIZE, LOW = 128, 64
"""Pixels along a side of videos, and of small ones."""
TURNS = ("still", "video", "video", "low", "still", "video", "video", "video")
"""What the steps see, over and over."""
QUANTILES = (0.3, 0.5, 0.7, 0.8, 0.9)
"""Sigmas of the held-out loss."""


@dataclass(frozen=True, kw_only=True)
class Videos(Task):
    """Predict noise - clean of encoded scenes from their mixture and their prompt."""

    banks: Mapping[str, Bank]
    """For each kind of TURNS, and `held_out`."""
    batch_size: int
    """Videos a step."""
    stills: int = 2
    """Stills a step, for each video of another."""
    layers: int = 7
    """Blocks of the model."""
    shift: float = 3.0
    """Timestep shift of sigma, logit-normal before it."""
    width: float = 1.2
    """Deviation of the normal distribution."""
    dropout: float = 0.1
    """Share of samples without a prompt, for guidance."""
    seed: int = 0
    """Of weights and batches."""
    device: str = "cpu"
    """Where batches are drawn."""

    @property
    def config(self) -> RefinerConfig:
        return replace(RefinerConfig.tiny(), layers=self.layers)

    def build(self) -> SurfRefinerDiT:
        model = SurfRefinerDiT(self.config)
        model.initialise(torch.Generator().manual_seed(self.seed))
        return model

    def batch(self, step: int, rank: int, world: int) -> Batch:
        kind = TURNS[step % len(TURNS)]
        bank, count = self.banks[kind], self.batch_size * (self.stills if kind == "still" else 1)
        dice = torch.Generator(self.device).manual_seed(self.seed * 1_000_003 + step)
        index = torch.randint(len(bank), (count,), generator=dice, device=self.device)
        kept = torch.rand(count, generator=dice, device=self.device) >= self.dropout
        clean = bank.latents[index].float()
        tensors = {
            "clean": clean,
            "noise": torch.randn(clean.shape, generator=dice, device=self.device),
            "sigma": shift_sigma(draw_levels(count, dice, self.width), self.shift),
            "words": bank.words[index] & kept[:, None, None],
        }
        places = range(rank, count, world)
        return Batch(
            tensors={name: value[rank::world] for name, value in tensors.items()},
            keys=tuple(f"{step}/{place}" for place in places),
        )

    def loss(self, model: nn.Module, batch: Batch) -> Tensor:
        clean, noise, sigma, words = (
            batch.tensors[name] for name in ("clean", "noise", "sigma", "words")
        )
        s = sigma.view(-1, 1, 1, 1, 1)
        context = words.float() @ vectors().to(words.device)
        velocity = model((1 - s) * clean + s * noise, sigma * 1000, context)
        return (velocity.float() - (noise - clean)).square().mean()

    @torch.no_grad()
    def held_out(self, model: nn.Module) -> dict[str, float]:
        """Loss at fixed sigmas of scenes that nothing is trained on."""
        bank = self.banks["held_out"]
        dice = torch.Generator(self.device).manual_seed(1)
        clean, found = bank.latents.float(), {}
        for sigma in QUANTILES:
            noise = torch.randn(clean.shape, generator=dice, device=self.device)
            level = torch.full((len(clean),), sigma, device=self.device)
            given = {"clean": clean, "noise": noise, "sigma": level, "words": bank.words}
            found[f"sigma={sigma}"] = self.loss(model, Batch(tensors=given, keys=())).item()
        return found | {"mean": sum(found.values()) / len(found)}

    def export(self, weights: dict[str, Tensor], path: Path, notes: dict) -> None:
        checkpoint.save(path, weights, self.config, notes)

    def notes(self) -> dict:
        named = ("batch_size", "stills", "layers", "shift", "width", "dropout", "seed")
        sizes = {kind: len(bank) for kind, bank in self.banks.items()}
        return {name: getattr(self, name) for name in named} | {"turns": TURNS, "scenes": sizes}


def draw_levels(count: int, dice: torch.Generator, width: float = 1.0) -> Tensor:
    """Draw `stratified_levels` [count] on the device of a generator."""
    order = torch.randperm(count, generator=dice, device=dice.device)
    offset = torch.rand(count, generator=dice, device=dice.device)
    return stratified_levels(order, offset, width)
