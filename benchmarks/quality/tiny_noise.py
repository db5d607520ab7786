"""Is a refiner better for noise on its start? Trained with it and without, run with it and without.

    python -m benchmarks.quality.tiny_noise --refiner A.safetensors --without-noise B.safetensors

Both refiners should have been trained on the same clips for the same steps. Scenes, previews and
measures are those of `benchmarks.quality.tiny_refiner`, at 10 steps.
"""

import time
from pathlib import Path

from benchmarks.page import provenance
from benchmarks.quality.held_out import batches
from benchmarks.quality.measures import Rows, arguments, publish
from benchmarks.quality.tiny_refiner import BICUBIC, PSNR, SHARP, cases, interpolated, refined
from surf_core import checkpoint

STEPS = 10


def strengths(weights: Path) -> list[float]:
    """Noise to run a refiner at: least, usual and greatest of its training."""
    config, _ = checkpoint.read_config(weights)
    least, greatest = config.start_range or (config.sigma_start, config.sigma_start)
    return sorted({least, config.sigma_start, greatest})


def main() -> None:
    parser = arguments(__doc__, pairs=128, batch=8)
    parser.add_argument("--without-noise", type=Path, help="a refiner trained without, if any")
    args = parser.parse_args()
    trained = {"without": args.without_noise} if args.without_noise else {}
    trained |= {"with": args.refiner}
    runs = {f"trained {how}, run at {s:g}": (w, s) for how, w in trained.items()
            for s in strengths(w)}  # fmt: skip
    began, found = time.time(), {}
    for part in batches(list(range(args.pairs)), args.batch):
        for kind, case in cases(part, args.weights):
            rows = found.setdefault(kind, Rows())
            rows.add(BICUBIC, case.measure(interpolated(case, BICUBIC)))
            for name, (weights, s) in runs.items():
                video = refined(case, weights, steps=STEPS, sigma_start=s)
                rows.add(name, case.measure(video))
    lines, first = [], next(iter(runs))
    for kind, rows in found.items():
        name = SHARP if kind == "previews" else PSNR
        lines += [*rows.table(kind, {f"{name} over {first}": (name, first)}), ""]
    how = (
        f"{args.pairs} held-out scenes and previews, 32 to 128 pixels, {STEPS} steps; changes are "
        f"paired; mean +- standard error; {time.time() - began:.0f} s. {provenance()}"
    )
    publish(lines[:-1], how, args.out)


if __name__ == "__main__":
    main()
