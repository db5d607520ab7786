"""Run modules and scripts in processes that are forked from one with their imports.

Such a start takes milliseconds, where one from nothing takes seconds to import torch.
"""

import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from . import patience

ROOT = Path(__file__).parents[1]
IMPORTS = """
import kornia.filters, kornia.metrics, torch
import benchmarks.page, surf_core.checkpoint, surf_core.refiner, surf_core.signature
import surf_core.skip, surf_core.training.prepare.cli
"""
SERVER = """
import gc, json, os, runpy, sys, traceback

gc.freeze()  # Or each fork would copy the pages that a collection touches.
for line in sys.stdin:
    kind, value = json.loads(line)
    if kind == "poll":
        ended, status = os.waitpid(value, os.WNOHANG)
        print(json.dumps(os.waitstatus_to_exitcode(status) if ended else None), flush=True)
        continue
    child = os.fork()
    if not child:
        break
    print(child, flush=True)
else:
    sys.exit()
os.setsid()
for stream, path in enumerate((os.devnull, value["stdout"], value["stderr"])):
    os.dup2(os.open(path, os.O_RDWR | os.O_CREAT), stream)
sys.stdin, sys.argv = open(os.devnull), [value["target"], *value["arguments"]]
try:
    if kind == "module":
        runpy.run_module(value["target"], run_name="__main__", alter_sys=True)
    else:
        runpy.run_path(value["target"], run_name="__main__")
    status = 0
except SystemExit as end:
    status = end.code if isinstance(end.code, int) else int(end.code is not None)
except BaseException:
    traceback.print_exc()
    status = 1
sys.stdout.flush()
sys.stderr.flush()
os._exit(status)  # To take torch down takes a second.
"""


class Forks:
    """A process in the repository's root that forks others, each a session of its own."""

    def __init__(self):
        self.folder = tempfile.TemporaryDirectory()
        # Only a process without threads can be forked, and bits depend on their number.
        env = {**os.environ, "OMP_NUM_THREADS": "1"}
        env.pop("COMFYUI_PATH", None)  # No test that forks asks a host.
        self.server = subprocess.Popen(
            [sys.executable, "-c", IMPORTS + SERVER],
            cwd=ROOT, env=env, text=True, stdin=subprocess.PIPE, stdout=subprocess.PIPE,
        )  # fmt: skip
        self.count = 0

    def ask(self, kind, value):
        self.server.stdin.write(json.dumps([kind, value]) + "\n")
        self.server.stdin.flush()
        return json.loads(self.server.stdout.readline())

    def start(self, module, *arguments):
        """Start `python -m module arguments`."""
        return self._start("module", module, arguments)

    def start_script(self, text):
        """Start a script that can import what lies in the root."""
        path = Path(self.folder.name) / f"script{self.count}.py"
        path.write_text(text)
        return self._start("script", path, ())

    def _start(self, kind, target, arguments):
        self.count += 1
        names = {name: f"{self.folder.name}/{self.count}.{name}" for name in ("stdout", "stderr")}
        for path in names.values():
            Path(path).touch()
        asked = {"target": str(target), "arguments": list(map(str, arguments)), **names}
        return Fork(self, self.ask(kind, asked), names)

    def close(self):
        self.server.stdin.close()
        self.server.wait()
        self.server.stdout.close()
        self.folder.cleanup()


class Fork:
    """A forked process, with the part of subprocess.Popen that tests need."""

    def __init__(self, forks, pid, names):
        self.forks, self.pid, self.names, self.returncode = forks, pid, names, None

    @property
    def stdout(self):
        return Path(self.names["stdout"]).read_text(encoding="utf-8")

    @property
    def stderr(self):
        return Path(self.names["stderr"]).read_text(encoding="utf-8")

    def poll(self):
        if self.returncode is None:
            self.returncode = self.forks.ask("poll", self.pid)
        return self.returncode

    def kill(self):
        """Kill it, but not what it has started, and wait for its end."""
        if self.poll() is None:
            os.kill(self.pid, signal.SIGKILL)
        self.wait(60)

    def wait(self, seconds):
        """Wait for the end, at most so many seconds of an idle machine; return the status."""
        limit = patience.Patience(seconds)
        while self.poll() is None:
            if not limit.lasts():
                os.killpg(self.pid, signal.SIGKILL)
                raise TimeoutError(f"longer than {seconds} s of an idle machine: {self.stderr}")
            time.sleep(0.02)
        return self.returncode

    def finish(self, seconds):
        """Wait for an end without an error, and return what was printed."""
        assert self.wait(seconds) == 0, self.stderr[-4000:]
        return self.stdout
