"""The guider on a latent that holds noise: parted into picture and noise before it is resized.

The stand-in model is exact: its clean estimate is the picture that it drew, at every sigma.
"""

import logging

import comfy.samplers
import host_stub
import pytest
import torch
from surf.tests.nodes.test_switch import HIGH, LOW, conds, make_guider
from torch.nn import functional as F

SIGMAS = torch.linspace(1, 0, 9)
PICTURE = torch.linspace(-1, 1, 16 * 24).reshape(1, 1, 1, *HIGH).repeat(1, 16, 3, 1, 1)


def exact():
    """A model whose estimate is PICTURE, at its own size or averaged down, and what went in."""
    seen = []

    def velocity(x, sigma, cond):
        seen.append((x, sigma.flatten()[0].item()))
        same = x.shape[-2:] == PICTURE.shape[-2:]
        picture = PICTURE if same else F.avg_pool3d(PICTURE, (1, 2, 2))
        return (x - picture) / sigma

    return host_stub.Patcher(velocity=velocity), seen


def first_stage(stop=2):
    """Sample down to a sigma, with the noise left in: (LATENT samples, noise)."""
    guider = comfy.samplers.CFGGuider(exact()[0])
    guider.set_conds(*conds().values())
    blank = torch.zeros(1, 16, 3, *HIGH)
    noise = host_stub.prepare_noise(blank, 5)
    euler = comfy.samplers.sampler_object("euler")
    return guider.sample(noise, blank, euler, SIGMAS[: stop + 1], seed=5), noise


def second_stage(latent, start=2, mask=None, sigmas=None, **changes):
    model, seen = exact()
    settings = {"noise_policy": "inherited", "switch_step": 0, "cfg": 1.0, "cfg_low": 1.0}
    guider = make_guider(model, **(settings | changes))
    shown = []
    out = guider.sample(
        torch.zeros_like(latent), latent, comfy.samplers.sampler_object("euler"),
        SIGMAS[start:] if sigmas is None else sigmas, denoise_mask=mask, seed=0,
        callback=lambda step, x0, x, total: shown.append((step, total)),
    )  # fmt: skip
    return model, out, seen, shown


@pytest.mark.parametrize("sigma_policy", ["same", "snr_equal"])
def test_a_noisy_latent_is_never_resized(sigma_policy):
    latent, noise = first_stage()
    model, out, seen, shown = second_stage(latent, sigma_policy=sigma_policy)
    assert [e.size for e in model.seen] == [HIGH] + [LOW] * 6
    assert shown == [(i, 7) for i in range(7)]
    sigma = 0.75 if sigma_policy == "same" else 0.75 / (0.75 + 2 * 0.25)
    z, at = next(pair for pair in seen if tuple(pair[0].shape[-2:]) == LOW)
    assert at == pytest.approx(sigma)
    left = (z - (1 - sigma) * F.avg_pool3d(PICTURE, (1, 2, 2))) / sigma
    assert left.std() == pytest.approx(1, abs=1e-3)
    wanted = 2 * F.avg_pool3d(noise, (1, 2, 2))
    torch.testing.assert_close(left, wanted / wanted.square().mean().sqrt(), atol=1e-4, rtol=0)
    picture = model.model.process_latent_out(F.avg_pool3d(PICTURE, (1, 2, 2)))
    torch.testing.assert_close(out, picture, atol=1e-4, rtol=0)


def test_a_later_switch_needs_no_estimate():
    latent, _ = first_stage()
    model, out, *_ = second_stage(latent, switch_step=2)
    assert [e.size for e in model.seen] == [HIGH] * 2 + [LOW] * 4


@pytest.mark.parametrize("k", [0, 2, 6])
def test_what_a_mask_keeps_is_the_picture_and_not_its_noise(k, caplog):
    latent, _ = first_stage()
    mask = torch.zeros(1, *HIGH)
    mask[..., :12] = 1
    with caplog.at_level(logging.WARNING):
        model, out, *_ = second_stage(latent, mask=mask, switch_step=k)
    assert [e.mask is None for e in model.seen] == [True] + [False] * 6
    assert [e.size for e in model.seen] == [HIGH] * (1 + k) + [LOW] * (6 - k)
    picture = PICTURE if k == 6 else F.avg_pool3d(PICTURE, (1, 2, 2))
    torch.testing.assert_close(out, model.model.process_latent_out(picture), atol=1e-4, rtol=0)
    assert "what is kept is the model's estimate" in caplog.text
    assert "ends at sigma" not in caplog.text


def test_a_masked_run_that_ends_in_noise_is_said(caplog):
    latent, mask = torch.zeros(1, 16, 3, *HIGH), torch.ones(1, *HIGH)
    guider = make_guider(noise_policy="inherited", switch_step=2)
    euler, noise = comfy.samplers.sampler_object("euler"), torch.randn_like(latent)
    with caplog.at_level(logging.WARNING):
        guider.sample(noise, latent, euler, SIGMAS[:6], denoise_mask=mask, seed=1)
    assert "ends at sigma 0.375" in caplog.text
    assert "what is kept" not in caplog.text


def test_a_clean_latent_with_noise_is_plain_image_to_image():
    clean = torch.randn(1, 16, 3, *HIGH, generator=torch.Generator().manual_seed(1))
    model, _ = exact()
    guider = make_guider(model, noise_policy="inherited", switch_step=0)
    noise = host_stub.prepare_noise(clean, 5)
    euler = comfy.samplers.sampler_object("euler")
    guider.sample(noise, clean, euler, SIGMAS[4:], seed=5)
    assert [e.size for e in model.seen] == [LOW] * 4
