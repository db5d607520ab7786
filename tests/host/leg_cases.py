"""Legs inside a real host: experts, any guider, masks, several sizes; run by test_inside.py.

    cd $COMFYUI_PATH && python tests/host/leg_cases.py RESULTS.json

Every function `case_*` takes the host and asserts.
"""

import contextlib
from functools import partial
from unittest import mock

import inprocess
import inside
import torch
from inprocess import K, N, blank, halve, prompts, random, refused, same, text

NINE = ("euler", "euler_ancestral", "heun", "dpmpp_2m", "dpmpp_2m_sde", "res_multistep", "deis",
        "ipndm", "uni_pc")  # fmt: skip
SWITCH = {
    "switch_step": K, "low_resolution": "by scale", "low_scale": 0.5, "low_width": 416,
    "low_height": 240, "sigma_policy": "same", "noise_policy": "inherited", "handover": "reuse",
}  # fmt: skip
POLICIES = {key: SWITCH[key] for key in ("sigma_policy", "noise_policy", "handover")}
I2V = 0.9


def pair(host):
    return host.model("tiny_wan_high_noise"), host.model("tiny_wan_low_noise")


def advanced(host, model, latent, cfg, sampler="euler", seed=5, noise=True, **legs):
    """A stock KSamplerAdvanced: start, stop, and noise left where it does not stop at the end."""
    return host.stock.common_ksampler(
        model, seed, N, cfg, sampler, "simple", *prompts(), latent, disable_noise=not noise,
        start_step=legs.get("start"), last_step=legs.get("stop"),
        force_full_denoise=legs.get("stop") is None,
    )[0]  # fmt: skip


@contextlib.contextmanager
def evaluated(host, *models):
    """Record (model, sigma, rows) of every evaluation, by a wrapper on clones: (clones, record)."""
    seen, clones = [], []
    for index, model in enumerate(models):

        def wrapper(executor, x, sigma, *args, index=index, **kwargs):
            seen.append((index, sigma.flatten()[0].item(), x.shape[-2]))
            return executor(x, sigma, *args, **kwargs)

        clone = model.clone()
        clone.add_wrapper_with_key("predict_noise", "test", wrapper)
        clones.append(clone)
    yield clones, seen


def case_an_expert_cut_is_the_stock_chain(host):
    high, low = pair(host)
    shifted = [host.shifted(model, 5.0) for model in (high, low)]
    second = host.engine.second_seed(5)
    for sampler in ("euler", "dpmpp_2m", "heun", "res_multistep", "deis", "euler_ancestral",
                    "uni_pc"):  # fmt: skip
        sigmas = host.samplers.KSampler(shifted[0], N, "cpu", sampler, "simple", 1.0).sigmas
        cut = int((sigmas[:-1] >= I2V - 1e-6).sum())
        assert cut == 3 + (sampler == "uni_pc")
        first = advanced(host, shifted[0], blank(), 4.0, sampler, stop=cut)
        stock = advanced(
            host, shifted[1], first, 2.0, sampler, second, noise=False, start=cut
        )  # fmt: skip
        out = host.ours(
            high, blank(), *prompts(), model_low_noise=low, expert_boundary=I2V, cfg=4.0,
            cfg_low_noise=2.0, shift=5.0, shift_low=5.0, switch_step=N, sampler_name=sampler,
        )  # fmt: skip
        same(out[0], stock)


def case_no_expert_evaluates_out_of_its_range(host):
    for k in (1, 2, 4):
        for policy in ("same", "snr_equal"):
            with evaluated(host, *pair(host)) as ((high, low), seen):
                out = host.ours(
                    high, blank(), *prompts(), model_low_noise=low, expert_boundary=I2V,
                    shift=5.0, shift_low=5.0, switch_step=k, sigma_policy=policy,
                    noise_policy="inherited",
                )[0]  # fmt: skip
            assert torch.isfinite(out["samples"]).all()
            assert [rows for *_, rows in seen] == [16] * k + [8] * (N - k)
            for expert, sigma, _ in seen:
                assert (sigma >= I2V - 1e-6) == (expert == 0), (k, policy, seen)


def case_old_wan_pairs_keep_their_result(host):
    high, low = pair(host)
    shifted = host.shifted(high, 3.0)
    x0 = host.leg(shifted, blank(), *prompts(), 7.5, stop=K)
    half = host.stock.LatentUpscaleBy().upscale(x0, "bilinear", 0.5)[0]
    wanted = host.leg(
        host.shifted(low, 3.0), half, *prompts(), 5.0, host.engine.second_seed(5), start=K,
        noise=host.later(blank(), half),
    )  # fmt: skip
    same(host.ours(high, blank(), *prompts(), model_low=low)[0], wanted)


def case_a_switch_at_which_nothing_changes_is_the_run_without_it(host):
    plain = host.leg(host.shifted(host.model(), 3.0), blank(), *prompts(), 4.0)
    for policies in ({"sigma_policy": "same"}, {"sigma_policy": "snr_equal"},
                     {"handover": "evaluate"}):  # fmt: skip
        out = host.ours(
            host.model(), blank(), *prompts(), cfg=4.0, cfg_low=4.0, low_scale=1.0,
            noise_policy="inherited", **policies,
        )  # fmt: skip
        same(out[0], plain, 1e-5)
        assert gap(out[0], plain) <= 1e-6
    estimate = host.leg(host.shifted(host.model(), 3.0), blank(), *prompts(), 4.0, stop=K)
    assert gap(out[1], estimate) <= 1e-6


def gap(a, b):
    """Largest difference over the largest value."""
    a, b = (x["samples"] if isinstance(x, dict) else x for x in (a, b))
    return ((a - b).abs().max() / b.abs().max()).item()


def case_the_noise_that_crosses_is_white_for_nine_samplers(host):
    import surf.nodes.host.preview.noise as inheriting

    for sampler in NINE:
        crossed, inherited = [], inheriting.inherit_noise

        def record(noise, size, crossed=crossed, inherited=inherited):
            crossed.append(noise)
            return inherited(noise, size)

        with mock.patch.object(inheriting, "inherit_noise", record):
            out = host.ours(
                host.model(), blank(), *prompts(), sampler_name=sampler, noise_policy="inherited",
                cfg=1.0,
            )  # fmt: skip
        assert torch.isfinite(out[0]["samples"]).all()
        [noise] = crossed
        # A random network estimates badly; pairs of the callback were off by 1.4 to 5.7 times.
        assert abs(noise.std().item() - 1) < 0.08, (sampler, noise.std())
        assert abs(noise.mean().item()) < 0.05, sampler


def case_a_base_model_lays_out_and_a_lora_finishes(host):
    key = "diffusion_model.blocks.0.self_attn.q.lora_{}.weight"
    lora = {key.format("A"): random(4, 128, seed=1), key.format("B"): random(128, 4, seed=2) * 0.1}
    turbo, _ = host.sd.load_lora_for_models(host.model(), None, lora, 1.0, 0.0)
    settings = {"steps_low": 4, "cfg_low": 1.0, "noise_policy": "inherited"}
    with evaluated(host, host.model(), turbo) as ((base, finish), seen):
        out = host.ours(
            base, blank(), *prompts(), model_low=finish, sampler_low="res_multistep",
            scheduler_low="beta", **settings,
        )[0]  # fmt: skip
        assert [(index, rows) for index, _, rows in seen] == [(0, 16)] * K + [(1, 8)] * 4
    plain = host.ours(host.model(), blank(), *prompts(), **settings)[0]
    lora_alone = host.ours(host.model(), blank(), *prompts(), model_low=turbo, **settings)[0]
    for other in (plain, lora_alone):
        assert (out["samples"] - other["samples"]).abs().max() > 1e-3
    high = host.shifted(host.model(), 3.0)
    x0 = host.leg(high, blank(), *prompts(), 7.5, stop=K)
    half = host.stock.LatentUpscaleBy().upscale(x0, "bilinear", 0.5)[0]
    from surf.surf_core.schedule import respace

    whole = host.samplers.KSampler(high, N, "cpu", "euler", "simple", 1.0).sigmas
    wanted = host.stock.comfy.sample.sample_custom(
        host.shifted(turbo, 3.0), host.later(blank(), half), 1.0,
        host.samplers.sampler_object("euler"), respace(whole, whole[K].item(), 4), *prompts(),
        half["samples"], seed=host.engine.second_seed(5),
    )  # fmt: skip
    fresh = host.ours(
        host.model(), blank(), *prompts(), model_low=turbo, steps_low=4, cfg_low=1.0
    )[0]  # fmt: skip
    same(fresh, wanted)


class Foreign:
    """Makes a guider of another pack: an attribute of its own, and a prediction of its own."""

    @staticmethod
    def of(host, model, strength):
        class Halved(host.samplers.CFGGuider):
            def __init__(self, patcher):
                super().__init__(patcher)
                self.strength = strength

            def predict_noise(self, x, timestep, model_options={}, seed=None):  # noqa: B006
                return self.strength * super().predict_noise(x, timestep, model_options, seed)

        guider = Halved(model)
        guider.set_conds(*prompts())
        guider.set_cfg(3.0)
        return guider


def guiders(host):
    """Name -> a guider of the host, or of another pack."""
    from comfy_extras import nodes_lt, nodes_perpneg

    custom, model = host.custom, host.shifted(host.model(), 3.0)
    pos, neg = prompts()
    made = {
        "basic": custom.BasicGuider.execute(model, pos),
        "cfg": custom.CFGGuider.execute(model, pos, neg, 4.0),
        "dual": custom.DualCFGGuider.execute(model, pos, text(3), neg, 4.0, 2.0, "regular"),
        "nested": custom.DualCFGGuider.execute(model, pos, text(3), neg, 4.0, 2.0, "nested"),
        "perp": nodes_perpneg.PerpNegGuider.execute(model, pos, neg, text(4), 4.0, 1.0),
    }
    if hasattr(custom, "DualModelGuider"):
        other = host.shifted(host.model("tiny_wan_low_noise"), 3.0)
        made["dual model"] = custom.DualModelGuider.execute(model, pos, 3.0, other, neg)
    if hasattr(nodes_lt, "LTXVDualCFGGuider"):
        made["ltxv"] = nodes_lt.LTXVDualCFGGuider.execute(model, pos, neg, 3.0, 7.0)
    made = {name: node.args[0] for name, node in made.items()}
    return made | {"foreign": Foreign.of(host, model, 0.5)}


def guided(host, guider, sampler="euler", latent=None, seed=5):
    """Both outputs of SamplerCustomAdvanced."""
    model = host.shifted(host.model(), 3.0)
    sigmas = host.samplers.KSampler(model, N, "cpu", "euler", "simple", 1.0).sigmas
    return host.custom.SamplerCustomAdvanced.execute(
        host.custom.Noise_RandomNoise(seed), guider, host.samplers.sampler_object(sampler),
        sigmas, latent or blank(),
    ).args  # fmt: skip


def any_guider(host, guider, **changes):
    node = host.nodes["SurfReshiftAnyGuider"]
    return node.execute(guider=guider, **(SWITCH | changes)).args[0]


def case_every_guider_runs_as_without_a_switch_where_none_changes(host):
    for name, guider in guiders(host).items():
        plain, before = guided(host, guider), vars(guider).copy()
        out = guided(host, any_guider(host, guider, low_scale=1.0))
        for a, b in zip(out, plain, strict=True):
            assert gap(a, b) <= 1e-6, (name, gap(a, b))
        half = guided(host, any_guider(host, guider))
        assert half[0]["samples"].shape[-2:] == half[1]["samples"].shape[-2:] == (8, 12)
        assert torch.isfinite(half[0]["samples"]).all()
        # The last step ends in its own estimate.
        assert gap(half[1], half[0]) <= 1e-5, name
        assert vars(guider).keys() == before.keys()
        assert all(vars(guider)[key] is before[key] for key in before)


def case_any_guider_is_the_reshift_guider_round_a_cfg_guider(host):
    model = host.shifted(host.model(), 3.0)
    conds = dict(zip(("positive", "negative"), prompts(), strict=True))
    inner = host.custom.CFGGuider.execute(model, *prompts(), 7.5).args[0]
    for noise_policy in ("inherited", "fresh"):
        settings = SWITCH | {"noise_policy": noise_policy}
        ours = host.nodes["SurfReshiftGuider"].execute(
            model=model, **conds, cfg=7.5, cfg_low=5.0, **settings
        )
        for sampler in ("euler", "uni_pc", "dpmpp_2m_sde"):
            wanted = guided(host, ours.args[0], sampler)
            out = guided(
                host, any_guider(host, inner, noise_policy=noise_policy, cfg_low=5.0), sampler
            )
            same(out[0], wanted[0]), same(out[1], wanted[1])


def case_second_prompts_replace_those_of_the_guider(host):
    made = guiders(host)
    third, pos, neg = text(9), *prompts()
    for name, low in (("basic", "positive"), ("cfg", "negative"), ("dual", "middle")):
        out = guided(host, any_guider(host, made[name], **{f"{low}_low": third}))
        plain = guided(host, any_guider(host, made[name]))
        assert gap(out[0], plain[0]) > 1e-3, name
    # A second prompt equal to the first changes nothing, and the middle one is a negative still.
    out = guided(host, any_guider(host, made["dual"], middle_low=text(3), positive_low=pos,
                                  negative_low=neg))  # fmt: skip
    same(out[0], guided(host, any_guider(host, made["dual"]))[0])
    refused(lambda: any_guider(host, made["basic"], negative_low=neg), "Surf Reshift Any Guider",
            "has positive", "disconnect")  # fmt: skip
    refused(lambda: any_guider(host, made["basic"], cfg_low=3.0), "one guidance scale")
    refused(lambda: any_guider(host, made["dual"], cfg_low=3.0), "one guidance scale")
    refused(lambda: any_guider(host, any_guider(host, made["cfg"])), "without a switch")


def case_several_sizes_are_one_run(host):
    inner = host.custom.CFGGuider.execute(
        host.shifted(host.model(), 3.0), *prompts(), 4.0
    ).args[0]  # fmt: skip
    ladder = host.nodes["SurfReshiftLadder"]
    for noise_policy in ("inherited", "fresh"):
        settings = POLICIES | {"noise_policy": noise_policy}
        out = guided(
            host, ladder.execute(guider=inner, sizes="2: 0.75, 5: 0.5", **settings).args[0]
        )
        assert out[0]["samples"].shape[-2:] == (8, 12)
        once = guided(host, any_guider(host, inner, noise_policy=noise_policy, switch_step=2))
        single = ladder.execute(guider=inner, sizes="2: 0.5", **settings).args[0]
        same(guided(host, single)[0], once[0])
        assert gap(out[0], once[0]) > 1e-3
    still = ladder.execute(guider=inner, sizes="2: 1.0", **POLICIES).args[0]
    assert gap(guided(host, still)[0], guided(host, inner)[0]) <= 1e-6


def masks():
    """Strengths 0, .3 and 1 by place; another by frame."""
    thirds = torch.zeros(1, 1, 1, 16, 24)
    thirds[..., 8:16], thirds[..., 16:] = 0.3, 1.0
    frames = torch.tensor([0.3, 0.0, 1.0]).view(1, 1, 3, 1, 1).expand(1, 1, 3, 16, 24)
    return [thirds, frames.clone()]


def case_soft_masks_go_through_a_switch_exactly(host):
    start = {"samples": random(1, 16, 3, 16, 24)}
    model = host.shifted(host.model(), 3.0)
    for mask in masks():
        latent = start | {"noise_mask": mask}
        plain = host.leg(model, latent, *prompts(), 4.0)
        out = host.ours(
            host.model(), latent, *prompts(), cfg=4.0, cfg_low=4.0, low_scale=1.0,
            noise_policy="inherited",
        )[0]  # fmt: skip
        assert gap(out, plain) <= 1e-6, gap(out, plain)
        # Through an estimate, as at another size.
        import surf.nodes.host.preview.legs as legs

        estimated = partial(legs.plan_legs)

        def renoised(*args, estimated=estimated, **kwargs):
            return estimated(*args, **(kwargs | {"keeps_noise": False}))

        with mock.patch.object(legs, "plan_legs", renoised):
            out = host.ours(
                host.model(), latent, *prompts(), cfg=4.0, cfg_low=4.0, low_scale=1.0,
                noise_policy="inherited",
            )[0]  # fmt: skip
        assert gap(out, plain) <= 5e-6, gap(out, plain)


def case_a_frame_that_a_mask_keeps_is_the_original_made_smaller(host):
    start = {"samples": random(1, 16, 3, 16, 24)}
    mask = torch.ones(1, 1, 3, 16, 24)
    mask[:, :, 0] = 0
    small = halve(host, start["samples"])[:, :, 0]
    for sampler in ("euler", "uni_pc", "ddim", "euler_ancestral", "res_multistep"):
        for noise_policy in ("inherited", "fresh"):
            out = host.ours(
                host.model(), start | {"noise_mask": mask}, *prompts(), sampler_name=sampler,
                noise_policy=noise_policy,
            )[0]["samples"]  # fmt: skip
            loose = 2e-2 if sampler == "uni_pc" else 1e-5
            assert (out[:, :, 0] - small).abs().max() <= loose, (sampler, noise_policy)


def case_a_mask_that_changes_along_the_schedule_sees_the_whole_of_it(host):
    from comfy_extras.nodes_differential_diffusion import DifferentialDiffusion

    model = DifferentialDiffusion.execute(host.model(), 1.0).args[0]
    latent = {"samples": random(1, 16, 3, 16, 24), "noise_mask": masks()[0]}
    plain = host.leg(host.shifted(model, 3.0), latent, *prompts(), 4.0)
    out = host.ours(
        model, latent, *prompts(), cfg=4.0, cfg_low=4.0, low_scale=1.0, noise_policy="inherited"
    )[0]  # fmt: skip
    assert gap(out, plain) <= 1e-6, gap(out, plain)


def case_experts_that_cannot_be_a_pair_are_refused(host):
    high, low = pair(host)

    def ours(model=high, **changes):
        return host.ours(model, blank(), *prompts(), **changes)

    both = {"model_low_noise": low, "expert_boundary": I2V}
    refused(
        lambda: ours(expert_boundary=I2V), "Surf Reshift KSampler", "one model", "model_low_noise"
    )
    refused(lambda: ours(model_low_noise=low), "boundary of 0", "0.9 for I2V")
    refused(lambda: ours(model_low=low, **both), "got both", "model_low_noise")
    refused(lambda: ours(cfg_low_noise=2.0), "needs an expert_boundary above 0")
    refused(lambda: ours(**(both | {"expert_boundary": 1.5})), "must lie within 0.0 to 1.0")
    other = host.model("tiny_wan22_5b")
    refused(lambda: ours(**(both | {"model_low_noise": other})), "model_low_noise", "Wan22")
    own = {"shift": 0.0, "shift_low": 0.0}
    refused(
        lambda: ours(host.shifted(high, 5.0), **own,
                     **(both | {"model_low_noise": host.shifted(low, 8.0)})),
        "one timestep shift", "5.0", "8.0",
    )  # fmt: skip
    ours(host.shifted(high, 5.0), **(both | {"model_low_noise": host.shifted(low, 5.0)}), **own)
    image = host.model("tiny_wan22_i2v")
    refused(lambda: ours(**(both | {"model_low_noise": image})), "model_low_noise", "one family")


if __name__ == "__main__":
    results = inside.enter()
    inside.report(results, inprocess.bound(globals()))
