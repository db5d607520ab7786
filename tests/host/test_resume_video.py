"""Twenty seconds of an own video with sound, killed twice on the way: the same frames and sound."""

import os
import random

import pytest
from surf.tests.host import resumed
from surf.tests.host.server import Server

FRAMES, RATE, STEPS = 481, 24, 12
SMALL, LARGE = (64, 32), (128, 64)
"""Width and height before and after; what 1080p changes is the time that it takes."""

pytestmark = [
    pytest.mark.host,
    pytest.mark.skipif("COMFYUI_PATH" not in os.environ, reason="COMFYUI_PATH is not set"),
]


def test_twenty_seconds_killed_twice_are_those_of_an_undisturbed_run(tmp_path):
    resumed.prepare(tmp_path)
    resumed.write_wandering_square(tmp_path / "input" / resumed.VIDEO, FRAMES, *SMALL, RATE)
    settings = {"steps": STEPS, "low_band_lock": 0.0}
    with Server(tmp_path) as server:
        server.run(resumed.video_graph(*LARGE, resume=False, **settings), seconds=3000)
    prompt, draw = resumed.video_graph(*LARGE, **settings), random.Random(3)
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
    assert (count, width, height) == (FRAMES, *LARGE)
    assert heard / 44100 == pytest.approx(FRAMES / RATE, abs=0.1)
    assert resumed.states(tmp_path) == []
