"""Measure the controls that decide whether a text-to-video model can show what the switch gains.

Held-out prompts, right answers of `surf_core.tiny.adherence`: if fewer steps of full resolution,
or half resolution directly, answer as well, no switch is needed, and the model proves nothing.

Dims: B prompts, C latent channels, T frames, t latent frames, h, w latent cells.
"""

import json
import logging
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor

from ...cost import TINY, Evaluations, plan_flops
from ...flow import euler
from ...header import write
from ...refiner import SurfRefinerDiT
from ...resample import resize
from ...reshift import inherit_noise, preview
from ...schedule import flow_sigmas, reach_sigma
from ...tiny import vae
from ...tiny.adherence import read
from ...tiny.caption import Thing, vectors
from ...tiny.model import CELLS, CLIP, FRAMES
from .bank import hash_of
from .paint import paint
from .world import Scenes, draw

log = logging.getLogger(__name__)
SEED = 90_001
"""Seed of the held-out scenes, whose prompts are sampled."""
HALF = (CELLS // 2, CELLS // 2)
"""Height and width of a latent at half resolution."""

PAPER, OURS = ("same", "fresh"), ("snr_equal", "inherited")
"""Policies of sigma and noise of the low-resolution leg, see `surf_core.reshift`."""

Velocity = Callable[[Tensor, float], Tensor]
"""Maps a latent [B, C, t, h, w] and sigma to the velocity there."""


@dataclass(frozen=True, kw_only=True, slots=True)
class ControlRow:
    """One way to make the videos, with its right answers; standard errors are over prompts."""

    name: str
    gflops: float
    """Billions of operations of the model for one video, guidance included."""
    right: float
    """Share of all answers that are right, percent."""
    error: float
    """Its standard error."""
    large: float
    """The same of large things."""
    beads: float
    """The same of swarms."""
    baseline_share: float
    """Right among the answers that the baseline has right, percent."""
    baseline_share_error: float
    """Its standard error."""


class AnswerTable:
    """Held-out scenes with their prompts, and a row for each way of showing them.

    Args:
        codec: the VAE, on its device.
        count: B.
        half: decode in bf16.
    """

    def __init__(self, codec: vae.TinyVAE, count: int = 128, half: bool = False):
        self.codec, self.half = codec, half
        self.device = next(codec.parameters()).device
        self.scenes: Scenes = draw(SEED, torch.arange(count, device=self.device))
        self.things: list[list[Thing]] = self.scenes.things()
        self.rows: list[ControlRow] = []
        self.baseline: Tensor | None = None
        self.latents: dict[str, Tensor] = {}

    @torch.inference_mode()
    def pixels(self, latents: Tensor) -> Tensor:
        """Decode latents, some at a time: [B, 3, T, H, W] in 0..1."""
        parts = []
        for part in latents.split(32):
            with torch.autocast(self.device.type, torch.bfloat16, enabled=self.half):
                parts.append(self.codec.decode(part).float())
        return torch.cat(parts).add(1).div(2).clamp(0, 1)

    def add(self, name: str, latents: Tensor, *legs: tuple[int, int]) -> ControlRow:
        """Decode latents and add a row; the first one is the baseline.

        Args:
            legs: steps and latent cells along a side of each leg that made them.
        """
        self.latents[name] = latents
        return self.check(name, self.pixels(latents), flops_of(*legs) / 1e9)

    def check(self, name: str, video: Tensor, gflops: float = 0.0) -> ControlRow:
        """Check pixels [B, 3, T, H, W] in 0..1 and add a row."""
        answers = [a for part, named in _parts(video, self.things) for a in read(part, named)]
        right = torch.tensor([float(a) for row in answers for a in row])
        prompt = torch.tensor([i for i, row in enumerate(answers) for _ in row])
        large = torch.tensor([thing.shape is not None for row in self.things for thing in row])
        if self.baseline is None:
            self.baseline = right
        share, error = ratio_of_sums(right, torch.ones_like(right), prompt)
        common, common_error = ratio_of_sums(right * self.baseline, self.baseline, prompt)
        row = ControlRow(
            name=name, gflops=gflops, right=share, error=error,
            baseline_share=common, baseline_share_error=common_error,
            large=100 * right[large].mean().item(), beads=100 * right[~large].mean().item(),
        )  # fmt: skip
        self.rows.append(row)
        log.info("%s", line(row))
        return row

    def painted(self, size: int) -> Tensor:
        """Paint the scenes: [B, 3, T, size, size] in -1..1."""
        times = torch.linspace(-0.5, 0.5, CLIP, device=self.device)
        starts = range(0, len(self.things), 16)
        return torch.cat([paint(self.scenes.part(i, i + 16), times, size) for i in starts])

    @torch.inference_mode()
    def truth(self, size: int) -> Tensor:
        """Encode the scenes themselves: decoded, they show what the VAE leaves to be read."""
        return torch.cat([self.codec.encode(video) for video in self.painted(size).split(16)])

    def codec_rows(self) -> None:
        """Add what is read of the scenes, and of the scenes after the VAE, at both resolutions."""
        for size in (128, 64):
            self.check(f"scenes at {size}", self.painted(size).add(1).div(2))
            self.add(f"scenes at {size}, encoded", self.truth(size))
        small = resize(self.latents["scenes at 128, encoded"], HALF, "area")
        self.add("scenes at 128, encoded, latent made smaller", small)


class Controls(AnswerTable):
    """The answers of a text-to-video model.

    Args:
        model: the text-to-video model, on its device.
        codec: its VAE, on the same.
        count: B.
        cfg: guidance, at both resolutions.
        shift: timestep shift of the schedule.
        group: videos that are sampled at once.
        half: sample and decode in bf16.
        folder: where latents are kept once sampled, so that a stopped run goes on; None for
            nowhere.
    """

    def __init__(
        self, model: SurfRefinerDiT, codec: vae.TinyVAE, count: int = 128, cfg: float = 7.5,
        shift: float = 3.0, group: int = 128, half: bool = False, folder: Path | None = None,
    ):  # fmt: skip
        super().__init__(codec, count, half)
        self.model, self.cfg, self.shift = model, cfg, shift
        self.group, self.folder = group, folder
        settings = {"cfg": cfg, "shift": shift, "seed": SEED, "half": half, "prompts": count}
        self.key = "" if folder is None else hash_of(model, settings)
        self.context = self.scenes.words() @ vectors().to(self.device)
        self.noise = self._noise(0, CELLS)
        self.fresh = self._noise(1, CELLS // 2)

    def _noise(self, seed: int, cells: int) -> Tensor:
        shape = (len(self.things), vae.LATENT, FRAMES, cells, cells)
        return torch.randn(shape, generator=torch.Generator().manual_seed(seed)).to(self.device)

    def velocity(self, part: slice, cfg: float | None = None) -> Velocity:
        """Return the guided velocity for some of the prompts; None takes the table's guidance."""
        context = self.context[part]
        both = torch.cat([context, torch.zeros_like(context)])
        scale = self.cfg if cfg is None else cfg

        def guided(z: Tensor, sigma: float) -> Tensor:
            level = torch.full((2 * len(z),), 1000 * float(sigma), device=self.device)
            with torch.autocast(self.device.type, torch.bfloat16, enabled=self.half):
                cond, uncond = self.model(torch.cat([z, z]), level, both).float().chunk(2)
            return uncond + scale * (cond - uncond)

        return guided

    @torch.inference_mode()
    def sampled(self, name: str, sample: Callable[[Velocity, slice], Tensor]) -> Tensor:
        """Sample the latents of all prompts, a group at a time: [B, C, t, h, w].

        Args:
            name: of the way, for the file that keeps them.
            sample: maps a velocity and the prompts that it is for to their latents.
        """
        parts = []
        for start in range(0, len(self.things), self.group):
            part = slice(start, min(start + self.group, len(self.things)))
            path = self._path(name, part)
            if path is not None and path.exists():
                parts.append(load_file(path, device=str(self.device))["latents"])
                continue
            parts.append(sample(self.velocity(part), part))
            if path is not None:
                path.parent.mkdir(parents=True, exist_ok=True)
                write(path, {"latents": parts[-1].cpu()}, {})
        return torch.cat(parts)

    def _path(self, name: str, part: slice) -> Path | None:
        if self.folder is None:
            return None
        return self.folder / f"{name}-{self.key}-{part.start:04d}-{part.stop:04d}.safetensors"

    def full(self, steps: int) -> Tensor:
        """Sample at full resolution."""
        sigmas = flow_sigmas(steps, self.shift)
        return self.sampled(
            f"full-{steps}", lambda velocity, part: euler(velocity, self.noise[part], sigmas)
        )

    def direct(self, steps: int) -> Tensor:
        """Sample at half resolution from the start, with the same noise made smaller."""
        sigmas = flow_sigmas(steps, self.shift)
        return self.sampled(
            f"direct-{steps}",
            lambda velocity, part: euler(velocity, inherit_noise(self.noise[part], HALF), sigmas),
        )

    def switched(
        self, steps: int, k: int, policies: tuple[str, str], lock: float = 0.0,
        reach: float | None = None, cfg_low: float | None = None,
    ) -> Tensor:  # fmt: skip
        """Sample as SURF: k steps at full resolution, the others at half of it.

        Args:
            steps: of both legs together.
            k: steps at full resolution.
            policies: of sigma and noise.
            lock: share of the low steps that hold the low band, see `surf_core.reshift.preview`.
            reach: sigma that the first k steps go down to; None for the schedule's.
            cfg_low: guidance at half resolution; None for the table's.
        """
        sigmas = flow_sigmas(steps, self.shift)
        if reach is not None:
            sigmas = reach_sigma(sigmas, k, reach)

        def sample(velocity: Velocity, part: slice) -> Tensor:
            return preview(
                velocity, self.noise[part], sigmas, k, HALF, noise=self.fresh[part],
                velocity_low=self.velocity(part, cfg_low), sigma_policy=policies[0],
                noise_policy=policies[1], low_band_lock=lock,
            )  # fmt: skip

        words = "-".join(map(str, ("switched", k, "of", steps, *policies, lock, reach, cfg_low)))
        return self.sampled(words, sample)

    def estimate(self, steps: int, k: int) -> Tensor:
        """Average the clean estimate after k steps down: no low leg at all."""
        sigmas = flow_sigmas(steps, self.shift)

        def sample(velocity: Velocity, part: slice) -> Tensor:
            estimates: list[Tensor] = []
            euler(
                velocity, self.noise[part], sigmas[: k + 1],
                lambda _, z, clean: estimates.append(clean),
            )  # fmt: skip
            return resize(estimates[-1], HALF, "area")

        return self.sampled(f"estimate-{k}-of-{steps}", sample)

    def usual(self) -> None:
        """Add all rows, the most telling first."""
        low = CELLS // 2
        self.add("50 steps", self.full(50), (50, CELLS))
        self.add("15 steps", self.full(15), (15, CELLS))
        self.add("half resolution, 50 steps", self.direct(50), (50, low))
        for k in (10, 5):
            legs, name = ((k, CELLS), (40 - k, low)), f"{k} + {40 - k}"
            fewer = flops_of(*legs) // flops_of((1, CELLS))
            self.add(f"{fewer} steps", self.full(fewer), (fewer, CELLS))
            for words, more in VARIANTS.items():
                self.add(f"{name}, {words}", self.switched(40, k, **more), *legs)
            small = self.estimate(40, k)
            self.add(f"clean estimate after {k} of 40, made smaller", small, (k, CELLS))
        for steps in (25, 8):
            self.add(f"{steps} steps", self.full(steps), (steps, CELLS))
        small = resize(self.latents["50 steps"], HALF, "area")
        self.add("50 steps, latent made smaller", small)
        video = self.pixels(self.latents["50 steps"])
        self.check("50 steps, pixels made smaller", resize(video, (64, 64), "area"))
        self.check("50 steps of the next prompt", video.roll(1, 0))
        self.check("grey", torch.full_like(video, 0.5))
        self.codec_rows()


VARIANTS: dict[str, dict[str, Any]] = {
    "the paper's": {"policies": PAPER},
    "ours": {"policies": OURS},
    "ours, low band held for a third": {"policies": OURS, "lock": 1 / 3},
    "ours, low band held": {"policies": OURS, "lock": 1.0},
    "the paper's, low band held for a third": {"policies": PAPER, "lock": 1 / 3},
    "ours, down to sigma 0.75": {"policies": OURS, "reach": 0.75},
    "ours, down to sigma 0.75, low band held for a third": {
        "policies": OURS, "lock": 1 / 3, "reach": 0.75,
    },
    "ours, guidance 5 below": {"policies": OURS, "cfg_low": 5.0},
}  # fmt: skip
"""Words for a switch -> arguments of `Controls.switched`."""


SHOWN = (
    "50 steps",
    "15 steps",
    "half resolution, 50 steps",
    "10 + 30, the paper's",
    "10 + 30, ours",
)
"""Rows whose latents are kept with the table."""


def flops_of(*legs: tuple[int, int]) -> int:
    """Count the operations of one video, from steps and cells along a side of each leg."""
    return plan_flops(
        Evaluations(
            shape=TINY, steps=steps, frames=CLIP, height=cells * vae.CELL,
            width=cells * vae.CELL,
        )
        for steps, cells in legs
    )  # fmt: skip


def _parts(video: Tensor, things: list[list[Thing]]) -> Iterator[tuple[Tensor, list[list[Thing]]]]:
    for start in range(0, len(things), 32):
        yield video[start : start + 32], things[start : start + 32]


def ratio_of_sums(top: Tensor, bottom: Tensor, prompt: Tensor) -> tuple[float, float]:
    """Divide the sum of `top` by that of `bottom`: percent, and its standard error over prompts.

    Args:
        top, bottom: [answers].
        prompt: [answers], the prompt that each belongs to; 0..B-1.
    """
    count = int(prompt.max()) + 1
    tops = torch.zeros(count).index_add(0, prompt, top)
    bottoms = torch.zeros(count).index_add(0, prompt, bottom)
    total = bottoms.sum().clamp(min=1)
    ratio = tops.sum() / total
    error = (count / (count - 1) * (tops - ratio * bottoms).square().sum()).sqrt() / total
    return 100 * ratio.item(), 100 * error.item()


def line(row: ControlRow) -> str:
    """Lay out one line of the table."""
    words = (
        row.name, f"{row.gflops:.1f}", f"{row.right:.1f} +- {row.error:.1f}", f"{row.large:.1f}",
        f"{row.beads:.1f}", f"{row.baseline_share:.1f} +- {row.baseline_share_error:.1f}",
    )  # fmt: skip
    return f"| {' | '.join(words)} |"


HEAD = (
    "| videos | GFLOPs | right, % | large | beads | of the first row's right, % |\n"
    + "| --- " * 6
    + "|"
)


def report(table: AnswerTable, out: Path, settings: dict, shown: tuple[str, ...] = ()) -> str:
    """Write the rows to `out`.json, the latents of some to `out`.safetensors; return the table."""
    out.parent.mkdir(parents=True, exist_ok=True)
    json_file, latents = (out.with_name(f"{out.name}.{end}") for end in ("json", "safetensors"))
    rows = [asdict(row) for row in table.rows]
    json_file.write_text(
        json.dumps({**settings, "prompts": len(table.things), "rows": rows}, indent=1) + "\n"
    )
    if shown:
        write(latents, {name: table.latents[name].half().cpu() for name in shown}, {})
    return "\n".join([HEAD, *(line(row) for row in table.rows)])
