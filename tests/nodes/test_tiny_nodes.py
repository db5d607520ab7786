"""The embedded models as nodes: what a MODEL, VAE and LATENT of them say about their cells."""

import re
from pathlib import Path

import pytest
import torch
from surf.nodes.host.models import cell_side, check_pair, side_multiple, target_cells
from surf.nodes.host.refiner import TinyFormat
from surf.nodes.host.refiner.loading import TRAITS_KEY
from surf.nodes.host.refiner.tiny import load_tiny_t2v, tiny_vae
from surf.nodes.host.vae.upsample import check_vae, upsample_latent
from surf.nodes.tiny import EXAMPLE, SurfTinyModels, SurfTinyPrompt
from surf.surf_core import checkpoint
from surf.surf_core.resample import resize
from surf.surf_core.tiny import vae as core_vae
from surf.surf_core.tiny.caption import WORDS, encode_caption, things_of
from surf.surf_core.tiny.model import REFINER, WEIGHTS, to_latent, to_pixels
from surf.surf_core.training.tiny.paint import paint
from surf.surf_core.training.tiny.world import draw

TIMES = torch.linspace(-0.5, 0.5, 13)
PAGES = Path(__file__).parents[2] / "web" / "docs"


@pytest.fixture(scope="module")
def given():
    return SurfTinyModels.execute().args


def raw(clean):
    """A latent of the core as files and the host's VAEs have it."""
    mean, std = (torch.tensor(x).view(1, -1, 1, 1, 1) for x in (core_vae.MEAN, core_vae.STD))
    return clean * std + mean


def scene(size=64, count=1, seed=0):
    """Pixels [B, 3, 13, size, size] in 0..1 of painted scenes."""
    return paint(draw(seed, torch.arange(count)), TIMES, size) / 2 + 0.5


@pytest.fixture(scope="module")
def preview():
    """A clean latent of 64 pixels, as the core has it."""
    return to_latent(scene())


def test_the_node_gives_models_a_vae_and_an_empty_latent(given):
    model, refiner, vae, empty = given
    assert model.model.diffusion_model.num_heads == checkpoint.read_config(WEIGHTS)[0].heads == 4
    assert refiner.get_attachment(TRAITS_KEY).text_dim == 4096
    assert (vae.latent_channels, vae.vae_dtype) == (16, torch.float32)
    assert empty["samples"].shape == (1, 16, 4, 16, 16)
    assert not empty["samples"].any()


def test_the_refiner_brings_what_its_file_says(given):
    config, _ = checkpoint.read_config(REFINER)
    traits = given[1].get_attachment(TRAITS_KEY)
    assert (traits.window, traits.sigma_start) == (config.window, config.sigma_start)
    assert checkpoint.report(REFINER) == checkpoint.report(WEIGHTS) == []
    assert config.latent_channels == 16


def test_models_that_are_loaded_are_nobody_elses(given):
    again = SurfTinyModels.execute().args
    assert all(new is not old for new, old in zip(again, given, strict=True))
    assert again[0].model.latent_format is not given[0].model.latent_format


def test_cells_of_both_models_and_of_the_vae_are_those_of_wan(given):
    model, refiner, vae, empty = given
    assert cell_side(model) == cell_side(refiner) == vae.spacial_compression_decode() == 8
    assert side_multiple(model) == side_multiple(refiner) == 16
    assert vae.temporal_compression_decode() == 4
    check_pair(model, load_tiny_t2v())
    check_vae(vae, empty["samples"])


@pytest.mark.parametrize(
    ("wanted", "cells", "pixels"),
    [
        ({"resolution": "by scale", "scale": 4.0}, (32, 32), (256, 256)),
        ({"resolution": "by scale", "scale": 2.0}, (16, 16), (128, 128)),
        ({"resolution": "by size", "width": 192, "height": 128}, (16, 24), (128, 192)),
        ({"resolution": "720p"}, (120, 120), (960, 960)),
    ],
)
def test_sizes_of_a_refined_video_are_counted_in_these_cells(given, preview, wanted, cells, pixels):
    wanted = {"scale": 1.0, "width": 0, "height": 0, **wanted}
    assert target_cells(given[1], preview, **wanted) == (cells, pixels)


def test_the_vae_of_the_host_is_the_cores(given, preview, tolerance):
    vae, frames = given[2], scene()
    same = {"atol": 100 * tolerance[torch.float32], "rtol": 0}
    torch.testing.assert_close(vae.encode(frames[0].movedim(0, -1)), raw(preview), **same)
    shown = vae.decode(raw(preview))[0].movedim(-1, 0)
    assert shown.shape == (3, 13, 64, 64)
    torch.testing.assert_close(shown, to_pixels(preview)[0], **same)
    assert (shown - frames[0]).square().mean().sqrt() < 0.1


def test_the_preview_is_enlarged_through_pixels_as_the_core_does(preview, tolerance):
    got = upsample_latent(raw(preview), (16, 16), "pixel", tiny_vae())
    large = resize(to_pixels(preview), (128, 128), "bicubic").clamp(0, 1)
    same = {"atol": 100 * tolerance[torch.float32], "rtol": 0}
    torch.testing.assert_close(got, raw(to_latent(large)), **same)


@pytest.mark.parametrize("size", [64, 128])
def test_pictures_of_a_running_job_have_the_colours_of_the_video(size):
    """They are rough, and closer to it than its mean colour is."""
    frames = scene(size, count=6, seed=7)
    cells = resize(frames.movedim(1, 2).flatten(0, 1), (size // 8, size // 8), "area")
    cells = cells.unflatten(0, (6, 13)).movedim(1, 2) * 2 - 1
    parts = [part.mean(dim=2) for part in cells.split([1, 4, 4, 4], dim=2)]
    expected = torch.stack(parts, dim=2)
    factors = torch.tensor(TinyFormat.latent_rgb_factors)
    bias = torch.tensor(TinyFormat.latent_rgb_factors_bias).view(3, 1, 1, 1)
    got = torch.einsum("bkthw,kc->bcthw", to_latent(frames), factors) + bias
    assert (got - expected).square().mean().sqrt() / 2 < 0.1
    plain = expected.mean((0, 2, 3, 4), keepdim=True)
    assert (got - expected).square().mean() < 0.5 * (plain - expected).square().mean()


def test_what_newer_hosts_ask_for_makes_the_same_again(given):
    for model in given[:2]:
        make, arguments = model.cached_patcher_init
        again = make(*arguments)
        assert again is not model
        assert isinstance(again.model.latent_format, TinyFormat)
    make, arguments = given[2].patcher.cached_patcher_init
    assert type(make(*arguments).model) is type(given[2].first_stage_model)


def test_a_prompt_is_the_cores_and_an_empty_one_is_zeros():
    [[got, options]] = SurfTinyPrompt.execute(EXAMPLE).args[0]
    assert torch.equal(got, encode_caption(EXAMPLE))
    assert options == {}
    assert not SurfTinyPrompt.execute("").args[0][0][0].any()


def test_the_example_names_two_things_and_a_ground():
    assert [thing.phrase() for thing in things_of(EXAMPLE)] == EXAMPLE.split(", ")[:2]
    assert EXAMPLE.endswith(", on sand")


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("red circle moving right", "the tiny model knows red, .*ball.*; got 'circle'"),
        ("red, green, blue, yellow", "at most 3 phrases, got 4; name a large thing"),
    ],
)
def test_an_unknown_word_is_refused_by_name(text, said):
    with pytest.raises(ValueError, match=f"Surf Tiny Prompt: .*{said}"):
        SurfTinyPrompt.execute(text)


def test_tooltip_and_help_pages_name_every_word():
    [text] = SurfTinyPrompt.define_schema().inputs
    pages = [PAGES / "SurfTinyPrompt.md", *(PAGES / "SurfTinyPrompt").glob("*.md")]
    assert len(pages) == 4
    for word in WORDS:
        if word != "beads":
            assert re.search(rf"\b{word}\b", text.tooltip), word
        for page in pages:
            assert f"`{word}`" in page.read_text(encoding="utf-8"), (page, word)
