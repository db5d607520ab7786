"""The tiny VAE: causal, Wan's format, and no wider view than its convolutions have."""

import pytest
import torch
from surf.surf_core.tiny import vae
from torch import nn


@pytest.fixture(scope="module")
def model():
    torch.manual_seed(0)
    return vae.TinyVAE().eval()


@pytest.mark.parametrize(("inner", "outer", "kernel"), [(3, 8, 3), (8, 16, (3, 1, 1)), (4, 6, 1)])
@pytest.mark.parametrize("frames", [1, 2, 5])
def test_causal_convolution_matches_reference(inner, outer, kernel, frames):
    conv = vae.CausalConv(inner, outer, kernel)
    plain = nn.Conv3d(inner, outer, conv.kernel_size, padding=conv.padding)
    plain.load_state_dict(conv.state_dict())
    x = torch.randn(2, inner, frames, 6, 7)
    past = nn.functional.pad(x, (0, 0, 0, 0, conv.kernel_size[0] - 1, 0))
    torch.testing.assert_close(conv(x), plain(past))


def test_encode_and_decode_are_causal(model):
    video = torch.rand(1, 3, 13, 32, 32) * 2 - 1
    with torch.no_grad():
        latent = model.encode(video)
        torch.testing.assert_close(model.encode(video[:, :, :5]), latent[:, :, :2])
        torch.testing.assert_close(model.encode(video[:, :, :1]), latent[:, :, :1])
        shown = model.decode(latent)
        torch.testing.assert_close(model.decode(latent[:, :, :2]), shown[:, :, :5])
    assert latent.shape == (1, 16, 4, 4, 4)
    assert shown.shape == video.shape


def test_fit_normalises_latents_and_keeps_pictures():
    torch.manual_seed(1)
    model = vae.TinyVAE().eval()
    video = torch.rand(2, 3, 5, 64, 64) * 2 - 1
    with torch.no_grad():
        raw = model.moments(video)[0]
        before = model.decoder(model.conv2(raw))
        every = raw.transpose(0, 1).flatten(1)
        model.fit(every.mean(dim=1), every.std(dim=1))
        latent = model.encode(video)
        torch.testing.assert_close(model.decode(latent), before, atol=1e-4, rtol=1e-4)
    flat = latent.transpose(0, 1).flatten(1)
    torch.testing.assert_close(flat.mean(dim=1), torch.zeros(16), atol=1e-4, rtol=0)
    torch.testing.assert_close(flat.std(dim=1), torch.ones(16), atol=1e-4, rtol=0)


def test_save_and_load_round_trip(model, tmp_path):
    path = tmp_path / "vae.safetensors"
    vae.save(model, path, {}, torch.float32)
    again = vae.load(path)
    video = torch.rand(1, 3, 5, 16, 16)
    with torch.no_grad():
        assert torch.equal(again.encode(video), model.encode(video))
    assert list(tmp_path.iterdir()) == [path]


def test_load_rejects_a_vae_with_attention(model, tmp_path):
    other = vae.TinyVAE()
    other.load_state_dict(model.state_dict())
    other.decoder.middle[1].proj.weight[0, 0] = 1
    vae.save(other, tmp_path / "vae.safetensors", {}, torch.float32)
    with pytest.raises(ValueError, match="no attention"):
        vae.load(tmp_path / "vae.safetensors")
    with pytest.raises(FileNotFoundError, match="restore"):
        vae.load(tmp_path / "other.safetensors")


def test_matrices_are_kernels_of_several_inputs(model):
    matrices = model.matrices()
    assert len(matrices) > 50
    assert all(p.ndim in (4, 5) and p[0].numel() > 1 for p in matrices)


@pytest.mark.parametrize("shape", [(1, 3, 4, 16, 16), (1, 3, 5, 12, 16), (1, 1, 5, 16, 16)])
def test_encode_rejects_sizes_that_make_no_whole_latent(model, shape):
    with pytest.raises(ValueError, match="expected"):
        model.encode(torch.zeros(shape))
