"""Run the demo: python -m surf_core.tiny --out demo."""

import argparse
import json
from pathlib import Path

from .demo import PROMPTS, Demo, Settings, table
from .model import REFINER, WEIGHTS
from .pictures import contact_sheet, write_mp4


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, default=Path("demo"), help="folder to write to")
    parser.add_argument("--prompt", action="append", help="a prompt; may be given several times")
    parser.add_argument("--seed", type=int, default=Settings().seed)
    parser.add_argument("--switch-step", type=int, default=Settings().switch_step)
    parser.add_argument("--weights", type=Path, default=WEIGHTS, help="a text-to-video model")
    parser.add_argument("--refiner", type=Path, default=REFINER, help="its refiner")
    args = parser.parse_args()
    prompts = args.prompt or list(PROMPTS)
    settings = Settings(seed=args.seed, switch_step=args.switch_step)
    demo = Demo(prompts, settings, args.weights, args.refiner)
    demo()
    args.out.mkdir(parents=True, exist_ok=True)
    for name, videos in demo.videos.items():
        for index, video in enumerate(videos):
            write_mp4(
                args.out / f"{index + 1}-{name.lower().replace(',', '').replace(' ', '-')}.mp4",
                video,
            )
    contact_sheet(args.out / "contact_sheet.png", prompts, demo.videos)
    (args.out / "report.json").write_text(json.dumps(demo.report(), indent=2) + "\n")
    print(table(demo.rows))
    print(f"\n{len(demo.videos) * len(prompts)} videos, a contact sheet, a report: {args.out}/")


if __name__ == "__main__":
    main()
