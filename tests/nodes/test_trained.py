"""The Surf Refiner with a refiner of ours, on the stub host: what its file says comes first."""

import logging

import host_stub
import pytest
import torch
from surf.nodes.host.refiner.loading import TRAITS_KEY, RefinerTraits
from surf.nodes.refine import SurfRefiner
from surf.surf_core import flow
from surf.surf_core.resample import resize

WIDGETS = {
    "seed": 7, "resolution": "by scale", "scale": 2.0, "width": 64, "height": 64,
    "upsample": "latent", "sigma_start": 0.65, "steps": 4, "cfg": 4.5, "window": 0,
    "low_band_lock": 0.0, "colour_match": False, "vae": None,
}  # fmt: skip


def model_of(traits=None):
    model = host_stub.Patcher()
    if traits:
        model.set_attachments(TRAITS_KEY, traits)
    return model


def latent():
    return {"samples": torch.rand(1, 16, 3, 4, 6, generator=torch.Generator().manual_seed(0))}


def prompt(value):
    return [[torch.full((1, 4, 8), value), {}]]


class UnusedVae:
    """Fits, and must not be asked for anything."""

    latent_channels = 16


def run(model=None, preview=None, **changes):
    conds = {"positive": prompt(0.5), "negative": prompt(-0.5)}
    given = {"model": model or model_of(), "latent": preview or latent(), **conds}
    return SurfRefiner.execute(**given | WIDGETS | changes).args[0]


def traits(**changes):
    fixed = {"sigma_start": 0.8, "window": 3, "time": "sigma", "text_dim": 8}
    return RefinerTraits(**fixed | changes)


def test_a_trained_refiner_brings_its_own_start_and_windows(caplog):
    trained = model_of(traits())
    with caplog.at_level(logging.INFO):
        out = run(trained, sigma_start=0.3, window=4)["samples"]
    assert torch.equal(out, run(sigma_start=0.8, window=0)["samples"])
    assert not any("surf_window" in str(step.patcher.wrappers) for step in trained.seen)
    said = " ".join(record.getMessage() for record in caplog.records)
    assert "windows of 3; window is ignored" in said
    assert "sigma_start 0.8; the widget is ignored" in said


def test_a_refiner_with_a_range_of_starts_is_told_the_one_of_the_widget():
    trained = model_of(traits(sigma_start_range=(0.6, 0.9)))
    out = run(trained, sigma_start=0.7)["samples"]
    assert torch.equal(out, run(sigma_start=0.7, window=0)["samples"])
    starts = {
        step.patcher.model_options["transformer_options"]["surf_sigma_start"]
        for step in trained.seen
    }
    assert starts == {0.7}
    assert "surf_sigma_start" not in trained.model_options.get("transformer_options", {})
    with pytest.raises(ValueError, match="sigma_start"):
        run(trained, sigma_start=0.5)


def test_an_untrained_model_of_ours_starts_where_the_widget_says(caplog):
    free = model_of(traits(sigma_start=None))
    with caplog.at_level(logging.INFO):
        out = run(free, sigma_start=0.3, window=4)["samples"]
    assert torch.equal(out, run(sigma_start=0.3, window=0)["samples"])
    assert not any("sigma_start" in record.getMessage() for record in caplog.records)


def test_windows_of_the_node_are_for_models_without_their_own():
    with pytest.raises(ValueError, match="windowed attention"):
        run(model_of(), window=4)
    assert run(model_of(traits()), window=4)["samples"].isfinite().all()


@pytest.mark.parametrize(
    ("texts", "cfg", "said"),
    [
        ({"positive": [[None, {}]]}, 1.0, "an empty one"),
        ({"negative": [[None, {}]]}, 4.5, "an empty one"),
        ({"positive": [[torch.zeros(1, 4, 12), {}]]}, 1.0, "8 channels, got 12"),
    ],
)
def test_text_that_a_refiner_cannot_read_is_refused_before_the_vae_works(texts, cfg, said):
    model = model_of(traits())
    with pytest.raises(ValueError, match=said):
        run(model, cfg=cfg, upsample="pixel", vae=UnusedVae(), **texts)
    assert not model.seen
    run(model, cfg=1.0, negative=[[torch.zeros(1, 4, 12), {}]])


@pytest.mark.parametrize("noised", [0.0, 0.3])
def test_a_flow_map_goes_from_the_preview_to_the_result(noised):
    model, preview = model_of(traits(time="t", sigma_start=noised)), latent()
    out = run(model, preview, sigma_start=0.65, window=4)["samples"]

    def velocity(z, time):
        good, bad = (model.velocity(z, time, cond) for cond in (0.5, -0.5))
        return bad + 4.5 * (good - bad)

    start = resize(preview["samples"], (8, 12), "bilinear")
    noise = torch.randn(start.shape, generator=torch.Generator().manual_seed(7))
    blurred = flow.interpolate(model.model.process_latent_in(start), noise, noised)
    z = flow.flow_map(velocity, blurred, 4)
    torch.testing.assert_close(out, model.model.process_latent_out(z), rtol=0, atol=1e-5)
    assert [step.sigma for step in model.seen] == pytest.approx([1, 0.75, 0.5, 0.25])


def test_a_mask_keeps_the_preview_from_a_flow_map_too():
    preview, mask = latent(), torch.ones(1, 3, 4, 6)
    mask[..., :3] = 0
    model = model_of(traits(time="t", sigma_start=0.2))
    out = run(model, {**preview, "noise_mask": mask})["samples"]
    start = resize(preview["samples"], (8, 12), "bilinear")
    torch.testing.assert_close(out[..., :4], start[..., :4])
    assert not torch.allclose(out[..., 8:], start[..., 8:], atol=0.1)
    assert all(step.mask is None for step in model.seen)
    whole = run(model_of(traits(time="t", sigma_start=0.2)), preview)["samples"]
    torch.testing.assert_close(out[..., 8:], whole[..., 8:])


def test_the_lock_holds_the_first_steps_of_a_flow_map():
    model, preview = model_of(traits(time="t", sigma_start=0.0)), latent()
    run(model, preview, low_band_lock=0.5)
    lock = model.seen[0].patcher.model_options["sampler_post_cfg_function"][-1]
    x0 = torch.rand(1, 16, 3, 8, 12)
    for time, held in ((1.0, True), (0.75, True), (0.5, False), (0.25, False)):
        args = {"denoised": x0, "sigma": torch.tensor([time]), "model": model.model}
        assert torch.equal(lock(args), x0) != held
