"""Prepare a folder of videos as a folder of shards.

    python -m surf_core.training.prepare videos shards --preset wan --codec wan:FOLDER \\
        --text umt5:FOLDER --device cuda

Killed at any moment, the same command goes on where it was; shards that are missing or differ from
their checksum are made again. On N machines that share the output,
give each --part i/N; the last to end leaves the whole manifest, and --assemble writes it anew.
"""

import argparse
import logging
import sys
from collections.abc import Callable, Iterator
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from pathlib import Path

from tqdm import tqdm
from tqdm.contrib.logging import logging_redirect_tqdm

from . import cluster, local
from .job import PrepareJob, Report, Runner, prepare
from .options import DTYPES, PRESETS, STARTS

MODELS = {"tiny": ("tiny", "tiny")}
"""LatentCodec and text encoder of a preset, where it brings them."""


def _share(text: str) -> tuple[int, int]:
    """2/8 -> (2, 8)."""
    try:
        part, parts = (int(number) for number in text.split("/"))
    except ValueError:
        part = parts = 0
    if not 1 <= part <= parts:
        raise argparse.ArgumentTypeError(f"expected i/n with i within 1 to n, got {text!r}")
    return part, parts


def _weights(text: str) -> tuple[float, ...]:
    """1,0,0 -> (1.0, 0.0, 0.0)."""
    try:
        return tuple(float(weight) for weight in text.split(","))
    except ValueError:
        raise argparse.ArgumentTypeError(f"expected three numbers, got {text!r}") from None


def parser() -> argparse.ArgumentParser:
    """Build the parser of the command."""
    command = argparse.ArgumentParser(
        prog="surf_core.training.prepare",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add = command.add_argument
    add("input", type=Path, help="folder, video, or .txt with a path a line")
    add("out", type=Path, help="folder of shards, new or to go on with")
    add("--preset", choices=tuple(PRESETS), default="wan", help="sizes, lengths and limits")
    add("--codec", help="tiny, wan:FOLDER (diffusers), or module:function")
    add("--text", help="tiny, umt5:FOLDER (diffusers), none, or module:function")
    add("--scorer", default="compression", help="compression, or module:function")
    add("--device", default="cpu", help="of codec and text encoder")
    add("--start", choices=STARTS, help="what the refiner starts from; pixel stores it")
    add("--dtype", choices=DTYPES, help="of what is stored")
    add("--mix", type=_weights, metavar="w,m,f", help="of weak, medium and full degradations")
    add("--seed", type=int, help="of the degradations")
    add("--part", type=_share, default=(1, 1), metavar="i/n", help="this machine's share")
    add("--assemble", action="store_true", help="only write the manifest of what is finished")
    add("--runner", choices=("local", "ray"), default="local")
    add("--workers", type=int, default=0, help="local: processes that decode; ray: CPUs")
    add("--ray-address", help="of a running cluster, or auto")
    for name in ("scorers", "encoders", "texts"):
        add(f"--{name}", type=int, default=1, help="ray: processes of this kind")
    for name in ("scorer-gpus", "encoder-gpus", "text-gpus"):
        add(f"--{name}", type=float, default=0.0, help="ray: GPUs of each of these")
    return command


def job_of(args: argparse.Namespace) -> PrepareJob:
    """Build the job that arguments ask for.

    Raises:
        ValueError: a model is not named, or an option is out of range.
    """
    given = {name: getattr(args, name) for name in ("start", "dtype", "mix", "seed")}
    options = replace(
        PRESETS[args.preset](), **{name: one for name, one in given.items() if one is not None}
    )
    codec, text = MODELS.get(args.preset, (None, None))
    codec, text = args.codec or codec, args.text or text
    if codec is None or text is None:
        raise ValueError(
            f"preset {args.preset} needs --codec and --text, got {codec} and {text}; e.g. --codec "
            "wan:Wan2.1-T2V-1.3B-Diffusers --text umt5:Wan2.1-T2V-1.3B-Diffusers."
        )
    return PrepareJob(
        given=args.input,
        out=args.out,
        options=options,
        codec=codec,
        text=text,
        scorer=args.scorer,
        device=args.device,
        part=args.part,
    )


def runner_of(args: argparse.Namespace) -> Runner:
    """Build the runner that arguments ask for."""
    if args.runner == "local":
        return partial(local.run, workers=args.workers)
    names = ("scorers", "scorer_gpus", "encoders", "encoder_gpus", "texts", "text_gpus")
    size = {name: getattr(args, name) for name in names}
    address, cpus = args.ray_address, args.workers or None
    return partial(cluster.run, cluster=cluster.Cluster(address=address, cpus=cpus, **size))


@contextmanager
def _bar() -> Iterator[Callable[[int, int, int], None]]:
    """Show a progress bar on a terminal, and nothing in a file."""
    with tqdm(unit="video", disable=None) as bar, logging_redirect_tqdm():

        def progress(videos: int, of: int, clips: int) -> None:
            bar.total = of
            bar.set_postfix_str(f"{clips} clips", refresh=False)
            bar.update(videos - bar.n)

        yield progress


def main(argv: list[str] | None = None) -> int:
    """Run the command; 0 if all went well, 2 if it cannot start, 1 if it had to stop."""
    logging.basicConfig(level=logging.WARNING, format="%(message)s")
    args = parser().parse_args(argv)
    try:
        job = job_of(args)
        if args.assemble:
            rows = job.folder.assemble()
            report = Report(rows=rows, videos=0)
        else:
            with _bar() as progress:
                report = prepare(job, runner_of(args), progress, threads=max(1, args.workers))
    except (ValueError, ImportError) as error:
        print(f"surf_core.training.prepare: {error}", file=sys.stderr)
        return 2
    except (OSError, BrokenProcessPool) as error:
        print(f"surf_core.training.prepare: stopped: {error}", file=sys.stderr)
        return 1
    print("\n".join(report.lines()))
    return 0
