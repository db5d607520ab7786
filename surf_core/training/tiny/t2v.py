"""Train the embedded text-to-video model from nothing: still images first, then videos.

    python -m surf_core.training.tiny.t2v --out runs/tiny

One thread, fp32, 2 CPU cores shared with other work. The run resumes from its last checkpoint,
and every batch is a function of (seed, step) alone.

Dims: B batch, T latent frames.
"""

import argparse
import logging
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import torch
from torch import Tensor, nn

from ... import checkpoint
from ...refiner import RefinerConfig, SurfRefinerDiT
from ...schedule import shift_sigma
from ...tiny import codec
from ...tiny.prompt import encode_prompt
from ..flow_map import stratified_levels
from ..loop import run
from ..task import Batch, Recipe, Task
from .scenes import render

REPORT_EVERY = 50
"""Steps between lines of the log."""
SAVE_EVERY = 250
"""Steps between checkpoints."""
SHARED = ("steps", "lr", "warmup", "cooldown", "ema", "precision", "seed")
"""Fields that mean the same to the loop."""


@dataclass(frozen=True, kw_only=True, slots=True)
class T2VRecipe:
    """What the shipped weights were trained with."""

    layers: int = 6
    """Blocks of the model."""
    size: int = 64
    """Pixels along a side: the model's one resolution."""
    frames: int = 4
    """Latent frames of a video."""
    image_steps: int = 1500
    """Steps on single frames, which teach shape, colour and what a direction looks like."""
    video_steps: int = 5000
    """Steps on videos, which add motion."""
    image_batch: int = 32
    """Images a step."""
    video_batch: int = 16
    """Videos a step."""
    lr: float = 2e-3
    """Peak learning rate, of Muon for matrices inside blocks and of AdamW for the rest."""
    warmup: int = 100
    """Steps of linear warm-up."""
    cooldown: float = 0.3
    """Last fraction of all steps, over which the rate falls linearly to nothing."""
    ema: float = 0.998
    """Decay of the averaged weights, which are the ones exported."""
    shift: float = 3.0
    """Timestep shift of the training distribution, logit-normal before the shift."""
    precision: str = "fp32"
    """`bf16` computes in half precision, with weights in fp32; slower on a CPU without AMX."""
    dropout: float = 0.1
    """Share of samples without a prompt, for classifier-free guidance."""
    seed: int = 0
    """Seed of weights and data."""

    @property
    def steps(self) -> int:
        return self.image_steps + self.video_steps

    def loop(self) -> Recipe:
        """The same for the loop."""
        return Recipe(
            name="tiny_t2v",
            optimizer="muon",
            betas=(0.9, 0.99),
            weight_decay=0.01,
            clip=1.0,
            batch=self.video_batch,
            save_every=SAVE_EVERY,
            log_every=REPORT_EVERY,
            **{name: getattr(self, name) for name in SHARED},
        )


def batch(recipe: T2VRecipe, step: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Draw (clean latent, noise, sigma [B], context) of one step."""
    generator = torch.Generator().manual_seed(recipe.seed * 1_000_003 + step)
    still = step < recipe.image_steps
    count = recipe.image_batch if still else recipe.video_batch
    frames = 1 if still else recipe.frames
    scenes = render(count, frames, recipe.size, generator)
    clean = codec.encode(scenes.video)
    noise = torch.randn(clean.shape, generator=generator)
    order = torch.randperm(count, generator=generator)
    levels = stratified_levels(order, torch.rand(count, generator=generator))
    sigma = shift_sigma(levels, recipe.shift)
    context = torch.cat([encode_prompt(prompt) for prompt in scenes.prompts])
    has_prompt = torch.rand(count, 1, 1, generator=generator) >= recipe.dropout
    return clean, noise, sigma, context * has_prompt


@dataclass(frozen=True, kw_only=True, slots=True)
class TextToVideo(Task):
    """Predict noise - clean of rendered scenes from their mixture and their prompt."""

    recipe: T2VRecipe
    """What is trained, and on what."""

    def build(self) -> SurfRefinerDiT:
        model = SurfRefinerDiT(replace(RefinerConfig.tiny(), layers=self.recipe.layers))
        model.initialise(torch.Generator().manual_seed(self.recipe.seed))
        return model

    def batch(self, step: int, rank: int, world: int) -> Batch:
        names = ("clean", "noise", "sigma", "context")
        drawn = dict(zip(names, batch(self.recipe, step), strict=True))
        places = range(rank, len(drawn["sigma"]), world)
        tensors = {name: value[rank::world] for name, value in drawn.items()}
        return Batch(tensors=tensors, keys=tuple(f"{step}/{place}" for place in places))

    def loss(self, model: nn.Module, batch: Batch) -> Tensor:
        clean, noise = batch.tensors["clean"], batch.tensors["noise"]
        sigma = batch.tensors["sigma"]
        s = sigma.view(-1, 1, 1, 1, 1)
        velocity = model((1 - s) * clean + s * noise, sigma * 1000, batch.tensors["context"])
        return (velocity.float() - (noise - clean)).square().mean()

    def export(self, weights: dict[str, Tensor], path: Path, notes: dict) -> None:
        config = replace(RefinerConfig.tiny(), layers=self.recipe.layers)
        checkpoint.save(path, weights, config, {"recipe": asdict(self.recipe)})

    def notes(self) -> dict:
        names = ("layers", "size", "frames", "image_steps", "image_batch", "video_batch")
        return {name: getattr(self.recipe, name) for name in (*names, "shift", "dropout")}


def train(recipe: T2VRecipe, out: Path, compile_model: bool) -> None:
    """Run or resume `recipe` in the folder `out`, then export the averaged weights."""
    run(TextToVideo(recipe=recipe), recipe.loop(), out, compile_model=compile_model)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--no-compile", action="store_true")
    parser.add_argument("--precision", choices=("fp32", "bf16"), default=T2VRecipe().precision)
    for name in ("image_steps", "video_steps"):
        parser.add_argument(
            f"--{name.replace('_', '-')}", type=int, default=getattr(T2VRecipe(), name)
        )
    args = parser.parse_args()
    logging.basicConfig(level=logging.INFO)
    torch.set_num_threads(args.threads)
    recipe = T2VRecipe(
        image_steps=args.image_steps, video_steps=args.video_steps, precision=args.precision
    )
    train(recipe, args.out, not args.no_compile)


if __name__ == "__main__":
    main()
