"""Every shipped workflow, and three graphs more, through a real ComfyUI until a video is saved.

The pack goes into custom_nodes as a user installs it: the files of the published archive only.
"""

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import av
import numpy as np
import pytest
import torch
from PIL import Image
from surf.tests.frozen_nodes import INPUTS
from surf.tests.host.checkpoints import refiner
from surf.tests.host.convert import NOTES, to_api
from surf.tests.host.graphs import FIRST_SIZE, FRAMES, HEIGHT, WIDTH, WRITTEN, shrink
from surf.tests.host.own_video import write_own_video
from surf.tests.host.server import Server, install_pack

HERE = Path(__file__).parent
ROOT = HERE.parents[1]
WORKFLOWS = sorted((ROOT / "workflows").glob("*.json"))
WITH_SOUND = ("LTX", "MiniMax H3")
"""Models in the titles of workflows whose videos have sound."""
SOUND_DECODERS = ("VAEDecodeAudio", "LTXVAudioVAEDecode")
OF_MY_VIDEO = "Refine my"
"""In the titles of workflows that start from a video with sound."""
LONG = ROOT / "workflows" / "22 Refine my long video to 1080p with Wan 2.2 and 4-step LoRA.json"
LONG_FRAMES = 37
VIDEO_RATE, SOUND_RATE = 12, 44100
"""Frames and samples a second of that video."""
EMBEDDED = "01 Try SURF without downloads"
"""The workflow that runs as it is shipped."""

pytestmark = [
    pytest.mark.host,
    pytest.mark.skipif("COMFYUI_PATH" not in os.environ, reason="COMFYUI_PATH is not set"),
]


def write_checkpoints(models):
    """Let the host's own classes make the tiny checkpoints, in a process of the host."""
    python = os.environ.get("COMFYUI_PYTHON", sys.executable)
    for script in ("checkpoints.py", "av_models.py", "ltx_files.py", "seedvr2_files.py"):
        subprocess.run(
            [python, str(HERE / script), str(models)],
            cwd=os.environ["COMFYUI_PATH"],
            check=True,
            capture_output=True,
        )


def write_picture(path):
    """A picture of the name that every ComfyUI has in its input folder; 3:2 like the clips."""
    shades = torch.rand(HEIGHT, WIDTH, 3, generator=torch.Generator().manual_seed(0))
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray((shades * 255).byte().numpy()).save(path)


def write_video(path, count=FRAMES, longer=0):
    """A clip of `count` frames with stereo sound, `longer` seconds more: a square over noise."""
    shades = torch.rand(count, HEIGHT, WIDTH, 3, generator=torch.Generator().manual_seed(1))
    frames = (shades * 60 + 90).byte().numpy()
    seconds = np.arange((count / VIDEO_RATE + longer) * SOUND_RATE) / SOUND_RATE
    wave = np.stack([np.sin(2 * np.pi * pitch * seconds) for pitch in (440, 660)])
    for i, frame in enumerate(frames):
        frame[16:32, 4 * i % WIDTH : 4 * i % WIDTH + 16] = (230, 160, 60)
    write_own_video(path, frames, wave, VIDEO_RATE, SOUND_RATE)


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    base = tmp_path_factory.mktemp("host")
    write_checkpoints(base / "models")
    refiner(base / "models" / "diffusion_models" / "tiny_surf_refiner.safetensors", text_dim=4096)
    write_picture(base / "input" / "example.png")
    write_video(base / "input" / "my_video.mp4")
    install_pack(base)
    (base / "custom_nodes" / "stand_ins").mkdir()
    shutil.copy(HERE / "stand_ins.py", base / "custom_nodes" / "stand_ins" / "__init__.py")
    with Server(base) as running:
        yield running


def run(server, prompt):
    """Run a graph and return the videos that it saved: [(frames, height, width)], by size."""
    output = server.base / "output"
    before = set(output.rglob("*.mp4"))
    server.run(prompt)
    videos = []
    for path in set(output.rglob("*.mp4")) - before:
        with av.open(str(path)) as video:
            frames = [frame.to_ndarray(format="rgb24") for frame in video.decode(video=0)]
        assert any(frame.std() > 1 for frame in frames), f"{path.name} shows nothing"
        videos.append((len(frames), *frames[0].shape[:2]))
    return sorted(videos, key=lambda size: size[1])


def test_the_host_loads_the_archive(server):
    info = server.get("/object_info")
    assert {name for name in info if name.startswith("Surf")} == set(INPUTS)
    # Of ours only: a host may lack what an extra node of its own wants.
    log = server.log.read_text().splitlines()
    assert any("surf-video" in line for line in log)
    failed = ("IMPORT FAILED", "Cannot import")
    assert [line for line in log if "surf-video" in line and any(f in line for f in failed)] == []


def test_the_host_lists_the_workflows(server):
    listed = server.get("/api/workflow_templates")
    assert set(listed["surf-video"]) == {path.stem for path in WORKFLOWS}


def tiny(server, path, bypassed=()):
    """A shipped workflow with tiny weights; a host that lacks one of its nodes skips the test."""
    graph, info = json.loads(path.read_text()), server.get("/object_info")
    for node in graph["nodes"]:
        node["mode"] = 0 if node["type"] in bypassed else node["mode"]
    missing = {node["type"] for node in graph["nodes"]} - set(info) - NOTES
    tiny_ltx = server.base / "models" / "checkpoints" / "tiny_ltx23.safetensors"
    if "LTX" in path.stem and not tiny_ltx.exists():
        missing.add("LTX-2.3 and LTX-2.5")
    if missing:
        pytest.skip(f"this host has no {', '.join(sorted(missing))}")
    return shrink(to_api(graph, info))


def reseed(prompt, seed):
    """Change the noise, so that no video comes from the host's cache of an earlier test."""
    for node in prompt.values():
        for name in ("noise_seed", "seed"):
            if isinstance(node["inputs"].get(name), int):
                node["inputs"][name] = seed


def hear_refined(prompt):
    """Give the refined video the sound of the refined latent, not that of the preview."""
    kinds = {name: node["class_type"] for name, node in prompt.items()}
    [refiner] = [name for name, kind in kinds.items() if kind == "SurfRefiner"]
    [sound] = [name for name, kind in kinds.items() if kind in SOUND_DECODERS]
    samples = {"samples": [refiner, 0]}
    prompt["refined sound"] = prompt[sound] | {"inputs": prompt[sound]["inputs"] | samples}
    videos = [node["inputs"] for node in prompt.values() if node["class_type"] == "CreateVideo"]
    [refined] = [video for video in videos if kinds[video["images"][0]] == "SurfVAEDecode"]
    refined["audio"] = ["refined sound", 0]


def makes_both_videos(server, prompt):
    """Run a graph and compare its preview with half, its result with twice the first size."""
    [first] = [n["inputs"] for n in prompt.values() if n["class_type"] in FIRST_SIZE][:1]
    height, width = first["height"], first["width"]
    frames = first["length"]
    sizes = [(frames, height // 2, width // 2), (frames, 2 * height, 2 * width)]
    if any(node["class_type"] == "LTXVLatentUpsampler" for node in prompt.values()):
        # The first stage has one size, the upsampler doubles it.
        [refiner] = [n["inputs"] for n in prompt.values() if n["class_type"] == "SurfRefiner"]
        factor = round(2 * refiner["scale"])
        sizes = [(frames, height, width), (frames, factor * height, factor * width)]
    assert run(server, prompt) == sizes


@pytest.mark.parametrize(
    "path",
    [p for p in WORKFLOWS if p.stem != EMBEDDED and OF_MY_VIDEO not in p.stem],
    ids=lambda path: path.stem,
)
def test_shipped_workflow_makes_its_videos(server, path):
    prompt = tiny(server, path)
    reseed(prompt, WORKFLOWS.index(path))
    makes_both_videos(server, prompt)


@pytest.mark.parametrize(
    "path",
    [path for path in WORKFLOWS if any(name in path.stem for name in WITH_SOUND)],
    ids=lambda path: path.stem,
)
def test_both_videos_have_the_same_stereo_sound(server, path):
    """It is as long as the frames, and the refiner leaves it as it was: its own is decoded, too."""
    before = set((server.base / "output").rglob("*.mp4"))
    prompt = tiny(server, path)
    reseed(prompt, 1000 + WORKFLOWS.index(path))
    hear_refined(prompt)
    [first] = [n["inputs"] for n in prompt.values() if n["class_type"] in FIRST_SIZE]
    [rate] = {n["inputs"]["fps"] for n in prompt.values() if n["class_type"] == "CreateVideo"}
    server.run(prompt)
    sounds = []
    for video in set((server.base / "output").rglob("*.mp4")) - before:
        with av.open(str(video)) as opened:
            [stream] = opened.streams.audio
            assert stream.channels == 2
            parts = [frame.to_ndarray() for frame in opened.decode(audio=0)]
            sounds.append(torch.from_numpy(np.concatenate(parts, axis=-1)))
            seconds = sounds[-1].shape[-1] / stream.sample_rate
        assert abs(seconds - first["length"] / rate) < 0.1
        assert sounds[-1].std() > 0
    first, second = sounds
    assert torch.equal(first, second)


@pytest.mark.parametrize(
    "path",
    [p for p in WORKFLOWS if OF_MY_VIDEO in p.stem and "SeedVR2" not in p.stem],
    ids=lambda path: path.stem,
)
def test_frames_of_ones_own_get_larger_and_keep_their_rate_and_sound(server, path):
    output = server.base / "output"
    before, prompt = set(output.rglob("*.mp4")), tiny(server, path)
    for node in prompt.values():
        # Else the host's cache has saved the video that was read, in an earlier test.
        if node["class_type"] == "SaveVideo":
            node["inputs"]["filename_prefix"] += f"_{WORKFLOWS.index(path)}"
    server.run(prompt)
    found = {}
    for saved in set(output.rglob("*.mp4")) - before:
        with av.open(str(saved)) as video:
            frames = [frame.to_ndarray(format="rgb24") for frame in video.decode(video=0)]
            rate = video.streams.video[0].average_rate
        with av.open(str(saved)) as video:
            sound = np.concatenate([x.to_ndarray() for x in video.decode(audio=0)], axis=-1)
            assert video.streams.audio[0].channels == 2
        assert any(frame.std() > 1 for frame in frames), f"{saved.name} shows nothing"
        assert abs(sound).max() > 0.1
        found[frames[0].shape[:2]] = (len(frames), float(rate), sound)
    assert set(found) == {(HEIGHT, WIDTH), (4 * HEIGHT, 4 * WIDTH)}
    assert {(count, rate) for count, rate, _ in found.values()} == {(FRAMES, VIDEO_RATE)}
    first, second = (sound for _, _, sound in found.values())
    assert np.array_equal(first, second)


@pytest.mark.parametrize(
    "path",
    [p for p in WORKFLOWS if "my video with SeedVR2" in p.stem],
    ids=lambda path: path.stem,
)
def test_a_video_of_ones_own_is_refined_and_keeps_its_rate_and_sound(server, path):
    before = set((server.base / "output").rglob("*.mp4"))
    server.run(tiny(server, path))
    [saved] = set((server.base / "output").rglob("*.mp4")) - before
    pictures, waves, rates = [], [], []
    for source in (server.base / "input" / "my_video.mp4", saved):
        with av.open(str(source)) as video:
            pictures.append([x.to_ndarray(format="rgb24") for x in video.decode(video=0)])
            rates.append(video.streams.video[0].average_rate)
        with av.open(str(source)) as video:
            parts = [frame.to_ndarray() for frame in video.decode(audio=0)]
            waves.append(np.concatenate(parts, axis=-1))
    assert np.stack(pictures[1]).shape == (FRAMES, 2 * HEIGHT, 2 * WIDTH, 3)
    assert np.stack(pictures[1]).std() > 1
    assert rates[0] == rates[1] == VIDEO_RATE
    length = min(wave.shape[-1] for wave in waves)
    assert waves[0].shape[0] == waves[1].shape[0] == 2
    assert abs(length / SOUND_RATE - FRAMES / VIDEO_RATE) < 0.1
    # Encoded twice, so not the same to the bit, but the same sound.
    heard = np.corrcoef(waves[0][0, :length], waves[1][0, :length])[0, 1]
    assert heard > 0.9, heard


def test_a_long_video_runs_in_chunks_and_keeps_its_frames_and_sound(server):
    """Its sound is longer than its frames: that much is cut, and the log says so."""
    write_video(server.base / "input" / "my_long_video.mp4", LONG_FRAMES, longer=1)
    prompt, log = tiny(server, LONG), len(server.log.read_text())
    changes = {
        "LoadVideo": {"file": "my_long_video.mp4"},
        "SurfRefiner": {"scale": 2.0, "chunk_frames": 33},
        "SurfDecodeVideo": {"memory": 0.1},
        "SaveVideo": {"filename_prefix": "video/surf_long"},
    }
    for node in prompt.values():
        node["inputs"] |= changes.get(node["class_type"], {})
    before = set((server.base / "output").rglob("*.mp4"))
    server.run(prompt)
    said = server.log.read_text()[log:]
    assert re.search(rf"[2-9] chunks of \d+ of {LONG_FRAMES} frames", said)
    # AAC fills its last block up.
    assert re.search(r"4\.\d\d s of sound for 3\.08 s of frames, cut", said)
    sizes, sounds = set(), []
    for saved in set((server.base / "output").rglob("*.mp4")) - before:
        with av.open(str(saved)) as video:
            frames = [frame.to_ndarray(format="rgb24") for frame in video.decode(video=0)]
            assert "prompt" in video.metadata
        with av.open(str(saved)) as video:
            sounds.append(np.concatenate([x.to_ndarray() for x in video.decode(audio=0)], axis=-1))
        sizes.add((len(frames), *frames[0].shape[:2]))
        assert np.std(frames) > 1
    shapes = [(LONG_FRAMES, HEIGHT, WIDTH), (LONG_FRAMES, 2 * HEIGHT, 2 * WIDTH)]
    assert sizes == set(shapes)
    assert abs(sounds[0].shape[1] / SOUND_RATE - LONG_FRAMES / VIDEO_RATE) < 0.1
    assert np.array_equal(*sounds)


def test_the_5b_workflow_begins_with_a_picture_where_that_is_not_bypassed(server):
    prompt = tiny(
        server, ROOT / "workflows" / "03 Wan 2.2 5B to 1080p.json", bypassed={"LoadImage"}
    )
    assert any(node["class_type"] == "LoadImage" for node in prompt.values())
    makes_both_videos(server, prompt)


def test_the_tiny_workflow_makes_its_videos_untouched(server):
    graph = json.loads((ROOT / "workflows" / f"{EMBEDDED}.json").read_text())
    prompt = to_api(graph, server.get("/object_info"))
    assert sorted(run(server, prompt)) == [(13, 512, 512), (13, 512, 512), (13, 512, 1552)]


def test_the_tiny_workflow_with_a_mask_shows_it_and_makes_its_videos(server):
    graph = json.loads((ROOT / "workflows" / f"{EMBEDDED}.json").read_text())
    prompt = to_api(graph, server.get("/object_info"))
    [refiner] = [node["inputs"] for node in prompt.values() if node["class_type"] == "SurfRefiner"]
    shared = ("model", "latent", "vae", "resolution", "scale", "width", "height", "upsample")
    choice = {"predictor": "detail", "choose": "keep ratio", "keep": 0.5, "tau": 3.0, "dilate": 0}
    inputs = {name: refiner[name] for name in shared} | choice
    prompt["mask"] = {"class_type": "SurfSkipMask", "inputs": inputs}
    refiner |= {"mask": ["mask", 0], "seam": 1}
    shown = server.run(prompt)["outputs"]["mask"]
    assert shown["animated"] == [True]
    assert (server.base / "temp" / shown["images"][0]["filename"]).is_file()


@pytest.mark.parametrize("name", WRITTEN)
def test_graph_makes_its_video(server, name):
    assert run(server, WRITTEN[name]()) == [(FRAMES, HEIGHT, WIDTH)]


def test_the_super_resolution_model_is_refused_behind_a_switch(server):
    prompt = tiny(server, ROOT / "workflows" / "16 HunyuanVideo 1.5 T2V to 1080p.json")
    [larger] = [name for name, n in prompt.items() if "_sr." in str(n["inputs"].get("unet_name"))]
    [sampler] = [n for n in prompt.values() if n["class_type"] == "SurfReshiftKSampler"]
    sampler["inputs"]["model"] = [larger, 0]
    with pytest.raises(RuntimeError, match="expected a model that can be switched"):
        server.run(prompt)
