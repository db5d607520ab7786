"""How much of the full-resolution video does a preview keep, and what does it cost?

    python -m benchmarks.quality.tiny_signature --pairs 128

For every held-out prompt and seed: the full-resolution baseline, another seed (the floor), half the
resolution directly, and the SURF preview with the switch at k = 0, 2, 5, 10, 20 and 40 of 40
steps; at 0 it is the direct one, at 40 the baseline. Distances are to the baseline, paired.
"""

from collections import defaultdict
from collections.abc import Iterator

import torch
from torch import Tensor

from benchmarks.page import Page
from benchmarks.quality.held_out import LOW, OTHER, batches, scenes, schedule, seeds, shown
from benchmarks.quality.measures import Rows, arguments, share_and_error
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
    """Measure each video, [B]; detail is relative to the baseline brought to the same size."""
    same = resized(baseline, video.shape[-1])
    return {
        LAYOUT: 100 * layout_distance(video, baseline),
        "motion, %": 100 * motion_distance(video, baseline),
        "colour, %": 100 * colour_distance(video, same),
        "detail": detail(video) / detail(same).mean(),
    }


def gflops(name: str) -> float:
    """Count the operations of one video, guidance included."""
    steps = Settings().steps
    if name.startswith("preview"):
        k = int(name.rpartition(" ")[2])
        return plan_flops([leg(k, CELLS), leg(steps - k, LOW)]) / 1e9
    return plan_flops([leg(steps, LOW if name == DIRECT else CELLS)]) / 1e9


def main() -> None:
    args = arguments(__doc__, pairs=128, batch=32).parse_args()
    rows, right, s = Rows(), defaultdict(list), Settings()
    title = "How much of the signature does a preview keep?"
    with Page(__spec__.name, title, args.out, "Distances are paired.") as page:
        for part in batches(list(range(args.pairs)), args.batch):
            prompts = [scenes(1, 8, number, frames=1).prompts[0] for number in part]
            single = [i for i, prompt in enumerate(prompts) if prompt.count("moving") == 1]
            tiny, baseline = TinyT2V(prompts, args.weights), None
            for name, latent in methods(tiny, part):
                video = to_pixels(latent)
                baseline = video if baseline is None else baseline
                rows.add(name, distances(video, baseline))
                hits = score([prompts[i] for i in single], video[single])
                right[name].append(hits["all"])
        lines = rows.table("to the baseline", {"layout over direct": (LAYOUT, DIRECT)})
        more = ["GFLOPs | all right, %", "--- | ---"]
        more += [f"{gflops(name):.1f} | {share_and_error(torch.cat(right[name]))}"
                 for name in rows.parts]  # fmt: skip
        lines = [f"{line} {cells} |" for line, cells in zip(lines, more, strict=True)]
        how = (
            f"{args.pairs} held-out prompt and seed pairs, {s.steps} steps, cfg {s.cfg} / "
            f"{s.cfg_low}, noise {s.noise_policy}, sigma {s.sigma_policy}; mean +- standard error. "
            "All right: colour, shape and direction of the "
            f"{sum(map(len, right[FLOOR]))} prompts with one object, binomial errors"
        )
        page.write([*lines, "", page.origin(how)])


if __name__ == "__main__":
    main()
