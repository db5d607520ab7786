"""Run the main job on the embedded model: baseline, direct low resolution, preview, refined.

Dims: B batch, T frames.
"""

import time
from collections.abc import Callable
from dataclasses import asdict, dataclass

import torch
from torch import Tensor

from ..cost import TINY, forward_flops, tokens
from ..flow import euler, refine
from ..resample import resize
from ..reshift import DEFAULT_NOISE, DEFAULT_SIGMA, inherit_noise, preview
from ..schedule import flow_sigmas
from ..signature import compare
from . import codec
from .model import CELLS, FRAMES, TinyT2V

PROMPTS = (
    "red circle moving right, blue square moving up, on stripes",
    "yellow triangle moving left, on clouds",
    "green square moving down, red triangle moving right, on checks",
    "blue circle moving up, yellow square moving left, on clouds",
)


@dataclass(frozen=True, kw_only=True, slots=True)
class Settings:
    """What the demo runs; the defaults are those of the nodes where the tiny model allows."""

    steps: int = 40
    """Evaluations of the baseline, and of the preview."""
    switch_step: int = 10
    """Evaluations at full resolution before the switch."""
    shift: float = 3.0
    """Timestep shift of the schedule."""
    cfg: float = 4.0
    """Guidance at full resolution."""
    cfg_low: float = 3.0
    """Guidance at low resolution."""
    sigma_policy: str = DEFAULT_SIGMA
    """Where the low-resolution schedule starts, see `surf_core.schedule.switch`."""
    noise_policy: str = DEFAULT_NOISE
    """What noise the low-resolution latent gets, see `surf_core.reshift`."""
    refine_steps: int = 10
    """Evaluations of the refiner."""
    sigma_start: float = 0.65
    """Where the refiner starts."""
    window: int = 2
    """Latent frames the refiner's self-attention sees at once."""
    seed: int = 1
    """Seed of the first video; the others follow."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Row:
    """One line of the report; costs are per video, guidance counted, earlier stages included."""

    name: str
    pixels: int
    """Height and width of the result."""
    evaluations: int
    """Guided model evaluations."""
    tokens: int
    """Tokens that went through the model, over all evaluations."""
    gflops: float
    """Billions of floating point operations."""
    seconds: float
    """Wall-clock seconds of this batch, divided by its videos."""
    layout_distance: float
    """To the same-seed baseline, see `surf_core.signature`."""
    detail: float
    """Sharpness relative to the baseline."""


def to_pixels(latent: Tensor) -> Tensor:
    """Decode to videos [B, 3, T, 4H, 4W] in 0..1."""
    return codec.decode(latent).add(1).div(2).clamp(0, 1)


def enlarge(latent: Tensor, cells: int) -> Tensor:
    """Upsample a latent through pixels: decode, bicubic, encode."""
    size = (cells * codec.CELL, cells * codec.CELL)
    return codec.encode(resize(codec.decode(latent), size, "bicubic"))


class Run:
    """Runs each method once and prices it."""

    def __init__(self, prompts: list[str], settings: Settings):
        self.settings = settings
        self.tiny = TinyT2V(prompts)
        self.seeds = [settings.seed + index for index in range(len(prompts))]
        self.sigmas = flow_sigmas(settings.steps, settings.shift)
        self.rows: list[Row] = []
        self.videos: dict[str, Tensor] = {}

    def measure(
        self,
        name: str,
        legs: list[tuple[int, int, int]],
        make: Callable[[], Tensor],
        after: Row | None = None,
    ) -> Tensor:
        """Time `make`, check that it ran `legs` (evaluations, cells, window), and price both."""
        before, began = self.tiny.evaluations, time.perf_counter()
        latent = make()
        seconds = (time.perf_counter() - began) / len(latent)
        ran = self.tiny.evaluations - before
        assert ran == sum(leg[0] for leg in legs), f"{name} ran {ran} evaluations, planned {legs}"
        video = to_pixels(latent)
        self.videos[name] = video
        signature = compare(video, self.videos["baseline"])
        sides = [(count, cells * codec.CELL, window) for count, cells, window in legs]
        flops = sum(
            2 * count * forward_flops(TINY, FRAMES, side, side, window)
            for count, side, window in sides
        )
        through = sum(2 * count * tokens(TINY, FRAMES, side, side) for count, side, _ in sides)
        self.rows.append(
            Row(
                name=name,
                pixels=video.shape[-1],
                evaluations=ran + (after.evaluations if after else 0),
                tokens=through + (after.tokens if after else 0),
                gflops=round(flops / 1e9 + (after.gflops if after else 0), 1),
                seconds=round(seconds + (after.seconds if after else 0), 3),
                layout_distance=round(signature.layout, 4),
                detail=round(signature.detail, 3),
            )
        )
        return latent

    def __call__(self) -> None:
        s, tiny = self.settings, self.tiny
        full, low = tiny.noise(self.seeds), CELLS // 2
        fresh = tiny.noise([seed + 10_000 for seed in self.seeds], low)
        tiny.velocity(s.cfg)(full, 1.0)
        self.measure(
            "baseline",
            [(s.steps, CELLS, 0)],
            lambda: euler(tiny.velocity(s.cfg), full, self.sigmas),
        )
        self.measure(
            "direct low resolution",
            [(s.steps, low, 0)],
            lambda: euler(tiny.velocity(s.cfg_low), inherit_noise(full, (low, low)), self.sigmas),
        )
        shown = self.measure(
            "SURF preview",
            [(s.switch_step, CELLS, 0), (s.steps - s.switch_step, low, 0)],
            lambda: preview(
                tiny.velocity(s.cfg), full, self.sigmas, s.switch_step, (low, low),
                noise=fresh, velocity_low=tiny.velocity(s.cfg_low),
                sigma_policy=s.sigma_policy, noise_policy=s.noise_policy,
            ),
        )  # fmt: skip
        noise = tiny.noise([seed + 20_000 for seed in self.seeds])
        self.measure(
            "SURF refined",
            [(s.refine_steps, CELLS, s.window)],
            lambda: refine(
                tiny.velocity(s.cfg, s.window), enlarge(shown, CELLS), s.sigma_start,
                s.refine_steps, noise,
            ),
            after=self.rows[-1],
        )  # fmt: skip

    def report(self) -> dict:
        """Everything that `report.json` holds."""
        return {
            "settings": asdict(self.settings),
            "torch": torch.__version__,
            "threads": torch.get_num_threads(),
            "videos": len(self.seeds),
            "rows": [asdict(row) for row in self.rows],
        }


def table(rows: list[Row]) -> str:
    """Lay the rows out as a Markdown table."""
    names = list(Row.__dataclass_fields__)
    lines = [" | ".join(names), " | ".join("---" for _ in names)]
    lines += [" | ".join(str(getattr(row, name)) for name in names) for row in rows]
    return "\n".join(f"| {line} |" for line in lines)
