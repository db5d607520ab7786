"""Train the text-to-video model: first stills, then stills, small videos and videos.

Every batch is a function of (seed, step) alone. Stills have a quarter of a video's tokens and teach
colours, shapes, counts and what a direction looks like; videos add motion. Most of the later steps
see videos of full size; a few see half of it, so that the low resolution is known, and yet weaker
than the full one, as with Wan.

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
from .bank import EncodedScenes

SIZE, LOW = 128, 64
"""Pixels along a side of videos, and of small ones."""
TURNS = ("still", "video", "video", "low", "still", "video", "video", "video")
"""Kind of scenes of each step, repeated."""
QUANTILES = (0.3, 0.5, 0.7, 0.8, 0.9)
"""Sigmas at which the held-out loss is taken."""


@dataclass(frozen=True, kw_only=True)
class Videos(Task):
    """Predict noise - clean of encoded scenes from their mixture and their prompt."""

    scenes: Mapping[str, EncodedScenes]
    """Encoded scenes of each kind of TURNS, and `held_out`."""
    batch_size: int
    """Videos of a step."""
    stills: int = 2
    """Stills of a step on stills, for each video of another."""
    still_steps: int = 0
    """First steps, which see stills alone."""
    layers: int = 6
    """Blocks of the model."""
    heads: int = 4
    """Attention heads; one attends in one way a block, to places and to phrases of the prompt."""
    shift: float = 8.0
    """Timestep shift of sigma, which is logit-normal before it: what lies where is settled above
    0.8, and below that little is left to learn."""
    width: float = 1.4
    """Standard deviation of the normal distribution."""
    dropout: float = 0.1
    """Share of samples without a prompt, for classifier-free guidance."""
    seed: int = 0
    """Seed of weights and batches."""
    device: str = "cpu"
    """Where batches are drawn."""
    start: Path | None = None
    """Weights that the first step starts from; None draws them."""

    @property
    def config(self) -> RefinerConfig:
        """The model's configuration."""
        return replace(RefinerConfig.tiny(), layers=self.layers, heads=self.heads)

    def build(self) -> SurfRefinerDiT:
        model = SurfRefinerDiT(self.config)
        model.initialise(torch.Generator().manual_seed(self.seed))
        if self.start is not None:
            model.load_state_dict(checkpoint.load(self.start).state_dict())
        return model

    def kind(self, step: int) -> str:
        """Say which kind of TURNS a step sees."""
        if step < self.still_steps:
            return "still"
        return TURNS[(step - self.still_steps) % len(TURNS)]

    def batch(self, step: int, rank: int, world: int) -> Batch:
        """Draw this process's share of a step: clean, noise [B, C, T, H, W], sigma [B], words."""
        kind = self.kind(step)
        scenes = self.scenes[kind]
        count = self.batch_size * (self.stills if kind == "still" else 1)
        dice = torch.Generator(self.device).manual_seed(self.seed * 1_000_003 + step)
        index = torch.randint(len(scenes), (count,), generator=dice, device=self.device)
        has_prompt = torch.rand(count, generator=dice, device=self.device) >= self.dropout
        clean = scenes.latents[index].float()
        tensors = {
            "clean": clean,
            "noise": torch.randn(clean.shape, generator=dice, device=self.device),
            "sigma": shift_sigma(draw_levels(count, dice, self.width), self.shift),
            "words": scenes.words[index] & has_prompt[:, None, None],
        }
        return Batch(
            tensors={name: value[rank::world] for name, value in tensors.items()},
            keys=tuple(f"{step}/{place}" for place in range(rank, count, world)),
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
        """Return the loss at fixed sigmas, of scenes that are not trained on.

        Compiled blocks run uncompiled here: they would be compiled once more for these shapes.
        """
        scenes = self.scenes["held_out"]
        dice = torch.Generator(self.device).manual_seed(1)
        clean, losses = scenes.latents.float(), {}
        for sigma in QUANTILES:
            noise = torch.randn(clean.shape, generator=dice, device=self.device)
            level = torch.full((len(clean),), sigma, device=self.device)
            tensors = {"clean": clean, "noise": noise, "sigma": level, "words": scenes.words}
            with torch.compiler.set_stance("force_eager"):
                loss = self.loss(model, Batch(tensors=tensors, keys=()))
            losses[f"sigma={sigma}"] = loss.item()
        return losses | {"mean": sum(losses.values()) / len(losses)}

    def export(self, weights: dict[str, Tensor], path: Path, notes: dict) -> None:
        checkpoint.save(path, weights, self.config, notes)

    def notes(self) -> dict:
        named = (
            "batch_size", "stills", "still_steps", "layers", "heads", "shift", "width", "dropout",
        )  # fmt: skip
        counts = {kind: len(scenes) for kind, scenes in self.scenes.items()}
        settings = {name: getattr(self, name) for name in (*named, "seed")}
        return settings | {"turns": TURNS, "scenes": counts}


def draw_levels(count: int, dice: torch.Generator, width: float = 1.0) -> Tensor:
    """Draw `stratified_levels` [count] on the device of a generator."""
    order = torch.randperm(count, generator=dice, device=dice.device)
    offset = torch.rand(count, generator=dice, device=dice.device)
    return stratified_levels(order, offset, width)
