"""The embedded models as nodes: what a MODEL, VAE and LATENT of them say about their cells."""

import re
from pathlib import Path

import pytest
import torch
from surf.nodes.host.models import cell_side, check_pair, side_multiple, target_cells
from surf.nodes.host.refiner.loading import TRAITS_KEY
from surf.nodes.host.refiner.tiny import FLOATS_OF_A_CELL, TinyFormat, load_tiny_t2v, tiny_vae
from surf.nodes.host.vae.upsample import check_vae, upsample_latent
from surf.nodes.tiny import EXAMPLE, SurfTinyModels, SurfTinyPrompt
from surf.surf_core import checkpoint
from surf.surf_core.resample import resize
from surf.surf_core.tiny import codec
from surf.surf_core.tiny.model import REFINER, WEIGHTS
from surf.surf_core.tiny.prompt import BACKGROUNDS, COLOURS, DIRECTIONS, SHAPES, encode_prompt

PAGES = Path(__file__).parents[2] / "web" / "docs"


@pytest.fixture(scope="module")
def given():
    return SurfTinyModels.execute().args


def latent(rows=8, columns=8, frames=4):
    """A clean latent, as a LATENT holds it, of pixels that need no clamp."""
    generator = torch.Generator().manual_seed(0)
    video = torch.rand(1, 3, frames, rows, columns, generator=generator) * 1.6 - 0.8
    shown = resize(video, (4 * rows, 4 * columns), "bilinear")
    return TinyFormat().process_out(codec.encode(shown))


def test_the_node_gives_models_a_vae_and_an_empty_latent(given):
    model, refiner, vae, empty = given
    assert model.path == str(WEIGHTS)
    assert refiner.get_attachment(TRAITS_KEY).text_dim == 4096
    assert vae.latent_channels == 16
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


def test_cells_of_both_models_and_of_the_vae_are_four_pixels(given):
    model, refiner, vae, _ = given
    assert cell_side(model) == cell_side(refiner) == vae.spacial_compression_decode() == 4
    assert side_multiple(model) == side_multiple(refiner) == 8
    assert vae.temporal_compression_decode() == 1
    check_pair(model, load_tiny_t2v())
    check_vae(vae, latent())


@pytest.mark.parametrize(
    ("wanted", "cells", "pixels"),
    [
        ({"resolution": "by scale", "scale": 4.0}, (32, 32), (128, 128)),
        ({"resolution": "by scale", "scale": 2.0}, (16, 16), (64, 64)),
        ({"resolution": "by size", "width": 96, "height": 64}, (16, 24), (64, 96)),
        ({"resolution": "720p"}, (240, 240), (960, 960)),
    ],
)
def test_sizes_of_a_refined_video_are_counted_in_these_cells(given, wanted, cells, pixels):
    wanted = {"scale": 1.0, "width": 0, "height": 0, **wanted}
    assert target_cells(given[1], latent(), **wanted) == (cells, pixels)


def test_a_size_that_is_no_patch_names_the_nearest_that_are(given):
    wanted = {"resolution": "by size", "scale": 1.0, "width": 100, "height": 64}
    with pytest.raises(ValueError, match="multiple of 8; use 96 or 104"):
        target_cells(given[1], latent(), **wanted)


def test_the_vae_round_trips_what_the_codec_can_hold(tolerance):
    vae, samples = tiny_vae(), latent(6, 10)
    shown = vae.decode(samples)
    assert shown.shape == (1, 4, 24, 40, 3)
    assert shown.min() > 0
    assert shown.max() < 1
    back = vae.encode(shown[0])
    torch.testing.assert_close(back, samples, atol=10 * tolerance[torch.float32], rtol=0)


def test_the_preview_is_enlarged_through_pixels_as_the_core_does(tolerance):
    samples = latent()
    got = upsample_latent(samples, (32, 32), "pixel", tiny_vae())
    pixels = codec.decode(TinyFormat().process_in(samples)).add(1).div(2)
    large = resize(pixels, (128, 128), "bicubic").clamp(0, 1)
    expected = TinyFormat().process_out(codec.encode(large * 2 - 1))
    torch.testing.assert_close(got, expected, atol=10 * tolerance[torch.float32], rtol=0)


@pytest.mark.parametrize("frames", [1, 4, 5])
def test_memory_is_that_of_a_cell_either_way(frames):
    vae = tiny_vae()
    decode = vae.memory_used_decode((2, 16, frames, 8, 12), torch.float32)
    encode = vae.memory_used_encode((2, 3, frames, 32, 48), torch.float32)
    assert decode == encode == frames * 8 * 12 * FLOATS_OF_A_CELL * 4


def test_pictures_of_a_running_job_show_the_mean_of_each_cell(tolerance):
    clean = TinyFormat().process_in(latent())
    factors = torch.tensor(TinyFormat().latent_rgb_factors)
    got = torch.einsum("bkthw,kc->bcthw", clean, factors)
    expected = resize(codec.decode(clean), (8, 8), "area")
    torch.testing.assert_close(got, expected, atol=10 * tolerance[torch.float32], rtol=0)


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
    assert torch.equal(got, encode_prompt(EXAMPLE))
    assert options == {}
    assert not SurfTinyPrompt.execute("").args[0][0][0].any()


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("purple circle", "the tiny model knows red, .*; got 'purple'"),
        ("red, green, blue, yellow", "at most 3 phrases, got 4; name one"),
    ],
)
def test_an_unknown_word_is_refused_by_name(text, said):
    with pytest.raises(ValueError, match=f"Surf Tiny Prompt: .*{said}"):
        SurfTinyPrompt.execute(text)


def test_tooltip_and_help_page_name_every_word():
    page = (PAGES / "SurfTinyPrompt.md").read_text(encoding="utf-8")
    [text] = SurfTinyPrompt.define_schema().inputs
    for word in (*COLOURS, *SHAPES, *DIRECTIONS, *BACKGROUNDS):
        assert re.search(rf"\b{word}\b", text.tooltip), word
        assert f"`{word}`" in page, word
