"""Start a real ComfyUI on the CPU in a folder of its own, POST graphs, wait for their results."""

import json
import os
import shutil
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from pathlib import Path

from surf.tests.patience import Patience
from surf.tests.test_archive import archive

ROOT = Path(__file__).parents[2]
PARTS = ("custom_nodes", "input", "output", "temp", "user", "models", "front_end")


def install_pack(base):
    """Put the pack into a host's folder as a user installs it: the files of the archive only."""
    for name in archive(ROOT):
        target = base / "custom_nodes" / "surf-video" / name
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(ROOT / name, target)


class Server:
    """A host process, up between `with` and its end.

    Args:
        base: an empty or prepared folder for models, custom nodes and output.

    The environment names the host: COMFYUI_PATH its folder, COMFYUI_PYTHON its Python (default:
    this one).
    """

    def __init__(self, base):
        self.base, self.log = base, base / "server.log"
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            self.port = free.getsockname()[1]

    def __enter__(self):
        for part in PARTS:
            (self.base / part).mkdir(parents=True, exist_ok=True)
        command = [os.environ.get("COMFYUI_PYTHON", sys.executable), "main.py", "--cpu"]
        command += ["--base-directory", str(self.base), "--disable-api-nodes"]
        command += ["--front-end-root", str(self.base / "front_end"), "--port", str(self.port)]
        with self.log.open("w") as log:
            self.process = subprocess.Popen(
                command, cwd=os.environ["COMFYUI_PATH"], stdout=log, stderr=subprocess.STDOUT
            )
        self.wait_until_up(seconds=600)
        return self

    def __exit__(self, *_):
        self.process.terminate()
        try:
            self.process.wait(200)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()

    def wait_until_up(self, seconds):
        patience = Patience(seconds)
        while patience.lasts():
            if self.process.poll() is not None:
                break
            try:
                return self.get("/system_stats")
            except (urllib.error.URLError, ConnectionError):
                time.sleep(0.25)
        self.__exit__()
        raise RuntimeError(f"the host did not come up:\n{self.log.read_text()[-4000:]}")

    def get(self, path):
        with urllib.request.urlopen(f"http://127.0.0.1:{self.port}{path}", timeout=600) as answer:
            return json.loads(answer.read())

    def post(self, prompt):
        """Queue a graph in API form; its number. A refused graph raises with the host's reasons."""
        request = urllib.request.Request(
            f"http://127.0.0.1:{self.port}/prompt",
            json.dumps({"prompt": prompt}).encode(),
            {"Content-Type": "application/json"},
        )
        try:
            with urllib.request.urlopen(request, timeout=600) as answer:
                return json.loads(answer.read())["prompt_id"]
        except urllib.error.HTTPError as error:
            raise RuntimeError(error.read().decode()[:4000]) from error

    def run(self, prompt, seconds=900):
        """Run a graph to its end and return the host's history entry; an error in it raises."""
        number, patience = self.post(prompt), Patience(seconds)
        while patience.lasts():
            entry = self.get(f"/history/{number}").get(number)
            if entry and entry["status"]["status_str"] == "error":
                raise RuntimeError(json.dumps(entry["status"]["messages"][-1])[:6000])
            if entry and entry["status"]["completed"]:
                return entry
            time.sleep(0.2)
        raise TimeoutError(f"graph {number} ran longer than {seconds} s of an idle machine")
