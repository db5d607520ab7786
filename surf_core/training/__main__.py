"""Train a refiner from prepared clips: python -m surf_core.training RECIPE --data D --out O.

Under torchrun it runs in every process; called again, it goes on from the last whole checkpoint.
Go on in folders of your own only: checksums find damage, not what somebody put there.
"""

import argparse
import logging
import sys
from pathlib import Path

from .clip_source import NoClips
from .data import Shards
from .logs import TRACKERS
from .loop import run
from .recipes import RECIPES


def parser() -> argparse.ArgumentParser:
    """Build the parser of the command line."""
    command = argparse.ArgumentParser(description=__doc__)
    add = command.add_argument
    add("recipe", choices=RECIPES, help="see surf_core/training/recipes.py")
    add("--data", type=Path, help="folder that surf_core.training.prepare wrote")
    add("--out", type=Path, help="folder of the run")
    add("--weights", type=Path, help="file to begin with")
    add("--seed", type=int, default=0)
    add("--max-minutes", type=float, help="stop, resumable, after so long")
    add("--compile", action="store_true", help="use torch.compile")
    add("--shards", type=int, help="processes that share one copy of the state")
    add("--tracker", action="append", choices=TRACKERS, default=[])
    add("--dry-run", action="store_true", help="print what a step costs, and stop")
    add("--gpus", type=int, default=1, help="of the dry run")
    return command


def main(argv: list[str] | None = None) -> int:
    """Run the command; 0 if all went well, 2 if something given does not fit, 1 if it stopped."""
    args = parser().parse_args(argv)
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    try:
        _train(args)
    except (ValueError, ImportError, FileNotFoundError) as error:
        print(f"surf_core.training: {error}", file=sys.stderr)
        return 2
    except (OSError, FloatingPointError) as error:
        print(f"surf_core.training: stopped: {error}", file=sys.stderr)
        return 1
    return 0


def _train(args: argparse.Namespace) -> None:
    make = RECIPES[args.recipe]
    if args.dry_run:
        if args.recipe == "mask":  # Its task draws clips as soon as it is made.
            raise ValueError(
                "expected a refiner's recipe for a dry run, got mask; it is so small that it is "
                "sooner run."
            )
        job = make(NoClips(), seed=args.seed)
        print("\n".join(job.dry_run(args.gpus, args.shards).lines(args.gpus)))
        return
    for name in ("data", "out"):
        if getattr(args, name) is None:
            raise ValueError(f"expected --{name}, got none; name the folder, or add --dry-run.")
    job = make(Shards(args.data), args.weights, args.seed)
    run(
        job.task, job.recipe, args.out, compile_model=args.compile, max_minutes=args.max_minutes,
        trackers=tuple(args.tracker), shards=args.shards,
    )  # fmt: skip


if __name__ == "__main__":
    raise SystemExit(main())
