"""What does guidance with a held difference keep, and what does it save?

    python -m benchmarks.guidance --pairs 96

Previews of the embedded model, 10 steps at full resolution and 30 at half of it, and training-free
refinements of them to full resolution in 10 steps. Guided in every evaluation; with the difference
held, see `surf_core.guidance`; not guided after the switch, or at all; and with fewer steps, which
is the other use of as many runs of the model. Distances are to the same with four times the steps,
and to the baseline at full resolution, paired.
"""

import time
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from benchmarks.held_out import FRESH, LOW, REFINE, batches, scenes, schedule, seeds
from benchmarks.measures import Rows, arguments, publish, share_and_error
from benchmarks.prompts import score
from benchmarks.provenance import provenance
from surf_core.cost import plan_flops
from surf_core.flow import euler
from surf_core.reshift import DEFAULT_NOISE, DEFAULT_SIGMA, preview
from surf_core.schedule import shift_sigma
from surf_core.signature import colour_distance, detail, layout_distance
from surf_core.tiny.demo import Settings, leg, resized, to_pixels
from surf_core.tiny.model import CELLS, TinyT2V
from surf_core.tiny.refiner import TinyRefiner

S = Settings()


@dataclass(frozen=True, kw_only=True, slots=True)
class Way:
    """How both legs of a preview, or a refinement, are guided."""

    name: str
    steps: tuple[int, ...]
    """Of each leg; one for a refinement."""
    every: tuple[int, ...] = (1, 1)
    """Of each leg, see `HeldDifference`."""
    guided: tuple[bool, ...] = (True, True)
    """Of each leg."""

    @property
    def legs(self) -> list:
        sizes = ((CELLS, 0), (LOW, 0)) if len(self.steps) == 2 else ((CELLS, S.window),)
        ways = zip(self.steps, sizes, self.guided, self.every, strict=False)
        return [replace(leg(steps, *size, on), every=every) for steps, size, on, every in ways]

    @property
    def runs(self) -> str:
        return " + ".join(str(stage.forwards) for stage in self.legs)


PREVIEWS = [
    Way(name="preview, 40 + 120 steps", steps=(40, 120)),
    Way(name="preview, 10 + 30 steps", steps=(10, 30)),
    *(Way(name=f"held for {n} after the switch", steps=(10, 30), every=(1, n)) for n in (2, 3, 5)),
    Way(name="10 + 20 steps", steps=(10, 20)),
    *(Way(name=f"held for {n} in both legs", steps=(10, 30), every=(n, n)) for n in (2, 3)),
    Way(name="7 + 20 steps", steps=(7, 20)),
    Way(name="not guided after the switch", steps=(10, 30), guided=(True, False)),
]
REFINEMENTS = [
    Way(name="refinement, 40 steps", steps=(40,)),
    Way(name="refinement, 10 steps", steps=(10,)),
    *(Way(name=f"refinement, held for {n}", steps=(10,), every=(n,)) for n in (2, 3)),
    Way(name="refinement, 7 steps", steps=(7,)),
    Way(name="refinement, not guided", steps=(10,), guided=(False,)),
]
QUARTER = 0.75
"""Where the resolution switches, in time before the shift: after 10 of 40 steps."""
DISTANCE = "to four times the steps, %"


def sigmas(first: int, second: int) -> Tensor:
    """So many steps to the switch, and after it: [first + second + 1]."""
    high = torch.linspace(1, QUARTER, first + 1, dtype=torch.float64)
    low = torch.linspace(QUARTER, 0, second + 1, dtype=torch.float64)
    return shift_sigma(torch.cat([high[:-1], low]), S.shift).float()


def shown(tiny: TinyT2V, way: Way, numbers: list[int]) -> Tensor:
    """A preview: latents [B, 16, T, LOW, LOW]."""
    cfg = [full if on else 1.0 for full, on in zip((S.cfg, S.cfg_low), way.guided, strict=True)]
    return preview(
        tiny.velocity(cfg[0], every=way.every[0]), tiny.noise(seeds(numbers)), sigmas(*way.steps),
        way.steps[0], (LOW, LOW), noise=tiny.noise(seeds(numbers, FRESH), LOW),
        velocity_low=tiny.velocity(cfg[1], every=way.every[1]),
        sigma_policy=DEFAULT_SIGMA, noise_policy=DEFAULT_NOISE,
    )  # fmt: skip


def refined(refiner: TinyRefiner, way: Way, previews: Tensor, numbers: list[int]) -> Tensor:
    """The same previews refined without training: [B, 16, T, CELLS, CELLS]."""
    return refiner(
        previews, seeds(numbers, REFINE), cells=CELLS, steps=way.steps[0], window=S.window,
        sigma_start=S.sigma_start, cfg=S.cfg if way.guided[0] else 1.0, every=way.every[0],
    )  # fmt: skip


def distances(video: Tensor, fine: Tensor, baseline: Tensor) -> dict[str, Tensor]:
    """Name -> [B]; the fine one has four times the steps, guided in every evaluation."""
    same = resized(baseline, video.shape[-1])
    return {
        DISTANCE: 50 * (video - fine).square().flatten(1).mean(dim=1).sqrt(),
        "layout to the baseline, %": 100 * layout_distance(video, baseline),
        "colour to the baseline, %": 100 * colour_distance(video, same),
        "detail": detail(video) / detail(same).mean(),
    }


def main() -> None:
    args = arguments(__doc__, pairs=96, batch=32).parse_args()
    began, rows, right = time.time(), Rows(), {}
    for part in batches(list(range(args.pairs)), args.batch):
        prompts = [scenes(1, 8, number, frames=1).prompts[0] for number in part]
        single = [i for i, prompt in enumerate(prompts) if prompt.count("moving") == 1]
        tiny, refiner = TinyT2V(prompts, args.weights), TinyRefiner(prompts, args.weights)
        full = tiny.noise(seeds(part))
        baseline = to_pixels(euler(tiny.velocity(S.cfg), full, schedule()))
        previews = shown(tiny, PREVIEWS[1], part)
        for ways in (PREVIEWS, REFINEMENTS):
            fine = None
            for way in ways:
                latent = (shown(tiny, way, part) if len(way.steps) == 2
                          else refined(refiner, way, previews, part))  # fmt: skip
                video = to_pixels(latent)
                fine = video if fine is None else fine
                rows.add(way.name, distances(video, fine, baseline))
                found = score([prompts[i] for i in single], video[single])
                right.setdefault(way.name, []).append(found["all"])
    table = rows.table("guidance")
    heads = ["runs | GFLOPs | all right, %", "--- | --- | ---"]
    cells = [
        f"{way.runs} | {plan_flops(way.legs) / 1e9:.1f} | "
        f"{share_and_error(torch.cat(right[way.name]))}"
        for way in (*PREVIEWS, *REFINEMENTS)
    ]
    table = [f"{line} {more} |" for line, more in zip(table, heads + cells, strict=True)]
    count = sum(map(len, right[PREVIEWS[0].name]))
    how = (
        f"{args.pairs} held-out prompt and seed pairs, cfg {S.cfg} / {S.cfg_low}, refinements "
        f"cfg {S.cfg} from sigma {S.sigma_start} in windows of {S.window}; mean +- standard error. "
        f"`{DISTANCE}` is the root mean square difference of pixels, in % of their range. "
        "Runs are those of the model, of each leg. All right: colour, shape and direction of the "
        f"{count} prompts with one object, binomial errors. {time.time() - began:.0f} s. "
        f"{provenance()}"
    )
    publish(table, how, args.out)


if __name__ == "__main__":
    main()
