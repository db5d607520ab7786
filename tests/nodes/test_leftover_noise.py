"""A latent that still holds noise is found, and said where a clean one is expected."""

import logging

import comfy.samplers
import host_stub
import pytest
import torch
from surf.nodes.host.leftover_noise import NOISY, noise_share
from surf.nodes.host.skip import Choice, make_mask
from surf.nodes.preview import SurfLatentDownscale
from surf.nodes.refine import SurfRefiner
from surf.surf_core.flow import euler
from surf.surf_core.schedule import flow_sigmas
from surf.surf_core.tiny import demo
from surf.surf_core.tiny.model import TinyT2V
from surf.tests.frozen_nodes import INPUTS
from surf.tests.nodes.test_switch import HIGH, conds, make_guider, run

PROMPTS = list(demo.PROMPTS)
DOWN = {"resolution": "by scale", "scale": 0.5, "width": 416, "height": 240, "method": "auto"}


@pytest.fixture(scope="module")
def videos():
    """Latents of the embedded model by the sigma where its sampler stopped: {sigma: [4, ...]}."""
    tiny, sigmas = TinyT2V(PROMPTS), flow_sigmas(20, 3.0)
    z = tiny.noise([1, 2, 3, 4])
    with torch.no_grad():
        return {
            sigmas[k].item(): euler(tiny.velocity(demo.Settings().cfg), z, sigmas[: k + 1])
            for k in (8, 15, 20)
        }


def test_clean_latents_and_noisy_ones_lie_apart(videos):
    for sigma, samples in videos.items():
        for item in samples.split(1):
            share = noise_share(item)
            assert share < 0.7 * NOISY if sigma == 0 else share > NOISY, sigma


def test_the_statistics_of_a_latent_format_change_little(videos):
    generator = torch.Generator().manual_seed(1)
    scale = 1.2 + 2 * torch.rand(16, 1, 1, 1, generator=generator)
    offset = torch.randn(16, 1, 1, 1, generator=generator)
    for sigma, samples in videos.items():
        for item in samples.split(1):
            assert noise_share(item * scale + offset) == pytest.approx(noise_share(item), abs=0.2)
            assert noise_share(3 * item) == pytest.approx(noise_share(item)), sigma


def test_shapes_without_a_picture_say_nothing():
    for shape in ((1, 16, 1, 1), (1, 16, 3, 1, 8), (2, 4, 8, 8), (1, 16, 3, 5, 7)):
        assert noise_share(torch.zeros(shape)) == 0.0
    noise = torch.randn(1, 16, 5, 33, 21, generator=torch.Generator().manual_seed(1))
    assert noise_share(noise) == pytest.approx(1, abs=0.05)
    assert noise_share(noise[:, :, 0].half()) == pytest.approx(1, abs=0.1)


def nodes(samples):
    """Every way in of this pack's preview that expects a clean latent."""
    yield lambda: SurfLatentDownscale.execute(samples={"samples": samples}, **DOWN)
    for k in (0, 3):
        yield lambda k=k: run(latent={"samples": samples}, switch_step=k, denoise=0.5)


@pytest.mark.parametrize("way", range(3))
def test_it_is_said_and_nothing_is_refused(way, caplog):
    clean = torch.linspace(-1, 1, 16 * 24).reshape(1, 1, 1, *HIGH).repeat(1, 16, 3, 1, 1)
    noisy = clean + torch.randn(clean.shape, generator=torch.Generator().manual_seed(1))
    for samples, said in ((clean, False), (noisy, True), (torch.zeros_like(clean), False)):
        caplog.clear()
        with caplog.at_level(logging.WARNING):
            list(nodes(samples))[way]()
        lines = [text for text in caplog.messages if "still held noise" in text]
        assert len(lines) == said
        assert all("return_with_leftover_noise" in text for text in lines)


def test_a_second_stage_may_hold_noise(caplog):
    noisy = torch.randn(1, 16, 3, *HIGH, generator=torch.Generator().manual_seed(1))
    guider, euler_ = make_guider(noise_policy="inherited"), comfy.samplers.sampler_object("euler")
    with caplog.at_level(logging.WARNING):
        guider.sample(torch.zeros_like(noisy), noisy, euler_, torch.linspace(0.75, 0, 7), seed=0)
    assert "still held noise" not in caplog.text


TARGET = {"resolution": "by scale", "scale": 2.0, "width": 0, "height": 0, "upsample": "latent"}


def refine(model, latent):
    given = {key: x["default"] for key, x in INPUTS["SurfRefiner"].items() if "default" in x}
    given |= {"resolution": "by scale", "upsample": "latent", "window": 0, "steps": 1}
    SurfRefiner.execute(model=model, latent=latent, **conds(), **given)


def mask(model, latent):
    choice = Choice(predictor="detail", choose="keep ratio", keep=0.5, tau=3.0, dilate=0)
    make_mask(model, latent, choice, **TARGET)


@pytest.mark.parametrize("node", [refine, mask])
def test_refiner_and_mask_say_it_too(node, caplog):
    noisy = torch.randn(1, 16, 1, 8, 12, generator=torch.Generator().manual_seed(1))
    for samples, said in ((noisy, True), (noisy * 0 + 1, False)):
        caplog.clear()
        with caplog.at_level(logging.WARNING):
            node(host_stub.Patcher(), {"samples": samples})
        assert ("still held noise" in caplog.text) == said
