"""Twenty seconds of an own video with sound, killed twice on the way: the same frames and sound."""

import os
import random
from fractions import Fraction
from pathlib import Path

import pytest
from surf.tests.host import resumed
from surf.tests.host.server import Server

STEPS = 12
SMALL = {
    "family": "wan", "frames": 481, "rate": 24, "size": (64, 32), "memory": 0.1,
    "to": {"resolution": "by size", "width": 128, "height": 64, "window": 4},
    "made": (128, 64),
}  # fmt: skip
"""As many frames as films have in that time; what 1080p changes is the time that it takes."""
LARGE = {
    "family": "ltx", "frames": 49, "rate": Fraction(12, 5), "size": (480, 270), "memory": 1.5,
    "to": {"resolution": "1080p", "window": 0, "chunk_frames": 41, "tile": 512},
    "made": (1920, 1080),
}  # fmt: skip
"""As large as is asked for, and few frames a second: three minutes of one core."""

pytestmark = [
    pytest.mark.host,
    pytest.mark.skipif("COMFYUI_PATH" not in os.environ, reason="COMFYUI_PATH is not set"),
]
asked = [
    pytest.mark.skipif("SURF_LARGE_RUNS" not in os.environ, reason="SURF_LARGE_RUNS is not set"),
    pytest.mark.skipif(
        not Path(os.environ.get("COMFYUI_PATH", ""), "comfy", "ldm", "minimax").exists(),
        reason="this ComfyUI knows one size of LTX-Video's VAE, the large one: use 0.33 or later",
    ),
]


@pytest.mark.parametrize(
    "run", [pytest.param(SMALL, id="small"), pytest.param(LARGE, id="1080p", marks=asked)]
)
def test_twenty_seconds_killed_twice_are_those_of_an_undisturbed_run(tmp_path, run):
    resumed.prepare(tmp_path)
    video = tmp_path / "input" / resumed.VIDEO
    resumed.write_wandering_square(video, run["frames"], *run["size"], run["rate"])
    settings = {"steps": STEPS, "low_band_lock": 0.0, **run["to"]}
    settings |= {name: run[name] for name in ("family", "memory")}
    with Server(tmp_path) as server:
        server.run(resumed.video_graph(resume=False, **settings), seconds=3000)
    prompt, draw = resumed.video_graph(**settings), random.Random(3)
    done = [resumed.killed_later(tmp_path, prompt, draw, early=0) for _ in range(2)]
    assert 0 < done[0] < done[1] < STEPS, done
    with Server(tmp_path) as server:
        server.run(prompt, seconds=3000)
        log = server.log.read_text(encoding="utf-8", errors="replace")
    assert f"resumed after step {done[1]} of {STEPS}." in log
    assert "chunks" in log
    undisturbed, killed = map(resumed.digests, resumed.saved_videos(tmp_path))
    assert killed == undisturbed
    (count, height, width, _), (heard, _) = killed
    assert (count, (width, height)) == (run["frames"], run["made"])
    assert heard / 44100 == pytest.approx(float(run["frames"] / run["rate"]), abs=0.1)
    assert resumed.states(tmp_path) == []
