"""Training recipes: task, hyperparameters, hardware and result.

Each is a function of clips that `surf_core.training.prepare` wrote. A recipe that nobody has run
says so.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from torch import Tensor

from ..refiner import RefinerConfig
from ..skip.oracle import LATENT
from .clip_source import ClipSource
from .dry_run import Price, price
from .flow_map import FlowMap, Phase
from .mask import MaskTask
from .task import Recipe, Task
from .token_dropout import TokenDropout

STRENGTHS = (0.6, 0.9)
"""Least and greatest noise s on the upsampled preview. Source: SURF B.3."""
START = 0.7
"""The s for inference that is written to files, within the range. Ours."""
TINY_START = 0.05
"""The same for the tiny recipe: of 0.02, 0.05, 0.1 and 0.15 the one with the best PSNR on 16 clean
scenes that are in no table."""


@dataclass(frozen=True, kw_only=True, slots=True)
class TrainingJob:
    """A task and the recipe of its run."""

    task: Task
    recipe: Recipe
    size: tuple[int, int, int] | None = None
    """Frames, height and width in pixels of the largest clip of a refiner, for `dry_run`."""

    def dry_run(self, gpus: int, shard: int | None = None) -> Price:
        """Price a step on the meta device, see `dry_run.price`.

        Raises:
            ValueError: not a refiner's recipe.
        """
        if self.size is None or not isinstance(self.task, FlowMap):
            raise ValueError(
                f"expected a refiner's recipe for a dry run, got {self.recipe.name}; it is so "
                "small that running it takes no longer."
            )
        frames, height, width = self.size
        return price(
            self.task.config, frames=frames, height=height, width=width, gpus=gpus, shard=shard,
            batch=self.recipe.batch, text=self.task.text_tokens,
        )  # fmt: skip


def surf_1b(clips: ClipSource, weights: Path | None = None, seed: int = 0) -> TrainingJob:
    """Train a refiner of the paper's width by its schedule, 1.02 B parameters from scratch.

    21 frames for 1000 steps, then 81 for 4000; batch 24, AdamW at 5e-5, bf16. The paper starts
    from a pre-trained text-to-video model of this size, which is not public: from scratch, 5000
    steps are too few, and it takes a pre-training of your own (`weights`).

    Hardware: 24 GPUs of 80 GB. Time: not measured; 31 PFLOPs a step at 720p, 129 at 1080p.
    Result: not measured. Command:

        torchrun --nnodes 3 --nproc-per-node 8 -m surf_core.training surf_1b --data D --out runs/1b

    Source: SURF B.2, B.3, 4.1, Tab. R6; depth and feed-forward of the network, decay, warm-up,
    clipping and average are ours.
    """
    config = RefinerConfig.surf_1b(window=4, time="t", sigma_start=START)
    return _large(replace(config, sigma_start_range=STRENGTHS), clips, weights, seed, "surf_1b")


def wan_1_3b(clips: ClipSource, weights: Path | None = None, seed: int = 0) -> TrainingJob:
    """Fine-tune Wan 2.1 T2V 1.3B to a refiner: reproducible, same VAE, same text encoder.

    Its self-attention is cut into windows of 4 latent frames, and an embedding of s is added that
    starts at zero; time is sigma = s * t, in which the untrained model is a refiner already. Steps
    as in `surf_1b`. `weights` is Wan's file, wan2.1_t2v_1.3B_bf16.safetensors.

    Hardware: 8 GPUs of 80 GB. Time: not measured; `--dry-run` says what a step costs. Result: not
    measured. Command:

        torchrun --nproc-per-node 8 -m surf_core.training wan_1_3b --data D --weights W --out runs/w

    Source: SURF B.2, B.3, 4.1; beginning with Wan, in sigma, is ours.
    """
    config = replace(RefinerConfig.wan_1_3b(4), sigma_start=START, sigma_start_range=STRENGTHS)
    return _large(config, clips, weights, seed, "wan_1_3b")


def single_gpu(clips: ClipSource, weights: Path | None = None, seed: int = 0) -> TrainingJob:
    """Train `wan_1_3b` on one GPU: 21 frames, 4 clips a step one after the other, 3000 steps.

    Hardware: 1 GPU of 80 GB. Time: not measured. Result: not measured. Command:

        python -m surf_core.training single_gpu --data D --weights W --out runs/single

    Source: ours.
    """
    job = wan_1_3b(clips, weights, seed)
    assert isinstance(job.task, FlowMap)
    task = replace(job.task, phases=(Phase(frames=21, steps=3000),), batch_size=4)
    recipe = replace(job.recipe, name="single_gpu", steps=3000, batch=4, micro=4)
    return TrainingJob(task=task, recipe=recipe, size=(21, 720, 1280))


def _large(
    config: RefinerConfig, clips: ClipSource, weights: Path | None, seed: int, name: str
) -> TrainingJob:
    phases = (Phase(frames=21, steps=1000), Phase(frames=81, steps=4000))
    batch = 24
    task = FlowMap(
        config=config, clips=clips, phases=phases, batch_size=batch, seed=seed, weights=weights
    )
    recipe = Recipe(
        name=name,
        steps=sum(phase.steps for phase in phases),
        batch=batch,
        checkpointing=True,
        seed=seed,
        held_out_every=250,
    )
    return TrainingJob(task=task, recipe=recipe, size=(81, 720, 1280))


def tiny(
    clips: ClipSource,
    weights: Path | None = None,
    seed: int = 0,
    *,
    steps: int = 1500,
    precision: str = "fp32",
    strengths: tuple[float, float] = (0.0, 0.4),
    window: int = 2,
) -> TrainingJob:
    """Train a refiner on drawn clips, from 32 to 128 pixels: 2.3 M parameters, for a CPU.

    With less noise than the paper, since shapes in a 32-pixel preview are not visible under noise
    of 0.6, and in time t, where s may be 0.

    Hardware: a CPU. Time, result: not measured; a few steps are a test. The embedded refiner has a
    recipe of its own, see surf_core/tiny/weights/README.md. Command: make train-tiny.

    Source: ours.
    """
    least, greatest = strengths
    start = min(max(TINY_START, least), greatest)
    config = replace(
        RefinerConfig.tiny(window),
        time="t",
        sigma_start=start,
        sigma_start_range=strengths if least < greatest else None,
    )
    task = FlowMap(
        config=config,
        clips=clips,
        phases=(Phase(frames=5, steps=steps),),
        batch_size=8,
        seed=seed,
        weights=weights,
        shift=1.0,
        text_tokens=3,
        dtype=torch.float16,
        token_dropout=TokenDropout(),
    )
    recipe = Recipe(
        name="tiny_refiner", steps=steps, batch=8, lr=2e-3, betas=(0.9, 0.99), optimizer="muon",
        cooldown=0.3, ema=0.995, precision=precision, seed=seed, held_out_every=250, log_every=50,
    )  # fmt: skip
    return TrainingJob(task=task, recipe=recipe, size=(5, 128, 128))


def mask(
    clips: ClipSource,
    weights: Path | None = None,
    seed: int = 0,
    *,
    steps: int = 800,
    decode: Callable[[Tensor], Tensor] | None = None,
    cell: tuple[int, int] = LATENT,
) -> TrainingJob:
    """Train SkipSR's mask predictor: which tokens of the upsampled preview need refining.

    The oracle scores sharp latents, or their pixels if `decode` is given.

    Hardware: a CPU. Time, result: on Wan's latents not measured. Command:

        python -m surf_core.training mask --data D --out runs/mask

    Source: ours, after SkipSR.
    """
    if weights is not None:
        raise ValueError(f"expected no weights, got {weights}; the predictor starts from scratch.")
    # More than 0.98, because recall is lower on clips that it was not calibrated on.
    task = MaskTask(clips=clips, batch_size=8, seed=seed, decode=decode, cell=cell, recall=0.99)
    recipe = Recipe(
        name="mask", steps=steps, batch=8, lr=2e-3, betas=(0.9, 0.99), cooldown=0.3, ema=0.99,
        precision="fp32", seed=seed, held_out_every=200, log_every=50,
    )  # fmt: skip
    return TrainingJob(task=task, recipe=recipe)


RECIPES = {
    "wan_1_3b": wan_1_3b,
    "surf_1b": surf_1b,
    "single_gpu": single_gpu,
    "tiny": tiny,
    "mask": mask,
}
"""By name, for the command line."""
