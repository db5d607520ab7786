"""Say what to do where a file cannot be written."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Literal

import folder_paths

from ...surf_core.header import short

WORDS = {"output": "output folder", "temp": "folder for temporary files"}


@contextmanager
def writing(folder: Literal["output", "temp"]) -> Iterator[None]:
    """Turn an OSError of a block that writes into a folder of the host into a ValueError."""
    try:
        yield
    except OSError as error:
        path = error.filename or folder_paths.get_directory_by_type(folder)
        raise ValueError(
            f"expected to write {short(str(path))}, got: {error.strerror or error}; make room in "
            f"ComfyUI's {WORDS[folder]} and let it write there, or start it with another "
            f"--{folder}-directory."
        ) from error
