"""The network on pixels: it starts as pixel detail, and its file is read strictly."""

import json

import pytest
import torch
from surf.surf_core.header import read_header
from surf.surf_core.skip import down_up, pixel_detail
from surf.surf_core.skip import pixel_net as nets
from surf.surf_core.tiny.model import WEIGHTS as OTHER
from surf.surf_core.training.mask import auc
from surf.surf_core.training.tiny.paint import paint
from surf.surf_core.training.tiny.world import draw

TIMES = torch.linspace(-0.5, 0.5, 13)[:5]


@pytest.fixture(scope="module")
def sharp():
    """[1, 3, 5, 128, 128] in 0..1."""
    return paint(draw(5, torch.arange(1)), TIMES, 128) / 2 + 0.5


@pytest.fixture(scope="module")
def small(sharp):
    return torch.nn.functional.avg_pool3d(sharp, (1, 4, 4))


@pytest.fixture(scope="module")
def shipped():
    return nets.load()


@pytest.mark.parametrize("pixels", [True, False])
@pytest.mark.parametrize(
    ("size", "cell", "patch"),
    [
        ((128, 128), (4, 8), (1, 2, 2)),
        ((128, 128), (4, 16), (1, 2, 2)),
        ((128, 128), (1, 4), (1, 2, 2)),
        ((120, 104), (4, 8), (1, 2, 2)),
    ],
)
def test_a_fresh_network_is_pixel_detail(pixels, size, cell, patch, small):
    found = nets.PixelNet(pixels).scores(small, size, 4.0, cell=cell, patch=patch)
    expected = pixel_detail(small, size, 4.0, cell=cell, patch=patch)
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)


def test_the_shipped_network_is_small_and_names_what_it_was_trained_on():
    assert nets.WEIGHTS.stat().st_size < 1_000_000
    notes = json.loads(read_header(nets.WEIGHTS).metadata["surf.notes"])
    assert len(notes["videos"]) > 70
    assert "footage_net" in notes["command"]
    page = nets.WEIGHTS.with_name("README.md").read_text(encoding="utf-8")
    assert "MIT" in page


@pytest.mark.parametrize("ratio", [2, 3, 4, 6])
def test_the_shipped_network_ranks_tokens_of_drawn_scenes(ratio, sharp, shipped):
    """On what it was not trained on: above .9, as pixel detail."""
    side = 128 // ratio * ratio
    sharp = sharp[..., :side, :side]
    error = (2 * (sharp - down_up(sharp, ratio))).square().mean(dim=1)
    tokens = torch.nn.functional.avg_pool2d(error[..., :112, :112], 16).sqrt()
    low = torch.nn.functional.avg_pool3d(sharp, (1, ratio, ratio))
    found = shipped.scores(low, (side, side), float(ratio), cell=(1, 8))[..., :7, :7]
    must = tokens.flatten() >= tokens.median()
    assert auc(found.flatten(), must) > 0.9
    assert found.isfinite().all()
    assert found.min() >= 0


def test_frames_of_a_token_count_by_their_largest_and_samples_apart(small, shipped):
    both = torch.cat([small, small.flip(-1)])
    found = shipped.scores(both, (128, 128), 4.0, cell=(4, 8))
    assert found.shape == (2, 2, 8, 8)
    every = shipped.scores(small, (128, 128), 4.0, cell=(1, 8))[0]
    torch.testing.assert_close(found[0, 1], every[1:].amax(dim=0))
    torch.testing.assert_close(found[:1], shipped.scores(small, (128, 128), 4.0, cell=(4, 8)))


def test_scores_are_finite_on_pictures_of_every_kind_and_do_not_mutate_them(shipped):
    noise = torch.rand(1, 3, 1, 16, 16, generator=torch.Generator().manual_seed(0))
    for frames in (torch.zeros_like(noise), torch.ones_like(noise), noise.round(), noise):
        before = frames.clone()
        found = shipped.scores(frames, (64, 64), 64.0, cell=(1, 8))
        assert found.isfinite().all()
        assert torch.equal(frames, before)


def test_tokens_smaller_than_a_cell_are_refused(small, shipped):
    with pytest.raises(ValueError, match="multiples of 8 pixels.*detail"):
        shipped.scores(small, (128, 128), 4.0, cell=(4, 2))
    with pytest.raises(ValueError, match="pass all frames"):
        shipped.scores(small[:, :, :4], (128, 128), 4.0, cell=(4, 8))


def test_files_round_trip_and_others_are_refused(tmp_path):
    torch.manual_seed(1)
    net = nets.PixelNet()
    net.head.weight.data.normal_()
    nets.save(tmp_path / "a.safetensors", net.state_dict(), {"a": 1})
    again = nets.load(tmp_path / "a.safetensors")
    assert not again.training
    for name, weight in net.state_dict().items():
        assert torch.equal(again.state_dict()[name], weight)
    with pytest.raises(ValueError, match="no network on pixels"):
        nets.load(OTHER)
    fewer = {name: w for name, w in net.state_dict().items() if name != "head.bias"}
    nets.save(tmp_path / "b.safetensors", fewer, {})
    with pytest.raises(ValueError, match=r"do not fit, 1 keys: .*head\.bias"):
        nets.load(tmp_path / "b.safetensors")
    net.head.weight.data[0] = float("nan")
    with pytest.raises(ValueError, match="finite|NaN"):
        nets.save(tmp_path / "c.safetensors", net.state_dict(), {})
