"""Surf VAE Decode: whole where it fits, else in pieces; and what is said when memory runs out."""

import logging
import sys

import host_stub
import pytest
import torch
from surf.nodes.decode import SurfVAEDecode
from surf.nodes.host.vae import memory as pieces
from surf.tests.nodes.vaes import Vae, memory_of_vaes

GB = 2**30


class Tight(Vae):
    """Says that it fits and runs out above so many cells; takes tiles then, as the host does."""

    def __init__(self, cells, error=torch.cuda.OutOfMemoryError):
        super().__init__()
        self.cells, self.error = cells, error

    def decode(self, samples):
        if samples.shape[-1] * samples.shape[-2] <= self.cells:
            return super().decode(samples)
        self.calls.append(("full", tuple(samples.shape[-2:])))
        if self.error is torch.cuda.OutOfMemoryError:
            return self.decode_tiled_3d(samples)
        raise self.error("can't allocate memory")

    def decode_tiled_3d(self, samples):
        raise AssertionError("the host took its own tiles")


@pytest.fixture(autouse=True)
def memory(monkeypatch):
    return memory_of_vaes(monkeypatch)


def latent(*shape):
    return {"samples": torch.rand(*shape, generator=torch.Generator().manual_seed(0))}


def run(vae, samples, width=0, height=0, piece=0):
    return SurfVAEDecode.execute(samples, vae, width, height, piece).args[0]


def log_lines(caplog):
    return [record.getMessage() for record in caplog.records]


@pytest.mark.parametrize("batch", [1, 2])
def test_in_one_piece_it_is_what_the_vae_gives(batch, caplog):
    caplog.set_level(logging.INFO)
    samples, vae = latent(batch, 16, 3, 20, 34), Vae()
    expected = vae.decode(samples["samples"]).reshape(-1, 160, 272, 3)
    vae.calls.clear()
    got = run(vae, samples)
    assert torch.equal(got, expected)
    assert got.shape == (9 * batch, 160, 272, 3)
    assert vae.calls == [("decode", (20, 34))]
    [line] = log_lines(caplog)
    assert "Surf VAE Decode: VAE decode of 272 x 160 pixels in one piece" in line


@pytest.mark.parametrize(
    ("device", "piece", "count", "size"),
    [(0.05 * GB, 0, 2, (20, 34)), (0.1 * GB, 0, 8, (60, 100)), (1000 * GB, 192, 24, (60, 103))],
)
def test_pieces_give_what_the_whole_gives_between_0_and_1(memory, device, piece, count, size):
    memory["device"], vae = device, Vae()
    samples = latent(2, 16, 2, *size)
    samples["samples"][..., :10, :] = 1
    expected = Vae().decode(samples["samples"]).reshape(-1, size[0] * 8, size[1] * 8, 3)
    kept = samples["samples"].clone()
    got = run(vae, samples, piece=piece)
    torch.testing.assert_close(got, expected, rtol=0, atol=1e-6)
    assert 0 <= got.min() <= got.max() <= 1
    assert len(vae.calls) == count
    assert torch.equal(samples["samples"], kept)


@pytest.mark.parametrize(("rows", "columns"), [(20, 34), (40, 68), (60, 103)])
def test_white_stays_white_where_pieces_overlap(rows, columns):
    """Shares of neighbouring pieces sum to 1 but for a rounding, and savers wrap what is above."""
    got = run(Vae(), {"samples": torch.ones(1, 16, 1, rows, columns)}, piece=128)
    assert got.max() == 1
    assert got.min() > 1 - 1e-6


def test_frames_are_cropped_from_the_top_left_without_a_copy():
    samples = latent(1, 16, 2, 17, 30)
    whole, got = run(Vae(), samples), run(Vae(), samples, 232, 130)
    assert torch.equal(got, whole[:, :130, :232])
    assert got.untyped_storage().nbytes() == whole.untyped_storage().nbytes()
    assert run(Vae(), samples, height=130).shape == (5, 130, 240, 3)


def test_full_memory_halves_the_piece_and_says_so(caplog):
    vae = Tight(30 * 30)
    samples = latent(1, 16, 2, 60, 103)
    got = run(vae, samples)
    torch.testing.assert_close(got, run(Vae(), samples), rtol=0, atol=1e-6)
    assert [size for kind, size in vae.calls if kind == "full"] == [(60, 103), (34, 40)]
    assert {size for kind, size in vae.calls if kind == "decode"} == {(19, 20)}
    said = [record.getMessage() for record in caplog.records if record.levelname == "WARNING"]
    assert said == [
        "Surf VAE Decode: out of memory with 824 x 480 pixels at a time; decoding begins "
        "anew, with 320 x 272.",
        "Surf VAE Decode: out of memory with 320 x 272 pixels at a time; decoding begins "
        "anew, with 160 x 152.",
    ]


@pytest.mark.parametrize("error", [torch.cuda.OutOfMemoryError, RuntimeError])
def test_a_memory_too_small_for_the_smallest_piece_is_told(error):
    vae = Tight(0, error)
    with pytest.raises(error, match="out of memory|can't allocate"):
        run(vae, latent(1, 16, 2, 60, 103))
    assert min(rows * columns for _, (rows, columns) in vae.calls) < 20 * 20


@pytest.mark.parametrize("error", [ZeroDivisionError, RuntimeError])
def test_other_errors_pass(error):
    class BrokenVae(Vae):
        def decode(self, samples):
            self.calls.append("once")
            raise error("broken")

    vae = BrokenVae()
    with pytest.raises(error, match="broken"):
        run(vae, latent(1, 16, 2, 60, 103))
    assert vae.calls == ["once"]


def test_the_stop_button_stops_between_pieces(monkeypatch):
    class StopButton(BaseException):
        pass

    def stop():
        raise StopButton

    monkeypatch.setattr(
        sys.modules["comfy.model_management"], "throw_exception_if_processing_interrupted", stop
    )
    vae = Vae()
    with pytest.raises(StopButton):
        run(vae, latent(1, 16, 2, 20, 34))
    assert not vae.calls


def test_the_vae_stays_as_it_was():
    vae = Tight(30 * 30)
    before = dict(vars(vae))
    run(vae, latent(1, 16, 2, 40, 40))
    assert vars(vae) == before


class Owned(Vae):
    """Cuts pictures by itself, as SeedVR2's and MiniMax's do; knows one video at a time."""

    handles_tiling = True

    def decode(self, samples):
        assert len(samples) == 1, "state of the first item in the next"
        return super().decode(samples)

    def decode_tiled(self, samples, **tiles):
        self.calls.append(("tiled", tiles))
        return self.decode(samples)


def test_a_vae_that_tiles_by_itself_gets_one_video_after_the_other(memory):
    samples = latent(3, 16, 2, 40, 68)
    expected, vae = run(Vae(), samples), Owned()
    assert torch.equal(run(vae, samples), expected)
    assert vae.calls == [("decode", (40, 68))] * 3
    vae.calls.clear()
    assert torch.equal(run(vae, samples, piece=256), expected)
    tiles = ("tiled", {"tile_x": 28, "tile_y": 24, "overlap": 8})
    assert vae.calls[::2] == [tiles] * 3
    memory["main"] = 1.9 * expected.numel() * 4
    with pytest.raises(ValueError, match="of main memory"):
        run(vae, samples)


@pytest.mark.parametrize(
    ("change", "samples", "words"),
    [
        ({"width": 300}, latent(1, 16, 2, 20, 34), "272 x 160 pixels and cannot be cropped to 300"),
        ({"height": 161}, latent(1, 16, 2, 20, 34), "cannot be cropped to 272 x 161"),
        ({"width": -1}, latent(1, 16, 2, 20, 34), "width must .*got -1"),
        ({"height": -1}, latent(1, 16, 2, 20, 34), "height must .*got -1"),
        ({"piece": -16}, latent(1, 16, 2, 20, 34), "piece must .*got -16"),
        ({"piece": 112}, latent(1, 16, 2, 20, 34), "two overlaps, 128 pixels, got piece=112"),
        ({}, latent(1, 4, 2, 20, 34), "16 channels, got 4"),
        ({}, latent(1, 16, 20, 34), r"a video latent \[B, C, T, H, W\]"),
        ({}, latent(1, 16, 20), "must be"),
        ({}, latent(1, 16, 20, 34) | {"type": "audio"}, "got sound"),
    ],
)
def test_what_cannot_be_decoded_is_refused(change, samples, words):
    vae = Vae()
    with pytest.raises(ValueError, match=f"^Surf VAE Decode: .*{words}"):
        run(vae, samples, **change)
    assert not vae.calls


def joined(*parts):
    return {"samples": host_stub.latents.NestedTensor(parts)}


def test_of_video_and_audio_the_video_is_decoded():
    """LTX-2's joined latent keeps the type of its audio."""
    samples, audio = latent(1, 16, 3, 20, 34), torch.full((1, 8, 5, 16), 9.0)
    both = joined(samples["samples"], audio) | {"type": "audio"}
    assert torch.equal(run(Vae(), both), run(Vae(), samples))
    assert torch.equal(run(Vae(), both, piece=128), run(Vae(), samples, piece=128))
    assert both["samples"].unbind()[1] is audio


def test_parts_in_another_order_are_refused():
    video, audio = torch.zeros(1, 16, 2, 4, 4), torch.zeros(1, 8, 5, 16)
    with pytest.raises(ValueError, match="Surf VAE Decode: samples: .*nested parts.*LTXVConcatAV"):
        run(Vae(), joined(audio, video))


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_frames_that_are_not_finite_are_refused(value):
    """What a VAE in half precision makes; black frames otherwise."""

    class Half(Vae):
        def decode(self, samples):
            decoded = super().decode(samples)
            decoded[0, -1, 3, 4, 1] = value
            return decoded

    with pytest.raises(ValueError, match="Surf VAE Decode: the frames that the VAE .*--fp32-vae"):
        run(Half(), latent(1, 16, 2, 20, 34))


def test_a_vae_of_pictures_decodes_a_batch_and_the_first_frame_of_a_video():
    vae = Vae()
    vae.latent_dim = 2
    vae.temporal_compression_decode = lambda: None
    vae.decode = lambda x: x[:, :3].repeat_interleave(8, -1).repeat_interleave(8, -2).movedim(1, -1)
    samples = latent(2, 16, 20, 34)
    assert run(vae, samples).shape == (2, 160, 272, 3)
    assert torch.equal(run(vae, {"samples": samples["samples"][:, :, None]}), run(vae, samples))
    near = run(vae, samples, piece=128) - run(vae, samples)
    assert near.abs().max() < 1e-6


def test_a_piece_is_at_least_two_overlaps_for_every_vae():
    for cell in (8, 16, 32):
        vae = Vae(cell)
        run(vae, latent(1, 16, 1, 20, 34), piece=2 * pieces.PIECE_OVERLAP)
        assert len(vae.calls) > 1
