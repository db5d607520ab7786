"""How much of the full-resolution video does a preview keep, and what does it cost?

    python -m benchmarks.quality.tiny_signature --pairs 128

For every held-out prompt and seed: the full-resolution baseline, another seed (the floor), half the
resolution directly, and the SURF preview with the switch at k = 0, 2, 5, 10, 20 and 40 of 40
steps; at 0 it is the direct one, at 40 the baseline. Distances are to the baseline, paired.
"""

import time
from collections.abc import Iterator
from itertools import pairwise

import torch
from torch import Tensor

from benchmarks.page import provenance
from benchmarks.quality.held_out import LOW, OTHER, batches, scenes, schedule, seeds, shown
from benchmarks.quality.measures import Rows, arguments, publish, share_and_error
from benchmarks.quality.prompts import score
from surf_core.cost import plan_flops
from surf_core.flow import euler
from surf_core.reshift import inherit_noise
from surf_core.signature import colour_distance, detail, layout_distance, motion_distance
from surf_core.tiny.demo import Settings, leg, resized, to_pixels
from surf_core.tiny.model import CELLS, TinyT2V

SWITCHES = (0, 2, 5, 10, 20, 40)
FLOOR, DIRECT = "another seed, 64 pixels", "direct, 32 pixels"
LAYOUT = "layout, %"


def methods(tiny: TinyT2V, numbers: list[int]) -> Iterator[tuple[str, Tensor]]:
    """Yield (name, latent) of what is compared with the baseline, itself first."""
    s, full = Settings(), tiny.noise(seeds(numbers))
    other = tiny.noise(seeds(numbers, OTHER))
    yield "baseline, 64 pixels", euler(tiny.velocity(s.cfg), full, schedule())
    yield FLOOR, euler(tiny.velocity(s.cfg), other, schedule())
    yield DIRECT, euler(tiny.velocity(s.cfg_low), inherit_noise(full, (LOW, LOW)), schedule())
    for k in SWITCHES:
        yield f"preview, k = {k}", shown(tiny, numbers, k)


def distances(video: Tensor, baseline: Tensor) -> dict[str, Tensor]:
    """Name -> [B]; detail relative to the baseline brought to the same size."""
    same = resized(baseline, video.shape[-1])
    return {
        LAYOUT: 100 * layout_distance(video, baseline),
        "motion, %": 100 * motion_distance(video, baseline),
        "colour, %": 100 * colour_distance(video, same),
        "detail": detail(video) / detail(same).mean(),
    }


def gflops(name: str) -> float:
    """Of one video, guidance counted."""
    steps = Settings().steps
    if name.startswith("preview"):
        k = int(name.rpartition(" ")[2])
        return plan_flops([leg(k, CELLS), leg(steps - k, LOW)]) / 1e9
    return plan_flops([leg(steps, LOW if name == DIRECT else CELLS)]) / 1e9


def optimum(rows: Rows) -> list[str]:
    """Say where the layout is nearest, and what every further step at full resolution buys."""
    names = [f"preview, k = {k}" for k in SWITCHES]
    layout = {name: rows[name][LAYOUT].mean().item() for name in names}
    lines = ["| from | to | layout gained, % | for GFLOPs | gained per GFLOP |", "| --- " * 5 + "|"]
    for a, b in pairwise(names):
        gained, cost = layout[a] - layout[b], gflops(b) - gflops(a)
        lines.append(f"| {a} | {b} | {gained:.2f} | {cost:.1f} | {gained / cost:.3f} |")
    floor = rows[FLOOR][LAYOUT].mean().item()
    kept = {name: (floor - value) / gflops(name) for name, value in layout.items()}
    nearest, cheapest = min(layout, key=layout.get), max(kept, key=kept.get)
    return [
        *lines, "",
        f"Layout is nearest to the baseline at {nearest}; the distance won over another seed, "
        f"per operation spent, is greatest at {cheapest}.",
    ]  # fmt: skip


def main() -> None:
    args = arguments(__doc__, pairs=128, batch=32).parse_args()
    began, rows, right = time.time(), Rows(), {}
    for part in batches(list(range(args.pairs)), args.batch):
        prompts = [scenes(1, 8, number, frames=1).prompts[0] for number in part]
        single = [i for i, prompt in enumerate(prompts) if prompt.count("moving") == 1]
        tiny, baseline = TinyT2V(prompts, args.weights), None
        for name, latent in methods(tiny, part):
            video = to_pixels(latent)
            baseline = video if baseline is None else baseline
            rows.add(name, distances(video, baseline))
            found = score([prompts[i] for i in single], video[single])
            right.setdefault(name, []).append(found["all"])
    table = rows.table("to the baseline", {"layout over direct": (LAYOUT, DIRECT)})
    for index, name in enumerate(["GFLOPs | all right, %", "--- | ---", *rows.parts]):
        if index > 1:
            name = f"{gflops(name):.1f} | {share_and_error(torch.cat(right[name]))}"
        table[index] += f" {name} |"
    s, count = Settings(), sum(map(len, right[FLOOR]))
    how = (
        f"{args.pairs} held-out prompt and seed pairs, {s.steps} steps, cfg {s.cfg} / {s.cfg_low}, "
        f"noise {s.noise_policy}, sigma {s.sigma_policy}; mean +- standard error. All right: "
        f"colour, shape and direction of the {count} prompts with one object, binomial errors. "
        f"{time.time() - began:.0f} s. {provenance()}"
    )
    publish([*table, "", *optimum(rows)], how, args.out)


if __name__ == "__main__":
    main()
