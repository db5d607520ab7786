"""Lists of the host whose items differ in size, and a video whose frames do, on a real host.

The host calls a node once for each item of a list; the last item of a shorter list is repeated.
"""

import json
import os

import av
import numpy as np
import pytest
from PIL import Image
from safetensors.torch import load_file
from surf.tests.host.graphs import node
from surf.tests.host.own_video import write_changing_video
from surf.tests.host.server import Server, install_pack

pytestmark = [
    pytest.mark.host,
    pytest.mark.skipif("COMFYUI_PATH" not in os.environ, reason="COMFYUI_PATH is not set"),
]

SIZES = {"a": (32, 32), "b": (32, 48)}
FRAMES = 5


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    base = tmp_path_factory.mktemp("lists")
    install_pack(base)
    folder, draw = base / "input" / "sizes", np.random.default_rng(1)
    folder.mkdir(parents=True)
    pictures = {name: draw.integers(0, 255, (*size, 3), np.uint8) for name, size in SIZES.items()}
    for name, picture in pictures.items():
        Image.fromarray(picture).save(folder / f"{name}.png")
    Image.fromarray(pictures["a"]).save(base / "input" / "one.png")
    videos = [np.full((FRAMES, *size, 3), 90, np.uint8) for size in ((64, 64), (64, 96))]
    write_changing_video(base / "input" / "changing.mp4", *videos)
    with Server(base) as running:
        yield running


def graph(**more):
    """Videos of two sizes in a list, `many`, and one of the first size; and their latents."""
    return {
        "models": node("SurfTinyModels"),
        "prompt": node("SurfTinyPrompt", text="red ball moving right"),
        "pictures": node("LoadImageDataSetFromFolder", folder="sizes"),
        "many": node("RepeatImageBatch", image=["pictures", 0], amount=FRAMES),
        "picture": node("LoadImage", image="one.png"),
        "one": node("RepeatImageBatch", image=["picture", 0], amount=FRAMES),
        "latents": node("VAEEncode", pixels=["many", 0], vae=["models", 2]),
        "latent": node("VAEEncode", pixels=["one", 0], vae=["models", 2]),
        **more,
    }


def mask(latent, image):
    return node(
        "SurfSkipMask", model=["models", 1], latent=[latent, 0], image=[image, 0],
        predictor="detail", choose="keep ratio", keep=0.5, tau=3.0, dilate=0, vae=["models", 2],
        resolution="by scale", scale=1.0, width=64, height=64, upsample="pixel",
    )  # fmt: skip


def refined(scale=2.0, **inputs):
    links = {name: [source, 0] for name, source in inputs.items()}
    return node(
        "SurfRefiner", model=["models", 1], positive=["prompt", 0], negative=["prompt", 0], seed=1,
        resolution="by scale", scale=scale, width=64, height=64, upsample="pixel",
        sigma_start=0.05, steps=1, cfg=1.0, window=0, low_band_lock=0.0, colour_match=False,
        vae=["models", 2], **links,
    )  # fmt: skip


def saved_latents(server, entry, name):
    """Shapes of the latents that a Save Latent node wrote, [T, H, W]."""
    files = [server.base / "output" / one["filename"] for one in entry["outputs"][name]["latents"]]
    return [tuple(load_file(path)["latent_tensor"].shape[2:]) for path in files]


def test_videos_of_two_sizes_are_refined_decoded_and_compared_each_by_itself(server):
    made = server.run(
        graph(
            refined=refined(image="many"),
            kept=node("SaveLatent", samples=["refined", 0], filename_prefix="kept"),
            video=node(
                "SurfDecodeVideo", samples=["refined", 0], vae=["models", 2], fps=8.0,
                width=["refined", 1], height=["refined", 2], crf=23, memory=0.5, piece=0,
            ),
            saved=node(
                "SaveVideo", video=["video", 0], filename_prefix="v", format="auto", codec="auto"
            ),
            frames=node(
                "SurfVAEDecode", samples=["refined", 0], vae=["models", 2], piece=0,
                width=["refined", 1], height=["refined", 2],
            ),
            compared=node("SurfSignature", image=["frames", 0], reference=["many", 0], rows=0),
            drafts=node("SurfDrafts", drafts=["refined", 0], index=2, fps=8.0, vae=["models", 2]),
            chosen=node("SaveLatent", samples=["drafts", 0], filename_prefix="chosen"),
        )
    )  # fmt: skip
    small, large = saved_latents(server, made, "kept")
    assert small != large
    assert saved_latents(server, made, "chosen") == [large]
    sizes = []
    for one in made["outputs"]["saved"]["images"]:
        with av.open(str(server.base / "output" / one["filename"])) as file:
            [video] = file.streams.video
            sizes.append((video.height, video.width, video.frames))
    assert sizes == [(2 * rows, 2 * columns, FRAMES) for rows, columns in SIZES.values()]
    texts = made["outputs"]["compared"]["text"]
    expected = [f"{FRAMES} frames at {columns} x {rows}," for rows, columns in SIZES.values()]
    assert [text.startswith(said) for text, said in zip(texts, expected, strict=True)] == [True] * 2


def test_masks_of_two_sizes_go_with_latents_of_two_sizes(server):
    made = server.run(
        graph(
            mask=mask("latents", "many"),
            refined=refined(1.0, latent="latents", mask="mask"),
            kept=node("SaveLatent", samples=["refined", 0], filename_prefix="masked"),
        )
    )
    small, large = saved_latents(server, made, "kept")
    assert small != large


@pytest.mark.parametrize(
    ("name", "tried", "words"),
    [
        ("Surf Refiner", refined(latent="latent", image="many"), "32 x 32 .* got 48 x 32; scale"),
        ("Surf Skip Mask", mask("latent", "many"), "32 x 32 pixels, got 48 x 32; scale it"),
        (
            "Surf Signature",
            node("SurfSignature", image=["many", 0], reference=["one", 0], rows=0),
            "reference in the shape of the video, 48 x 32 pixels, got 32 x 32; crop",
        ),
    ],
)  # fmt: skip
def test_an_item_of_another_size_than_what_it_goes_with_is_refused(server, name, tried, words):
    kept = node("SaveLatent", samples=["tried", 0], filename_prefix="never")
    keep = {"kept": kept} if name == "Surf Refiner" else {}
    with pytest.raises(RuntimeError, match=f"{name}: expected .*{words}"):
        server.run(graph(tried=tried, **keep))


def test_a_video_whose_frames_change_size_fails_in_the_host_as_the_help_says(server):
    prompt = {
        "file": node("LoadVideo", file="changing.mp4"),
        "parts": node("GetVideoComponents", video=["file", 0]),
        "shown": node("PreviewImage", images=["parts", 0]),
    }
    with pytest.raises(RuntimeError) as caught:
        server.run(prompt)
    _, said = json.loads(str(caught.value))
    assert said["node_type"] == "GetVideoComponents"
    assert "stack expects each tensor to be equal size" in said["exception_message"]
