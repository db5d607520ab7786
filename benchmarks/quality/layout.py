"""Which way over the switch keeps the layout? Measured on the embedded model.

    python -m benchmarks.quality.layout --pairs 64

For every prompt and seed: the full-resolution baseline, another seed (the floor), direct half
resolution from its own noise and from the baseline's, and the SURF preview for k = 2, 5, 10 of 40
steps under both noise policies, both sigma policies and the paper's eq. 2 as printed. Distances are
paired by prompt and seed.
"""

import sys
from collections.abc import Iterator
from functools import partial

from torch import Tensor

from benchmarks.page import Page, parser, table
from benchmarks.quality.held_out import LOW, scenes, seeds
from benchmarks.quality.measures import mean_and_error
from surf_core.flow import euler
from surf_core.resample import resize
from surf_core.reshift import (
    NOISE_POLICIES,
    inherit_noise,
    preview,
)
from surf_core.schedule import SIGMA_POLICIES, flow_sigmas, switch
from surf_core.signature import layout_distance
from surf_core.tiny.demo import to_pixels
from surf_core.tiny.model import TinyT2V

STEPS, SHIFT, CFG, CFG_LOW = 40, 3.0, 4.0, 3.0

DIRECT = "direct, the same noise averaged down"
"""The control: the stronger of the two direct ways."""


def literal(tiny: TinyT2V, full: Tensor, fresh: Tensor, sigmas: Tensor, k: int) -> Tensor:
    """Preview with eq. 2 as printed, x0 + sigma * noise, at the paper's sigma."""
    cut = switch(sigmas, k, ratio=2.0)
    x0 = euler(tiny.velocity(CFG), full, cut.high)
    start = resize(x0, (LOW, LOW)) + cut.sigma * fresh
    return euler(tiny.velocity(CFG_LOW), start, cut.low)


def methods(tiny: TinyT2V, seeds: list[int]) -> Iterator[tuple[str, Tensor]]:
    """Yield (name, latent), the baseline first."""
    sigmas, full = flow_sigmas(STEPS, SHIFT), tiny.noise(seeds)
    fresh = tiny.noise([seed + 10_000 for seed in seeds], LOW)
    yield "baseline", euler(tiny.velocity(CFG), full, sigmas)
    other = tiny.noise([seed + 20_000 for seed in seeds])
    yield "another seed", euler(tiny.velocity(CFG), other, sigmas)
    yield "direct, its own noise", euler(tiny.velocity(CFG_LOW), fresh, sigmas)
    yield DIRECT, euler(tiny.velocity(CFG_LOW), inherit_noise(full, (LOW, LOW)), sigmas)
    for k in (2, 5, 10):
        for noise_policy in NOISE_POLICIES:
            for sigma_policy in SIGMA_POLICIES:
                yield (
                    f"k={k} {noise_policy} {sigma_policy}",
                    preview(
                        tiny.velocity(CFG), full, sigmas, k, (LOW, LOW), noise=fresh,
                        velocity_low=tiny.velocity(CFG_LOW),
                        sigma_policy=sigma_policy, noise_policy=noise_policy,
                    ),
                )  # fmt: skip
        yield f"k={k} eq. 2 as printed", literal(tiny, full, fresh, sigmas, k)


percent = partial(mean_and_error, scale=100.0)
"""Mean and standard error in percent of the pixel range."""


def rows(distances: dict[str, Tensor]) -> Iterator[list[str]]:
    """Yield the distances, and what each method gains over direct and over the paper's."""
    for name, values in distances.items():
        paper = distances.get(name.split()[0] + " fresh same")
        over = percent(paper - values) if paper is not None else "-"
        yield [name, percent(values), percent(distances[DIRECT] - values), over]


def main() -> None:
    line = parser(__doc__)
    line.add_argument("--pairs", type=int, default=64)
    args = line.parse_args()
    tiny = TinyT2V(scenes(args.pairs, 8, frames=1).prompts)
    distances, baseline = {}, None
    how = (
        f"{args.pairs} prompt and seed pairs, {STEPS} steps, shift {SHIFT}, cfg {CFG} / {CFG_LOW}, "
        f"Euler; mean +- standard error"
    )
    title = "Layout over the switch, on the embedded model"
    with Page(__spec__.name, title, args.out, "Distances to the baseline.") as page:
        for name, latent in methods(tiny, seeds(list(range(args.pairs)))):
            video = to_pixels(latent)
            baseline = video if baseline is None else baseline
            distances[name] = layout_distance(video, baseline)
            print(name, file=sys.stderr)
        columns = "method | layout distance, % | gain over direct | gain over the paper's"
        page.write([*table(columns, rows(distances)), "", page.origin(how)])


if __name__ == "__main__":
    main()
