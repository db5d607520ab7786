"""Surf Decode Video inside a real host, in its process: run by test_inside.py, all cases at once.

    cd $COMFYUI_PATH && python tests/host/decode_video_cases.py RESULTS.json

Every function `case_*` asserts.
"""

import inspect
import tempfile
import types
from pathlib import Path

import av
import checkpoints
import inside
import torch
from inside import noise

RESULTS = inside.enter()

import comfy.model_management as management  # noqa: E402
import comfy.nested_tensor  # noqa: E402
import comfy.sd  # noqa: E402
import folder_paths  # noqa: E402
from comfy_extras.nodes_video import SaveVideo  # noqa: E402
from surf.nodes.decode import SurfDecodeVideo, SurfVAEDecode  # noqa: E402
from surf.nodes.host.vae.streaming import Streaming  # noqa: E402

FOLDER = Path(tempfile.mkdtemp())
folder_paths.set_temp_directory(str(FOLDER / "temp"))
folder_paths.set_output_directory(str(FOLDER / "out"))


def wan():
    return comfy.sd.VAE(sd=checkpoints.wan_vae())


def made(vae, samples, **changes):
    settings = {"fps": 16.0, "width": 0, "height": 0, "crf": 23, "memory": 1.5, "piece": 0}
    return SurfDecodeVideo.execute({"samples": samples}, vae, **(settings | changes)).result[0]


def packets(path, kind):
    with av.open(str(path)) as container:
        return [
            bytes(p)
            for p in container.demux(container.streams.get(**{kind: 0}))
            if p.dts is not None
        ]


def sound(seconds, rate=16000):
    return {
        "waveform": torch.sin(torch.arange(int(seconds * rate)) * 0.1).expand(1, 2, -1),
        "sample_rate": rate,
    }


def saved(video):
    """What Save Video makes of a video, with a workflow in it."""
    hidden = types.SimpleNamespace(
        prompt={"1": {"class_type": "X"}}, extra_pnginfo={"workflow": {"nodes": []}}
    )
    node = type("Saving", (SaveVideo,), {"hidden": hidden})
    newer = "codec[" in inspect.getsource(SaveVideo.execute)
    node.execute(video, "video/surf_long", "auto", {"codec": "auto"} if newer else "auto")
    [path] = (FOLDER / "out").rglob("*.mp4")
    return path


def case_save_video_copies_the_streams_and_adds_the_workflow():
    samples = noise(1, 16, 5, 8, 12)
    video = made(wan(), samples, audio=sound(1.0))
    source = video.get_stream_source()
    path = saved(video)
    for kind in ("video", "audio"):
        assert packets(path, kind) == packets(source, kind), kind
    with av.open(str(path)) as container:
        assert "prompt" in container.metadata
        assert "workflow" in container.metadata


def case_frames_are_those_of_surf_vae_decode():
    vae, samples = wan(), noise(1, 16, 5, 8, 8)
    expected = SurfVAEDecode.execute({"samples": samples}, vae, 0, 0, 0).result[0]
    got = torch.cat(list(Streaming(vae, samples, 2**30).blocks(0)))
    assert torch.equal(got, expected.mul(255).clamp(0, 255).byte())
    components = made(vae, samples, crf=0).get_components()
    assert components.images.shape == expected.shape
    assert (components.images.mean() - expected.mean()).abs() < 0.02


def case_stretches_and_bands_of_a_causal_vae_join_without_a_seam():
    vae, samples = wan(), noise(1, 16, 17, 40, 4) * 0.3
    whole = Streaming(vae, samples, 2**30)
    cut = Streaming(vae, samples, 0.5 * whole.stream.memory)
    assert cut.stream.work > 1
    got, expected = (torch.cat(list(each.blocks(0))).float() for each in (cut, whole))
    assert got.shape == expected.shape
    # Random weights see far: where they begin anew they differ, by less than frames do in time.
    assert (got - expected).abs().mean() < 0.5 * expected.diff(dim=0).abs().mean()


def case_video_of_a_joint_latent_is_decoded():
    joint = comfy.nested_tensor.NestedTensor([noise(1, 16, 3, 8, 8), noise(1, 8, 20, 16)])
    assert made(wan(), joint).get_components().images.shape == (9, 64, 64, 3)


def case_interrupt_stops_within_a_piece_and_leaves_no_file():
    vae, samples = wan(), noise(1, 16, 5, 8, 8)
    (FOLDER / "temp").mkdir(exist_ok=True)
    before = set((FOLDER / "temp").iterdir())
    management.interrupt_current_processing()
    try:
        made(vae, samples)
    except management.InterruptProcessingException:
        assert set((FOLDER / "temp").iterdir()) == before
        return
    raise AssertionError("it was not interrupted")


inside.report(RESULTS, dict(globals()))
