"""What every number comes with: commit, hardware, library; and the page that it stands on."""

import argparse
import os
import platform
import re
import shlex
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterable
from datetime import date
from pathlib import Path

import torch

COMMIT = "SURF_COMMIT"
"""Names the commit where a copy of the tree has no history, as on a rented machine."""


def provenance() -> str:
    """One sentence on commit, processor, GPU, driver, threads and torch."""
    command = ["git", "describe", "--always", "--dirty"]
    said = subprocess.run(command, capture_output=True, text=True, check=False)
    commit = said.stdout.strip() or os.environ.get(COMMIT) or "unknown"
    info = Path("/proc/cpuinfo")
    names = [
        line.split(":", 1)[1].strip()
        for line in (info.read_text().splitlines() if info.exists() else [])
        if line.startswith("model name")
    ]
    processor = names[0] if names else platform.processor() or platform.machine()
    return (
        f"Commit {commit}, {processor}, {os.cpu_count()} cores, {torch.get_num_threads()} threads, "
        f"{gpu()}torch {torch.__version__}."
    )


def gpu() -> str:
    """The GPU, its memory, driver and cuDNN, with a comma after them; empty without one."""
    if not torch.cuda.is_available():
        return ""
    memory = torch.cuda.get_device_properties(0).total_memory / 2**30
    return (
        f"{torch.cuda.get_device_name()} with {memory:.1f} GiB, driver {driver()}, "
        f"cuDNN {torch.backends.cudnn.version()}, "
    )


def driver() -> str:
    """Version of the NVIDIA driver, as far as it can be asked."""
    tool = shutil.which("nvidia-smi")
    if tool is None:
        return "unknown"
    command = [tool, "--query-gpu=driver_version", "--format=csv,noheader"]
    found = subprocess.run(command, capture_output=True, text=True, check=False).stdout.split()
    return found[0] if found else "unknown"


def machine() -> str:
    """What pages of this machine begin with: "cpu", or the GPU's name, as "h100-80gb-hbm3"."""
    if not torch.cuda.is_available():
        return "cpu"
    words = re.findall(r"[a-z0-9]+", torch.cuda.get_device_name().lower())
    return "-".join(word for word in words if word not in ("nvidia", "amd", "geforce"))


def place(out: Path | None, name: str) -> Path | None:
    """Where a page goes: a file, or in a folder one that is named by machine, date and subject."""
    if out is None or not out.is_dir():
        return out
    return out / f"{machine()}-{date.today().isoformat()}-{name}.md"


def command_line(module: str) -> str:
    """The command as pages show it: without where they were written to."""
    words, kept = iter(sys.argv[1:]), []
    for word in words:
        if word == "--out":
            next(words, None)
        elif not word.startswith("--out="):
            kept.append(word)
    return shlex.join(["python", "-m", f"benchmarks.{module}", *kept])


def publish_page(
    title: str, legend: str, lines: list[str], out: Path | None, *, final: bool = True
) -> None:
    """Write tables below the command that made them, where asked, and print them.

    Args:
        out: a file, or a folder that gets one.
        final: False while rows are still to come: nothing is printed then.
    """
    script = Path(sys.argv[0]).stem
    module = f"{Path(sys.argv[0]).parent.name}.{script}"
    text = "\n".join([f"# {title}", "", f"    {command_line(module)}", "", legend, "", *lines, ""])
    if path := place(out, script.replace("_", "-")):
        path.write_text(text, encoding="utf-8")
    if final:
        print(text)


def publish_counted(about: str, page: Callable[[], Iterable[str]]) -> None:
    """Print a page of what was counted and not run, and write it where the command line asks.

    Args:
        about: docstring of the script.
        page: its lines, but the last.
    """
    parser = argparse.ArgumentParser(description=about.partition("\n")[0])
    parser.add_argument("--out", type=Path, help="a Markdown file to write the page to")
    args = parser.parse_args()
    text = "\n".join([*page(), provenance(), ""])
    if args.out:
        args.out.write_text(text, encoding="utf-8")
    print(text)


if __name__ == "__main__":
    print(provenance())
