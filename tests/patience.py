"""Limits for other processes, in seconds of an idle machine: a busy one gets as much longer.

A limit is there so that a hang ends, not to measure: give ten times of what is usual.
"""

import os
import signal
import subprocess
import time

SLICE = 2.0
"""Seconds between two looks at the load."""


def load():
    """How many times longer work takes here than on an idle machine, at least 1."""
    try:
        return max(1.0, os.getloadavg()[0] / (os.cpu_count() or 1))
    except (AttributeError, OSError):
        return 1.0


class Patience:
    """Seconds of an idle machine; each second here takes as much of it as the load leaves."""

    def __init__(self, seconds):
        self.left, self.seen = seconds, time.monotonic()

    def lasts(self):
        """Say whether any of it is left."""
        now = time.monotonic()
        self.left -= (now - self.seen) / load()
        self.seen = now
        return self.left > 0


def communicate(process, seconds):
    """Wait for a process, and return what it printed; kill its session when the patience ends.

    Raises:
        TimeoutError: with the last lines of what it said.
    """
    patience = Patience(seconds)
    while True:
        try:
            return process.communicate(timeout=SLICE)
        except subprocess.TimeoutExpired:
            if patience.lasts():
                continue
        kill(process)
        said = "".join(str(text)[-2000:] for text in process.communicate() if text)
        raise TimeoutError(f"{process.args} ran longer than {seconds} s of an idle machine: {said}")


def kill(process):
    """Kill a process, and what it started where it leads a session of its own."""
    if hasattr(os, "getpgid") and os.getpgid(process.pid) == process.pid:
        os.killpg(process.pid, signal.SIGKILL)
    else:
        process.kill()


def run(command, seconds, **options):
    """Like subprocess.run with captured text, with the patience of an idle machine's seconds."""
    process = subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        start_new_session=os.name == "posix", **options,
    )  # fmt: skip
    try:
        printed, errors = communicate(process, seconds)
    finally:
        if process.poll() is None:
            kill(process)
    return subprocess.CompletedProcess(command, process.returncode, printed, errors)
