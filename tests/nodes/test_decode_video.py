"""Surf Decode Video: frames of Surf VAE Decode in a file, with sound, in bounded memory."""

import logging
import multiprocessing
import resource
import sys
from math import pi
from pathlib import Path

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

GB, NAN = 2**30, float("nan")
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
    """Each channel a tone of its own; all below the limit of a channel of bass."""
    pitch = torch.arange(1, channels + 1) * 12
    wave = torch.sin(torch.arange(int(seconds * rate)) / rate * 2 * pi * pitch[:, None]) / 2
    return {"waveform": wave[None], "sample_rate": rate}


def sound_of(path):
    """The layout, the rate and the samples [C, N] of a file."""
    with av.open(path) as container:
        [stream] = container.streams.audio
        packed = av.AudioResampler(format="flt", layout=stream.layout.name)
        parts = [part.to_ndarray() for frame in container.decode(audio=0)
                 for part in packed.resample(frame)]  # fmt: skip
        wave = np.concatenate(parts, 1).reshape(-1, stream.channels).T
        return stream.layout.name, stream.rate, torch.from_numpy(wave.copy())


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
        assert {name: int(getattr(context, name)) for name in video_file.COLOUR} == {
            "color_primaries": 1, "color_trc": 13, "colorspace": 1, "color_range": 1,
        }  # fmt: skip


def test_videos_of_a_batch_follow_one_another_and_a_crop_keeps_the_top_left():
    latent = samples(frames=2, batch=2)
    got = frames_of(run(latent, width=80, height=48))
    expected = SurfVAEDecode.execute(latent, Vae(), 80, 48, 0).args[0]
    assert got.shape == expected.shape == (10, 48, 80, 3)


@pytest.mark.parametrize(
    ("seconds", "expected", "said"),
    [
        (5.0, 17 / 16, "5.00 s of sound for 1.06 s of frames, cut"),
        (0.5, 0.5, "0.50 s of sound for 1.06 s of frames, silent at the end"),
        (1.1, 17 / 16, ""),
    ],
)
def test_sound_is_kept_and_cut_to_the_frames_and_that_is_said(seconds, expected, said, caplog):
    shown = []
    with caplog.at_level(logging.WARNING), pytest.MonkeyPatch.context() as patch:
        patch.setattr(video_file, "show_status", shown.append)
        _, rate, wave = sound_of(run(samples(), audio=sound(seconds)))
    assert wave.shape[1] / rate == pytest.approx(expected, abs=2 * 1024 / 8000)
    assert (said in caplog.text) if said else not caplog.records
    assert shown[-1] == "encoded 17 frames" + (f"; {said}" if said else "")
    assert shown[-2] == "encoded 17/17 frames"


@pytest.mark.parametrize(
    ("channels", "layout"),
    [(1, "mono"), (2, "stereo"), (3, "3.0"), (4, "quad"), (5, "5.0"), (6, "5.1"), (8, "7.1")],
)
def test_every_channel_is_kept_in_its_place(channels, layout):
    given = sound(4.0, rate=16000, channels=channels)
    name, rate, wave = sound_of(run(samples(frames=17), audio=given))
    assert (name, rate, len(wave)) == (layout, 16000, channels)
    heard, said = wave[:, 4096:36864].double(), given["waveform"][0, :, 4096:36864].double()
    pitch = [float(torch.fft.rfft(x).abs().argmax()) / 2.048 for x in (*heard, *said)]
    assert pitch[:channels] == pytest.approx(pitch[channels:], abs=0.5)
    assert (heard.std(1) / said.std(1)).sub(1).abs().max() < 0.1


@pytest.mark.parametrize(("rate", "expected"), [(9000, 11025), (44100, 44100), (192000, 96000),
                                                (37800.0, 44100), (100, 7350)])  # fmt: skip
def test_rates_that_aac_lacks_are_resampled_and_that_is_said(rate, expected, caplog):
    with caplog.at_level(logging.INFO):
        _, got, wave = sound_of(run(samples(), audio=sound(17 / 16, rate)))
    assert got == expected
    assert wave.shape[1] / got == pytest.approx(17 / 16, abs=2 * 1024 / got + 0.02)
    assert ("resampled from" in caplog.text) == (rate != expected)


def test_the_first_of_several_sounds_is_taken_and_that_is_said(caplog):
    both = {"waveform": torch.cat([sound(1.0)["waveform"], torch.zeros(1, 2, 8000)])}
    _, _, wave = sound_of(run(samples(), audio=both | {"sample_rate": 8000}))
    assert wave.std() > 0.3
    assert "sound of 2 videos; the first is taken" in caplog.text


def test_all_frames_that_fit_the_memory_are_decoded_at_once():
    stream = streamed(Vae(), samples(), GB)
    assert (stream.stream.latent_frames, stream.stream.rows, stream.stream.work) == (5, 64, 1)
    [block] = stream.blocks(0)
    expected = SurfVAEDecode.execute(samples(), Vae(), 0, 0, 0).args[0]
    assert torch.equal(block, expected.mul(255).clamp(0, 255).byte())


@pytest.mark.parametrize("share", [0.3, 0.5, 0.7])
def test_bands_and_stretches_join_to_the_same_frames(share, caplog):
    """This VAE forgets nothing, so that every cut gives the same frames but for a rounding."""
    latent = samples(frames=33, rows=80, columns=4)
    whole = streamed(Vae(), latent, 1000 * GB)
    cut = streamed(Vae(), latent, share * whole.stream.memory)
    assert cut.stream.memory <= share * whole.stream.memory
    assert cut.stream.work > 1
    with caplog.at_level(logging.INFO):
        blocks = list(cut.blocks(0))
    assert f"{4 * cut.stream.latent_frames - 3} of 129 frames and" in caplog.text
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
        (
            samples(rows=8),
            {"width": 81},
            "width must be even, as H.264 needs, got 81; set width to",
        ),
        (samples(rows=8), {"height": 63}, "height must be even, as H.264 needs, got 63; set"),
        (samples(rows=8), {"width": 800}, "cannot be cropped to 800 x 64"),
        (samples(), {"audio": {"waveform": torch.zeros(2, 100), "sample_rate": 8000}}, "sound"),
        (samples(), {"audio": {"waveform": None, "sample_rate": 8000}}, "got NoneType"),
        (samples(), {"audio": object()}, "expected sound"),
        (samples(), {"audio": sound(1) | {"waveform": torch.zeros(1, 2, 0)}}, "expected sound"),
        (samples(), {"audio": sound(1) | {"waveform": torch.ones(1, 2, 9, dtype=int)}}, "sound"),
        (samples(), {"audio": sound(1) | {"sample_rate": -8000}}, "got .* at -8000; connect"),
        (samples(), {"audio": sound(1) | {"sample_rate": 8000.5}}, "got .* at 8000.5; connect"),
        (samples(), {"audio": sound(1) | {"sample_rate": NAN}}, "got .* at nan; connect"),
        (samples(), {"audio": sound(1) | {"sample_rate": 2**40}}, "sample_rate of 1 to 1000000"),
        (samples(), {"audio": sound(1, channels=7)}, "1, 2, 3, 4, 5, 6, 8 channels.* got 7; mix"),
        (samples(), {"audio": sound(1, channels=9)}, "got 9; mix it down"),
        (
            samples(),
            {"audio": {"waveform": torch.full((1, 2, 99), NAN), "sample_rate": 8000}},
            "the sound must be finite",
        ),
        (
            samples(),
            {"audio": {"waveform": torch.full((1, 2, 99), -1e999), "sample_rate": 8000}},
            "the sound must be finite",
        ),
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


class Transparent(Vae):
    def decode(self, latent):
        return torch.cat([super().decode(latent)] * 2, -1)[..., :4]


def test_frames_with_transparency_are_refused(host):
    with pytest.raises(ValueError, match="red, green and blue, got 4 values a pixel.* Save WEBM"):
        run(samples(), Transparent())
    assert list(host.iterdir()) == []


@pytest.mark.skipif(sys.platform == "win32", reason="limits the size of files")
@pytest.mark.parametrize("room", [0, 20_000, 100_000])
def test_full_disk_is_said_and_what_was_written_is_removed(host, room):
    """The kernel refuses to let a file grow, as it does on a full disk."""
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (room, limits[1]))
    try:
        with pytest.raises(
            ValueError, match="Video: expected to write .*surf_.* got: File too lar"
        ):
            run(samples(frames=17, rows=40, columns=40), NoisyVae())
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert list(host.iterdir()) == []


class NoisyVae(Vae):
    """Decodes what a codec cannot make small."""

    def decode(self, latent):
        frames = super().decode(latent)
        return torch.rand(frames.shape, generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize("kind", ["a file", "read-only", "below a file"])
def test_a_folder_that_cannot_be_written_is_said(kind, host, monkeypatch, tmp_path_factory):
    folder = tmp_path_factory.mktemp("other") / "temp"
    if kind == "read-only":
        if not Path("/proc/self").exists():
            pytest.skip("needs a folder that even root cannot write")
        folder = Path("/proc/self")
    else:
        folder.write_text("in the way")
    if kind == "below a file":
        folder = folder / "temp"
    monkeypatch.setattr(sys.modules["folder_paths"], "get_temp_directory", lambda: str(folder))
    with pytest.raises(ValueError, match="Video: expected to write .*temp.*--temp-directory"):
        run(samples())


def test_a_pyav_without_the_encoder_is_said(monkeypatch, host):
    monkeypatch.setattr(av, "codecs_available", {"aac"})
    with pytest.raises(ValueError, match="expected a PyAV with libx264, got"):
        run(samples())


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
