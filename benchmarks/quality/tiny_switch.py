"""Which way of switching keeps most at an equal cost, and does any of them beat fewer full steps?

    python -m benchmarks.quality.tiny_switch --pairs 96 --state runs/switch

The paper's preview has 10 steps before and 30 after the switch. Here it is drawn in other ways for
as many operations, and for half of them, on the embedded model; then with other guidance in each
leg, with the splits of the paper's Tab. 4, and with the switch after k of the baseline's steps.
Each is compared with what it has to beat, paired by prompt and seed.
"""

import re
from collections.abc import Callable
from functools import partial
from pathlib import Path

import torch
from torch import Tensor

from benchmarks.page import Page, table
from benchmarks.quality.held_out import LOW, PALETTE, batches
from benchmarks.quality.measures import RIGHT, Rows, answers, arguments, mean_and_error
from benchmarks.quality.saved_rows import SavedRows, Values, fingerprint
from benchmarks.quality.switch_ways import (
    HALF,
    Embedded,
    Section,
    Way,
    embedded,
    full,
    sections,
    switched,
)
from surf_core.cost import plan_flops
from surf_core.flow import euler
from surf_core.resample import resize
from surf_core.reshift import inherit_noise
from surf_core.schedule import flow_sigmas
from surf_core.signature import HEADLINE, scores
from surf_core.tiny.demo import Settings, leg
from surf_core.tiny.model import CELLS, VAE, to_pixels

STEPS = 50
"""Steps of the baseline, the paper's."""
BASELINE, GREY, OTHER_SEED, DIRECT = "baseline", "grey", "another seed", "half resolution"
COPY, IN_LATENT = "baseline, averaged down in pixels", "baseline, averaged down in the latent"
FULL = (8, 12, 16, 18, 32, 40)
"""Steps at full resolution alone that cost as much as previews, besides 30 and 50 % of all."""
DEARER = 1.05
"""How much more than a preview as many operations at full resolution may cost."""
SHARPNESS = "sharpness"
SHORT = ("bands", "motion", "iou", SHARPNESS)


def steps_alone(steps: int) -> list[int]:
    """List steps at full resolution alone: the paper's 30 and 50 %, and those of equal cost."""
    return sorted({round(0.3 * steps), round(0.5 * steps), *FULL} - {steps})


def latents(toy: Embedded, steps: int, cfg: tuple[float, float]) -> dict[str, Callable]:
    """Name all rows that are drawn, but the baseline: name -> what makes its latents."""
    shift, half = Settings().shift, toy.velocity(cfg[1])
    sigmas = flow_sigmas(steps, shift)
    rows: dict[str, Callable[[], Tensor]] = {
        OTHER_SEED: lambda: euler(toy.velocity(cfg[0]), toy.other, sigmas),
        DIRECT: lambda: euler(half, inherit_noise(toy.noise, HALF), sigmas),
    }
    for fewer in steps_alone(steps):
        rows[f"{fewer} steps"] = partial(full, toy, cfg[0], flow_sigmas(fewer, shift))
    for section in sections(steps, DIRECT):
        for name, way in section.ways.items():
            rows[name] = partial(switched, toy, way, *cfg)
    return rows


def twins(steps: int) -> dict[str, str]:
    """Map previews to earlier ones that are drawn the same way, as 10 - 30 is by both rules."""
    ways = {name: way for section in sections(steps, DIRECT) for name, way in section.ways.items()}
    first_of: dict[Way, str] = {}
    for name, way in ways.items():
        first_of.setdefault(way, name)
    return {name: first_of[way] for name, way in ways.items() if first_of[way] != name}


def values_of(toy: Embedded, steps: int, cfg: tuple[float, float]) -> Values:
    """Make and measure all videos of some pairs."""
    latent = full(toy, cfg[0], flow_sigmas(steps, Settings().shift))
    baseline = to_pixels(latent)
    small = (baseline.shape[-2] // 2, baseline.shape[-1] // 2)
    mean = baseline.mean(dim=(2, 3, 4), keepdim=True)
    videos: dict[str, Callable[[], Tensor]] = {
        BASELINE: lambda: baseline,
        COPY: lambda: resize(baseline, small, "area"),
        IN_LATENT: lambda: to_pixels(resize(latent, HALF, "area")),
        GREY: lambda: mean.expand_as(baseline),
    }
    for name, make in latents(toy, steps, cfg).items():
        videos[name] = lambda make=make: to_pixels(make())
    found, again = {}, twins(steps)
    for name, video in videos.items():
        if name in again:
            found[name] = found[again[name]]
            continue
        shown = video()
        values = scores(resize(shown, small, "area"), baseline, PALETTE)
        found[name] = {each: values[each] for each in (*HEADLINE, SHARPNESS)}
        found[name][RIGHT] = answers(shown, toy.things)[RIGHT]
    return found


def is_alone(name: str) -> bool:
    """Tell whether a row is steps at full resolution alone, e.g. "16 steps"."""
    return re.fullmatch(r"\d+ steps", name) is not None


def price(steps: int, cells: int) -> float:
    """Count the operations of guided steps in GF."""
    return plan_flops([leg(steps, cells)]) / 1e9


def cost_of(name: str, steps: int) -> float:
    """Count the operations of a row in GF."""
    ways = {name: way for section in sections(steps, DIRECT) for name, way in section.ways.items()}
    if name in ways:
        way = ways[name]
        low = 0 if way.bare else price(way.below, LOW)
        return price(way.k, CELLS) + (low if way.guided_low else low / 2)
    if is_alone(name):
        return price(int(name.split()[0]), CELLS)
    return {GREY: 0.0, DIRECT: price(steps, LOW)}.get(name, price(steps, CELLS))


def agreement(rows: Rows, names: list[str], costs: dict[str, float]) -> list[str]:
    """Lay out what is kept of the baseline, where 1 is the same, and what is right."""
    columns = " | ".join(["video", "GFLOPs", *HEADLINE, SHARPNESS, "right, %"])
    return table(columns, (
        [name, f"{costs[name]:.1f}",
         *(mean_and_error(rows[name][each], 3) for each in (*HEADLINE, SHARPNESS)),
         mean_and_error(rows[name][RIGHT], 1, 100.0)]
        for name in names
    ))  # fmt: skip


def differences(rows: Rows, section: Section, costs: dict[str, float]) -> list[str]:
    """Lay out paired differences of previews to what each of them has to beat."""

    def row(one: str, other: str) -> list[str]:
        changes = [mean_and_error(rows.change(one, other, each), 3) for each in SHORT]
        right = mean_and_error(rows.change(one, other, RIGHT), 1, 100.0)
        return [one, other, f"{costs[one] - costs[other]:+.1f}", *changes, right]

    pairs = [
        (name, other)
        for name, others in section.less.items()
        for other in (*others, equal(costs[name], costs))
    ]
    columns = " | ".join(["preview", "less", "GFLOPs", *SHORT, "right, points"])
    return table(columns, (row(*pair) for pair in pairs))


def equal(cost: float, costs: dict[str, float]) -> str:
    """Name the most steps at full resolution alone that cost no more than DEARER times this."""
    alone = [name for name in costs if is_alone(name) and costs[name] <= DEARER * cost]
    return max(alone, key=costs.__getitem__)


def tables(rows: Rows, steps: int) -> list[str]:
    costs = {name: cost_of(name, steps) for name in rows.parts}
    parts = sections(steps, DIRECT)
    drawn = {name for section in parts for name in section.ways}
    controls_first = [name for name in costs if name not in drawn]
    lines = ["## The baseline and the controls", "", *agreement(rows, controls_first, costs), ""]
    for section in parts:
        lines += [f"## {section.title}", "", *agreement(rows, list(section.ways), costs), ""]
        lines += ["Less what each has to beat:", "", *differences(rows, section, costs), ""]
    return lines


LEGEND = f"""All is averaged to the preview's size and compared with the baseline of its own prompt
and seed by `surf_core.signature`: 1 is the same video, and neither grey nor blur nor another place
wins. `sharpness` is the power of the finest octave over the baseline's: what a variant trades away.
`right` needs no baseline: it is the share of the things that prompts name which are as they say,
see `surf_core.tiny.adherence`. `no low steps` is the clean estimate at the switch, averaged down.
Each preview is compared with as many operations at full resolution alone, too: the most of the
steps listed that cost at most {DEARER} times as much. The paper's rows of 30 and 50 % are among
them, and its 40 - 0 is the row of 40 steps.

A: the low leg begins lower, as for a ratio of 4. B: its first third holds the low band to what the
switch has settled (`low_band_lock`). C: its positions are stretched by 2, falling to 1
(`rope_scale_low`). D: the steps before the switch are spread down to sigma .75 (`switch_sigma`).
The nodes' defaults, equal SNR and inherited noise, hold where nothing else is said; the paper's
rule is the same sigma and fresh noise.

The model is a toy: this says which switch is better on it, and not what a switch gains on a large
model."""


def main() -> None:
    line = arguments(__doc__, pairs=96, batch=8)
    line.add_argument("--state", type=Path, help="folder of what is done, to go on from")
    line.add_argument("--steps", type=int, default=STEPS, help="of the baseline")
    line.add_argument("--cfg", type=float, nargs=2, default=(Settings().cfg, Settings().cfg_low),
                      help="guidance before and after the switch")  # fmt: skip
    args, rows = line.parse_args(), Rows()
    cfg = (args.cfg[0], args.cfg[1])
    all_ways = sections(args.steps, DIRECT)
    saved = SavedRows(
        args.state,
        fingerprint(args.weights, VAE, all_ways, args.steps, Settings().shift, cfg, HEADLINE),
    )
    title = "Which way of switching keeps most at an equal cost?"
    with torch.inference_mode(), Page(__spec__.name, title, args.out, LEGEND) as page:
        done = 0
        for part in batches(list(range(args.pairs)), args.batch):

            def make(part: list[int] = part) -> Values:
                return values_of(embedded(part, args.weights), args.steps, cfg)

            found = saved.batch(part, make)
            for name, values in found.items():
                rows.add(name, values)
            done += len(part)
            how = (
                f"{done} held-out prompt and seed pairs, baseline of {args.steps} steps, shift "
                f"{Settings().shift}, cfg {cfg[0]} / {cfg[1]}, Euler; mean +- standard error, "
                "differences paired by prompt and seed"
            )
            page.write([*tables(rows, args.steps), page.origin(how)])


if __name__ == "__main__":
    main()
