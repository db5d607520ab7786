"""Surf Skip Mask on the stub host: its choice, what it shows and what it tells."""

import host_stub_api
import pytest
import torch
import torch.nn.functional as F
from surf.nodes.host.models import TARGETS
from surf.nodes.host.refiner import TinyFormat
from surf.nodes.host.skip.report import DIMMED, TINT, TINTED, picture, rough
from surf.nodes.refine import SurfRefiner
from surf.nodes.skip import SurfSkipMask
from surf.nodes.tiny import SurfTinyModels
from surf.nodes.types import SkipMask, SurfMask
from surf.surf_core import cost
from surf.surf_core.resample import resize
from surf.surf_core.skip import choose, detail, packing, pixel_detail, pixel_net, weight
from surf.surf_core.training.live_bytes import LiveBytes

from .skip_node import (
    DEFAULTS,
    FULL_SIZE,
    CellVae,
    Unpriced,
    WanModel,
    latent,
    run,
    shown,
    wan,
)


@pytest.fixture(scope="module")
def given():
    return SurfTinyModels.execute().args


def test_the_mask_is_the_cores_choice_from_the_enlarged_preview(given, tolerance):
    _, refiner, vae, _ = given
    made, ratio, _, _ = run(refiner, preview := shown(), vae=vae, **FULL_SIZE)
    assert isinstance(made, SkipMask)
    assert (made.size, made.upsample, made.mask.grid) == ((32, 32), "pixel", (4, 16, 16))
    assert torch.equal(made.samples, preview["samples"])
    frames = vae.decode(preview["samples"]).movedim(-1, 1)
    large = resize(frames[0].movedim(0, 1), (256, 256), "bicubic").clamp(0, 1)
    expected = vae.encode(large.movedim(1, -1))
    torch.testing.assert_close(made.upsampled, expected, atol=10 * tolerance[torch.float32], rtol=0)
    scores = pixel_net.load().scores(frames, (256, 256), 4.0, cell=(4, 8))
    assert torch.equal(made.mask.tokens, choose(scores, keep=0.5, source="").tokens)
    assert ratio == made.mask.keep_ratio
    assert 0.5 <= ratio < 0.75


def test_without_weights_detail_finds_the_busy_half(given):
    tokens = run(given[1], shown(), vae=given[2], scale=4.0)[0].mask.tokens
    assert tokens[..., 8:].float().mean() > 0.9
    assert tokens[..., :7].float().mean() < 0.1


@pytest.mark.parametrize("upsample", ["pixel", "latent"])
@pytest.mark.parametrize("size", [(64, 96), (56, 72)])
def test_where_there_are_frames_their_pixels_score(upsample, size):
    preview, wanted = latent(2, 16, 3, 4, 6), {"resolution": "by size", "upsample": upsample}
    wanted |= {"height": size[0], "width": size[1]}
    made = run(preview=preview, vae=CellVae(), **wanted)[0]
    frames = CellVae().decode(preview["samples"]).movedim(-1, 1)
    ratio = (size[0] * size[1] / (32 * 48)) ** 0.5
    expected = pixel_detail(frames, size, ratio, cell=(4, 8)).amax(dim=0)
    torch.testing.assert_close(made.mask.scores, expected)
    assert made.mask.source == "pixel detail"
    assert run(preview=preview, keep=0.5)[0].mask.source == "detail"


@pytest.mark.parametrize("upsample", ["pixel", "latent"])
def test_the_network_on_pixels_scores_the_frames_of_any_model(upsample):
    wanted = {"resolution": "by size", "upsample": upsample, "height": 64, "width": 96}
    preview = latent(2, 16, 3, 4, 6)
    made = run(preview=preview, vae=CellVae(), predictor="footage", **wanted)[0]
    frames = CellVae().decode(preview["samples"]).movedim(-1, 1)
    expected = pixel_net.load().scores(frames, (64, 96), 2.0, cell=(4, 8)).amax(dim=0)
    torch.testing.assert_close(made.mask.scores, expected)
    assert made.mask.source == "network on pixels"
    plain = run(preview=preview, vae=CellVae(), **wanted)[0]
    assert not torch.equal(plain.mask.scores, made.mask.scores)


def test_the_network_on_pixels_is_refused_without_frames():
    with pytest.raises(ValueError, match="Surf Skip Mask: .*footage looks at frames, got no VAE"):
        run(predictor="footage", upsample="latent")
    assert "got no VAE" in SurfSkipMask.validate_inputs(predictor="footage")
    assert SurfSkipMask.validate_inputs(predictor="footage", vae=None) is True


@pytest.mark.parametrize("predictor", ["detail", "footage"])
def test_tau_refines_fewer_the_higher_it_is(given, predictor):
    _, refiner, vae, _ = given
    wanted = FULL_SIZE | {"predictor": predictor, "choose": "tau"}
    ratios = [run(refiner, shown(), vae=vae, **wanted, tau=tau)[1] for tau in (0.0, 2.0, 5.0)]
    assert ratios[0] == 1
    assert ratios[0] > ratios[1] > ratios[2] > 0


def test_only_the_number_that_is_chosen_counts():
    assert run(keep=0.5, tau=255.0)[1] >= 0.5
    assert run(choose="tau", keep=0.05, tau=0.0)[1] == 1


def test_dilation_refines_whats_around_and_keep_counts_it_in(given):
    _, refiner, vae, _ = given
    wanted = FULL_SIZE | {"predictor": "detail", "choose": "tau", "tau": 4.0}
    plain, wide = (
        run(refiner, shown(), vae=vae, **wanted | {"dilate": d})[0].mask.tokens for d in (0, 2)
    )
    assert (wide | plain).equal(wide)
    assert wide.sum() > plain.sum()
    assert run(refiner, shown(), vae=vae, dilate=1, scale=4.0, keep=0.4)[1] < 0.7


@pytest.mark.parametrize(
    ("frames", "size", "grid"),
    [(1, (8, 12), (1, 4, 6)), (3, (7, 9), (3, 4, 5)), (5, (8, 9), (5, 4, 5))],
)
def test_sizes_that_a_model_pads_get_whole_tokens(frames, size, grid):
    wanted = {"resolution": "by size", "height": 8 * size[0], "width": 8 * size[1]}
    made, _, image, _ = run(preview=latent(1, 16, frames, 4, 6), **wanted)
    assert made.size == tuple(made.upsampled.shape[-2:]) == size
    assert made.mask.grid == grid
    assert image.shape == (frames, 32, 48, 3)


@pytest.mark.parametrize("has_vae", [False, True])
@pytest.mark.parametrize("videos", [1, 2])
def test_a_long_video_is_scored_and_drawn_as_all_of_its_frames_at_once(has_vae, videos):
    preview, vae = latent(videos, 16, 41, 3, 5), CellVae() if has_vae else None
    made, _, image, _ = run(preview=preview, vae=vae)
    if not has_vae:
        clean = wan().model.process_latent_in(made.upsampled)
        assert torch.equal(made.mask.scores, detail(clean).amax(dim=0))
    # The mask drawn over all frames by one expression.
    frames = rough(wan(), preview["samples"])
    if has_vae:
        frames = vae.decode(preview["samples"]).flatten(0, 1).movedim(-1, 1)
    ratio = 4 if has_vae else 1
    shares = weight(made.mask.tokens, (1, 2, 2))[None]
    shares = F.interpolate(shares, (24, 40), mode="nearest-exact")[0]
    first, rest = shares[:1], shares[1:].repeat_interleave(ratio, 0)
    shares = torch.cat([first, rest]).repeat(videos, 1, 1)[:, None]
    tint = torch.tensor(TINT).view(3, 1, 1)
    drawn = torch.lerp(frames * (DIMMED + (1 - DIMMED) * shares), tint, TINTED * shares)
    assert torch.equal(image, drawn.movedim(1, -1))


@pytest.mark.parametrize("predictor", ["detail", "footage"])
def test_a_mask_of_a_longer_video_needs_its_frames_twice_and_no_more(monkeypatch, predictor):
    """The preview's frames and the picture's; of the rest, the latent alone grows."""
    # The host saves them as they are, a frame at a time.
    monkeypatch.setattr("surf.nodes.skip.saved_frames", lambda *args, **kwargs: None)
    peaks = {}
    for frames in (17, 65):
        preview = latent(1, 16, frames, 6, 10)
        with LiveBytes(preview["samples"]) as live:
            made, _, image, _ = run(preview=preview, vae=CellVae(), predictor=predictor)
        peaks[frames] = live.peak, image.nbytes, made.upsampled.nbytes
    grown, frames, latents = (b - a for a, b in zip(*peaks.values(), strict=True))
    # Beside them, how far each cell is refined, of one frame in four and in one colour of three.
    assert grown < (2 + 1 / 6) * frames + 4 * latents


def test_inputs_stay_as_they_are_and_a_second_run_gives_the_same():
    preview = latent(noise_mask=torch.ones(1, 3, 4, 6), batch_index=[0])
    image = torch.rand(9, 64, 96, 3, generator=torch.Generator().manual_seed(1))
    before, given = {k: v for k, v in preview.items()}, image.clone()
    samples = preview["samples"].clone()
    first, second = (
        run(preview=preview, upsample="pixel", vae=CellVae(), image=image) for _ in range(2)
    )
    assert preview == before
    assert torch.equal(preview["samples"], samples)
    assert torch.equal(image, given)
    assert torch.equal(first[0].mask.tokens, second[0].mask.tokens)
    assert torch.equal(first[2], second[2])


def test_the_model_is_neither_run_nor_changed():
    model = wan()
    run(model)
    assert not model.seen
    assert not model.model_options
    assert not model.wrappers


@pytest.mark.parametrize("batch", [1, 2])
def test_an_image_takes_the_place_of_the_enlarged_preview(batch):
    image = torch.rand(batch * 9, 64, 96, 3, generator=torch.Generator().manual_seed(1))
    preview, vae = latent(batch, 16, 3, 4, 6), CellVae()
    made = run(preview=preview, upsample="pixel", vae=vae, image=image)[0]
    expected = torch.cat([CellVae().encode(part) for part in image.split(9)])
    torch.testing.assert_close(made.upsampled, expected)
    assert made.upsample == "pixel"
    plain = run(preview=preview, upsample="pixel", vae=vae)[0]
    assert not torch.equal(made.mask.tokens, plain.mask.tokens)


def test_the_picture_is_dark_where_the_refiner_does_nothing():
    preview, vae = latent(1, 16, 3, 4, 6), CellVae()
    made, _, image, _ = run(preview=preview, upsample="pixel", vae=vae, keep=0.3)
    frames = vae.decode(preview["samples"]).reshape(9, 32, 48, 3)
    assert image.shape == frames.shape
    # A token of the target is 16 of its pixels, 8 of the preview's; frames 1 to 4 are latent 1.
    kept = made.mask.tokens.repeat_interleave(8, 1).repeat_interleave(8, 2)
    kept = kept[[0, 1, 1, 1, 1, 2, 2, 2, 2]]
    torch.testing.assert_close(image[~kept], DIMMED * frames[~kept])
    tinted = frames[kept] + TINTED * (torch.tensor(TINT) - frames[kept])
    torch.testing.assert_close(image[kept], tinted)
    assert 0 <= image.min() <= image.max() <= 1


def test_a_batch_shares_a_mask_and_shows_every_video():
    preview = latent(2, 16, 3, 4, 6)
    made, _, image, _ = run(preview=preview, vae=CellVae())
    assert made.mask.grid == (3, 4, 6)
    assert made.upsampled.shape == (2, 16, 3, 8, 12)
    alone = picture(wan(), SkipMask(
        mask=made.mask, size=made.size, upsampled=None, upsample="latent",
        samples=preview["samples"][1:],
    ), None)  # fmt: skip
    assert image.shape == (18, 32, 48, 3)
    assert alone.shape == (3, 32, 48, 3)


def test_without_a_vae_the_picture_has_the_hosts_rough_colours(given):
    model, preview = given[1], shown()
    image = run(model, preview, scale=4.0, choose="tau", tau=0.0)[2]
    factors = torch.tensor(TinyFormat.latent_rgb_factors)
    cells = model.model.process_latent_in(preview["samples"])[0].permute(1, 2, 3, 0) @ factors
    cells = cells.add(torch.tensor(TinyFormat.latent_rgb_factors_bias)).add(1).div(2).clamp(0, 1)
    expected = cells.repeat_interleave(8, 1).repeat_interleave(8, 2)
    tinted = expected + TINTED * (torch.tensor(TINT) - expected)
    torch.testing.assert_close(image, tinted, atol=1e-3, rtol=0)
    grey = run(keep=1.0, choose="keep ratio")[2]
    torch.testing.assert_close(grey[0, 0, 0], 0.5 + TINTED * (torch.tensor(TINT) - 0.5))


def test_the_node_shows_the_picture_as_a_moving_one():
    host_stub_api.SAVED.clear()
    out = SurfSkipMask.execute(model=wan(), latent=latent(), **DEFAULTS)
    [(folder, frames)] = host_stub_api.SAVED
    assert folder == "temp"
    assert torch.equal(frames, out.args[2])
    assert out.ui.is_animated
    still = SurfSkipMask.execute(model=wan(), latent=latent(1, 16, 1, 4, 6), **DEFAULTS)
    assert not still.ui.is_animated


def test_the_report_prices_the_refiner_with_its_own_windows(given):
    _, refiner, vae, _ = given
    made, ratio, _, report = run(refiner, shown(), vae=vae, **FULL_SIZE)
    window = refiner.model.diffusion_model.config.window
    shape = cost.ModelShape.of(refiner.model.diffusion_model.config, text_tokens=3)
    counts = packing(made.mask.tokens).counts
    full, less = (cost.forward_flops(shape, 13, 256, 256, window, kept) for kept in (None, counts))
    assert f"{less / 1e9:.3g} GFLOPs instead of {full / 1e9:.3g} GFLOPs" in report
    assert f"{1 - less / full:.1%} saved" in report
    assert f"windows of {window}" in report
    assert f"{ratio:.1%} of the tokens, {sum(counts)} of 1024 (4 x 16 x 16)" in report
    assert "network on pixels" in report
    assert f"{made.mask.flip_rate:.1%}" in report
    assert f"tau {made.mask.tau:.4g}" in report


def test_the_report_prices_wan_for_the_windows_that_it_may_get():
    made, _, _, report = run(preview=latent(1, 16, 5, 45, 80))
    counts = packing(made.mask.tokens).counts
    for window, said in ((4, "windows of 4"), (0, "full attention")):
        full, less = (
            cost.forward_flops(cost.WAN_1_3B, 17, 720, 1280, window, kept)
            for kept in (None, counts)
        )
        assert f"{said}: {less / 1e12:.3g} TFLOPs instead of {full / 1e12:.3g} TFLOPs" in report


@pytest.mark.parametrize("network", [Unpriced(), WanModel(ref_conv="a convolution")])
def test_the_report_says_what_it_cannot_price(network):
    report = run(wan(network=network))[3]
    assert f"cost: not known for a {type(network).__name__}" in report


REFINE = {
    "seed": 7, "resolution": "by scale", "scale": 2.0, "width": 64, "height": 64,
    "upsample": "latent", "sigma_start": 0.65, "steps": 2, "cfg": 4.5, "window": 0,
    "low_band_lock": 0.0, "colour_match": False,
}  # fmt: skip


def refined(preview, **changes):
    text = [[torch.zeros(1, 4, 8), {}]]
    return SurfRefiner.execute(
        model=wan(), positive=text, negative=text, latent=preview, **REFINE | changes
    ).args[0]["samples"]


def test_the_refiner_takes_a_mask_that_skips_nothing_as_none():
    preview = latent()
    mask = run(preview=preview, keep=1.0)[0]
    assert torch.equal(refined(preview, mask=mask), refined(preview))


def test_the_refiner_starts_from_the_image_that_came_with_the_mask():
    preview, vae = latent(), CellVae()
    image = torch.rand(9, 64, 96, 3, generator=torch.Generator().manual_seed(1))
    wanted = {"upsample": "pixel", "vae": vae}
    mask = run(preview=preview, image=image, keep=1.0, **wanted)[0]
    vae.calls.clear()
    assert not torch.equal(refined(preview, mask=mask, **wanted), refined(preview, **wanted))
    assert vae.calls == ["decode", "encode"]


def test_the_refiner_refuses_a_mask_for_another_size():
    preview = latent()
    mask = run(preview=preview, scale=1.5)[0]
    with pytest.raises(ValueError, match="Surf Refiner: .*another resolution"):
        refined(preview, mask=mask)


def test_size_inputs_are_those_of_the_refiner():
    names = ["resolution", "scale", "width", "height", "upsample"]
    mine, theirs = (
        {item.id: vars(item) for item in node.define_schema().inputs if item.id in names}
        for node in (SurfSkipMask, SurfRefiner)
    )
    assert list(mine) == list(theirs) == names
    assert mine == theirs
    assert mine["resolution"]["options"] == list(TARGETS)


def test_the_mask_goes_into_a_socket_of_its_own():
    [socket] = [out for out in SurfSkipMask.define_schema().outputs if out.display_name == "mask"]
    assert socket.get_io_type() == SurfMask.Input("mask").get_io_type() == "SURF_MASK"
