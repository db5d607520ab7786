"""The refiner's task: from a blurred and noised start to the sharp latent, along a straight path.

Dims: B samples, C latent channels, T latent frames, H, W latent cells, L text tokens.
"""

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Protocol

import torch
from torch import Tensor, nn

from .. import checkpoint
from ..degrade import draw_strength
from ..degrade.draw import seeded
from ..flow import interpolate, velocity_target
from ..header import listed, read_header, short
from ..refiner import RefinerConfig, SurfRefinerDiT
from ..schedule import shift_sigma
from .sampler import BucketSampler
from .task import Batch, Task
from .token_dropout import TokenDropout

QUANTILES = (0.1, 0.3, 0.5, 0.7, 0.9)
"""Levels t at which the held-out loss is taken."""
PREFIX = "model.diffusion_model."
"""What some files put before the names of Wan's weights."""


class Clip(Protocol):
    """A clip as prepared, see `data.Sample`."""

    hr: Tensor
    start: Tensor
    text: Tensor | None


class Clips(Protocol):
    """Prepared clips, see `data.Shards`."""

    held_out: tuple[str, ...]

    def buckets(self) -> Mapping[str, str]: ...

    def load(self, key: str) -> Clip: ...


@dataclass(frozen=True, kw_only=True, slots=True)
class Phase:
    """A stretch of the training with clips of one length."""

    frames: int
    """Pixel frames; longer clips give their first ones."""
    steps: int
    """Steps of the optimizer."""


@dataclass(frozen=True, kw_only=True)
class FlowMap(Task):
    """Learn z_lr - z_hr, where z_lr = (1 - s) * start + s * noise; see `flow.refine`.

    Source: SURF B.2, B.3, 4.1; s told to the network, and holes, are ours.
    """

    config: RefinerConfig
    """The network, with `start_range`, or `sigma_start` alone: the s to train for."""
    clips: Clips
    """What to learn from."""
    phases: tuple[Phase, ...]
    """One after the other."""
    batch_size: int
    """Samples of a step, over all processes."""
    seed: int = 0
    """Of weights and data."""
    shift: float = 5.0
    """Timestep shift of t, logit-normal before it. Source: SURF Tab. R6."""
    dropout: float = 0.1
    """Share of samples without text, for guidance."""
    text_tokens: int = 512
    """L: texts are filled up with zeros to as many, as Wan does."""
    token_dropout: TokenDropout = field(default_factory=TokenDropout)
    """How often, and where, tokens are left out."""
    weights: Path | None = None
    """Where to begin: Wan's file or one of ours; None draws fresh ones."""
    held_out_clips: int = 16
    """Clips of the held-out loss, at most."""
    dtype: torch.dtype = torch.bfloat16
    """Of the exported file."""

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
        """Phase, its sampler, and the step within it."""
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
        levels = stratified_levels(self.batch_size, seeded(self.seed, "levels", step))
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
        """One sample, the `position`-th of its step, noise included."""
        generator = seeded(self.seed, "sample", step, position)
        hr, start, text = self._latents(key, frames)
        s = draw_strength(generator, 1, self._strengths)[0]
        noise = torch.randn(hr.shape, generator=generator)
        kept = torch.rand((), generator=generator) >= self.dropout
        return {"hr": hr, "start": start, "noise": noise, "s": s, "text": text * kept}

    @property
    def _strengths(self) -> tuple[float, float]:
        s = self.config.sigma_start
        return self.config.start_range or (s, s)

    def _latents(self, key: str, frames: int | None = None) -> tuple[Tensor, Tensor, Tensor]:
        """Sharp latent and start [C, T, H, W], text [L, text_dim]; of the first `frames`."""
        clip = self.clips.load(key)
        keep = clip.hr.shape[1]
        if frames is not None:
            # The VAE is causal: the first latent frames are the latents of the first frames.
            have = int(self._buckets[key].rpartition("x")[2])
            keep = 1 + (frames - 1) * (keep - 1) // max(have - 1, 1)
        text = torch.zeros(self.text_tokens, self.config.text_dim)
        if clip.text is not None:
            text[: len(clip.text)] = clip.text[: self.text_tokens]
        return clip.hr[:, :keep], clip.start[:, :keep], text

    def loss(self, model: nn.Module, batch: Batch) -> Tensor:
        given = batch.tensors
        keep = None
        if given["drop_tokens"].any():
            keep = self.token_dropout.keep(given["hr"], self.config.patch)
        return self._distance(model, given, keep)

    def _distance(
        self, model: nn.Module, given: dict[str, Tensor], keep: Tensor | None = None
    ) -> Tensor:
        """Mean squared error of the flow map's velocity; over kept tokens alone."""
        s, t = given["s"], given["t"]
        z_lr = interpolate(given["start"], given["noise"], _wide(s))
        z_t = interpolate(given["hr"], z_lr, _wide(t))
        in_sigma = self.config.time == "sigma"
        level = s * t if in_sigma else t
        more = {} if keep is None else {"keep": keep}
        velocity = model(z_t, 1000 * level, given["text"], s, **more).float()
        error = velocity * _wide(s) if in_sigma else velocity
        error = (error - velocity_target(given["hr"], z_lr)).square()
        if keep is None:
            return error.mean()
        mask = cells_of(keep, self.config.patch).to(error.device)
        return (error * mask).sum() / (mask.sum() * error.shape[0] * error.shape[1])

    @torch.no_grad()
    def held_out(self, model: nn.Module) -> dict[str, float]:
        """Loss at fixed levels, clip by clip, with noise that belongs to the clip."""
        sums = dict.fromkeys(QUANTILES, 0.0)
        keys = self.clips.held_out[: self.held_out_clips]
        device = next(model.parameters()).device
        for key in keys:
            hr, start, text = self._latents(key)
            noise = torch.randn(hr.shape, generator=seeded(self.seed, "held out", key))
            s = torch.tensor(sum(self._strengths) / 2)
            given = {"hr": hr, "start": start, "noise": noise, "s": s, "text": text}
            for t in QUANTILES:
                one = {name: value[None].to(device) for name, value in given.items()}
                one["t"] = torch.full((1,), t, device=device)
                sums[t] += self._distance(model, one).item()
        losses = {f"t={t}": total / len(keys) for t, total in sums.items() if keys}
        return losses | ({"mean": sum(losses.values()) / len(losses)} if losses else {})

    def export(self, weights: dict[str, Tensor], path: Path, notes: dict) -> None:
        """Write the file that Surf Refiner Loader reads."""
        checkpoint.save(path, weights, self.config, notes, self.dtype)

    def notes(self) -> dict:
        named = ("batch_size", "seed", "shift", "dropout", "text_tokens")
        return {name: getattr(self, name) for name in named} | {
            "config": asdict(self.config),
            "phases": [asdict(phase) for phase in self.phases],
            "holes": asdict(self.token_dropout),
            "begins_with": self.weights.name if self.weights else None,
        }


def by_size(buckets: Mapping[str, str], frames: int) -> dict[str, str]:
    """Size of the clips with at least so many frames, by key: "704x1280" of "704x1280x81"."""
    found = {}
    for key, bucket in buckets.items():
        size, _, have = bucket.rpartition("x")
        if int(have) >= frames:
            found[key] = f"{size}x{frames}"
    return found


def stratified_levels(count: int, generator: torch.Generator) -> Tensor:
    """Draw logit-normal levels [count] in 0..1, one from each of `count` equal shares of them.

    Less noise in the gradient than independent draws have. Source: SURF B.3; the shares are ours.
    """
    offset = torch.rand(count, generator=generator)
    share = (torch.randperm(count, generator=generator) + offset) / count
    return torch.sigmoid(torch.special.ndtri(share.clamp(1e-6, 1 - 1e-6)))


def cells_of(keep: Tensor, patch: tuple[int, int, int]) -> Tensor:
    """Blow tokens [T, H, W] up to the latent cells that they cover."""
    for dim, size in enumerate(patch):
        keep = keep.repeat_interleave(size, dim)
    return keep


def fill(model: SurfRefinerDiT, path: Path) -> None:
    """Load weights of Wan, or of ours, into a model; an embedding of s that they lack stays.

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
    kept = {
        name: weight
        for name, weight in own.items()
        if name.startswith("start_embedding.") and name not in bare.shapes
    }
    problems = bare.misfits({name: tuple(own[name].shape) for name in own if name not in kept})
    if problems:
        raise ValueError(
            f"expected the weights of this network in {short(path)}, {len(problems)} keys do not "
            f"fit: {listed(problems)}; choose the file that the recipe names."
        )
    found = {name.removeprefix(PREFIX): weight for name, weight in header.weights().items()}
    model.load_state_dict(kept | found)


def _wide(level: Tensor) -> Tensor:
    """[B] -> [B, 1, 1, 1, 1]."""
    return level[:, None, None, None, None]
