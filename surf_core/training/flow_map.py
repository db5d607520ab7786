"""The refiner's training task: flow matching from the noised, blurred latent to the sharp one.

Dims: B samples, C latent channels, T latent frames, H, W latent cells, L text tokens.
"""

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from functools import cached_property
from pathlib import Path

import torch
from torch import Tensor, nn

from .. import checkpoint
from ..degrade import draw_strength
from ..degrade.draw import seeded
from ..flow import interpolate, velocity_target
from ..header import listed, read_header, short
from ..refiner import RefinerConfig, SurfRefinerDiT
from ..schedule import shift_sigma
from .clip_source import ClipSource
from .sampler import BucketSampler
from .task import Batch, Task
from .token_dropout import TokenDropout

QUANTILES = (0.1, 0.3, 0.5, 0.7, 0.9)
"""Levels t of the held-out loss."""
PREFIX = "model.diffusion_model."
"""Prefix of the names of Wan's weights in some files."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Phase:
    """A part of the training with clips of one length."""

    frames: int
    """Pixel frames; of longer clips, the first ones."""
    steps: int
    """Steps of the optimizer."""


@dataclass(frozen=True, kw_only=True)
class FlowMap(Task):
    """Learn z_lr - z_hr, where z_lr = (1 - s) * start + s * noise; see `flow.refine`.

    Source: SURF B.2, B.3, 4.1; conditioning on s, and token dropout, are ours.
    """

    config: RefinerConfig
    """The network, with the s to train for: its `sigma_start_range`, or `sigma_start` alone."""
    clips: ClipSource
    """Training and held-out clips."""
    phases: tuple[Phase, ...]
    """One after the other."""
    batch_size: int
    """Samples of a step, over all processes."""
    seed: int = 0
    """Seed of weights and data."""
    shift: float = 5.0
    """Timestep shift of t, logit-normal before it. Source: SURF B.2."""
    dropout: float = 0.1
    """Share of samples without text, for guidance."""
    text_tokens: int = 512
    """L: texts are zero-padded to this length, as in Wan."""
    token_dropout: TokenDropout = field(default_factory=TokenDropout)
    """Share of the steps, and of the tokens, that are dropped; `holes` in notes."""
    weights: Path | None = None
    """Initial weights, Wan's or ours; None draws fresh ones."""
    held_out_clips: int = 16
    """Most clips of the held-out loss."""
    dtype: torch.dtype = torch.bfloat16
    """Dtype of the exported file."""

    def build(self) -> nn.Module:
        model = SurfRefinerDiT(self.config)
        model.initialise(torch.Generator().manual_seed(self.seed))
        if self.weights is not None:
            fill(model, self.weights)
        return model

    @cached_property
    def _buckets(self) -> Mapping[str, str]:
        return self.clips.buckets()

    @cached_property
    def _samplers(self) -> list[BucketSampler]:
        return [
            BucketSampler(by_size(self._buckets, phase.frames), self.batch_size, self.seed)
            for phase in self.phases
        ]

    def _at(self, step: int) -> tuple[Phase, BucketSampler, int]:
        """Return the phase of a step, its sampler, and the step within it."""
        for phase, sampler in zip(self.phases, self._samplers, strict=True):
            if step < phase.steps:
                return phase, sampler, step
            step -= phase.steps
        raise ValueError(
            f"expected a step below {sum(phase.steps for phase in self.phases)}, got {step} more; "
            "lengthen a phase."
        )

    def batch(self, step: int, rank: int, world: int) -> Batch:
        phase, sampler, within = self._at(step)
        keys = sampler.at(within, rank, world).keys
        generator = seeded(self.seed, "levels", step)
        offset = torch.rand(self.batch_size, generator=generator)
        levels = stratified_levels(torch.randperm(self.batch_size, generator=generator), offset)
        drop = torch.rand((), generator=seeded(self.seed, "holes", step)) < self.token_dropout.share
        items = [
            self._item(key, phase.frames, step, rank + index * world)
            for index, key in enumerate(keys)
        ]
        tensors = {name: torch.stack([item[name] for item in items]) for name in items[0]}
        tensors["t"] = shift_sigma(levels[rank::world], self.shift)
        tensors["drop_tokens"] = drop.expand(len(keys))
        return Batch(tensors=tensors, keys=keys)

    def _item(self, key: str, frames: int, step: int, position: int) -> dict[str, Tensor]:
        """Draw the `position`-th sample of a step, with its noise."""
        generator = seeded(self.seed, "sample", step, position)
        hr, start, text = self._latents(key, frames)
        s = draw_strength(generator, 1, self._strengths)[0]
        noise = torch.randn(hr.shape, generator=generator)
        has_text = torch.rand((), generator=generator) >= self.dropout
        return {"hr": hr, "start": start, "noise": noise, "s": s, "text": text * has_text}

    @property
    def _strengths(self) -> tuple[float, float]:
        """Range of s."""
        if self.config.sigma_start_range is not None:
            return self.config.sigma_start_range
        assert self.config.sigma_start is not None
        return self.config.sigma_start, self.config.sigma_start

    def _latents(self, key: str, frames: int | None = None) -> tuple[Tensor, Tensor, Tensor]:
        """Load sharp latent and start [C, T, H, W] of `frames` frames, and text [L, text_dim]."""
        clip = self.clips.load(key)
        count = clip.hr.shape[1]
        if frames is not None:
            # The VAE is causal: the first latent frames are the latents of the first frames.
            available = int(self._buckets[key].rpartition("x")[2])
            count = 1 + (frames - 1) * (count - 1) // max(available - 1, 1)
        text = torch.zeros(self.text_tokens, self.config.text_dim)
        if clip.text is not None:
            text[: len(clip.text)] = clip.text[: self.text_tokens]
        return clip.hr[:, :count], clip.start[:, :count], text

    def loss(self, model: nn.Module, batch: Batch) -> Tensor:
        tensors, keep = batch.tensors, None
        if tensors["drop_tokens"].any():
            keep = self.token_dropout.keep(tensors["hr"], self.config.patch)
        return self._loss(model, tensors, keep)

    def _loss(
        self, model: nn.Module, tensors: dict[str, Tensor], keep: Tensor | None = None
    ) -> Tensor:
        """Mean squared error of the flow map's velocity, over kept tokens if `keep` is given."""
        s, t = tensors["s"], tensors["t"]
        z_lr = interpolate(tensors["start"], tensors["noise"], _as_5d(s))
        z_t = interpolate(tensors["hr"], z_lr, _as_5d(t))
        in_sigma = self.config.time == "sigma"
        level = s * t if in_sigma else t
        options = {} if keep is None else {"keep": keep}
        velocity = model(z_t, 1000 * level, tensors["text"], s, **options).float()
        error = velocity * _as_5d(s) if in_sigma else velocity
        error = (error - velocity_target(tensors["hr"], z_lr)).square()
        if keep is None:
            return error.mean()
        mask = cells_of(keep, self.config.patch).to(error.device)
        return (error * mask).sum() / (mask.sum() * error.shape[0] * error.shape[1])

    @torch.no_grad()
    def held_out(self, model: nn.Module) -> dict[str, float]:
        """Compute the loss at fixed levels, clip by clip, with one fixed noise per clip."""
        sums = dict.fromkeys(QUANTILES, 0.0)
        keys = self.clips.held_out[: self.held_out_clips]
        device = next(model.parameters()).device
        for key in keys:
            hr, start, text = self._latents(key)
            noise = torch.randn(hr.shape, generator=seeded(self.seed, "held out", key))
            s = torch.tensor(sum(self._strengths) / 2)
            sample = {"hr": hr, "start": start, "noise": noise, "s": s, "text": text}
            for t in QUANTILES:
                tensors = {name: value[None].to(device) for name, value in sample.items()}
                tensors["t"] = torch.full((1,), t, device=device)
                sums[t] += self._loss(model, tensors).item()
        losses = {f"t={t}": total / len(keys) for t, total in sums.items() if keys}
        return losses | ({"mean": sum(losses.values()) / len(losses)} if losses else {})

    def export(self, weights: dict[str, Tensor], path: Path, notes: dict) -> None:
        """Write the file that Surf Refiner Loader reads."""
        checkpoint.save(path, weights, self.config, notes, self.dtype)

    def notes(self) -> dict:
        names = ("batch_size", "seed", "shift", "dropout", "text_tokens")
        return {name: getattr(self, name) for name in names} | {
            "config": asdict(self.config),
            "phases": [asdict(phase) for phase in self.phases],
            "holes": asdict(self.token_dropout),
            "begins_with": self.weights.name if self.weights else None,
        }


def by_size(buckets: Mapping[str, str], frames: int) -> dict[str, str]:
    """Return bucket names of `frames` frames for the clips that have as many, by key."""
    sizes = {}
    for key, bucket in buckets.items():
        size, _, available = bucket.rpartition("x")
        if int(available) >= frames:
            sizes[key] = f"{size}x{frames}"
    return sizes


def stratified_levels(order: Tensor, offset: Tensor, width: float = 1.0) -> Tensor:
    """Map uniform draws to logit-normal levels 0..1, one from each of B equal quantile ranges.

    Less gradient noise than independent draws. Source: SURF B.2; the stratification is ours.

    Args:
        order: [B], a permutation: the quantile range of each sample.
        offset: [B], 0..1: the position in it.
        width: deviation of the logits.
    """
    share = (order + offset) / len(order)
    return torch.sigmoid(width * torch.special.ndtri(share.clamp(1e-6, 1 - 1e-6)))


def cells_of(keep: Tensor, patch: tuple[int, int, int]) -> Tensor:
    """Expand tokens [T, h, w] to the latent cells that they cover."""
    for dim, size in enumerate(patch):
        keep = keep.repeat_interleave(size, dim)
    return keep


def fill(model: SurfRefinerDiT, path: Path) -> None:
    """Load Wan's weights or ours into a model; an embedding of s that they lack is left as it is.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: keys that do not fit, with their list, or weights that are not finite.
    """
    header = read_header(path)
    bare = replace(
        header,
        shapes={name.removeprefix(PREFIX): shape for name, shape in header.shapes.items()},
        dtypes={name.removeprefix(PREFIX): kind for name, kind in header.dtypes.items()},
    )
    own = model.state_dict()
    fresh = {
        name: weight
        for name, weight in own.items()
        if name.startswith("sigma_start_embedding.") and name not in bare.shapes
    }
    problems = bare.misfits({name: tuple(own[name].shape) for name in own if name not in fresh})
    if problems:
        raise ValueError(
            f"expected the weights of this network in {short(path)}, {len(problems)} keys do not "
            f"fit: {listed(problems)}; choose the file that the recipe names."
        )
    stored = {name.removeprefix(PREFIX): weight for name, weight in header.weights().items()}
    model.load_state_dict(fresh | stored)


def _as_5d(level: Tensor) -> Tensor:
    """[B] -> [B, 1, 1, 1, 1]."""
    return level[:, None, None, None, None]
