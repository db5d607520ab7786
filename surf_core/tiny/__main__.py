"""Run the demo: python -m surf_core.tiny --out demo."""

import argparse
import json
from pathlib import Path

import torch

from .demo import PROMPTS, Demo, Settings, table
from .model import REFINER, WEIGHTS
from .poster import Poster

TITLE = "SURF for ComfyUI: its stages, on toys"
THREADS = 4
"""The models are so small that more threads than these wait for each other."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, default=Path("demo"), help="folder to write to")
    parser.add_argument("--prompt", action="append", help="a prompt; may be given several times")
    parser.add_argument("--seed", type=int, default=Settings().seed)
    parser.add_argument("--switch-step", type=int, default=Settings().switch_step)
    parser.add_argument("--threads", type=int, default=min(THREADS, torch.get_num_threads()))
    parser.add_argument("--weights", type=Path, default=WEIGHTS, help="a text-to-video model")
    parser.add_argument("--refiner", type=Path, default=REFINER, help="its refiner")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    prompts = args.prompt or list(PROMPTS)
    settings = Settings(seed=args.seed, switch_step=args.switch_step)

    def say(stage: str) -> None:
        print(f"{stage} ...", flush=True)

    say(f"{len(prompts)} prompts, {args.threads} threads: loading the models")
    demo = Demo(prompts, settings, args.weights, args.refiner, say)
    demo()
    say("pictures")
    args.out.mkdir(parents=True, exist_ok=True)
    poster = Poster(prompts, demo.panels, TITLE, demo.verdict())
    poster.play(args.out / "demo.mp4")
    poster.sheet().save(args.out / "contact_sheet.png")
    (args.out / "report.json").write_text(json.dumps(demo.report(), indent=2) + "\n")
    print(
        f"\n{table(demo.rows)}\n\nWritten to {args.out}/: demo.mp4, contact_sheet.png, report.json"
    )


if __name__ == "__main__":
    main()
