"""Keep states of runs in the host's user folder: one file a run, a few in all, none that is done.

The host clears its temp folder when it starts, and serves no folder of users that begins with two
underscores.
"""

import re
from contextlib import suppress
from pathlib import Path

import folder_paths
from torch import Tensor

from ....surf_core.header import UNFINISHED, discard, unfinished, was_killed
from ....surf_core.run_state import ENDING, Progress, load_state, read_progress, save_state
from ..node import NodeLog
from .key import Key

log = NodeLog(__name__)

FOLDER = ("__surf", "runs")
MOST_FILES = 8
"""States in all; of more, the oldest go."""
MOST_BYTES = 8 * 2**30
"""Of all states together, but one run's may be larger."""
OURS = re.compile(
    rf"[0-9a-f]{{16}}-[0-9a-f]{{16}}{re.escape(ENDING)}({re.escape(UNFINISHED)})?"
    r"|\.tmp[0-9A-Za-z]{6}"
)
"""States, those that are being saved, and what a kill leaves of safetensors' own saving."""


def folder() -> Path:
    """Return the folder of states; it need not be there."""
    return Path(folder_paths.get_user_directory(), *FOLDER)


class Store:
    """The state of one run."""

    def __init__(self, key: Key):
        self.key, self.path = key, folder() / f"{key.name}{ENDING}"
        self.passed_over = ""
        """Why a state that is there was not taken."""
        self.is_room_made = False

    def load(self, shape: tuple[int, ...], steps: int) -> tuple[Progress, Tensor] | None:
        """Read the state of this run; what is there and does not fit is passed over aloud."""
        try:
            progress, latent = load_state(self.path)
            self._check(progress, latent, shape, steps)
            return progress, latent
        except FileNotFoundError:
            self._look_at_others()
        except (ValueError, OSError) as error:
            self._pass_over("the saved state is no use", str(error))
        return None

    def _check(
        self, progress: Progress, latent: Tensor, shape: tuple[int, ...], steps: int
    ) -> None:
        known = {name: getattr(progress, name) for name in ("graph", "inputs", "files", "versions")}
        if Key(**known) != self.key or progress.steps != steps or tuple(latent.shape) != shape:
            raise ValueError("it is of another run")

    def _look_at_others(self) -> None:
        """Say which runs of the same graph are there, and why they are others."""
        for path in sorted(folder().glob(f"{self.key.graph[:16]}-*{ENDING}")):
            try:
                why = " and ".join(self.key.differences(read_progress(path)))
            except (ValueError, OSError) as error:
                why = str(error)
            self._pass_over("a saved state of this graph does not fit", why)

    def _pass_over(self, what: str, why: str) -> None:
        self.passed_over = what
        log.warning("starting from the first step: %s, %s.", what, why.rstrip("."))

    def save(self, latent: Tensor, progress: Progress) -> bool:
        """Write the state in place of the one before; False where that fails, said aloud."""
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            if not self.is_room_made:
                self.is_room_made = True
                self._make_room(latent.nbytes)
            save_state(self.path, latent, progress)
        except OSError as error:
            log.warning(
                "cannot save the run in %s (%s); it goes on, and from step %d it could not be "
                "resumed. Free the disk, or let ComfyUI write there.",
                self.path.parent, error.strerror or error, progress.done,
            )  # fmt: skip
            return False
        return True

    def _make_room(self, size: int) -> None:
        """Remove the oldest states of other runs, so that a few are left."""
        others = []
        for path in self.path.parent.iterdir():
            if not OURS.fullmatch(path.name) or path.name.startswith(self.path.name):
                continue
            if not path.name.endswith(ENDING) and was_killed(path):
                discard(path)
                continue
            # Another process may be done with it meanwhile.
            with suppress(FileNotFoundError):
                others.append((path.stat().st_mtime_ns, _size(path), path))
        for count, (_, length, path) in enumerate(sorted(others, reverse=True), start=2):
            size += length
            if count > MOST_FILES or size > MOST_BYTES:
                log.warning("removing the saved state of an older run, %s.", path.name)
                discard(path)

    def remove(self) -> None:
        """Remove the state of this run, where there is one."""
        try:
            if self.path.exists():
                self.path.unlink()
        except OSError as error:
            log.warning("cannot remove %s (%s); delete it.", self.path, error.strerror or error)
        discard(unfinished(self.path))


def _size(path: Path) -> int:
    """Return the bytes of a state, or of what a killed process left of one."""
    files = path.iterdir() if path.is_dir() else (path,)
    return sum(file.stat().st_size for file in files)
