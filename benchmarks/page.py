"""Pages of results: their origin, their tables, where they go, and the command line they share."""

import argparse
import os
import platform
import re
import shlex
import shutil
import subprocess
import sys
import time
from collections.abc import Iterable
from datetime import date
from pathlib import Path

import torch

COMMIT = "SURF_COMMIT"
"""Names the commit where a copy of the tree has no history, as on a rented machine."""
NOT_MEASURED = "not measured"
TOY = "TOY SIZE: says nothing about real models. "


def provenance() -> str:
    """One sentence on commit, processor, GPU, driver, threads and torch."""
    commit = _output_of("git", "describe", "--always", "--dirty") or os.environ.get(COMMIT)
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.exists() else []
    names = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    processor = names[0] if names else platform.processor() or platform.machine()
    gpu = ""
    if torch.cuda.is_available():
        memory = torch.cuda.get_device_properties(0).total_memory / 2**30
        driver = _output_of("nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader")
        gpu = (
            f"{torch.cuda.get_device_name()} with {memory:.1f} GiB, driver "
            f"{(driver or 'unknown').split()[0]}, cuDNN {torch.backends.cudnn.version()}, "
        )
    return (
        f"Commit {commit or 'unknown'}, {processor}, {os.cpu_count()} cores, "
        f"{torch.get_num_threads()} threads, {gpu}torch {torch.__version__}."
    )


def _output_of(*command: str) -> str:
    if shutil.which(command[0]) is None:
        return ""
    return subprocess.run(command, capture_output=True, text=True, check=False).stdout.strip()


def table(columns: str, rows: Iterable[Iterable]) -> list[str]:
    """Lay out rows in Markdown; floats get four digits.

    Args:
        columns: heads, with " | " between them.
    """

    def cell(value: object) -> str:
        return f"{value:.4g}" if isinstance(value, float) else str(value)

    head = [f"| {columns} |", "| --- " * (columns.count(" | ") + 1) + "|"]
    return [*head, *(f"| {' | '.join(map(cell, row))} |" for row in rows)]


def parser(about: str, minutes: float | None = None) -> argparse.ArgumentParser:
    """Make a command line with --out, and with --minutes where a default for it is given.

    Args:
        about: docstring of the script.
    """
    line = argparse.ArgumentParser(description=about.partition("\n")[0])
    line.add_argument("--out", type=Path, help="a Markdown file for the page, or a folder")
    if minutes is not None:
        line.add_argument("--minutes", type=float, default=minutes, help="for all of it")
    return line


class Page:
    """Write a page whenever it grows; print it at the end, an interrupt included."""

    def __init__(self, module: str, title: str, out: Path | None, legend: str, subject: str = ""):
        """Name the page and write nothing yet.

        Args:
            module: `__spec__.name` of the script.
            out: a file, or a folder that gets one named by machine, date and subject.
            legend: what the tables mean.
            subject: default: the script's name.
        """
        name = subject or module.rpartition(".")[2].replace("_", "-")
        dated = f"{machine()}-{date.today().isoformat()}-{name}.md"
        self.path = out / dated if out and out.is_dir() else out
        self.head = [f"# {title}", "", f"    {command_line(module)}", "", legend, ""]
        self.began, self.where, self.text = time.time(), provenance(), ""

    def write(self, lines: Iterable[str]) -> None:
        """Set what stands below the legend."""
        self.text = "\n".join([*self.head, *lines, ""])
        if self.path:
            self.path.write_text(self.text, encoding="utf-8")

    def origin(self, how: str) -> str:
        """Say how a table was made, how long the run has taken so far, and where."""
        return f"{how}; {time.time() - self.began:.0f} s. {self.where}"

    def __enter__(self) -> "Page":
        return self

    def __exit__(self, *_: object) -> None:
        print(self.text)


def machine() -> str:
    """Name the machine as pages do: "cpu", or the GPU, as "h100-80gb-hbm3"."""
    if not torch.cuda.is_available():
        return "cpu"
    words = re.findall(r"[a-z0-9]+", torch.cuda.get_device_name().lower())
    return "-".join(word for word in words if word not in ("nvidia", "amd", "geforce"))


def command_line(module: str) -> str:
    """Return the command of this run, without where its page goes."""
    words, shown = iter(sys.argv[1:]), []
    for word in words:
        if word == "--out":
            next(words, None)
        elif not word.startswith("--out="):
            shown.append(word)
    return shlex.join(["python", "-m", module, *shown])
