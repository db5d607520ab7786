"""Train a refiner from prepared clips: python -m surf_core.training RECIPE --data D --out O.

Under torchrun it runs in every process; called again, it goes on from the last checkpoint.
"""

import argparse
import logging
from pathlib import Path

from .data import Shards
from .logs import TRACKERS
from .loop import run
from .recipes import RECIPES


class _NoClips:
    """What a dry run learns from."""

    held_out: tuple[str, ...] = ()

    def buckets(self) -> dict[str, str]:
        return {}


def parser() -> argparse.ArgumentParser:
    """The command line."""
    made = argparse.ArgumentParser(description=__doc__)
    made.add_argument("recipe", choices=RECIPES, help="see surf_core/training/recipes.py")
    made.add_argument("--data", type=Path, help="folder that surf-prepare wrote")
    made.add_argument("--out", type=Path, help="folder of the run")
    made.add_argument("--weights", type=Path, help="file to begin with")
    made.add_argument("--seed", type=int, default=0)
    made.add_argument("--max-minutes", type=float, help="stop, resumable, after so long")
    made.add_argument("--compile", action="store_true", help="use torch.compile")
    made.add_argument("--shards", type=int, help="processes that share one copy of the state")
    made.add_argument("--tracker", action="append", choices=TRACKERS, default=[])
    made.add_argument("--dry-run", action="store_true", help="print what a step costs, and stop")
    made.add_argument("--gpus", type=int, default=1, help="of the dry run")
    return made


def main() -> None:
    args = parser().parse_args()
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    make = RECIPES[args.recipe]
    if args.dry_run:
        job = make(_NoClips(), seed=args.seed)
        print("\n".join(job.dry_run(args.gpus, args.shards).lines(args.gpus)))
        return
    for name in ("data", "out"):
        if getattr(args, name) is None:
            raise SystemExit(f"expected --{name}, got none; name the folder, or add --dry-run.")
    job = make(Shards(args.data), args.weights, args.seed)
    run(
        job.task, job.recipe, args.out, compile_model=args.compile, max_minutes=args.max_minutes,
        trackers=tuple(args.tracker), shards=args.shards,
    )  # fmt: skip


if __name__ == "__main__":
    main()
