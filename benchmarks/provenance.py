"""What every number comes with: commit, hardware, library."""

import os
import platform
import subprocess
import sys
from pathlib import Path

import torch


def provenance() -> str:
    """One sentence on commit, processor, threads and torch."""
    # A copy of the tree on another machine has no history.
    command = ["git", "describe", "--always", "--dirty"]
    said = subprocess.run(command, capture_output=True, text=True, check=False)
    commit = said.stdout.strip() or "unknown"
    info = Path("/proc/cpuinfo")
    names = [
        line.split(":", 1)[1].strip()
        for line in (info.read_text().splitlines() if info.exists() else [])
        if line.startswith("model name")
    ]
    processor = names[0] if names else platform.processor() or platform.machine()
    return (
        f"Commit {commit}, {processor}, {os.cpu_count()} cores, {torch.get_num_threads()} threads, "
        f"torch {torch.__version__}."
    )


def publish_page(title: str, legend: str, lines: list[str], out: Path | None) -> None:
    """Print tables below the command that made them, and write them where asked."""
    command = " ".join([f"python -m benchmarks.{Path(sys.argv[0]).stem}", *sys.argv[1:]])
    text = "\n".join([f"# {title}", "", f"    {command}", "", legend, "", *lines, ""])
    if out:
        out.write_text(text)
    print(text)


if __name__ == "__main__":
    print(provenance())
