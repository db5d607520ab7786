"""Noise masks over a switch, soft ones too: what is kept stays the latent of the run."""

import comfy.samplers
import host_stub
import pytest
import torch
from surf.tests.nodes.test_switch import HIGH, LOW, conds, make_guider
from torch.nn import functional as F

SIGMAS = torch.linspace(1, 0, 9)
EULER = comfy.samplers.sampler_object("euler")


class Opaque:
    """A SAMPLER of another pack that is no object round a function."""

    def __init__(self):
        self.run = EULER.sampler_function


def latent(batch=1):
    return torch.randn(batch, 16, 3, *HIGH, generator=torch.Generator().manual_seed(3))


def masks():
    """Strengths 0, .3 and 1 by place, and another by frame."""
    thirds = torch.zeros(1, 1, 1, *HIGH)
    thirds[..., 8:16], thirds[..., 16:] = 0.3, 1.0
    frames = torch.tensor([0.3, 0.0, 1.0]).view(1, 1, 3, 1, 1).expand(1, 1, 3, *HIGH)
    return {"by place": thirds, "by frame": frames.clone(), "soft": torch.full((1, *HIGH), 0.5)}


def curved(x, sigma, cond):
    """A velocity that is no straight line, so that a wrong latent does not come out right."""
    return torch.sin(3 * x) + x - cond * sigma


def plain(mask, sigmas=SIGMAS, samples=None):
    guider = comfy.samplers.CFGGuider(host_stub.Patcher(velocity=curved))
    guider.set_conds(*conds().values())
    guider.set_cfg(1.0)
    samples = latent() if samples is None else samples
    noise = host_stub.prepare_noise(samples, 5)
    return guider.sample(noise, samples, EULER, sigmas, denoise_mask=mask, seed=5)


def switched(mask, sampler=EULER, **changes):
    model = host_stub.Patcher(velocity=curved)
    settings = {"noise_policy": "inherited", "cfg": 1.0, "cfg_low": 1.0} | changes
    noise = host_stub.prepare_noise(latent(), 5)
    out = make_guider(model, **settings).sample(
        noise, latent(), sampler, SIGMAS, denoise_mask=mask, seed=5
    )
    return model, out


@pytest.mark.parametrize("kind", masks())
@pytest.mark.parametrize("k", [1, 4, 7])
def test_a_switch_to_the_same_size_is_the_run_without_it(kind, k):
    mask = masks()[kind]
    model, out = switched(mask, switch_step=k, low_scale=1.0)
    assert len(model.seen) == 8
    torch.testing.assert_close(out, plain(mask), atol=1e-6, rtol=1e-6)


@pytest.mark.parametrize("kind", masks())
def test_an_estimate_that_crosses_at_one_size_goes_on_exactly(kind, monkeypatch):
    """The way of another size, at the same one: renoised, with the noise that it had."""
    from surf.nodes.host.preview import legs

    real = legs.plan_legs
    monkeypatch.setattr(legs, "plan_legs", lambda *a, **k: real(*a, **(k | {"keeps_noise": False})))
    mask = masks()[kind]
    _, out = switched(mask, switch_step=3, low_scale=1.0)
    torch.testing.assert_close(out, plain(mask), atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("noise_policy", ["inherited", "fresh"])
@pytest.mark.parametrize("sigma_policy", ["same", "snr_equal"])
def test_what_a_mask_keeps_is_the_original_made_smaller(noise_policy, sigma_policy):
    mask = torch.ones(1, 1, 3, *HIGH)
    mask[:, :, 0] = 0
    _, out = switched(mask, noise_policy=noise_policy, sigma_policy=sigma_policy)
    assert tuple(out.shape[-2:]) == LOW
    kept = F.avg_pool3d(latent(), (1, 2, 2))[:, :, 0]
    torch.testing.assert_close(out[:, :, 0], kept, atol=1e-5, rtol=0)
    assert (out[:, :, 1:] - F.avg_pool3d(latent(), (1, 2, 2))[:, :, 1:]).abs().max() > 0.1


def test_a_soft_mask_blends_towards_the_original_after_the_switch():
    """A model that knows one picture: what comes out lies between it and the original."""
    strength = 0.3

    def velocity(x, sigma, cond):
        return x / sigma

    model = host_stub.Patcher(velocity=velocity)
    guider = make_guider(model, noise_policy="inherited", cfg=1.0, cfg_low=1.0)
    mask = torch.full((1, *HIGH), strength)
    noise = host_stub.prepare_noise(latent(), 5)
    out = guider.sample(noise, latent(), EULER, SIGMAS, denoise_mask=mask, seed=5)
    original = model.model.process_latent_in(F.avg_pool3d(latent(), (1, 2, 2)))
    expected = model.model.process_latent_out((1 - strength) * original)
    torch.testing.assert_close(out, expected, atol=1e-4, rtol=0)


def opaque(monkeypatch):
    """Let the fake host run a sampler that has no function to wrap."""
    real = comfy.samplers.CFGGuider.sample

    def sample(self, noise, image, sampler, *args, **kwargs):
        inner = EULER if isinstance(sampler, Opaque) else sampler
        return real(self, noise, image, inner, *args, **kwargs)

    monkeypatch.setattr(comfy.samplers.CFGGuider, "sample", sample)
    return Opaque()


@pytest.mark.parametrize("scale", [1.0, 0.5])
def test_other_samplers_are_right_for_hard_masks(scale, monkeypatch):
    mask = torch.ones(1, 1, 3, *HIGH)
    mask[:, :, 0] = 0
    settings = {"low_scale": scale, "switch_step": 3}
    wanted = switched(mask, **settings)[1]
    out = switched(mask, sampler=opaque(monkeypatch), **settings)[1]
    torch.testing.assert_close(out, wanted, atol=1e-4, rtol=1e-4)


def test_the_sampler_and_its_masked_model_are_not_changed():
    before = dict(vars(EULER))
    switched(masks()["soft"])
    assert vars(EULER) == before
