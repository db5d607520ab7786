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
from comfy_extras.nodes_video import CreateVideo, GetVideoComponents, SaveVideo  # noqa: E402
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


COLOURS = ("color_primaries", "color_trc", "colorspace", "color_range")


def case_file_is_what_the_hosts_own_encoder_writes():
    """Headers, settings and sound, where the host names its colours; older ones use BT.601.

    The frames' packets differ from one run of the same encoder to the next.
    """
    vae, samples = wan(), noise(1, 16, 5, 8, 12)
    frames = SurfVAEDecode.execute({"samples": samples}, vae, 0, 0, 0).result[0]
    theirs = FOLDER / "theirs.mp4"
    CreateVideo.execute(frames, 16.0, sound(1.0)).result[0].save_to(str(theirs))
    ours = made(vae, samples, audio=sound(1.0)).get_stream_source()
    assert packets(theirs, "audio") == packets(ours, "audio")
    named = [tags(path) for path in (theirs, ours)]
    assert named[1] == [1, 13, 1, 1]
    settings = [packets(path, "video")[0].split(b"options: ")[1].split(b"\0")[0]
                for path in (theirs, ours)]  # fmt: skip
    assert settings[0] == settings[1]
    if named[0] == named[1]:
        assert headers(theirs) == headers(ours)
        away = shown(theirs) - shown(ours)
        assert away.mean((0, 1, 2)).abs().max() < 0.005
        # Two runs of the host's own differ by up to 1.4 of 255.
        assert away.abs().mean() < 3 / 255
        return
    unknown = 2
    assert named[0] == [unknown, unknown, unknown, 0]
    # As a player shows them: what has no name is BT.709. Half of the colours' resolution is lost.
    far = [(shown(path) - frames).mean((0, 1, 2)).abs().max() for path in (theirs, ours)]
    assert far[1] < 0.01 < far[0]


def tags(path):
    with av.open(str(path)) as container:
        context = container.streams.video[0].codec_context
        return [int(getattr(context, name)) for name in COLOURS]


def headers(path):
    """The bytes of H.264's parameter sets: size, profile, level, rate and colours."""
    with av.open(str(path)) as container:
        return bytes(container.streams.video[0].codec_context.extradata)


def shown(path):
    with av.open(str(path)) as container:
        frames = [f.reformat(format="rgb24", src_colorspace=1).to_ndarray()
                  for f in container.decode(video=0)]  # fmt: skip
    return torch.stack([torch.from_numpy(f) for f in frames]).float() / 255


def case_sound_of_the_hosts_own_videos_comes_through():
    """Load, take apart, decode, save: what the host reads of our file is what it read before."""
    vae, samples = wan(), noise(1, 16, 5, 8, 8)
    for channels in (1, 2, 6):
        wave = sound(17 / 16)["waveform"][:, :1].repeat(1, channels, 1)
        first = made(vae, samples, audio={"waveform": wave, "sample_rate": 16000})
        frames, heard, fps, *_ = GetVideoComponents.execute(first).result
        assert (len(frames), fps) == (17, 16.0)
        again = made(vae, samples, fps=fps, audio=heard)
        after = GetVideoComponents.execute(again).result[1]
        assert after["waveform"].shape[1] == channels
        same = min(after["waveform"].shape[2], heard["waveform"].shape[2])
        assert (after["waveform"] - heard["waveform"])[..., :same].abs().mean() < 0.05
    silent = GetVideoComponents.execute(made(vae, samples)).result[1]
    assert not made(vae, samples, audio=silent).get_components().audio


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
