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

import torch
from safetensors.torch import load_file
from torch import Tensor

from ...flow import euler
from ...header import write
from ...refiner import SurfRefinerDiT
from ...resample import resize
from ...reshift import inherit_noise, preview
from ...schedule import flow_sigmas
from ...tiny import vae
from ...tiny.adherence import read
from ...tiny.caption import Thing, vectors
from .bank import hash_of
from .paint import paint
from .world import Scenes, draw

log = logging.getLogger(__name__)
SEED = 90_001
"""Seed of the held-out scenes, whose prompts are sampled."""
CELLS, FRAMES = 16, 4
"""Latent cells along a side, and latent frames."""
HALF = (CELLS // 2, CELLS // 2)
"""Height and width of a latent at half resolution."""

Velocity = Callable[[Tensor, float], Tensor]
"""Maps a latent [B, C, t, h, w] and sigma to the velocity there."""


@dataclass(frozen=True, kw_only=True, slots=True)
class ControlRow:
    """One way to make the videos, with its right answers; standard errors are over prompts."""

    name: str
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

    def add(self, name: str, latents: Tensor) -> ControlRow:
        """Decode latents and add a row; the first one is the baseline."""
        self.latents[name] = latents
        return self.check(name, self.pixels(latents))

    def check(self, name: str, video: Tensor) -> ControlRow:
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
            name=name, right=share, error=error,
            baseline_share=common, baseline_share_error=common_error,
            large=100 * right[large].mean().item(), beads=100 * right[~large].mean().item(),
        )  # fmt: skip
        self.rows.append(row)
        log.info("%s", line(row))
        return row

    def painted(self, size: int) -> Tensor:
        """Paint the scenes: [B, 3, T, size, size] in -1..1."""
        times = torch.linspace(-0.5, 0.5, 1 + 4 * (FRAMES - 1), device=self.device)
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

    def velocity(self, part: slice) -> Velocity:
        """Return the guided velocity for some of the prompts."""
        context = self.context[part]
        both = torch.cat([context, torch.zeros_like(context)])

        def guided(z: Tensor, sigma: float) -> Tensor:
            level = torch.full((2 * len(z),), 1000 * float(sigma), device=self.device)
            with torch.autocast(self.device.type, torch.bfloat16, enabled=self.half):
                cond, uncond = self.model(torch.cat([z, z]), level, both).float().chunk(2)
            return uncond + self.cfg * (cond - uncond)

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

    def switched(self, steps: int, k: int, sigma: str, noise: str) -> Tensor:
        """Sample as SURF: k steps at full resolution, the others at half of it."""
        sigmas = flow_sigmas(steps, self.shift)
        return self.sampled(
            f"switched-{k}-of-{steps}-{sigma}-{noise}",
            lambda velocity, part: preview(
                velocity, self.noise[part], sigmas, k, HALF, noise=self.fresh[part],
                sigma_policy=sigma, noise_policy=noise,
            ),
        )  # fmt: skip

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
        small = resize(self.latents["50 steps"], HALF, "area")
        self.add("50 steps, latent made smaller", small)
        video = self.pixels(self.latents["50 steps"])
        self.check("50 steps, pixels made smaller", resize(video, (64, 64), "area"))
        self.check("50 steps of the next prompt", video.roll(1, 0))
        self.check("grey", torch.full_like(video, 0.5))
        self.codec_rows()


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
    return (
        f"| {row.name} | {row.right:.1f} +- {row.error:.1f} | {row.large:.1f} | {row.beads:.1f} | "
        f"{row.baseline_share:.1f} +- {row.baseline_share_error:.1f} |"
    )


HEAD = "| videos | right, % | large | beads | of the first row's right, % |\n" + "| --- " * 5 + "|"


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
