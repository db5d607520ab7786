"""Previews go through a VAE of any memory: whole where it fits, else in pieces that blend."""

import sys

import pytest
import torch
from surf.nodes.host import upsample
from surf.surf_core.resample import resize

GB = 2**30


class Vae:
    """Repeats cells as pixels and averages them back: whatever the pieces, the result is one."""

    latent_dim, latent_channels, device = 3, 16, torch.device("cpu")
    vae_dtype = torch.float32

    def __init__(self, cell=8):
        self.cell, self.calls = cell, []

    def spacial_compression_decode(self):
        return self.cell

    spacial_compression_encode = spacial_compression_decode

    def temporal_compression_decode(self):
        return 4

    def memory_used_decode(self, shape, dtype):
        return 1000 * shape[-1] * shape[-2] * self.cell**2

    def memory_used_encode(self, shape, dtype):
        return 1000 * shape[-1] * shape[-2]

    def decode(self, samples):
        self.calls.append(("decode", tuple(samples.shape[-2:])))
        grey = samples[:, :3].repeat_interleave(self.cell, -1).repeat_interleave(self.cell, -2)
        first, rest = grey[:, :, :1], grey[:, :, 1:].repeat_interleave(4, 2)
        return torch.cat([first, rest], 2).movedim(1, -1)

    def encode(self, frames):
        self.calls.append(("encode", tuple(frames.shape[1:3])))
        assert 0 <= frames.min() <= frames.max() <= 1
        size = [side // self.cell for side in frames.shape[1:3]]
        cells = resize(frames.movedim(-1, 1), size, "area")[::4]
        return cells[:, :1].movedim(0, 1).expand(16, -1, -1, -1)[None].clone()


@pytest.fixture(autouse=True)
def memory(monkeypatch):
    """Bytes of the device and of free main memory, which the test may set."""
    amount = {"device": 1000 * GB, "main": 1000 * GB}
    host = sys.modules["comfy.model_management"]
    monkeypatch.setattr(host, "get_total_memory", lambda device: amount["device"])
    monkeypatch.setattr(host, "get_free_memory", lambda device: amount["main"])
    return amount


def preview(frames=2, rows=20, columns=34):
    generator = torch.Generator().manual_seed(0)
    return torch.rand(1, 16, frames, rows, columns, generator=generator)


@pytest.mark.parametrize("size", [(45, 71), (40, 68), (20, 34), (60, 103)])
@pytest.mark.parametrize("bound", ["device", "main"])
def test_pieces_give_what_the_whole_gives(memory, size, bound):
    samples, whole, pieces = preview(), Vae(), Vae()
    expected = upsample.upsample_latent(samples, size, "pixel", whole)
    assert len(whole.calls) == 2
    memory[bound] = {"device": 150e6, "main": 40e6}[bound]
    got = upsample.upsample_latent(samples, size, "pixel", pieces)
    assert got.shape == (1, 16, 2, *size)
    torch.testing.assert_close(got, expected, rtol=0, atol=1e-5)
    if size != (20, 34):
        assert len([call for call in pieces.calls if call[0] == "encode"]) > 1
    largest = max(max(call[1]) for call in pieces.calls if call[0] == "encode")
    assert largest <= 512


def test_the_largest_piece_that_fits_is_taken(memory):
    vae = Vae()
    for budget, side in (
        (1000 * GB, (1080, 1920)),
        (1.3 * GB, (1024, 1024)),
        (0.4 * GB, (512, 512)),
    ):
        memory["device"] = budget

        def needed(piece):
            return 1000 * piece[0] * piece[1]

        assert upsample._largest_piece(vae, (1080, 1920), needed, lambda piece: 0, "encode") == side


def test_frames_of_the_target_exist_piece_by_piece(memory, monkeypatch):
    """481 frames at 4K: no piece may need what the whole would, 48 GB and more."""
    memory["main"], biggest = 8 * GB, []
    count, size = 481, (2160, 3840)

    def in_memory(piece):
        return upsample.HOST_COPIES * count * piece[0] * piece[1] * upsample.PIXEL_BYTES

    assert count * size[0] * size[1] * upsample.PIXEL_BYTES > 44 * GB
    piece = upsample._largest_piece(Vae(), size, lambda piece: 0, in_memory, "encode")
    assert in_memory(piece) <= 0.8 * 8 * GB
    assert piece == (512, 512)
    made = upsample._enlarge

    def enlarge(frames, size, box):
        biggest.append([part.stop - part.start for part in box])
        return made(frames, size, box)

    monkeypatch.setattr(upsample, "_enlarge", enlarge)
    memory["device"] = 150e6
    upsample.upsample_latent(preview(1), (60, 100), "pixel", Vae())
    assert max(max(sides) for sides in biggest) <= 256


@pytest.mark.parametrize(
    ("main", "said"), [(1e6, "the preview's frames"), (10e6, "a piece of the target's frames")]
)
def test_too_little_main_memory_is_refused_before_the_vae_encodes(memory, main, said):
    vae, memory["main"] = Vae(), main
    with pytest.raises(ValueError, match=f"Surf Refiner: {said} need .* set upsample to latent"):
        upsample.upsample_latent(preview(2), (60, 103), "pixel", vae)
    assert not any(call[0] == "encode" for call in vae.calls)


def test_latent_upsampling_needs_no_vae_and_no_memory(memory):
    memory["main"] = memory["device"] = 0
    samples = preview()
    up = upsample.upsample_latent(samples, (45, 71), "latent")
    torch.testing.assert_close(up, resize(samples, (45, 71), "bilinear"))
