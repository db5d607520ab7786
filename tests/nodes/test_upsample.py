"""Previews go through a VAE of any memory: whole where it fits, else in pieces that blend."""

import pytest
import torch
from surf.nodes.host.vae import memory as pieces
from surf.nodes.host.vae import upsample
from surf.surf_core.resample import resize
from surf.surf_core.tiles import boxes
from surf.tests.nodes.vaes import Vae, memory_of_vaes

GB = 2**30


@pytest.fixture(autouse=True)
def memory(monkeypatch):
    return memory_of_vaes(monkeypatch)


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
    largest = max(call[1][0] * call[1][1] for call in pieces.calls if call[0] == "encode")
    assert largest <= 400 * 400


@pytest.mark.parametrize(
    ("budget", "expected"),
    [
        (1000 * GB, (1080, 1920)),
        (1.3 * GB, (1080, 992)),
        (0.9 * GB, (1080, 688)),
        (0.5 * GB, (576, 688)),
        (0.08 * GB, (240, 272)),
        (0.01 * GB, (240, 256)),
    ],
)
def test_the_pieces_that_fit_with_the_fewest_pixels_are_taken(memory, budget, expected):
    """The last budget fits nothing: the smallest pieces must do."""
    memory["device"], size = budget, (1080, 1920)
    limit = pieces.choose_piece(Vae(), size, 8, lambda piece: 1000 * piece[0] * piece[1])
    made = pieces.real_piece(size, limit, 8)
    assert made == expected
    assert 1000 * made[0] * made[1] <= 0.8 * budget or budget < 0.06 * GB

    def cost(limit):
        piece = pieces.real_piece(size, limit, 8)
        return len(boxes(size, limit, pieces.PIECE_OVERLAP, 8)) * piece[0] * piece[1]

    for side in range(256, 1920, 8):
        other = pieces.real_piece(size, (side, side), 8)
        if 1000 * other[0] * other[1] <= 0.8 * budget:
            assert cost(limit) <= cost((side, side)), other


def test_frames_of_the_target_exist_piece_by_piece(memory, monkeypatch):
    """481 frames at 4K: no piece may need what the whole would, 48 GB and more."""
    memory["main"], biggest = 8 * GB, []
    count, size = 481, (2160, 3840)

    def in_memory(piece):
        return upsample.HOST_COPIES * count * piece[0] * piece[1] * upsample.PIXEL_BYTES

    assert count * size[0] * size[1] * upsample.PIXEL_BYTES > 44 * GB
    limit = pieces.choose_piece(Vae(), size, 8, lambda piece: 0, in_memory)
    piece = pieces.real_piece(size, limit, 8)
    assert 0.2 * 8 * GB < in_memory(piece) <= 0.8 * 8 * GB
    made = upsample._enlarge

    def enlarge(frames, size, box, count):
        biggest.append([part.stop - part.start for part in box])
        return made(frames, size, box, count)

    monkeypatch.setattr(upsample, "_enlarge", enlarge)
    memory["device"] = 150e6
    upsample.upsample_latent(preview(1), (60, 100), "pixel", Vae())
    assert len(biggest) > 1
    assert max(rows * columns for rows, columns in biggest) * 1000 <= 0.8 * 150e6


@pytest.mark.parametrize(
    ("main", "said"), [(1e6, "the preview's frames"), (10e6, "a piece of the target's frames")]
)
def test_too_little_main_memory_is_refused_before_the_vae_encodes(memory, main, said):
    vae, memory["main"] = Vae(), main
    with pytest.raises(ValueError, match=f"^{said} need .* set upsample to latent"):
        upsample.upsample_latent(preview(2), (60, 103), "pixel", vae)
    assert not any(call[0] == "encode" for call in vae.calls)


def test_latent_upsampling_needs_no_vae_and_no_memory(memory):
    memory["main"] = memory["device"] = 0
    samples = preview()
    up = upsample.upsample_latent(samples, (45, 71), "latent")
    torch.testing.assert_close(up, resize(samples, (45, 71), "bilinear"))


def test_an_image_latent_and_a_vae_of_videos_are_refused():
    with pytest.raises(ValueError, match="a VAE of images .*; connect the VAE that belongs"):
        upsample.check_vae(Vae(), torch.ones(1, 16, 4, 6))
