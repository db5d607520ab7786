"""Train the embedded text-to-video model from nothing: still images first, then videos.

    python -m surf_core.training.tiny.t2v --out runs/tiny

One thread, fp32, 2 CPU cores shared with other work. The run resumes from its last checkpoint,
and every batch is a function of (seed, step) alone.

Dims: B batch, T latent frames.
"""

import argparse
import json
import logging
import time
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import torch
from torch import Tensor

from ... import checkpoint
from ...refiner import RefinerConfig, SurfRefinerDiT
from ...schedule import shift_sigma
from ...tiny import codec
from ...tiny.prompt import encode_prompt
from ..muon import Muon
from .scenes import render

log = logging.getLogger(__name__)

REPORT_EVERY = 50
"""Steps between lines of the log."""
SAVE_EVERY = 250
"""Steps between checkpoints."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Recipe:
    """What the shipped weights were trained with."""

    layers: int = 6
    """Blocks of the model."""
    size: int = 64
    """Pixels along a side: the model's one resolution."""
    frames: int = 4
    """Latent frames of a video."""
    image_steps: int = 3000
    """Steps on single frames, which cost a quarter and teach shape, colour and layout."""
    video_steps: int = 14000
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

    def rate(self, step: int) -> float:
        """Learning rate at `step`: warm-up, plateau, linear cool-down."""
        left = (self.steps - step) / (self.cooldown * self.steps)
        return self.lr * min(1.0, (step + 1) / self.warmup, left)


def batch(recipe: Recipe, step: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Draw (clean latent, noise, sigma [B], context) of one step."""
    generator = torch.Generator().manual_seed(recipe.seed * 1_000_003 + step)
    still = step < recipe.image_steps
    count = recipe.image_batch if still else recipe.video_batch
    frames = 1 if still else recipe.frames
    scenes = render(count, frames, recipe.size, generator)
    clean = codec.encode(scenes.video)
    noise = torch.randn(clean.shape, generator=generator)
    # One sigma from each of `count` equal shares of the distribution: less noise in the gradient.
    share = (
        torch.randperm(count, generator=generator) + torch.rand(count, generator=generator)
    ) / count
    t = torch.sigmoid(torch.special.ndtri(share.clamp(1e-6, 1 - 1e-6)))
    sigma = shift_sigma(t, recipe.shift)
    context = torch.cat([encode_prompt(prompt) for prompt in scenes.prompts])
    kept = torch.rand(count, 1, 1, generator=generator) >= recipe.dropout
    return clean, noise, sigma, context * kept


def optimizers(model: SurfRefinerDiT) -> list[torch.optim.Optimizer]:
    """Muon for the matrices inside blocks, AdamW for everything else.

    A step of Adam moves an output by up to rate * inputs, so the text layer, with its 4096 inputs,
    gets a rate smaller by the ratio to the model's width.
    """
    inside = {id(p) for p in model.blocks.parameters() if p.ndim == 2}
    matrices = [p for p in model.parameters() if id(p) in inside]
    wide = model.text_embedding[0].weight
    others = [p for p in model.parameters() if id(p) not in inside and p is not wide]
    ratio = model.config.dim / model.config.text_dim
    groups = [{"params": others, "scale": 1.0}, {"params": [wide], "scale": ratio}]
    return [
        Muon([{"params": matrices, "scale": 1.0}], weight_decay=0.01),
        torch.optim.AdamW(groups, betas=(0.9, 0.99), weight_decay=0.01),
    ]


class Run:
    """A recipe under way: weights, their average, optimizers, and how far it has come."""

    def __init__(self, recipe: Recipe, out: Path):
        self.recipe, self.out, self.step = recipe, out, 0
        self.model = SurfRefinerDiT(replace(RefinerConfig.tiny(), layers=recipe.layers))
        self.model.initialise(torch.Generator().manual_seed(recipe.seed))
        self.ema = {name: p.detach().clone() for name, p in self.model.named_parameters()}
        self.opts = optimizers(self.model)
        self.losses: list[float] = []

    def save(self) -> None:
        """Write everything that a resumed run needs; a half-written file never takes its place."""
        state = {"model": self.model.state_dict(), "ema": self.ema, "step": self.step}
        state["opts"] = [opt.state_dict() for opt in self.opts]
        torch.save(state, self.out / "last.tmp")
        (self.out / "last.tmp").replace(self.out / "last.pt")

    def resume(self) -> None:
        """Go back to the last checkpoint, if there is one; the log forgets what came after it."""
        if not (self.out / "last.pt").exists():
            return
        state = torch.load(self.out / "last.pt", weights_only=True)
        self.model.load_state_dict(state["model"])
        self.ema, self.step = state["ema"], state["step"]
        for opt, saved in zip(self.opts, state["opts"], strict=True):
            opt.load_state_dict(saved)
        file = self.out / "log.jsonl"
        lines = file.read_text().splitlines(keepends=True) if file.exists() else []
        file.write_text("".join(ln for ln in lines if json.loads(ln)["step"] <= self.step))
        log.info("resumed at step %d", self.step)

    def advance(self, forward) -> None:
        """Take one step; `forward` is the model or its compiled form."""
        recipe = self.recipe
        clean, noise, sigma, context = batch(recipe, self.step)
        s = sigma.view(-1, 1, 1, 1, 1)
        with torch.autocast("cpu", torch.bfloat16, enabled=recipe.precision == "bf16"):
            velocity = forward((1 - s) * clean + s * noise, sigma * 1000, context)
        loss = (velocity.float() - (noise - clean)).square().mean()
        if not torch.isfinite(loss):
            raise FloatingPointError(f"loss is {loss.item()} at step {self.step}; lower lr.")
        loss.backward()
        torch.nn.utils.clip_grad_norm_(self.model.parameters(), 1.0)
        for opt in self.opts:
            for group in opt.param_groups:
                group["lr"] = recipe.rate(self.step) * group["scale"]
            opt.step()
            opt.zero_grad()
        self.step += 1
        with torch.no_grad():
            decay = min(recipe.ema, self.step / (self.step + 9))
            averaged, current = list(self.ema.values()), list(self.model.parameters())
            torch._foreach_lerp_(averaged, current, 1 - decay)
        self.losses.append(loss.item())

    def report(self, seconds: float) -> None:
        """Append the mean loss since the last report to the log."""
        line = {"step": self.step, "loss": sum(self.losses) / len(self.losses)}
        line |= {"lr": self.recipe.rate(self.step - 1), "seconds": round(seconds, 1)}
        self.losses.clear()
        with (self.out / "log.jsonl").open("a") as file:
            file.write(json.dumps(line) + "\n")


def train(recipe: Recipe, out: Path, compile_model: bool) -> None:
    """Run or resume `recipe` in the folder `out`, then export the averaged weights."""
    out.mkdir(parents=True, exist_ok=True)
    run = Run(recipe, out)
    run.resume()
    forward = torch.compile(run.model, dynamic=False) if compile_model else run.model
    began = time.time()
    while run.step < recipe.steps:
        run.advance(forward)
        if run.step % REPORT_EVERY == 0:
            run.report(time.time() - began)
        if run.step % SAVE_EVERY == 0 or run.step == recipe.steps:
            run.save()
    notes = {"recipe": asdict(recipe)}
    checkpoint.save(out / "tiny_t2v.safetensors", run.ema, run.model.config, notes)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--no-compile", action="store_true")
    parser.add_argument("--precision", choices=("fp32", "bf16"), default=Recipe().precision)
    for name in ("image_steps", "video_steps"):
        parser.add_argument(
            f"--{name.replace('_', '-')}", type=int, default=getattr(Recipe(), name)
        )
    args = parser.parse_args()
    logging.basicConfig(level=logging.INFO)
    torch.set_num_threads(args.threads)
    recipe = Recipe(
        image_steps=args.image_steps, video_steps=args.video_steps, precision=args.precision
    )
    train(recipe, args.out, not args.no_compile)


if __name__ == "__main__":
    main()
