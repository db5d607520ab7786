"""What large pictures cost in memory: frames are measured one by one and copied one by one."""

import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
HEAD = """
import re, sys
sys.path.insert(0, sys.argv[1])
import numpy as np
import torch
from surf_core.training.prepare import clips as clipping
from surf_core.training.prepare.decode import Frame
from surf_core.training.prepare.filters import examine

def peak():
    # Not that of getrusage, which a process inherits from the one that starts it.
    status = open("/proc/self/status").read()
    return 1024 * int(re.search(r"VmHWM:\\s*(\\d+)", status)[1])

torch.set_num_threads(1)
"""
EXAMINE = """
examine(torch.randint(0, 256, (2, 64, 64, 3), dtype=torch.uint8))
frames = torch.randint(0, 256, (5, 2160, 3840, 3), dtype=torch.uint8)
before = peak()
examine(frames)
print(peak() - before)
"""
HAND_OVER = """
def filmed(path, fps):
    for index in range(41):
        pixels = np.full((1080, 1920, 3), index, np.uint8)
        yield Frame(pixels=pixels, thumbnail=np.zeros((64, 64), np.uint8), time=index / fps,
                    gap=not index)

clipping.frames = filmed
before = peak()
(clip,) = clipping.clips(None, (41,))
assert clip.frames[:, 0, 0, 0].tolist() == list(range(41))
print(peak() - before)
"""


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="reads the peak as Linux tells it")
@pytest.mark.parametrize(
    ("script", "most"),
    [
        # The luma of a frame in fp32 takes 33 MB; its five frames in fp32 RGB at once 498 MB.
        pytest.param(EXAMINE, 200e6, id="a clip is measured in the memory of a frame"),
        # The clip takes 255 MB.
        pytest.param(HAND_OVER, 300e6, id="a clip is handed over in the memory of its frames"),
    ],
)
def test_peak_memory(script, most):
    done = subprocess.run(
        [sys.executable, "-c", HEAD + script, str(ROOT)], capture_output=True, text=True, check=True
    )
    assert 0 < int(done.stdout) < most
