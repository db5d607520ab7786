"""The Surf Refiner on the stub host: its path, its refusals, what it leaves alone."""

import sys

import host_stub
import pytest
import torch
from surf.nodes.host.attention.windows import WRAPPER_KEY
from surf.nodes.host.vae import upsample
from surf.nodes.refine import SurfRefiner
from surf.surf_core import flow
from surf.surf_core.lowband import lock_low_band, wavelet_match
from surf.surf_core.resample import resize

DEFAULTS = {
    "seed": 7, "resolution": "by scale", "scale": 2.0, "width": 64, "height": 64,
    "upsample": "latent", "sigma_start": 0.65, "steps": 4, "cfg": 4.5, "window": 0,
    "low_band_lock": 0.0, "colour_match": False, "vae": None,
}  # fmt: skip


class WanModel:
    patch_size = (1, 2, 2)
    ref_conv = None


class Unknown:
    patch_size = (1, 2, 2)
    ref_conv = None


class WanPatcher(host_stub.Patcher):
    def __init__(self, channels=16, **kwargs):
        super().__init__(channels, **kwargs)
        self.model.diffusion_model = WanModel()


class AveragingVae:
    """Repeats cells as pixels and averages them back; counts what it is asked for."""

    latent_dim, device, vae_dtype = 3, torch.device("cpu"), torch.float32

    def __init__(self, channels=16, cell=8, frames_lost=0):
        self.latent_channels, self.cell, self.frames_lost = channels, cell, frames_lost
        self.calls = []

    def spacial_compression_decode(self):
        return self.cell

    spacial_compression_encode = spacial_compression_decode

    def temporal_compression_decode(self):
        return 4

    def memory_used_decode(self, shape, dtype):
        return shape[-1] * shape[-2] * self.cell**2

    def memory_used_encode(self, shape, dtype):
        return shape[-1] * shape[-2]

    def decode(self, samples):
        self.calls.append(("decode", tuple(samples.shape)))
        assert samples.shape[0] == 1
        grey = samples[:, :3].repeat_interleave(self.cell, -1).repeat_interleave(self.cell, -2)
        first, rest = grey[:, :, :1], grey[:, :, 1:].repeat_interleave(4, 2)
        return torch.cat([first, rest], 2).movedim(1, -1)

    def encode(self, frames):
        self.calls.append(("encode", tuple(frames.shape)))
        assert frames.ndim == 4
        assert 0 <= frames.min() <= frames.max() <= 1
        size = [side // self.cell for side in frames.shape[1:3]]
        cells = resize(frames.movedim(-1, 1), size, "area")[::4][self.frames_lost :]
        return cells[:, :1].movedim(0, 1).expand(self.latent_channels, -1, -1, -1)[None].clone()


@pytest.fixture(autouse=True)
def memory(monkeypatch):
    """Device memory that the test may set, in bytes."""
    amount = {"total": 1e12}
    host = sys.modules["comfy.model_management"]
    monkeypatch.setattr(host, "get_total_memory", lambda device: amount["total"], raising=False)
    return amount


def latent(*shape, seed=0, **more):
    generator = torch.Generator().manual_seed(seed)
    return {"samples": torch.rand(*(shape or (1, 16, 3, 4, 6)), generator=generator), **more}


def prompt(value=0.5, **options):
    return [[torch.full((1, 4, 8), value), options]]


def run(model=None, preview=None, positive=None, negative=None, **changes):
    model, preview = model or WanPatcher(), preview or latent()
    positive, negative = positive or prompt(), negative or prompt(-0.5)
    out = SurfRefiner.execute(
        model=model, positive=positive, negative=negative, latent=preview, **(DEFAULTS | changes)
    )
    return out.args[0]


def test_the_node_is_the_cores_path():
    model, preview = WanPatcher(), latent()
    out = run(model, preview)["samples"]

    def velocity(z, sigma):
        good, bad = (model.velocity(z, sigma, cond) for cond in (0.5, -0.5))
        return bad + 4.5 * (good - bad)

    start = resize(preview["samples"], (8, 12), "bilinear")
    noise = torch.randn(start.shape, generator=torch.Generator().manual_seed(7))
    z = flow.refine(velocity, model.model.process_latent_in(start), 0.65, 4, noise)
    torch.testing.assert_close(out, model.model.process_latent_out(z), rtol=0, atol=1e-5)
    assert [step.sigma for step in model.seen] == pytest.approx([0.65, 0.4875, 0.325, 0.1625])


def test_only_a_window_puts_windows_into_the_model():
    model = WanPatcher()
    run(model)
    run(model, window=4)
    kinds = [WRAPPER_KEY in step.patcher.wrappers.get("diffusion_model", {}) for step in model.seen]
    assert kinds == 4 * [False] + 4 * [True]
    assert not model.wrappers
    assert not model.model_options


def test_the_node_is_deterministic_by_seed():
    one, two, other = (run(seed=seed)["samples"] for seed in (1, 1, 2**64 - 1))
    assert torch.equal(one, two)
    assert not torch.equal(one, other)


def test_inputs_stay_as_they_are_and_masks_follow_the_size():
    preview = latent(noise_mask=torch.ones(1, 3, 4, 6), batch_index=[0])
    before = {key: value.clone() for key, value in preview.items() if key != "batch_index"}
    frames = torch.rand(1, 32, 3, 8, 10)
    positive = prompt(vace_frames=[frames]) + prompt(area=(4, 5, 2, 0))
    out = run(preview=preview, positive=positive, low_band_lock=0.5, colour_match=True)
    assert all(torch.equal(preview[key], before[key]) for key in before)
    assert positive[0][1]["vace_frames"][0] is frames
    assert positive[1][1]["area"] == (4, 5, 2, 0)
    assert out["noise_mask"].shape == (1, 3, 8, 12)
    assert out["batch_index"] == [0]


def test_a_noise_mask_keeps_the_upsampled_preview_where_it_is_zero():
    preview, mask = latent(), torch.ones(1, 3, 4, 6)
    mask[..., :3] = 0
    out = run(preview={**preview, "noise_mask": mask})["samples"]
    start = resize(preview["samples"], (8, 12), "bilinear")
    torch.testing.assert_close(out[..., :4], start[..., :4])
    assert not torch.allclose(out[..., 8:], start[..., 8:], atol=0.1)


def test_an_item_of_a_batch_can_be_made_again_alone():
    both = latent(2, 16, 3, 4, 6, batch_index=[0, 1])
    alone = {"samples": both["samples"][1:], "batch_index": [1]}
    torch.testing.assert_close(run(preview=both)["samples"][1:], run(preview=alone)["samples"])


def test_conditioning_is_resized_from_the_size_it_was_made_for():
    model = WanPatcher()
    positive = prompt(vace_frames=[torch.rand(1, 32, 3, 16, 24)]) + prompt(area=(8, 8, 4, 0))
    run(model, positive=positive, negative=prompt(area=(8, 8, 4, 0)))
    for name in ("positive", "negative"):
        assert model.seen[0].conds[name][-1][1]["area"] == (4, 4, 2, 0)
    assert model.seen[0].conds["positive"][0][1]["vace_frames"][0].shape[-2:] == (8, 12)


@pytest.mark.parametrize("frames", [1, 2, 3])
@pytest.mark.parametrize("batch", [1, 2])
def test_pixels_go_through_the_vae_item_by_item(frames, batch):
    vae = AveragingVae()
    out = run(preview=latent(batch, 16, frames, 4, 6), upsample="pixel", vae=vae)["samples"]
    assert out.shape == (batch, 16, frames, 8, 12)
    pixel_frames = 4 * frames - 3
    assert vae.calls == batch * [
        ("decode", (1, 16, frames, 4, 6)),
        ("encode", (pixel_frames, 64, 96, 3)),
    ]


def test_pixels_keep_what_the_vae_can_show():
    flat = torch.full((1, 16, 2, 4, 6), 0.25)
    up = upsample.upsample_latent(flat, (8, 12), "pixel", AveragingVae())
    torch.testing.assert_close(up, torch.full((1, 16, 2, 8, 12), 0.25))


def test_the_lock_holds_the_first_steps_only():
    model, preview = WanPatcher(), latent()
    run(model, preview, low_band_lock=0.5)
    lock = model.seen[0].patcher.model_options["sampler_post_cfg_function"][-1]
    start = model.model.process_latent_in(resize(preview["samples"], (8, 12), "bilinear"))
    x0 = torch.rand(1, 16, 3, 8, 12)
    for step, sigma in enumerate([0.65, 0.4875, 0.325, 0.1625]):
        args = {"denoised": x0, "sigma": torch.tensor([sigma]), "model": model.model}
        expected = lock_low_band(x0, start, 2.0) if step < 2 else x0
        torch.testing.assert_close(lock(args), expected)
    assert "sampler_post_cfg_function" not in model.model_options


def test_a_lock_of_less_than_half_a_step_is_off():
    model = WanPatcher()
    run(model, low_band_lock=0.1)
    assert not any("sampler_post_cfg_function" in step.patcher.model_options for step in model.seen)


def test_colour_match_is_the_cores_wavelet_match():
    preview = latent()
    free, matched = (run(preview=preview, colour_match=on)["samples"] for on in (False, True))
    start = resize(preview["samples"], (8, 12), "bilinear")
    torch.testing.assert_close(matched, wavelet_match(free, start))


@pytest.mark.parametrize("share", [0.0, 0.25, 1.0])
def test_colours_are_matched_as_far_as_the_noise_mask_lets_change(share):
    mask = torch.ones(1, 3, 4, 6)
    mask[..., :3] = share
    preview = latent(noise_mask=mask)
    free, matched = (run(preview=preview, colour_match=on)["samples"] for on in (False, True))
    everywhere = wavelet_match(free, resize(preview["samples"], (8, 12), "bilinear"))
    assert torch.equal(matched[..., 8:], everywhere[..., 8:])
    part = free[..., :4].lerp(everywhere[..., :4], share)
    torch.testing.assert_close(matched[..., :4], part)
    assert not torch.allclose(everywhere[..., :4], free[..., :4], atol=0.01)
    if share == 0:
        assert torch.equal(matched[..., :4], free[..., :4])


def test_nan_stops_the_refinement_at_its_evaluation_and_before_it_in_a_prompt():
    model = WanPatcher(velocity=lambda x, sigma, cond: x / (sigma < 0.45) * 0 if sigma < 0.5 else x)
    with pytest.raises(ValueError, match="^Surf Refiner: .*evaluation 2 of the refinement, at"):
        run(model)
    assert len(model.seen) == 2
    model, bad = WanPatcher(), prompt()
    bad[0][0][0, 0, 0] = torch.nan
    with pytest.raises(ValueError, match="Surf Refiner: text of the positive conditioning must"):
        run(model, positive=bad)
    assert not model.seen


def test_progress_is_one_bar():
    host_stub.BARS.clear()
    run(steps=3)
    (bar,) = host_stub.BARS
    assert bar.shown == [(1, 3), (2, 3), (3, 3)]


@pytest.mark.parametrize(
    ("shape", "changes", "expected"),
    [
        ((1, 16, 3, 60, 104), {"resolution": "1080p"}, (135, 240)),
        ((1, 16, 3, 30, 52), {"resolution": "720p"}, (90, 160)),
        ((1, 16, 3, 52, 30), {"resolution": "1080p"}, (240, 135)),
        ((1, 48, 3, 15, 26), {"resolution": "1080p"}, (68, 120)),
        ((1, 16, 3, 5, 7), {"scale": 1.5}, (8, 10)),
        ((1, 16, 3, 4, 6), {"scale": 1.0}, (4, 6)),
        ((1, 16, 3, 4, 6), {"resolution": "by size", "width": 80, "height": 48}, (6, 10)),
        ((2, 16, 1, 4, 6), {}, (8, 12)),
    ],
)
def test_targets_are_snapped_to_the_model(shape, changes, expected):
    out = run(WanPatcher(shape[1]), latent(*shape), steps=1, **changes)["samples"]
    assert tuple(out.shape[-2:]) == expected
    assert out.ndim == 5


@pytest.mark.parametrize(
    ("network", "shape", "rows"),
    [(WanModel(), (1, 16, 1, 30, 52), 135), (Unknown(), (1, 16, 1, 30, 52), 136)],
)
def test_the_outputs_say_what_was_asked_for(network, shape, rows):
    model = WanPatcher()
    model.model.diffusion_model = network
    conds = {"positive": prompt(), "negative": prompt()}
    widgets = DEFAULTS | {"resolution": "1080p", "steps": 1}
    out, width, height, *_ = SurfRefiner.execute(
        model=model, latent=latent(*shape), **conds, **widgets
    ).args
    assert out["samples"].shape[-2:] == (rows, 240)
    assert (width, height) == (1920, 1080)


def test_tiles_by_hand_give_what_one_piece_gives():
    calls = []

    def velocity(x, sigma, cond):
        calls.append(tuple(x.shape[-2:]))
        return x + cond

    preview = latent(1, 16, 1, 20, 36)
    whole = run(preview=preview, steps=2)["samples"]
    tiles = run(WanPatcher(velocity=velocity), preview, steps=2, tile=320)["samples"]
    torch.testing.assert_close(tiles, whole)
    # 72 cells in three tiles, for two steps and both halves of the guidance.
    assert calls == 3 * 2 * 2 * [(40, 36)]
