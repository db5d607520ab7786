"""Train the embedded models: python -m surf_core.training.tiny --form short --out runs/tiny.

`full` trains them for hours, stage after stage, as the shipped ones were. `short` takes a few steps
of every stage, then goes the way of a user's own clips: drawn, prepared, a refiner and a mask
predictor trained on them, refined. The same command resumes either.
"""

import argparse
import logging
from pathlib import Path

import torch

from . import stages
from .suite import SHORT, Outcome, Suite


def say(outcome: Outcome) -> list[str]:
    """Lay out the report, a line each."""
    lines = ["| model | first loss | last loss |", "| --- | --- | --- |"]
    lines += [f"| {name} | {a:.4f} | {b:.4f} |" for name, (a, b) in outcome.losses.items()]
    took = ", ".join(f"{name} {seconds:.0f} s" for name, seconds in outcome.seconds.items())
    values = ", ".join(f"{name} {value:.2f} dB" for name, value in outcome.psnr.items())
    return [*lines, "", f"PSNR of {outcome.clips} held-out clips: {values}", f"time: {took}"]


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--form", choices=stages.FORMS, default="short")
    parser.add_argument("--out", type=Path, default=Path("runs/tiny"))
    parser.add_argument("--threads", type=int, default=2)
    args = parser.parse_args()
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    torch.set_num_threads(args.threads)
    stages.train_all(stages.StageSettings(out=args.out / args.form), stages.FORMS[args.form])
    if args.form == "short":
        print("\n".join(say(Suite(SHORT, args.out)())))


if __name__ == "__main__":
    main()
