"""The controls that decide whether a text-to-video model can show what the switch gains.

Held-out prompts, right answers of `surf_core.tiny.adherence`: if fewer steps of full resolution,
or half of it directly, answer as well, no switch is needed, and the model proves nothing.

Dims: B prompts, T frames.
"""

import json
import logging
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from itertools import pairwise
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import Tensor

from ...flow import euler
from ...refiner import SurfRefinerDiT
from ...resample import resize
from ...reshift import inherit_noise, preview
from ...schedule import flow_sigmas
from ...tiny import vae
from ...tiny.adherence import read
from ...tiny.caption import Thing, vectors
from .paint import paint
from .world import Scenes, draw

log = logging.getLogger(__name__)
SEED = 90_001
"""Of the held-out scenes, whose prompts are asked for."""
CELLS, FRAMES = 16, 4
"""Latent cells along a side, and latent frames."""

Velocity = Callable[[Tensor, float], Tensor]


@dataclass(frozen=True, kw_only=True, slots=True)
class ControlRow:
    """One way to make the videos, and how it answers; standard errors are over prompts."""

    name: str
    right: float
    """Share of all answers that are right, percent."""
    error: float
    """Its standard error."""
    large: float
    """The same of large things."""
    beads: float
    """The same of swarms."""
    kept: float
    """Right among the answers that the baseline has right, percent."""
    kept_error: float
    """Its standard error."""


class Controls:
    """Prompts with their noise, and everything that is made of them.

    Args:
        model: the text-to-video model, on its device.
        codec: its VAE, on the same.
        count: B.
        cfg: guidance, at both resolutions.
        shift: of the schedule.
        group: videos that are sampled at once.
    """

    def __init__(
        self, model: SurfRefinerDiT, codec: vae.TinyVAE, count: int = 128, cfg: float = 7.5,
        shift: float = 3.0, group: int = 128, half: bool = False,
    ):  # fmt: skip
        self.model, self.codec, self.cfg, self.shift = model, codec, cfg, shift
        self.device = next(model.parameters()).device
        self.group, self.half = group, half
        self.scenes: Scenes = draw(SEED, torch.arange(count, device=self.device))
        self.things: list[list[Thing]] = self.scenes.things()
        self.context = self.scenes.words() @ vectors().to(self.device)
        self.noise = self._noise(0, CELLS)
        self.fresh = self._noise(1, CELLS // 2)
        self.rows: list[ControlRow] = []
        self.baseline: Tensor | None = None
        self.latents: dict[str, Tensor] = {}

    def _noise(self, seed: int, cells: int) -> Tensor:
        shape = (len(self.things), vae.LATENT, FRAMES, cells, cells)
        return torch.randn(shape, generator=torch.Generator().manual_seed(seed)).to(self.device)

    def velocity(self, part: slice) -> Velocity:
        """Guided velocity for some of the prompts."""
        context = self.context[part]
        both = torch.cat([context, torch.zeros_like(context)])

        def guided(z: Tensor, sigma: float) -> Tensor:
            level = torch.full((2 * len(z),), 1000 * float(sigma), device=self.device)
            with torch.autocast(self.device.type, torch.bfloat16, enabled=self.half):
                cond, uncond = self.model(torch.cat([z, z]), level, both).float().chunk(2)
            return uncond + self.cfg * (cond - uncond)

        return guided

    @torch.inference_mode()
    def sampled(self, make: Callable[[Velocity, slice], Tensor]) -> Tensor:
        """Make all videos' latents, some at a time."""
        edges = [*range(0, len(self.things), self.group), len(self.things)]
        parts = [slice(a, b) for a, b in pairwise(edges)]
        return torch.cat([make(self.velocity(part), part) for part in parts])

    def full(self, steps: int) -> Tensor:
        """Full resolution, so many steps."""
        sigmas = flow_sigmas(steps, self.shift)
        return self.sampled(lambda v, part: euler(v, self.noise[part], sigmas))

    def direct(self, steps: int) -> Tensor:
        """Half resolution from the start, with the same noise made smaller."""
        sigmas, low = flow_sigmas(steps, self.shift), (CELLS // 2, CELLS // 2)
        return self.sampled(lambda v, part: euler(v, inherit_noise(self.noise[part], low), sigmas))

    def switched(self, steps: int, k: int, sigma: str, noise: str) -> Tensor:
        """SURF: k steps at full resolution, the others at half of it."""
        sigmas, low = flow_sigmas(steps, self.shift), (CELLS // 2, CELLS // 2)
        return self.sampled(
            lambda v, part: preview(
                v, self.noise[part], sigmas, k, low, noise=self.fresh[part],
                sigma_policy=sigma, noise_policy=noise,
            )
        )  # fmt: skip

    def estimate(self, steps: int, k: int) -> Tensor:
        """The clean estimate after k steps, made smaller: no low leg at all."""
        sigmas = flow_sigmas(steps, self.shift)

        def make(v: Velocity, part: slice) -> Tensor:
            kept: list[Tensor] = []
            euler(v, self.noise[part], sigmas[: k + 1], lambda _, z, clean: kept.append(clean))
            return resize(kept[-1], (CELLS // 2, CELLS // 2), "area")

        return self.sampled(make)

    @torch.inference_mode()
    def pixels(self, latents: Tensor) -> Tensor:
        """Decode to 0..1, some at a time."""
        parts = []
        for part in latents.split(32):
            with torch.autocast(self.device.type, torch.bfloat16, enabled=self.half):
                parts.append(self.codec.decode(part).float())
        return torch.cat(parts).add(1).div(2).clamp(0, 1)

    def add(self, name: str, latents: Tensor) -> ControlRow:
        """Decode, ask, and note the row; the first one is the baseline."""
        self.latents[name] = latents
        return self.ask(name, self.pixels(latents))

    def ask(self, name: str, video: Tensor, things: list[list[Thing]] | None = None) -> ControlRow:
        """Note how pixels [B, 3, T, H, W] in 0..1 answer."""
        things = things or self.things
        answers = [a for part, named in _parts(video, things) for a in read(part, named)]
        flat = torch.tensor([float(a) for row in answers for a in row])
        of = torch.tensor([i for i, row in enumerate(answers) for _ in row])
        large = torch.tensor([thing.shape is not None for row in things for thing in row])
        if self.baseline is None:
            self.baseline = flat
        base = self.baseline
        right, error = clustered(flat, torch.ones_like(flat), of)
        kept, kept_error = clustered(flat * base, base, of)
        row = ControlRow(
            name=name, right=right, error=error, kept=kept, kept_error=kept_error,
            large=100 * flat[large].mean().item(), beads=100 * flat[~large].mean().item(),
        )  # fmt: skip
        self.rows.append(row)
        log.info("%s", line(row))
        return row

    @torch.inference_mode()
    def truth(self, size: int) -> Tensor:
        """The scenes themselves, encoded, in 0..1 once decoded: what the VAE leaves to be read."""
        times = torch.linspace(-0.5, 0.5, 1 + 4 * (FRAMES - 1), device=self.device)
        starts = range(0, len(self.things), 16)
        videos = [paint(self.scenes.part(i, i + 16), times, size) for i in starts]
        return torch.cat([self.codec.encode(video) for video in videos])

    def usual(self) -> None:
        """The rows that the issue asks for, the most telling first."""
        self.add("50 steps", self.full(50))
        self.add("15 steps", self.full(15))
        self.add("half resolution, 50 steps", self.direct(50))
        self.add("25 steps", self.full(25))
        self.add("8 steps", self.full(8))
        self.add("10 + 30, the paper's", self.switched(40, 10, "same", "fresh"))
        self.add("10 + 30, ours", self.switched(40, 10, "snr_equal", "inherited"))
        self.add("5 + 35, the paper's", self.switched(40, 5, "same", "fresh"))
        self.add("5 + 35, ours", self.switched(40, 5, "snr_equal", "inherited"))
        self.add("estimate after 10 of 40", self.estimate(40, 10))
        small = resize(self.latents["50 steps"], (CELLS // 2, CELLS // 2), "area")
        self.add("50 steps, latent made smaller", small)
        video = self.pixels(self.latents["50 steps"])
        self.ask("50 steps, pixels made smaller", resize(video, (64, 64), "area"))
        self.ask("50 steps of the next prompt", video.roll(1, 0))
        self.ask("grey", torch.full_like(video, 0.5))
        self.add("scenes, encoded", self.truth(128))
        self.add("scenes at half size, encoded", self.truth(64))


def _parts(video: Tensor, things: list[list[Thing]]) -> Iterator[tuple[Tensor, list[list[Thing]]]]:
    for start in range(0, len(things), 32):
        yield video[start : start + 32], things[start : start + 32]


def clustered(top: Tensor, bottom: Tensor, of: Tensor) -> tuple[float, float]:
    """Ratio of sums in percent with its standard error over clusters (prompts)."""
    count = int(of.max()) + 1
    tops = torch.zeros(count).index_add(0, of, top)
    bottoms = torch.zeros(count).index_add(0, of, bottom)
    total = bottoms.sum().clamp(min=1)
    ratio = tops.sum() / total
    error = (count / (count - 1) * (tops - ratio * bottoms).square().sum()).sqrt() / total
    return 100 * ratio.item(), 100 * error.item()


def line(row: ControlRow) -> str:
    """One line of the table."""
    return (
        f"| {row.name} | {row.right:.1f} +- {row.error:.1f} | {row.large:.1f} | {row.beads:.1f} | "
        f"{row.kept:.1f} +- {row.kept_error:.1f} |"
    )


HEAD = "| videos | right, % | large | beads | kept of the first, % |\n" + "| --- " * 5 + "|"


def write(controls: Controls, out: Path, keep: tuple[str, ...] = ()) -> str:
    """Write rows as JSON and the latents of some rows, and lay out the table."""
    out.parent.mkdir(parents=True, exist_ok=True)
    json_file, latents = (out.with_name(f"{out.name}.{end}") for end in ("json", "safetensors"))
    rows = [asdict(row) for row in controls.rows]
    settings = {"cfg": controls.cfg, "shift": controls.shift, "prompts": len(controls.things)}
    json_file.write_text(json.dumps({**settings, "rows": rows}, indent=1) + "\n")
    if keep:
        named = {name: controls.latents[name].half().contiguous() for name in keep}
        save_file(named, latents)
    return "\n".join([HEAD, *(line(row) for row in controls.rows)])
