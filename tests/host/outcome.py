"""A script of cases, run in a process of the host, and what it left."""

import json
import os
import sys
import time
from pathlib import Path

from surf.tests import patience

FOLDER = Path(__file__).parent
NOT_RUN = "not run: "
"""How the line of a case begins that the host cannot run."""
MINUTES = 30
"""What a script may take on an idle machine; the slowest takes one."""


class ScriptOutcome:
    """What a script left: tracebacks by case, its last words, and the seconds that it took."""

    def __init__(self, script, folder, count=0):
        out, began = folder / "results.json", time.monotonic()
        python = os.environ.get("COMFYUI_PYTHON", sys.executable)
        try:
            done = patience.run(
                [python, str(FOLDER / script), str(out), str(count)],
                60 * MINUTES,
                cwd=os.environ["COMFYUI_PATH"],
            )
            self.whole = done.returncode == 0
            self.end = f"ended with status {done.returncode}:\n{done.stderr[-4000:]}"
        except TimeoutError as error:
            self.whole, self.end = False, f"took too long: {error}"
        self.seconds = time.monotonic() - began
        self.said = json.loads(out.read_text(encoding="utf-8")) if out.exists() else {}

    def of(self, case):
        """The traceback of a case, empty where it held."""
        return self.said.get(case, f"not reached; the script {self.end}")

    def summary(self, script):
        """One line."""
        lacked = sum(text.startswith(NOT_RUN) for text in self.said.values())
        bad = sum(bool(text) for text in self.said.values()) - lacked
        ended = "" if self.whole else f", then it {self.end.splitlines()[0]}"
        count = f"{len(self.said) - bad - lacked} held, {bad} failed"
        count += f", {lacked} not run" if lacked else ""
        return f"{script}: {count}, {self.seconds:.0f} s{ended}"
