"""Run every benchmark that needs a GPU, in six parts of a few minutes each.

    export COMFYUI_PATH=/path/to/ComfyUI
    python -m benchmarks.on_gpu flow-720p

Without a part, the commands are printed. Each writes its pages to benchmarks/results, named by
machine, date and subject, and keeps what it has when it is stopped. One that fails does not stop
the others. On a copy of the tree without history, SURF_COMMIT names the commit. With --toy
everything is small, and runs on a CPU.
"""

import os
import shlex
import signal
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path

from benchmarks.page import Page, parser

ROOT = Path(__file__).resolve().parents[1]
RESULTS = ROOT / "benchmarks" / "results"
LONGEST = 9.0
"""Minutes of a part, at most, so that rented machines can be given back in between."""
TOY_MINUTES = 3
"""Times its minutes that a toy run may take: a CPU is slow, and often shared."""
GRACE = 45
"""Seconds that a command may take beyond its minutes, and has to put down its page."""
TESTS = "pytest"


@dataclass(frozen=True, kw_only=True, slots=True)
class GpuCommand:
    """A benchmark, how it is called, and how long it may take."""

    module: str
    """Of benchmarks, or TESTS."""
    options: str
    minutes: float
    toy: str = "--toy --reps 1 --most 1"
    """Options on a CPU, instead of all others but the choice of plans."""
    plan: str = ""
    """Options that stay at toy size."""

    def limit(self, share: float, toy: bool) -> float:
        """Return its minutes: a share of all, at toy size more."""
        return share * self.minutes * (TOY_MINUTES if toy else 1)

    def line(self, out: Path, share: float, toy: bool) -> list[str]:
        """What is run; `share` of its minutes."""
        if self.module == TESTS:
            # The folder of the call must not be on the path, where `nodes` would be ours.
            where = (self.toy if toy else self.options).split()
            return [sys.executable, "-P", "-m", TESTS, "-m", "gpu", "-rs", *where]
        own = f"{self.plan} {self.toy if toy else self.options}".split()
        limits = ["--minutes", f"{self.limit(share, toy):g}", "--out", str(out)]
        return [sys.executable, "-m", f"benchmarks.{self.module}", *own, *limits]


def flow(size: str, cfg: str, minutes: float) -> GpuCommand:
    plan = f"--size {size} --cfg {cfg} --keep 1 0.5"
    return GpuCommand(module="speed.host_flow", plan=plan, options="", minutes=minutes)


NEED_HOST = {"speed.host_flow", "speed.vae_decode", "speed.compile"}
PARTS = {
    # The plan that may reach the goal comes first: what is named first is called first.
    "flow-720p": [flow("720p", "first on", 7.0)],
    # A guided evaluation of the plain run at 1080p takes minutes, so there is one plan.
    "flow-1080p": [flow("1080p", "first", 6.0)],
    "hunyuan": [
        GpuCommand(module="speed.host_flow", plan="--base hunyuan", options="", minutes=3.5),
    ],
    "cards": [
        GpuCommand(module="speed.host_flow", plan="--only-memory --cfg off --limit-gb 12 16 24",
                   options="", minutes=5.5),
    ],
    "kernels": [
        GpuCommand(module=TESTS, options="", minutes=0.8, toy="tests/core/test_window_backends.py"),
        GpuCommand(module="speed.window_attention", options="--size 720p 1080p --reps 10",
                   minutes=2.2, toy="--size tiny --window 4 --reps 1"),
        GpuCommand(module="speed.refiner_step", options="--size 720p --keep 1 0.75 0.5 0.25",
                   minutes=2.0, toy="--size tiny --layers 1 --reps 1 --keep 1 0.5"),
    ],
    "extras": [
        GpuCommand(module="speed.vae_decode", plan="--time --size 720p 1080p", options="--reps 2",
                   minutes=4.0, toy="--toy --reps 1 --frames 1"),
        # By its operations, at 300 TFLOP/s, Wan 2.1 14B takes nine minutes before anything is
        # compiled, the refiner one.
        GpuCommand(module="speed.compile", plan="--models surf", options="", minutes=3.0,
                   toy="--toy --modes surf"),
    ],
}  # fmt: skip
"""Part -> its commands."""


def run(line: list[str], seconds: float) -> tuple[str, str]:
    """Call, and interrupt what takes too long, then kill it.

    Returns:
        How it ended, and its output.
    """
    began = time.perf_counter()
    # Under nohup this process ignores an interrupt, and so would what it starts.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    process = subprocess.Popen(
        line, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    )
    ended = ""
    try:
        output, _ = process.communicate(timeout=seconds)
    except subprocess.TimeoutExpired:
        ended = "stopped, "
        process.send_signal(signal.SIGINT)
        try:
            output, _ = process.communicate(timeout=GRACE)
        except subprocess.TimeoutExpired:
            process.kill()
            output, _ = process.communicate()
    except KeyboardInterrupt:
        # The child was interrupted as well, and puts down what it has.
        process.communicate(timeout=GRACE)
        raise
    spent = time.perf_counter() - began
    return f"{ended}status {process.returncode} after {spent:.0f} s", output


def main() -> None:
    line = parser(__doc__)
    line.set_defaults(out=RESULTS)
    line.add_argument("part", nargs="?", choices=PARTS)
    line.add_argument("--minutes", type=float, help=f"for all of the part, at most {LONGEST:g}")
    line.add_argument("--toy", action="store_true", help="small, on a CPU")
    args = line.parse_args()
    if args.part is None:
        for part, commands in PARTS.items():
            print(f"{part}: {sum(each.minutes for each in commands):g} minutes")
            for each in commands:
                words = each.line(RESULTS.relative_to(ROOT), 1.0, args.toy)
                print(f"    {shlex.join(['python', *words[1:]])}")
        return
    commands, failed = PARTS[args.part], False
    whole = sum(each.minutes for each in commands)
    minutes = whole if args.minutes is None else args.minutes
    if not 0 < minutes <= LONGEST:
        line.error(f"--minutes must lie above 0 and be at most {LONGEST:g}, got {minutes:g}.")
    if NEED_HOST & {each.module for each in commands} and not os.environ.get("COMFYUI_PATH"):
        line.error(f"{args.part} needs COMFYUI_PATH, a ComfyUI checkout, and the Python of it.")
    args.out.mkdir(parents=True, exist_ok=True)
    for each in commands:
        share = minutes / whole
        words = each.line(args.out.resolve(), share, args.toy)
        print(shlex.join(words), file=sys.stderr, flush=True)
        ended, output = run(words, 60 * each.limit(share, args.toy) + GRACE)
        if each.module == TESTS:
            called = shlex.join(["python", *words[1:]])
            page = Page(__spec__.name, "The tests on a GPU", args.out, f"    {called}", "gpu-tests")
            last = [f"    {text}" for text in output.splitlines()[-60:]]
            page.write([*last, "", page.where])
        print(output, f"{each.module}: {ended}", sep="\n", flush=True)
        failed |= "status 0" not in ended
    sys.exit(failed)


if __name__ == "__main__":
    main()
