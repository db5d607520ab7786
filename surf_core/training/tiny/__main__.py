"""Train the embedded models: python -m surf_core.training.tiny --form short --out runs/tiny.

`short` and `first` run the suite of the first generation, from drawn clips to refined ones; `full`
trains the second generation for hours, stage after stage. The same command resumes each of them.
"""

import argparse
import logging
from pathlib import Path

import torch

from . import stages
from .suite import FORMS, Outcome, Suite


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
    parser.add_argument("--form", choices=(*FORMS, "full"), default="short")
    parser.add_argument("--out", type=Path, default=Path("runs/tiny"))
    parser.add_argument("--threads", type=int, default=2, help="of all jobs together")
    parser.add_argument(
        "--jobs", type=int, choices=(1, 2), default=1, help="2: text to video beside the rest"
    )
    parser.add_argument("--precision", choices=("fp32", "bf16"), default="fp32")
    args = parser.parse_args()
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    torch.set_num_threads(max(1, args.threads // args.jobs))
    args.out.mkdir(parents=True, exist_ok=True)
    if args.form == "full":
        stages.train_all(stages.StageSettings(out=args.out / "second"))
        return
    outcome = Suite(FORMS[args.form], args.out, args.precision, args.jobs)()
    print("\n".join(say(outcome)))


if __name__ == "__main__":
    main()
