"""Run the demo: python -m surf_core.tiny --out demo."""

import argparse
import json
from collections.abc import Callable
from pathlib import Path
from tempfile import TemporaryDirectory

import torch

from .demo import PICKED, PROMPTS, Demo, Settings, table
from .model import REFINER, WEIGHTS
from .poster import Poster

TITLE = "SURF for ComfyUI, on toy models"
THREADS = 4
"""The models are so small that more threads than these wait for each other."""


def whole(least: int, most: int) -> Callable[[str], int]:
    """Read a whole number within a range."""

    def whole_number(text: str) -> int:
        number = int(text)
        if not least <= number <= most:
            raise argparse.ArgumentTypeError(f"expected {least} to {most}, got {text}")
        return number

    return whole_number


def main() -> None:
    standard = Settings()
    parser = argparse.ArgumentParser(prog="python -m surf_core.tiny", description=__doc__)
    parser.add_argument("--out", type=Path, default=Path("demo"), help="folder to write to")
    parser.add_argument("--prompt", action="append", help="a prompt; may be given several times")
    parser.add_argument("--seed", type=whole(0, 2**62), default=standard.seed)
    parser.add_argument(
        "--switch-step", type=whole(1, standard.steps), default=standard.switch_step
    )
    threads = min(THREADS, torch.get_num_threads())
    parser.add_argument("--threads", type=whole(1, 1024), default=threads)
    parser.add_argument("--weights", type=Path, default=WEIGHTS, help="a text-to-video model")
    parser.add_argument("--refiner", type=Path, default=REFINER, help="its refiner")
    args = parser.parse_args()
    try:
        args.out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        parser.error(f"--out: expected a folder, got {args.out} ({error.strerror}); choose another")
    try:
        run(args)
    except (OSError, ValueError) as error:
        parser.exit(2, f"{parser.prog}: {error}\n")
    except KeyboardInterrupt:
        parser.exit(130, "\nStopped; the folder is as it was.\n")


def run(args: argparse.Namespace) -> None:
    """Draw, and write the three files once they are all there."""
    torch.set_num_threads(args.threads)
    prompts = args.prompt or list(PROMPTS)
    settings = Settings(seed=args.seed, switch_step=args.switch_step)

    def say(stage: str) -> None:
        print(f"{stage} ...", flush=True)

    with TemporaryDirectory(dir=args.out) as place:
        say(f"{len(prompts)} prompts, {args.threads} threads: loading the models")
        demo = Demo(prompts, settings, args.weights, args.refiner, say)
        demo()
        say("pictures")
        made, aside = Path(place), PICKED if prompts == list(PROMPTS) else ""
        poster = Poster(prompts, demo.panels, TITLE, demo.verdict(), aside)
        poster.play(made / "demo.mp4")
        poster.sheet().save(made / "contact_sheet.png")
        (made / "report.json").write_text(json.dumps(demo.report(), indent=2) + "\n")
        files = sorted(made.iterdir())
        for path in files:
            path.replace(args.out / path.name)
    print(f"\n{table(demo.rows)}\n\nWritten to {args.out}/: {', '.join(p.name for p in files)}")


if __name__ == "__main__":
    main()
