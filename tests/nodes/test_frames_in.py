"""Frames in place of a latent, or beside it: enlarged, taken as they are, filled up, refused."""

import logging
import sys

import pytest
import torch
from surf.nodes.decode import SurfVAEDecode
from surf.nodes.host.skip import SkipMask
from surf.nodes.refine import SurfRefiner
from surf.surf_core.resample import resize
from surf.surf_core.skip import choose
from surf.tests.nodes.test_refine import DEFAULTS, AveragingVae, WanPatcher, latent, prompt


class Encoding(AveragingVae):
    """Keeps what it is handed to encode, in a list that copies of it share."""

    def __init__(self):
        super().__init__()
        self.handed = []

    @property
    def seen(self):
        return self.handed[-1]

    def encode(self, frames):
        self.handed.append(frames.clone())
        return super().encode(frames)


@pytest.fixture(autouse=True)
def memory(monkeypatch):
    host = sys.modules["comfy.model_management"]
    amount = {"main": 2**40}
    monkeypatch.setattr(host, "get_free_memory", lambda *device: amount["main"])
    monkeypatch.setattr(host.psutil, "swap_memory", lambda: type("Swap", (), {"free": 0}))
    return amount


def video(count=9, rows=32, columns=48, channels=3, seed=3):
    generator = torch.Generator().manual_seed(seed)
    return torch.rand(count, rows, columns, channels, generator=generator)


def refine(image=None, preview=None, model=None, **changes):
    given = DEFAULTS | {"vae": Encoding(), "sigma_start": 0.01, "steps": 1, "cfg": 1.0} | changes
    model = model or WanPatcher()
    return SurfRefiner.execute(
        model=model, positive=prompt(), negative=prompt(), latent=preview, image=image, **given
    ).args


def frames_seen(**given):
    vae = Encoding()
    out = refine(vae=vae, **given)
    return vae.seen, out


def test_smaller_frames_are_enlarged_to_the_target():
    image = video()
    before = image.clone()
    seen, (out, width, height, *_) = frames_seen(image=image)
    assert (width, height) == (96, 64)
    assert out["samples"].shape == (1, 16, 3, 8, 12)
    large = resize(image.movedim(-1, 1), (64, 96), "bicubic").clamp(0, 1).movedim(1, -1)
    assert torch.equal(seen, large)
    assert torch.equal(image, before)
    assert "surf_frames" not in out


def test_frames_of_the_target_are_taken_as_they_are():
    image = video(rows=64, columns=96)
    seen, (out, width, height, *_) = frames_seen(
        image=image, resolution="by size", width=96, height=64
    )
    assert torch.equal(seen, image)
    assert (width, height) == (96, 64)
    seen, _ = frames_seen(image=image, scale=1.0)
    assert torch.equal(seen, image)


def test_what_the_model_needs_more_repeats_the_edge_and_is_cropped():
    image = video(rows=60, columns=90)
    seen, (out, width, height, *_) = frames_seen(image=image, scale=1.0)
    assert (width, height) == (90, 60)
    assert seen.shape == (9, 64, 96, 3)
    assert torch.equal(seen[:, :60, :90], image)
    assert torch.equal(seen[:, 60:, :90], image[:, 59:].expand(-1, 4, -1, -1))
    assert torch.equal(seen[:, :60, 90:], image[:, :, 89:].expand(-1, -1, 6, -1))
    decoded = SurfVAEDecode.execute(out, Encoding(), width, height, 0).args[0]
    assert decoded.shape == (9, 60, 90, 3)


@pytest.mark.parametrize(("count", "held"), [(1, 1), (2, 5), (5, 5), (7, 9), (10, 13), (12, 13)])
def test_any_count_is_filled_up_and_cut_again(count, held, caplog):
    caplog.set_level(logging.INFO)
    image = video(count)
    seen, (out, width, height, *_) = frames_seen(image=image, scale=1.0)
    assert len(seen) == held
    assert torch.equal(seen[:count], image)
    assert torch.equal(seen[count:], image[-1:].expand(held - count, -1, -1, -1))
    assert (f"{count} frames are filled up to the VAE's {held}" in caplog.text) == (held > count)
    decoded = SurfVAEDecode.execute(out, Encoding(), width, height, 0).args[0]
    assert len(decoded) == count


def test_a_count_of_another_length_is_passed_over():
    out = refine(video(7))[0]
    cut = out | {"samples": out["samples"][:, :, :2]}
    assert len(SurfVAEDecode.execute(cut, Encoding(), 0, 0, 0).args[0]) == 5


def test_frames_beside_a_latent_take_the_place_of_its_upsampled_preview():
    preview = latent(noise_mask=torch.ones(1, 3, 4, 6), batch_index=[0])
    for rows, columns in ((32, 48), (64, 96)):
        image = video(9, rows, columns)
        vae = Encoding()
        out = refine(image, preview, vae=vae)[0]
        assert [kind for kind, _ in vae.calls] == ["encode"]
        assert vae.seen.shape == (9, 64, 96, 3)
        assert torch.equal(vae.seen, image) == (rows == 64)
        assert out["noise_mask"].shape[-2:] == (8, 12)


def test_the_lock_of_the_low_band_keeps_what_the_latent_shows():
    image = video(9, 64, 96)
    assert refine(image, latent(), low_band_lock=1.0)[0]["samples"].isfinite().all()
    with pytest.raises(ValueError, match="a preview of the target's size; set it to 0"):
        refine(image, low_band_lock=0.4, scale=1.0)


@pytest.mark.parametrize(
    ("image", "preview", "words"),
    [
        (video(8), latent(), None),
        (video(4), latent(), "image of 9 frames, which the latent makes, got 4"),
        (video(10), latent(), "image of 9 frames, which the latent makes, got 10"),
        (video(10000, 8, 8), latent(), "latent's 48 x 32 pixels or of the target's 96 x 64"),
        (video(9, 48, 72), latent(), "got 72 x 48; scale it to the target with Upscale Image"),
        (video(9, 16, 24), latent(), "got 24 x 16; scale it"),
        (video(9, 128, 192), latent(), "got 192 x 128; scale it"),
        (video(18), latent(2, 16, 3, 4, 6), None),
        (video(17), latent(2, 16, 3, 4, 6), "image of 18 frames"),
        (None, None, "got neither a latent nor an image"),
        (video(channels=4), None, "Split Image with Alpha takes the fourth channel off"),
        (video(channels=1), None, "Convert Mask to Image makes three of one"),
        (torch.zeros(0, 32, 48, 3), None, "expected RGB"),
        (video() / 0, None, "image must be finite"),
    ],
)
def test_frames_that_do_not_fit_are_refused_before_anything_runs(image, preview, words):
    model, vae = WanPatcher(), Encoding()
    if words is None:
        assert refine(image, preview, model, vae=vae)[0]["samples"].isfinite().all()
        return
    with pytest.raises(ValueError, match=f"^Surf Refiner: .*{words}"):
        refine(image, preview, model, vae=vae)
    assert not vae.calls
    assert not model.seen


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"vae": None}, "an image is encoded, which needs a VAE, got none"),
        ({"vae": AveragingVae(channels=48)}, "latent channels, got one with 48"),
        ({"resolution": "by size", "width": 48, "height": 16}, "must not be below the preview's"),
        ({"start_image": video(1)}, "got one that keeps 0"),
    ],
)
def test_settings_that_do_not_fit_frames_are_refused_before_anything_runs(changes, words):
    model = WanPatcher()
    with pytest.raises(ValueError, match=f"^Surf Refiner: .*{words}"):
        refine(video(), model=model, **changes)
    assert not model.seen


def test_frames_too_many_for_the_main_memory_are_refused_before_anything_runs(memory):
    memory["main"] = 10e6
    model, vae = WanPatcher(), Encoding()
    image = torch.zeros(1, 32, 48, 3).expand(10000, -1, -1, -1)
    with pytest.raises(ValueError, match="a piece of the target's frames need .* fewer frames"):
        refine(image, model=model, vae=vae)
    assert not vae.calls
    assert not model.seen


def test_a_mask_of_other_frames_is_refused():
    tokens = torch.zeros(1, 2, 4, 6)
    mask = choose(tokens, source="test", keep=1.0)
    skip = SkipMask(mask=mask, size=(8, 12), upsampled=torch.zeros(1, 16, 2, 8, 12),
                    upsample="pixel", samples=torch.zeros(1, 16, 2, 4, 6))  # fmt: skip
    model = WanPatcher()
    with pytest.raises(ValueError, match=r"^Surf Refiner: .*mask"):
        refine(video(9), model=model, mask=skip)
    assert not model.seen


def test_a_latent_of_the_targets_size_is_taken_as_it_is():
    vae, preview = Encoding(), latent()
    out = refine(preview=preview, vae=vae, upsample="pixel", scale=1.0)[0]
    assert not vae.calls
    start = resize(preview["samples"], (4, 6), "bilinear")
    assert (out["samples"] - start).abs().max() < 0.1
    odd = latent(1, 16, 3, 5, 7)
    _, width, height, *_ = refine(preview=odd, upsample="latent", scale=1.0)
    assert (width, height) == (56, 40)
