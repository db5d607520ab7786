"""Run the method on the embedded models: baseline, its controls, preview, refined.

Dims: B prompts, T frames.
"""

import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path

import torch
from torch import Tensor

from ..cost import TINY, Evaluations, ModelShape, plan_flops
from ..flow import euler
from ..resample import resize
from ..reshift import DEFAULT_NOISE, DEFAULT_SIGMA, inherit_noise, preview
from ..schedule import flow_sigmas
from ..signature import bands, motion, sharpness
from . import vae
from .adherence import faults
from .caption import CHECKABLE, Thing, things_of
from .model import CELLS, CLIP, PIXELS, REFINER, WEIGHTS, Prompted, TinyT2V, to_pixels
from .poster import Panel
from .refiner import LARGE, TinyRefiner, shape_of

SMALL = PIXELS // 2
"""Pixels along a side of a preview, at which all is compared."""
STAGES = ("1 rough layout", "2 preview", "3 refined")
"""The method's stages, as the poster names them."""
PROMPTS = (
    "red ring moving right in the southwest, two blue beads moving down in the northeast, on sand",
    "green cube moving left in the southwest, one purple bead moving up in the northeast, on stone",
    "yellow ball moving down in the northwest, four red beads moving left in the southeast, "
    "on water",
    "purple pyramid moving down in the southeast, three yellow beads moving left in the northwest, "
    "on grass",
)
FLOW = "Composes at full size, finishes at half as a cheap preview, refines what you keep."
PICKED = "Prompts are picked to have about the usual share right."
"""Chosen so that with the seed of the settings each method has about as much of them right as of
the 96 prompts of `benchmarks.quality.tiny_switch`."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Settings:
    """Settings of the demo; the defaults are those of the nodes where the tiny model allows."""

    steps: int = 40
    """Evaluations of the baseline, and of the preview."""
    switch_step: int = 10
    """Evaluations at full resolution before the switch."""
    shift: float = 3.0
    """Timestep shift of the schedule."""
    cfg: float = 3.0
    """Guidance at full resolution."""
    cfg_low: float = 3.0
    """Guidance at low resolution."""
    sigma_policy: str = DEFAULT_SIGMA
    """First sigma of the low-resolution leg, see `surf_core.schedule.switch`."""
    noise_policy: str = DEFAULT_NOISE
    """Noise of the low-resolution leg, see `surf_core.reshift`."""
    refine_steps: int = 10
    """Evaluations of the refiner, trained or not."""
    refine_cfg: float = 1.0
    """Guidance of the trained refiner; the training-free one has `cfg`."""
    sigma_start: float = 0.65
    """Noise on the upsampled preview for the training-free refiner; the trained one has its own."""
    window: int = 2
    """Latent frames of a self-attention window, in both refiners."""
    seed: int = 1
    """Seed of the first video; the others follow."""


@dataclass(frozen=True, kw_only=True, slots=True)
class DemoRow:
    """One line of the report; costs are per video, guidance counted, earlier stages included."""

    name: str
    pixels: int
    """Height and width of the result."""
    evaluations: int
    """Guided model evaluations."""
    tokens: int
    """Tokens that went through the model, over all evaluations."""
    gflops: float
    """Billions of floating point operations of the models; without the VAE."""
    seconds: float
    """Wall-clock seconds of this batch, divided by its videos; without decoding."""
    right: int
    """Things that are as their prompts say, of all videos, see `surf_core.tiny.adherence`."""
    bands: float
    """Agreement with the same-seed baseline at the preview's size, see `surf_core.signature`: 1 is
    the same, 0 is grey or elsewhere."""
    motion: float
    """The same of the changes from frame to frame."""
    sharpness: float
    """Power of the finest octave over the baseline's, there."""


def resized(video: Tensor, side: int) -> Tensor:
    """Bring a video to `side` pixels: by averaging downwards, bicubic upwards."""
    method = "area" if side < video.shape[-1] else "bicubic"
    return video if side == video.shape[-1] else resize(video, (side, side), method).clamp(0, 1)


class Demo:
    """Runs each method once, what a preview has to beat among them, and prices it.

    Args:
        prompts: see `surf_core.tiny.caption`.
        settings: steps, guidance and policies.
        weights: file of the text-to-video model, which is also the training-free refiner.
        refiner: file of the trained refiner.
        say: called with what is about to run.
    """

    def __init__(
        self,
        prompts: list[str],
        settings: Settings,
        weights: Path = WEIGHTS,
        refiner: Path = REFINER,
        say: Callable[[str], None] = lambda _: None,
    ):
        self.settings, self.say = settings, say
        self.tiny = TinyT2V(prompts, weights)
        self.refiner = TinyRefiner(prompts, refiner)
        self.untrained = TinyRefiner(prompts, weights)
        self.things: list[list[Thing]] = [things_of(prompt) for prompt in prompts]
        self.seeds = [settings.seed + index for index in range(len(prompts))]
        self.sigmas = flow_sigmas(settings.steps, settings.shift)
        self.rows: list[DemoRow] = []
        self.videos: dict[str, Tensor] = {}
        self.panels: list[Panel] = []

    def measure(
        self,
        name: str,
        model: Prompted,
        legs: list[Evaluations],
        make: Callable[[], Tensor],
        after: DemoRow | None = None,
        shown: str = "",
    ) -> Tensor:
        """Time `make`, check that `model` ran `legs`, and price both.

        Args:
            name: of the row.
            model, legs: what runs, and how often.
            make: returns latents.
            after: the row that it goes on from.
            shown: name on the poster; empty for none.
        """
        self.say(name)
        before, began = model.evaluations, time.perf_counter()
        latent = make()
        seconds = (time.perf_counter() - began) / len(latent)
        count = model.evaluations - before
        assert count == sum(leg.steps for leg in legs), f"{name} ran {count}, planned {legs}"
        self._add(name, to_pixels(latent), legs, seconds, after, shown)
        return latent

    def _add(
        self, name: str, video: Tensor, legs: list[Evaluations], seconds: float,
        after: DemoRow | None = None, shown: str = "",
    ) -> None:  # fmt: skip
        """Add a row, and the videos where they are to be looked at."""
        self.videos[name] = video
        pair = resized(video, SMALL), resized(self.videos["baseline"], SMALL)
        found = faults(video, self.things)
        row = DemoRow(
            name=name,
            pixels=video.shape[-1],
            evaluations=sum(leg.steps for leg in legs) + (after.evaluations if after else 0),
            tokens=sum(leg.tokens for leg in legs) + (after.tokens if after else 0),
            gflops=round(plan_flops(legs) / 1e9 + (after.gflops if after else 0), 1),
            seconds=round(seconds + (after.seconds if after else 0), 3),
            right=sum(named.count("") for named in found),
            bands=round(bands(*pair).mean().item(), 3) + 0.0,
            motion=round(motion(*pair).mean().item(), 3) + 0.0,
            sharpness=round(sharpness(*pair).mean().item(), 3) + 0.0,
        )
        self.rows.append(row)
        if not shown:
            return
        nouns = [[thing.noun for thing in things] for things in self.things]
        named = [list(zip(*pair, strict=True)) for pair in zip(nouns, found, strict=True)]
        self.panels.append(
            Panel(
                name=shown, videos=video, gflops=row.gflops, seconds=row.seconds, faults=named,
                ours=shown in STAGES,
            )
        )  # fmt: skip

    def __call__(self) -> None:
        s, tiny = self.settings, self.tiny
        full, low = tiny.noise(self.seeds), CELLS // 2
        fresh = tiny.noise([seed + 10_000 for seed in self.seeds], low)
        tiny.velocity(s.cfg)(full, 1.0)
        self.measure(
            "baseline", tiny, [leg(s.steps, CELLS)],
            lambda: euler(tiny.velocity(s.cfg), full, self.sigmas), shown=f"{s.steps} steps",
        )  # fmt: skip
        self._control(full)
        low_latent = self.measure(
            "SURF preview", tiny, preview_legs(s),
            lambda: preview(
                tiny.velocity(s.cfg), full, self.sigmas, s.switch_step, (low, low),
                noise=fresh, velocity_low=tiny.velocity(s.cfg_low),
                sigma_policy=s.sigma_policy, noise_policy=s.noise_policy,
            ),
            shown=STAGES[1],
        )  # fmt: skip
        self._refine(low_latent, self.rows[-1])

    def _control(self, full: Tensor) -> None:
        """Measure what a preview has to beat; equal cost and half the resolution are shown."""
        s, tiny, half = self.settings, self.tiny, (CELLS // 2, CELLS // 2)
        high, video = tiny.velocity(s.cfg), self.videos["baseline"]
        grey = video.mean(dim=(2, 3, 4), keepdim=True).expand_as(video)
        self._add("grey", grey, [], 0.0)
        other = tiny.noise([seed + 30_000 for seed in self.seeds])
        self.measure(
            "another seed", tiny, [leg(s.steps, CELLS)],
            lambda: euler(high, other, self.sigmas),
        )  # fmt: skip
        equal = steps_of_equal_cost(s)
        for fewer in sorted({round(0.3 * s.steps), equal, round(0.5 * s.steps)}):
            self.measure(
                f"{fewer} steps at full resolution", tiny, [leg(fewer, CELLS)],
                partial(euler, high, full, flow_sigmas(fewer, s.shift)),
                shown=f"{fewer} steps, preview's cost" if fewer == equal else "",
            )  # fmt: skip
        self.measure(
            "direct low resolution", tiny, [leg(s.steps, CELLS // 2)],
            lambda: euler(tiny.velocity(s.cfg_low), inherit_noise(full, half), self.sigmas),
            shown=f"{s.steps} steps, half size",
        )  # fmt: skip
        first = [*self.sigmas[: s.switch_step].tolist(), 0.0]
        clean = self.measure(
            "the clean estimate at the switch", tiny, [leg(s.switch_step, CELLS)],
            lambda: euler(high, full, self.sigmas.new_tensor(first)), shown=STAGES[0],
        )  # fmt: skip
        self._add(
            "the switch without low steps", to_pixels(resize(clean, half, "area")),
            [leg(s.switch_step, CELLS)], self.rows[-1].seconds,
        )  # fmt: skip

    def _refine(self, low_latent: Tensor, after: DemoRow) -> None:
        """Refine a preview with the trained refiner, and with the untrained model.

        The untrained one refines to the size of its training: above it, its videos fall apart.
        """
        s, seeds = self.settings, [seed + 20_000 for seed in self.seeds]
        shape, guided = shape_of(self.refiner), s.refine_cfg != 1
        self.measure(
            "SURF refined", self.refiner,
            [leg(s.refine_steps, LARGE, s.window, guided, shape)],
            lambda: self.refiner(
                low_latent, seeds, steps=s.refine_steps, cfg=s.refine_cfg, window=s.window
            ),
            after, shown=STAGES[2],
        )  # fmt: skip
        self.measure(
            "SURF refined, training-free", self.untrained,
            [leg(s.refine_steps, CELLS, s.window)],
            lambda: self.untrained(
                low_latent, seeds, cells=CELLS, steps=s.refine_steps, cfg=s.cfg, window=s.window,
                sigma_start=s.sigma_start,
            ),
            after,
        )  # fmt: skip

    def verdict(self) -> str:
        """Say what a preview has to beat, and whether it does."""
        rows = {row.name: row for row in self.rows}
        equal, count = steps_of_equal_cost(self.settings), sum(map(len, self.things))
        if not count:
            return f"{FLOW} Nothing is checked: {CHECKABLE}."
        plain = rows[f"{equal} steps at full resolution"].right
        ours = rows["SURF preview"].right
        return (
            f"{FLOW} {'No gain on a toy: ' * (plain >= ours)}{equal} plain steps have {plain} of "
            f"{count} things right, the preview {ours}."
        )

    def report(self) -> dict:
        """Collect the contents of `report.json`."""
        return {
            "settings": asdict(self.settings),
            "torch": torch.__version__,
            "threads": torch.get_num_threads(),
            "videos": len(self.seeds),
            "things": sum(map(len, self.things)),
            "rows": [asdict(row) for row in self.rows],
        }


def leg(
    steps: int, cells: int, window: int = 0, guided: bool = True, shape: ModelShape = TINY
) -> Evaluations:
    """Price evaluations of a tiny model at a size in latent cells."""
    side = cells * vae.CELL
    return Evaluations(
        shape=shape, steps=steps, frames=CLIP, height=side, width=side, window=window,
        guided=guided,
    )  # fmt: skip


def preview_legs(settings: Settings) -> list[Evaluations]:
    """Price both legs of a preview."""
    k = settings.switch_step
    return [leg(k, CELLS), leg(settings.steps - k, CELLS // 2)]


def steps_of_equal_cost(settings: Settings) -> int:
    """Count the steps at full resolution that cost at most as much as a preview; at least 1."""
    return max(1, plan_flops(preview_legs(settings)) // plan_flops([leg(1, CELLS)]))


def table(rows: list[DemoRow]) -> str:
    """Format the rows as a Markdown table."""
    names = list(DemoRow.__dataclass_fields__)
    lines = [" | ".join(names), " | ".join("---" for _ in names)]
    lines += [" | ".join(str(getattr(row, name)) for name in names) for row in rows]
    return "\n".join(f"| {line} |" for line in lines)
