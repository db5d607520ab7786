"""Every number that needs a GPU, in six commands of a few minutes each.

    COMFYUI_PATH=/path/to/ComfyUI python -m benchmarks.on_gpu flow-720p
    COMFYUI_PATH=/path/to/ComfyUI python -m benchmarks.on_gpu flow-1080p
    COMFYUI_PATH=/path/to/ComfyUI python -m benchmarks.on_gpu hunyuan
    COMFYUI_PATH=/path/to/ComfyUI python -m benchmarks.on_gpu cards
    python -m benchmarks.on_gpu kernels
    COMFYUI_PATH=/path/to/ComfyUI python -m benchmarks.on_gpu extras

The first five together take less than half an hour, extras seven minutes more. Each writes its
pages to benchmarks/results, named by machine, date and subject, and keeps what it has when it is
stopped. One that fails does not stop the others. On a copy of the tree without history, SURF_COMMIT
names the commit. Without a part, the commands are printed. With --toy everything is small, and runs
on a CPU.
"""

import argparse
import os
import shlex
import signal
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path

from benchmarks.page import place, provenance

ROOT = Path(__file__).resolve().parents[1]
RESULTS = ROOT / "benchmarks" / "results"
LONGEST = 9.0
"""Minutes of a part, at most, so that rented machines can be given back in between."""
GRACE = 45
"""Seconds that a command may take beyond its minutes, and has to put down its page."""
TESTS = "pytest"


@dataclass(frozen=True, kw_only=True, slots=True)
class Command:
    """A benchmark, how it is called, and how long it may take."""

    module: str
    """Of benchmarks, or TESTS."""
    options: str
    minutes: float
    toy: str = "--toy --reps 1 --most 1"
    """Options on a CPU, instead of all others but the choice of plans."""
    plan: str = ""
    """Options that stay at toy size."""

    def line(self, out: Path, share: float, toy: bool) -> list[str]:
        """What is run; `share` of its minutes."""
        if self.module == TESTS:
            # The folder of the call must not be on the path, where `nodes` would be ours.
            where = (self.toy if toy else self.options).split()
            return [sys.executable, "-P", "-m", TESTS, "-m", "gpu", "-rs", *where]
        own = f"{self.plan} {self.toy if toy else self.options}".split()
        limits = ["--minutes", f"{share * self.minutes:g}", "--out", str(out)]
        return [sys.executable, "-m", f"benchmarks.{self.module}", *own, *limits]


def flow(size: str, cfg: str, minutes: float) -> Command:
    plan = f"--size {size} --cfg {cfg} --keep 1 0.5"
    return Command(module="speed.host_flow", plan=plan, options="", minutes=minutes)


NEED_HOST = {"speed.host_flow", "speed.vae_decode", "speed.compile"}
PARTS = {
    # The plan that may reach the goal comes first: what is named first is called first.
    "flow-720p": [flow("720p", "first on", 7.0)],
    # A guided evaluation of the plain run at 1080p takes minutes, so there is one plan.
    "flow-1080p": [flow("1080p", "first", 6.0)],
    "hunyuan": [Command(module="speed.host_flow", plan="--base hunyuan", options="", minutes=3.5)],
    "cards": [
        Command(module="speed.host_flow", plan="--only-memory --cfg off --limit-gb 12 16 24",
                options="", minutes=5.5),
    ],
    "kernels": [
        Command(module=TESTS, options="", minutes=0.8, toy="tests/core/test_window_backends.py"),
        Command(module="speed.window_attention", options="--size 720p 1080p --reps 10", minutes=2.2,
                toy="--size tiny --window 4 --reps 1"),
        Command(module="speed.refiner_step", options="--size 720p --window 4", minutes=1.2,
                toy="--size tiny --window 4 --layers 1 --reps 1"),
        Command(module="speed.skip_time", options="--size 720p", minutes=0.8,
                toy="--size tiny --layers 1 --reps 1 --keep 100 50"),
    ],
    "extras": [
        Command(module="speed.vae_decode", plan="--time --size 720p 1080p", options="--reps 2",
                minutes=4.0, toy="--toy --reps 1 --frames 1"),
        # By its operations, at 300 TFLOP/s, Wan 2.1 14B takes nine minutes before anything is
        # compiled, the refiner one.
        Command(module="speed.compile", plan="--models surf", options="", minutes=3.0,
                toy="--toy --modes surf"),
    ],
}  # fmt: skip
"""Part -> its commands."""


def run(line: list[str], seconds: float) -> tuple[str, str]:
    """Call, and stop what takes too long; it is asked first.

    Returns:
        How it ended, and what it said.
    """
    began = time.perf_counter()
    process = subprocess.Popen(
        line, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    )
    ended = ""
    try:
        said, _ = process.communicate(timeout=seconds)
    except subprocess.TimeoutExpired:
        ended = "stopped, "
        process.send_signal(signal.SIGINT)
        try:
            said, _ = process.communicate(timeout=GRACE)
        except subprocess.TimeoutExpired:
            process.kill()
            said, _ = process.communicate()
    except KeyboardInterrupt:
        # The child was interrupted as well, and puts down what it has.
        process.communicate(timeout=GRACE)
        raise
    spent = time.perf_counter() - began
    return f"{ended}status {process.returncode} after {spent:.0f} s", said


def tests_page(line: list[str], said: str, out: Path) -> None:
    """Put down what the tests on a GPU said."""
    path = place(out, "gpu-tests")
    lines = ["# The tests on a GPU", "", f"    {shlex.join(['python', *line[1:]])}", ""]
    lines += [*(f"    {each}" for each in said.splitlines()[-60:]), "", provenance(), ""]
    path.write_text("\n".join(lines), encoding="utf-8")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("part", nargs="?", choices=PARTS)
    parser.add_argument("--minutes", type=float, help=f"for all of the part, at most {LONGEST:g}")
    parser.add_argument("--out", type=Path, default=RESULTS, help="a folder for the pages")
    parser.add_argument("--toy", action="store_true", help="small, on a CPU")
    args = parser.parse_args()
    if args.part is None:
        for part, commands in PARTS.items():
            print(f"{part}: {sum(each.minutes for each in commands):g} minutes")
            for each in commands:
                line = each.line(RESULTS.relative_to(ROOT), 1.0, args.toy)
                print(f"    {shlex.join(['python', *line[1:]])}")
        return
    commands = PARTS[args.part]
    whole = sum(each.minutes for each in commands)
    minutes = whole if args.minutes is None else args.minutes
    if not 0 < minutes <= LONGEST:
        parser.error(f"--minutes must lie above 0 and be at most {LONGEST:g}, got {minutes:g}.")
    if NEED_HOST & {each.module for each in commands} and not os.environ.get("COMFYUI_PATH"):
        parser.error(f"{args.part} needs COMFYUI_PATH, a ComfyUI checkout, and the Python of it.")
    args.out.mkdir(parents=True, exist_ok=True)
    out, failed = args.out.resolve(), False
    for each in commands:
        line, share = each.line(out, minutes / whole, args.toy), minutes / whole
        print(shlex.join(line), file=sys.stderr, flush=True)
        ended, said = run(line, 60 * share * each.minutes + GRACE)
        if each.module == TESTS:
            tests_page(line, said, args.out)
        print(said, f"{each.module}: {ended}", sep="\n", flush=True)
        failed |= "status 0" not in ended
    sys.exit(failed)


if __name__ == "__main__":
    main()
