"""The switch on the fake host: evaluations, progress, seeds, noise, handover, interrupts."""

from itertools import pairwise

import comfy.samplers
import host_stub
import pytest
import torch
from surf.nodes.host import models
from surf.nodes.host.preview.noise import fresh_noise, item_seed, second_seed
from surf.nodes.preview import SurfReshiftGuider, SurfReshiftKSampler
from surf.surf_core.schedule import snr_equal_sigma

HIGH, LOW = (16, 24), (8, 12)
SETTINGS = {
    "seed": 5, "steps": 8, "switch_step": 3, "cfg": 7.5, "cfg_low": 5.0, "shift": 3.0,
    "shift_low": 3.0, "sampler_name": "euler", "scheduler": "simple", "denoise": 1.0,
    "low_resolution": "by scale", "low_scale": 0.5, "low_width": 416, "low_height": 240,
    "sigma_policy": "same", "noise_policy": "fresh", "handover": "reuse",
}  # fmt: skip


def conds():
    positive, negative = (torch.full((1, 4, 8), value) for value in (0.5, -0.25))
    return {"positive": [[positive, {}]], "negative": [[negative, {}]]}


def blank(batch=1, size=HIGH, frames=3):
    return {"samples": torch.zeros(batch, 16, frames, *size)}


def run(model=None, latent=None, **changes):
    model = model or host_stub.Patcher()
    out = SurfReshiftKSampler.execute(
        model=model, latent_image=latent or blank(), **conds(), **(SETTINGS | changes)
    )
    return model, *out.args


def plain(latent, cfg, shift=3.0, seed=5, sampler="euler", steps=8, noise=None):
    """What a KSampler of the fake host makes."""
    model = models.with_shift(host_stub.Patcher(), shift)
    sigmas = comfy.samplers.KSampler(model, steps, "cpu", sampler, "simple", 1.0, {}).sigmas
    guider = comfy.samplers.CFGGuider(model)
    guider.set_conds(*conds().values())
    guider.set_cfg(cfg)
    noise = host_stub.prepare_noise(latent, seed) if noise is None else noise
    return guider.sample(noise, latent, comfy.samplers.sampler_object(sampler), sigmas, seed=seed)


def later_noise(latent, seed=5, size=LOW):
    """Fresh noise after a switch, from the first noise of each item."""
    first = host_stub.prepare_noise(latent["samples"], seed)
    low = torch.zeros(*first.shape[:-2], *size)
    return fresh_noise(low, [item_seed(seed, item) for item in first])


def test_what_a_program_leaves_out_is_what_the_node_shows():
    schema = SurfReshiftKSampler.define_schema()
    left_out = [item for item in schema.inputs if item.optional and item.id in SETTINGS]
    optional = {item.id: item.default for item in left_out}
    assert len(optional) == 6
    needed = {name: value for name, value in SETTINGS.items() if name not in optional}
    latent = blank(size=(60, 104))
    shown = run(latent=latent, **optional | {"low_resolution": "by size"})[1]
    out = SurfReshiftKSampler.execute(
        model=host_stub.Patcher(), latent_image=latent, **conds(),
        **needed | {"low_resolution": "by size"},
    ).args  # fmt: skip
    assert torch.equal(out[0]["samples"], shown["samples"])
    assert shown["samples"].shape[-2:] == (30, 52)


@pytest.mark.parametrize("k", range(9))
@pytest.mark.parametrize("handover", ["reuse", "evaluate"])
def test_evaluations_are_counted_and_sized(k, handover):
    model, preview, x0 = run(switch_step=k, handover=handover)
    high = k + (handover == "evaluate" and 0 < k < 8)
    assert [e.size for e in model.seen] == [HIGH] * high + [LOW] * (8 - k)
    assert [e.cfg for e in model.seen] == [7.5] * high + [5.0] * (8 - k)
    assert preview["samples"].shape[-2:] == (HIGH if k == 8 else LOW)
    assert x0["samples"].shape[-2:] == HIGH


@pytest.mark.parametrize("k", [0, 1, 3, 7, 8])
@pytest.mark.parametrize("handover", ["reuse", "evaluate"])
def test_one_progress_bar_counts_through_both_legs(k, handover):
    host_stub.BARS.clear()
    run(switch_step=k, handover=handover)
    total = 8 + (handover == "evaluate" and 0 < k < 8)
    (bar,) = host_stub.BARS
    assert bar.steps == total
    assert bar.shown == [(i + 1, total) for i in range(total)]


def test_switch_at_the_last_step_matches_a_plain_sampler():
    for sampler in ("euler", "euler_ancestral", "uni_pc", "dpm_2"):
        _, preview, x0 = run(switch_step=8, sampler_name=sampler)
        expected = plain(blank()["samples"], 7.5, sampler=sampler)
        assert torch.equal(preview["samples"], expected)
        assert torch.equal(x0["samples"], expected)


def test_switch_at_step_zero_matches_a_plain_sampler_at_low_resolution():
    for sampler in ("euler", "euler_ancestral", "uni_pc"):
        start = blank()
        _, preview, x0 = run(latent=start, switch_step=0, sampler_name=sampler)
        low = blank(size=LOW)["samples"]
        expected = plain(low, 5.0, sampler=sampler, noise=later_noise(start))
        assert torch.equal(preview["samples"], expected)
        assert torch.equal(x0["samples"], start["samples"])


def test_sigmas_are_cut_at_the_switch():
    model, *_ = run()
    sigmas = [e.sigma for e in model.seen]
    own = models.with_shift(host_stub.Patcher(), 3.0)
    whole = comfy.samplers.KSampler(own, 8, "cpu", "euler", "simple", 1.0, {}).sigmas.tolist()
    assert sigmas == whole[:8]
    model, *_ = run(sigma_policy="snr_equal")
    assert model.seen[3].sigma == pytest.approx(snr_equal_sigma(whole[3], 2.0))
    assert all(a > b for a, b in pairwise(e.sigma for e in model.seen))


def test_shifts_are_set_on_clones():
    model = host_stub.Patcher()
    run(model, shift=5.0, shift_low=2.0)
    assert model.object_patches == {}
    shifts = [e.patcher.get_model_object("model_sampling").shift for e in model.seen]
    assert shifts == [5.0] * 3 + [2.0] * 5
    run(model, shift=0.0, shift_low=0.0)
    assert model.seen[-1].patcher is model


@pytest.mark.parametrize("timesteps", [1000, 250])
def test_setting_the_shift_that_a_model_has_changes_no_sigma(timesteps):
    model = host_stub.Patcher()
    model.model.model_sampling.set_parameters(shift=5.0, timesteps=timesteps, multiplier=1)
    own, same, other = (
        m.get_model_object("model_sampling")
        for m in (
            model,
            models.with_shift(model, 5.0),
            models.with_shift(model, 3.0),
        )
    )
    assert torch.equal(own.sigmas, same.sigmas)
    assert same.multiplier == other.multiplier == 1
    assert len(other.sigmas) == timesteps
    assert (other.sigmas[:-1] < own.sigmas[:-1]).all()


def test_a_second_model_takes_the_second_leg():
    first, second = host_stub.Patcher(), host_stub.Patcher()
    run(first, model_low=second)
    assert [len(first.seen), len(second.seen)] == [3, 5]


def test_runs_are_deterministic_and_follow_the_seed():
    for noise_policy in ("fresh", "inherited"):
        outs = [run(noise_policy=noise_policy, seed=seed)[1]["samples"] for seed in (1, 1, 2)]
        assert torch.equal(outs[0], outs[1])
        assert not torch.equal(outs[0], outs[2])


def test_the_second_seed_is_in_range_and_another():
    seeds = [second_seed(seed) for seed in (0, 1, 2, 2**63, 2**64 - 1)]
    assert len(set(seeds)) == 5
    assert all(0 <= seed < 2**63 for seed in seeds)
    assert torch.isfinite(run(seed=2**64 - 1)[1]["samples"]).all()


@pytest.mark.parametrize("noise_policy", ["fresh", "inherited"])
@pytest.mark.parametrize("k", [0, 3, 8])
def test_batch_index_makes_an_item_again(k, noise_policy, tolerance):
    settings = {"switch_step": k, "noise_policy": noise_policy}
    whole = run(latent=blank(3), **settings)[1]
    alone = run(latent=blank() | {"batch_index": [2]}, **settings)[1]
    gap = (alone["samples"] - whole["samples"][2:]).abs().max()
    assert gap <= 10 * tolerance[torch.float32]
    assert alone["batch_index"] == [2]


@pytest.mark.parametrize("noise_policy", ["fresh", "inherited"])
@pytest.mark.parametrize("k", [0, 3])
def test_the_guider_makes_an_item_again_and_as_the_ksampler_does(k, noise_policy, tolerance):
    settings = {"switch_step": k, "noise_policy": noise_policy, "sigma_policy": "snr_equal"}
    whole = run(latent=blank(3), shift=0.0, shift_low=0.0, **settings)[1]["samples"]
    first = host_stub.prepare_noise(blank(3)["samples"], 5)
    sigmas = comfy.samplers.KSampler(host_stub.Patcher(), 8, "", "euler", "", 1.0, {}).sigmas
    for items in ([0, 1, 2], [2], [1, 0]):
        noise = host_stub.prepare_noise(blank(len(items))["samples"], 5, items)
        assert torch.equal(noise, first[items])
        out = sample(make_guider(**settings), sigmas, noise=noise)
        assert (out - whole[items]).abs().max() <= 10 * tolerance[torch.float32]


@pytest.mark.parametrize("shape", [HIGH, (1, *HIGH), (3, *HIGH), (1, 1, *HIGH), (1, 1, 3, *HIGH)])
def test_noise_masks_follow(shape):
    mask = torch.zeros(shape)
    mask[..., 4:12, 6:18] = 1
    start = {"samples": torch.randn(1, 16, 3, *HIGH), "noise_mask": mask}
    model, preview, x0 = run(latent=start)
    assert [tuple(e.mask.shape[-2:]) for e in model.seen] == [HIGH] * 3 + [LOW] * 5
    assert preview["noise_mask"].shape == (*shape[:-2], *LOW)
    assert x0["noise_mask"].shape == shape
    kept = start["samples"][..., 0, 0] - x0["samples"][..., 0, 0]
    assert kept.abs().max() < 1e-5


def test_the_second_leg_starts_from_the_resized_estimate():
    seen = []

    def velocity(x, sigma, cond):
        seen.append((x, sigma.flatten()[0].item()))
        return x + cond

    model = host_stub.Patcher(velocity=velocity)
    _, _, x0 = run(model)
    z, sigma = next((x, s) for x, s in seen if tuple(x.shape[-2:]) == LOW)
    half, z0 = torch.nn.functional.avg_pool3d(x0["samples"], (1, 2, 2)), blank()["samples"]
    noise = host_stub.prepare_noise(half, item_seed(5, host_stub.prepare_noise(z0, 5)[0]))
    expected = sigma * noise + (1 - sigma) * model.model.process_latent_in(half)
    torch.testing.assert_close(z, expected)


def test_inherited_noise_is_the_noise_of_the_first_leg():
    seen = []

    def velocity(x, sigma, cond):
        seen.append(x)
        return x - 0.3

    model = host_stub.Patcher(velocity=velocity)
    _, _, x0 = run(model, noise_policy="inherited", cfg=1.0, switch_step=1)
    low = next(x for x in seen if tuple(x.shape[-2:]) == LOW)
    sigma = model.seen[1].sigma
    clean = model.model.process_latent_in(torch.nn.functional.avg_pool3d(x0["samples"], (1, 2, 2)))
    noise = (low - (1 - sigma) * clean) / sigma
    first = host_stub.prepare_noise(blank()["samples"], 5)
    expected = torch.nn.functional.avg_pool3d(first, (1, 2, 2)) * 2
    expected = expected / expected.square().mean().sqrt()
    torch.testing.assert_close(noise, expected, atol=1e-4, rtol=0)


@pytest.mark.parametrize("k", [1, 7])
def test_uni_pc_hands_a_single_interval_to_euler(k):
    model, preview, x0 = run(sampler_name="uni_pc", switch_step=k)
    assert len(model.seen) == 8
    assert [e.size for e in model.seen] == [HIGH] * k + [LOW] * (8 - k)


def test_partial_denoise_uses_the_lower_part_of_the_schedule():
    start = {"samples": torch.randn(1, 16, 3, *HIGH)}
    model, *_ = run(latent=start, denoise=0.5)
    assert len(model.seen) == 8
    assert model.seen[0].sigma < 0.9


def test_step_caches_are_off_in_the_first_leg_only():
    model = host_stub.Patcher()
    model.add_wrapper_with_key("predict_noise", "lazycache", object())
    model.add_wrapper_with_key("predict_noise", "other", object())
    run(model)
    keys = [set(e.patcher.wrappers["predict_noise"]) for e in model.seen]
    assert keys == [{"other"}] * 3 + [{"other", "lazycache"}] * 5
    assert set(model.wrappers["predict_noise"]) == {"other", "lazycache"}


@pytest.mark.parametrize("stop", [0, 2, 3, 7])
@pytest.mark.parametrize("noise_policy", ["fresh", "inherited"])
def test_interrupts_pass_through_and_leave_nothing_behind(stop, noise_policy, monkeypatch):
    guider = make_guider(noise_policy=noise_policy)
    first = sample(guider)

    def interrupt(step, x0, x, total):
        if step == stop:
            raise host_stub.Interrupted

    with pytest.raises(host_stub.Interrupted):
        sample(guider, callback=interrupt)
    assert torch.equal(sample(guider), first)


def make_guider(model=None, **changes):
    keys = ("switch_step", "cfg", "cfg_low", "low_resolution", "low_scale", "low_width",
            "low_height", "sigma_policy", "noise_policy", "handover")  # fmt: skip
    settings = {key: SETTINGS[key] for key in keys} | changes
    model = model or host_stub.Patcher()
    return SurfReshiftGuider.execute(model=model, **conds(), **settings).args[0]


def sample(guider, sigmas=None, callback=None, noise=None):
    sigmas = torch.linspace(1, 0, 9) if sigmas is None else sigmas
    samples = blank()["samples"] if noise is None else torch.zeros_like(noise)
    noise = host_stub.prepare_noise(samples, 5) if noise is None else noise
    return guider.sample(
        noise, samples, comfy.samplers.sampler_object("euler"), sigmas, callback=callback, seed=5
    )


def test_the_guider_is_itself_again_after_a_run():
    model = host_stub.Patcher()
    guider = make_guider(model)
    before = dict(guider.original_conds)
    first = sample(guider)
    assert (guider.model_patcher, guider.cfg) == (model, 7.5)
    assert guider.original_conds == before
    assert torch.equal(sample(guider), first)


def test_the_guider_does_not_mutate_sigmas():
    sigmas = torch.linspace(1, 0, 9)
    guider = make_guider()
    unipc = comfy.samplers.sampler_object("uni_pc")
    samples = blank()["samples"]
    guider.sample(host_stub.prepare_noise(samples, 5), samples, unipc, sigmas, seed=5)
    assert torch.equal(sigmas, torch.linspace(1, 0, 9))


def test_noise_that_is_switched_off_stays_off_without_a_switch():
    model = host_stub.Patcher()
    sample(make_guider(model, switch_step=0), noise=torch.zeros_like(blank()["samples"]))
    seen = sample(make_guider(switch_step=0))
    assert torch.isfinite(seen).all()
    assert {e.size for e in model.seen} == {LOW}


def test_a_schedule_may_end_above_zero():
    out = sample(make_guider(), sigmas=torch.linspace(1, 0.4, 9))
    assert torch.isfinite(out).all()


def test_equal_sizes_still_switch_the_noise():
    model, *_ = run(low_scale=1.0)
    assert [e.size for e in model.seen] == [HIGH] * 8


@pytest.mark.parametrize(("frames", "size"), [(1, (16, 24)), (5, (10, 14)), (2, (30, 52))])
def test_sizes_are_snapped_to_patches(frames, size):
    _, preview, _ = run(latent=blank(size=size, frames=frames))
    rows, cols = preview["samples"].shape[-2:]
    assert rows % 2 == cols % 2 == 0
    assert preview["samples"].shape[2] == frames
