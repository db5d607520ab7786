"""Decoding in stretches of time: as long as fit, with no jump where they join."""

import logging
import re
import sys

import pytest
import torch
from surf.nodes.host.vae import decoding
from surf.nodes.host.vae.decoding import Decoding
from surf.tests.nodes.vaes import Forgetful, forget, jump

GB = 2**30


@pytest.fixture(autouse=True)
def device(monkeypatch):
    """Bytes of the device, which the test may set."""
    amount = {"bytes": 1000 * GB}
    host = sys.modules["comfy.model_management"]
    monkeypatch.setattr(host, "get_total_memory", lambda device: amount["bytes"])
    return amount


def ramp(frames, rows=20, columns=34):
    """A video that brightens by the same amount from frame to frame, and that amount."""
    values = torch.linspace(0.1, 0.8, frames).view(1, 1, -1, 1, 1)
    return values.expand(1, 16, frames, rows, columns).clone(), 0.7 / (4 * (frames - 1))


def holding(device, vae, samples, latent_frames, piece):
    """Set the device so that pieces of this size hold so many latent frames."""
    needed = Decoding(vae, samples).needed(piece, latent_frames)
    device["bytes"] = (needed + 1) / decoding.USABLE_MEMORY


@pytest.mark.parametrize("latent_frames", [8, 12, 16, 24])
def test_brightness_goes_on_where_stretches_join(device, latent_frames, caplog):
    samples, slope = ramp(41)
    vae = Forgetful()
    holding(device, vae, samples, latent_frames, (160, 272))
    caplog.set_level(logging.INFO)
    frames = Decoding(vae, samples).decode(272)
    assert frames.shape == (161, 160, 272, 3)
    longest = 1 + 4 * (max(shape[0] for _, shape in vae.calls) - 1)
    assert f"stretches of {longest} of 161 frames." in caplog.text
    assert {shape[0] for _, shape in vae.calls} <= set(range(8, latent_frames + 1))
    assert jump(frames, slope) < 1.02
    torch.testing.assert_close(frames[24:], forget(samples, 8)[0].permute(1, 2, 3, 0)[24:])


def test_a_join_is_seen_without_enough_overlap(device, monkeypatch):
    """The measure above sees what one shared latent frame in four leaves."""
    monkeypatch.setattr(decoding, "REACH", 1)
    samples, slope = ramp(41)
    vae = Forgetful()
    holding(device, vae, samples, 8, (160, 272))
    assert jump(Decoding(vae, samples).decode(272), slope) > 3


def test_history_that_fades_exponentially_is_hidden_as_well(device):
    samples, slope = ramp(41)
    vae = Forgetful()
    vae.linear = False
    holding(device, vae, samples, 16, (160, 272))
    assert jump(Decoding(vae, samples).decode(272), slope) < 1.05


def test_stretches_are_as_long_as_fit(device):
    vae = Forgetful()
    for frames in (5, 6, 7, 8, 13, 30):
        samples = torch.zeros(1, 16, frames, 20, 34)
        for fitting in range(4, frames + 1):
            holding(device, vae, samples, fitting, (160, 272))
            assert Decoding(vae, samples).at_a_time((160, 272)) == fitting


def test_pieces_get_smaller_before_stretches_get_too_short(device, caplog):
    caplog.set_level(logging.INFO)
    samples, slope = ramp(21, 60, 100)
    whole, vae = (480, 800), Forgetful()
    holding(device, vae, samples, 3, whole)
    frames = Decoding(vae, samples).decode(800)
    assert {shape[0] for _, shape in vae.calls} <= set(range(8, 22))
    assert max(rows * columns for _, (_, rows, columns) in vae.calls) < 60 * 100 / 2
    assert jump(frames, slope) < 1.02
    assert not [record for record in caplog.records if record.levelname == "WARNING"]


def test_too_short_stretches_are_warned_about(device, caplog):
    samples, _ = ramp(21, 20, 34)
    vae = Forgetful()
    holding(device, vae, samples, 5, (160, 256))
    Decoding(vae, samples).decode(0)
    said = [record.getMessage() for record in caplog.records if record.levelname == "WARNING"]
    assert len(said) == 1
    assert re.search(r"holds (17|21|25) frames at a time; brightness may jump", said[0])


def test_pieces_of_all_frames_come_first(device):
    samples, vae = torch.zeros(1, 16, 21, 60, 100), Forgetful()
    holding(device, vae, samples, 21, (256, 272))
    Decoding(vae, samples).decode(0)
    assert {shape[0] for _, shape in vae.calls} == {21}


@pytest.mark.parametrize("ratio", [(lambda n: max(1, (n - 2) // 5 * 17 + 5), 8, 8), None])
def test_time_is_cut_only_where_a_latent_frame_makes_as_many_frames_anywhere(device, ratio):
    """MiniMax H3 makes 17 frames of 5 latent ones; every other VAE n of each but the first."""
    samples, vae = torch.zeros(1, 16, 12, 20, 34), Forgetful()
    if ratio is not None:
        vae.upscale_ratio = ratio
    device["bytes"] = 1000
    assert Decoding(vae, samples).at_a_time((160, 272)) == (4 if ratio is None else 12)


def test_a_network_that_needs_no_less_for_fewer_frames_gets_all(device):
    samples, vae = torch.zeros(1, 16, 12, 20, 34), Forgetful()
    vae.memory_used_decode = lambda shape, dtype: GB
    device["bytes"] = 1000
    assert Decoding(vae, samples).at_a_time((160, 272)) == 12


def test_stretches_stay_short_when_memory_ran_out(device, monkeypatch):
    """An estimate that was wrong once must not make stretches longer for smaller pieces."""
    samples, vae = torch.zeros(1, 16, 21, 60, 100), Forgetful()
    holding(device, vae, samples, 10, (480, 800))
    real, sizes = vae.decode, []

    def decode(samples):
        sizes.append(tuple(samples.shape[-3:]))
        if samples.shape[-2] * samples.shape[-1] > 2500:
            raise torch.cuda.OutOfMemoryError("CUDA out of memory")
        return real(samples)

    vae.decode = decode
    assert Decoding(vae, samples).decode(800).shape == (81, 480, 800, 3)
    assert sizes[0][1:] == (60, 100)
    assert 8 <= max(frames for frames, _, _ in sizes) <= 10
