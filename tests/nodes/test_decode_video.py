"""Surf Decode Video: frames of Surf VAE Decode in a file, with sound, in bounded memory."""

import errno
import multiprocessing
import resource
import sys

import av
import numpy as np
import pytest
import torch
from surf.nodes.decode import SurfDecodeVideo, SurfVAEDecode
from surf.nodes.host.vae import frame_count, video_file
from surf.nodes.host.vae.streaming import Streaming
from surf.nodes.host.vae.video_file import encoder_bytes
from surf.tests import patience
from surf.tests.nodes.vaes import Forgetful, Vae, jump

GB = 2**30
SETTINGS = {"fps": 16.0, "width": 0, "height": 0, "crf": 0, "memory": 1.5, "piece": 0}


@pytest.fixture(autouse=True)
def host(monkeypatch, tmp_path):
    """Plenty of memory, and a folder for temporary files."""
    management = sys.modules["comfy.model_management"]
    monkeypatch.setattr(management, "get_total_memory", lambda device: 1000 * GB)
    monkeypatch.setattr(management, "get_free_memory", lambda device: 1000 * GB)
    monkeypatch.setattr(
        sys.modules["folder_paths"], "get_temp_directory", lambda: str(tmp_path), raising=False
    )
    return tmp_path


def samples(frames=5, rows=8, columns=12, batch=1):
    chance = torch.Generator().manual_seed(3)
    return {"samples": torch.rand(batch, 16, frames, rows, columns, generator=chance)}


def sound(seconds, rate=8000, channels=2):
    wave = torch.sin(torch.arange(int(seconds * rate)) * 0.3)
    return {"waveform": wave.expand(1, channels, -1), "sample_rate": rate}


def run(latent, vae=None, **changes):
    out = SurfDecodeVideo.execute(latent, vae or Vae(), **(SETTINGS | changes))
    return out.args[0].file


def frames_of(path):
    with av.open(path) as container:
        frames = [frame.to_ndarray(format="rgb24") for frame in container.decode(video=0)]
    return torch.from_numpy(np.stack(frames)).float() / 255


def streamed(vae, latent, memory):
    return Streaming(vae, latent["samples"], memory)


def test_file_holds_the_frames_of_surf_vae_decode():
    latent = samples()
    path = run(latent)
    expected = SurfVAEDecode.execute(latent, Vae(), 0, 0, 0).args[0]
    got = frames_of(path)
    assert got.shape == expected.shape == (17, 64, 96, 3)
    # Half of the colour resolution is lost; brightness is kept to two of 255.
    grey = torch.tensor([0.2126, 0.7152, 0.0722])
    assert ((got - expected) @ grey).abs().mean() < 0.02


def test_stream_is_what_save_video_copies():
    with av.open(run(samples())) as container:
        [video] = container.streams.video
        assert (video.codec.canonical_name, container.format.name.split(",")[1]) == ("h264", "mp4")
        assert (video.average_rate, video.frames) == (16, 17)
        context = video.codec_context
        assert (context.colorspace, context.color_primaries, context.color_range) == (1, 1, 1)


def test_videos_of_a_batch_follow_one_another_and_a_crop_keeps_the_top_left():
    latent = samples(frames=2, batch=2)
    got = frames_of(run(latent, width=80, height=48))
    expected = SurfVAEDecode.execute(latent, Vae(), 80, 48, 0).args[0]
    assert got.shape == expected.shape == (10, 48, 80, 3)


@pytest.mark.parametrize(("seconds", "expected"), [(5.0, 17 / 16), (0.5, 0.5)])
def test_sound_is_kept_and_cut_to_the_frames(seconds, expected):
    with av.open(run(samples(), audio=sound(seconds))) as container:
        [stream] = container.streams.audio
        assert (stream.codec.canonical_name, stream.rate, stream.channels) == ("aac", 8000, 2)
        length = sum(frame.samples for frame in container.decode(audio=0)) / stream.rate
    assert length == pytest.approx(expected, abs=2 * 1024 / 8000)


def test_all_frames_that_fit_the_memory_are_decoded_at_once():
    stream = streamed(Vae(), samples(), GB)
    assert (stream.stream.latent_frames, stream.stream.rows, stream.stream.work) == (5, 64, 1)
    [block] = stream.blocks(0)
    expected = SurfVAEDecode.execute(samples(), Vae(), 0, 0, 0).args[0]
    assert torch.equal(block, expected.mul(255).clamp(0, 255).byte())


@pytest.mark.parametrize("share", [0.3, 0.5, 0.7])
def test_bands_and_stretches_join_to_the_same_frames(share):
    """This VAE forgets nothing, so that every cut gives the same frames but for a rounding."""
    latent = samples(frames=33, rows=80, columns=4)
    whole = streamed(Vae(), latent, 1000 * GB)
    cut = streamed(Vae(), latent, share * whole.stream.memory)
    assert cut.stream.memory <= share * whole.stream.memory
    assert cut.stream.work > 1
    blocks = list(cut.blocks(0))
    assert (len(blocks) > 1) == (cut.stream.latent_frames < 33)
    got, expected = torch.cat(blocks), torch.cat(list(whole.blocks(0)))
    assert (got.int() - expected.int()).abs().max() <= 1


def test_brightness_does_not_jump_where_stretches_join():
    """A VAE that needs history is not seen to begin anew."""
    slope = 1 / 1000
    ramp = torch.arange(41).mul(4 * slope).view(1, 1, -1, 1, 1).expand(1, 16, -1, 8, 12)
    latent = {"samples": ramp + 0.2}
    stream = streamed(Forgetful(), latent, 0.6 * streamed(Forgetful(), latent, GB).stream.memory)
    assert stream.stream.latent_frames < 41
    frames = torch.cat(list(stream.blocks(0))).float() / 255
    assert jump(frames, 1 / 255) <= 1.05


def test_481_frames_of_4k_fit_one_and_a_half_gigabytes():
    latent = {"samples": torch.empty(1, 16, 121, 270, 480, device="meta")}
    encoder = encoder_bytes(2160, 3840)
    assert 450 * 2**20 < encoder < 520 * 2**20
    stream = streamed(Vae(), latent, 1.5 * GB - encoder).stream
    assert stream.memory + encoder < 1.5 * GB
    assert stream.latent_frames >= 8
    assert stream.work < 4


def _peak_of_a_run(pipe):
    """Send how much the resident set of this process grew at most."""
    torch.set_num_threads(1)
    run(samples(frames=2))
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    run(samples(frames=51, rows=40, columns=64), crf=23, memory=0.15)
    pipe.send(1024 * (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before))


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="counts kilobytes, and forks")
def test_peak_memory_is_what_was_set_and_not_what_the_frames_need():
    whole = 201 * 320 * 512 * 12
    fork = multiprocessing.get_context("fork")
    here, there = fork.Pipe()
    child = fork.Process(target=_peak_of_a_run, args=(there,))
    child.start()
    child.join(60 * patience.load())
    assert child.exitcode == 0
    assert here.recv() < 0.15 * GB + 150 * 2**20 < whole


@pytest.mark.parametrize(
    ("latent", "changes", "said"),
    [
        (samples(rows=8), {"width": 81}, "even width and height, as H.264 needs, got 81 x 64"),
        (samples(rows=8), {"width": 800}, "cannot be cropped to 800 x 64"),
        (samples(), {"audio": {"waveform": torch.zeros(2, 100), "sample_rate": 8000}}, "sound"),
        (samples(), {"audio": {"waveform": None, "sample_rate": 8000}}, "got NoneType"),
        (samples(), {"audio": object()}, "expected sound"),
        (samples(rows=400, columns=400), {"memory": 0.1}, "expected memory of"),
        (samples(), {"fps": 0.0}, "fps must lie within"),
        (samples(), {"crf": 60}, "crf must lie within"),
    ],
)
def test_what_cannot_be_written_is_refused(latent, changes, said, host):
    with pytest.raises(ValueError, match=f"Surf Decode Video: .*{said}"):
        run(latent, **changes)
    assert list(host.iterdir()) == []


class Stops(Vae):
    """Raises at its second call."""

    def __init__(self, error):
        super().__init__()
        self.error = error

    def decode(self, latent):
        if len(self.calls) == 1:
            raise self.error
        return super().decode(latent)


@pytest.mark.parametrize("error", [KeyboardInterrupt(), RuntimeError("broken")])
def test_interrupted_or_failed_run_leaves_no_file(error, host):
    with pytest.raises(type(error)):
        run(samples(frames=2, batch=2), Stops(error))
    assert list(host.iterdir()) == []


def test_full_disk_is_said_and_what_was_written_is_removed(monkeypatch, host):
    def write(path, *args, **kwargs):
        path.write_bytes(b"half")
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(video_file, "_write", write)
    with pytest.raises(ValueError, match="expected room for the video .* No space left"):
        run(samples())
    assert list(host.iterdir()) == []


def test_inputs_stay_as_they_are():
    latent, audio = samples(), sound(2)
    before = latent["samples"].clone(), audio["waveform"].clone()
    run(latent, audio=audio)
    assert torch.equal(latent["samples"], before[0])
    assert torch.equal(audio["waveform"], before[1])


def test_frames_that_a_video_was_filled_up_with_are_left_out():
    latent = samples() | {frame_count.KEY: 15}
    assert (
        len(frames_of(run(latent)))
        == 15
        == len(SurfVAEDecode.execute(latent, Vae(), 0, 0, 0).args[0])
    )
