"""What tests of killed runs share: a prepared host folder, graphs, kills, states on the disk."""

import hashlib
import os
import shutil
import time
import urllib.request
from pathlib import Path

import av
import numpy as np
from safetensors.torch import load_file
from surf.surf_core.run_state import read_progress
from surf.tests import patience
from surf.tests.host.graphs import TEXT, node
from surf.tests.host.own_video import write_own_video
from surf.tests.host.server import Server, install_pack

HERE = Path(__file__).parent
STATES = Path("user", "__surf", "runs")
STEPS = 24
VIDEO = "own.mp4"


FAMILIES = {
    "wan": ("tiny_wan_t2v", "tiny_wan_vae", "RandomConditioning", TEXT["wan"]),
    "ltx": ("tiny_ltx_video", "tiny_ltx_video_vae", "RandomT5Conditioning", {"width": 48}),
}
"""Model, VAE, and what makes a prompt."""


def prepare(base):
    """Put the pack, tiny weights and random prompts into a host's folder."""
    python = os.environ.get("COMFYUI_PYTHON", "python")
    for script in ("checkpoints.py", "ltx_files.py"):
        done = patience.run(
            [python, str(HERE / script), str(base / "models")], 600,
            cwd=os.environ["COMFYUI_PATH"],
        )  # fmt: skip
        assert done.returncode == 0, done.stderr[-2000:]
    install_pack(base)
    (base / "custom_nodes" / "stand_ins").mkdir(parents=True)
    shutil.copy(HERE / "stand_ins.py", base / "custom_nodes" / "stand_ins" / "__init__.py")


def prompts(negative=2, family="wan"):
    """A model, its VAE and prompts; guidance 1 makes nothing of the negative one."""
    model, vae, encoder, text = FAMILIES[family]
    return {
        "model": node("UNETLoader", unet_name=f"{model}.safetensors", weight_dtype="default"),
        "vae": node("VAELoader", vae_name=f"{vae}.safetensors"),
        "positive": node(encoder, seed=1, **text),
        "negative": node(encoder, seed=negative, **text),
    }


def refined(**changes):
    """The node that is killed, with inputs of its own."""
    settings = {
        "model": ["model", 0], "positive": ["positive", 0], "negative": ["negative", 0], "seed": 7,
        "resolution": "by scale", "scale": 2.0, "width": 64, "height": 64, "upsample": "latent",
        "sigma_start": 0.65, "steps": STEPS, "cfg": 1.0, "window": 4, "low_band_lock": 0.4,
        "colour_match": False, "resume": True,
    }  # fmt: skip
    return node("SurfRefiner", **(settings | changes))


def latent_graph(negative=2, **changes):
    """A preview of 81 frames, refined in chunks and saved as a latent.

    Args:
        negative: another one makes the same of another graph, which the host runs anew.
    """
    empty = node("EmptyHunyuanLatentVideo", width=96, height=64, length=81, batch_size=1)
    sampled = node(
        "KSampler", model=["model", 0], positive=["positive", 0], negative=["negative", 0],
        latent_image=["empty", 0], seed=5, steps=1, cfg=1.0, sampler_name="euler",
        scheduler="simple", denoise=1.0,
    )  # fmt: skip
    return prompts(negative) | {
        "empty": empty,
        "sampled": sampled,
        "refined": refined(latent=["sampled", 0], chunk_frames=41, **changes),
        "saved": node("SaveLatent", samples=["refined", 0], filename_prefix="run"),
    }


def video_graph(*, family, memory, **changes):
    """A video of one's own, refined, decoded a few frames at a time and saved with its sound."""
    return prompts(family=family) | {
        "loaded": node("LoadVideo", file=VIDEO),
        "parts": node("GetVideoComponents", video=["loaded", 0]),
        "refined": refined(
            image=["parts", 0], vae=["vae", 0], upsample="pixel", **changes,
        ),
        "decoded": node(
            "SurfDecodeVideo", samples=["refined", 0], vae=["vae", 0], fps=["parts", 2],
            audio=["parts", 1], width=["refined", 1], height=["refined", 2], crf=23, memory=memory,
            piece=0,
        ),
        "saved": node(
            "SaveVideo", video=["decoded", 0], filename_prefix="video/run", format="auto",
            codec="auto",
        ),
    }  # fmt: skip


def write_wandering_square(path, frames, width, height, rate=24, sound_rate=44100):
    """A clip with stereo sound as long: a square wanders over a ramp, a tone rises."""
    ramp = np.linspace(40, 200, width, dtype=np.uint8)
    pictures = np.broadcast_to(ramp[:, None], (frames, height, width, 3)).copy()
    for i, picture in enumerate(pictures):
        left = i * (width - 8) // frames
        picture[8:16, left : left + 8] = (230, 160, 60)
    seconds = np.arange(frames * sound_rate // rate) / sound_rate
    wave = np.stack([np.sin(pitch * seconds * (1 + seconds / 20)) for pitch in (2000, 3000)])
    write_own_video(path, pictures, wave, rate, sound_rate)


def digests(path):
    """(frames, height, width, digest of all), and (samples, digest) of the sound of a video."""
    pictures, waves, count, heard, shape = hashlib.sha256(), hashlib.sha256(), 0, 0, ()
    with av.open(str(path)) as video:
        for frame in video.decode(video=0):
            array = frame.to_ndarray(format="rgb24")
            count, shape = count + 1, array.shape
            pictures.update(array.tobytes())
    with av.open(str(path)) as video:
        for frame in video.decode(audio=0):
            heard += frame.samples
            waves.update(frame.to_ndarray().tobytes())
    return (count, *shape[:2], pictures.hexdigest()), (heard, waves.hexdigest())


def saved_videos(base):
    """Every video that was saved, in order."""
    return sorted((base / "output" / "video").glob("run*.mp4"))


def saved_latents(base):
    """Every latent that was saved, in order."""
    return [load_file(path)["latent_tensor"] for path in sorted((base / "output").glob("run*"))]


def states(base):
    """Every state on the disk, without unfinished files."""
    return sorted((base / STATES).glob("*.safetensors"))


def steps_done(base):
    """Steps in the one state of a host's folder; 0 without."""
    found = states(base)
    return read_progress(found[0]).done if found else 0


def wait_for(condition, seconds=300):
    """Wait until a condition holds."""
    lasts = patience.Patience(seconds).lasts
    while not condition():
        assert lasts(), "waited too long"
        time.sleep(0.01)


def kill(server):
    """End a host's process as the system does when memory runs out: no cleanup of any kind."""
    server.process.kill()
    server.process.wait()


def interrupt(server):
    """What the front end's button does."""
    address = f"http://127.0.0.1:{server.port}/interrupt"
    urllib.request.urlopen(urllib.request.Request(address, b"{}"), timeout=60).close()


def killed_later(base, prompt, draw, early=0.2, most=10**9):
    """Start a host, queue a graph, kill the host at a random moment; steps that are saved then.

    Args:
        draw: a `random.Random`.
        early: share of kills within half a second after the graph was queued; others come soon
            after a second state was saved.
        most: saved steps from which all kills are early, so that the run is not done before.
    """
    with Server(base) as server:
        before = steps_done(base)
        sooner = draw.random() < early or before > most
        server.post(prompt)
        within = 0.5
        if not sooner:
            wait_for(lambda: steps_done(base) > before)
            first, now = steps_done(base), time.monotonic()
            wait_for(lambda: steps_done(base) > first)
            within = 2 * (time.monotonic() - now)
        time.sleep(draw.uniform(0, within))
        kill(server)
    return steps_done(base)
