"""How the switch behaves inside a host: every `case_*` takes the host and asserts."""

import checkpoints
import torch
from inprocess import SAMPLERS, SETTINGS, K, N, blank, halve, prompts, random, refused, same, text


def case_uni_pc_survives_one_interval(host):
    for sampler in ("uni_pc", "uni_pc_bh2"):
        for k in (1, N - 1):
            preview, x0 = host.ours(
                host.model(), blank(), *prompts(), sampler_name=sampler, switch_step=k
            )
            assert torch.isfinite(preview["samples"]).all()
            assert torch.isfinite(x0["samples"]).all()
    one = host.ours(host.model(), blank(), *prompts(), sampler_name="uni_pc", switch_step=1)[1]
    high = host.shifted(host.model(), 3.0)
    ksampler = host.samplers.KSampler(high, N, "cpu", "uni_pc", "simple", 1.0)
    wanted = host.stock.comfy.sample.sample_custom(
        high, host.stock.comfy.sample.prepare_noise(blank()["samples"], 5), 7.5,
        host.samplers.sampler_object("euler"), torch.tensor([ksampler.sigmas[0].item(), 0.0]),
        *prompts(), blank()["samples"], seed=5,
    )  # fmt: skip
    same(one, wanted)


def case_an_interrupted_run_leaves_nothing_behind(host):
    import comfy.model_management as management

    for noise_policy in ("fresh", "inherited"):
        settings = {"noise_policy": noise_policy, "sampler_name": "dpmpp_2m_sde"}
        first = host.ours(host.model(), blank(), *prompts(), **settings)
        make = host.preview.prepare_callback
        for stop in (1, K, K + 1, N - 1):

            def prepare(*args, stop=stop, make=make):
                host_callback = make(*args)

                def callback(step, x0, x, total):
                    if step == stop:
                        raise management.InterruptProcessingException
                    host_callback(step, x0, x, total)

                return callback

            host.preview.prepare_callback = prepare
            try:
                host.ours(host.model(), blank(), *prompts(), **settings)
                raise AssertionError("the interrupt was swallowed")
            except management.InterruptProcessingException:
                pass
            finally:
                host.preview.prepare_callback = make
            again = host.ours(host.model(), blank(), *prompts(), **settings)
            same(again[0], first[0]), same(again[1], first[1])


def case_a_noisy_latent_is_parted_before_it_is_resized(host):
    """The second stage of a pair: sigmas split, noise left in the latent, DisableNoise."""
    import comfy.sample
    from surf.surf_core.reshift import inherit_noise

    model = host.shifted(host.model(), 3.0)
    sigmas = host.samplers.KSampler(model, N, "cpu", "euler", "simple", 1.0).sigmas
    euler, sample = host.samplers.sampler_object("euler"), comfy.sample.sample_custom
    noise = comfy.sample.prepare_noise(blank()["samples"], 5)
    first = sample(model, noise, 7.5, euler, sigmas[:3], *prompts(), blank()["samples"], seed=5)
    zeros, sigma = torch.zeros_like(first), sigmas[2].item()
    x0 = sample(model, zeros, 7.5, euler, torch.tensor([sigma, 0.0]), *prompts(), first)
    into, half = model.model.process_latent_in, halve(host, x0)
    left = inherit_noise(((1 - sigma) * (into(first) - into(x0))) / sigma, half.shape[-2:])
    wanted = sample(model, left, 5.0, euler, sigmas[2:], *prompts(), half)
    keys = {k: v for k, v in SETTINGS.items() if k.startswith(("cfg", "low_", "hand"))}
    keys |= {"sigma_policy": "same", "noise_policy": "inherited", "switch_step": 0}
    conds = dict(zip(("positive", "negative"), prompts(), strict=True))
    for sampler in ("euler", "uni_pc"):
        guider = host.nodes["SurfReshiftGuider"].execute(model=model, **conds, **keys).args[0]
        out = host.custom.SamplerCustomAdvanced.execute(
            host.custom.Noise_EmptyNoise(), guider, host.samplers.sampler_object(sampler),
            sigmas[2:], {"samples": first},
        ).args[0]  # fmt: skip
        if sampler == "euler":
            same(out, wanted, 1e-3)
        assert out["samples"].shape[-2:] == (8, 12)
    keys["noise_policy"] = "fresh"
    guider = host.nodes["SurfReshiftGuider"].execute(model=model, **conds, **keys).args[0]
    refused(
        lambda: host.custom.SamplerCustomAdvanced.execute(
            host.custom.Noise_EmptyNoise(), guider, euler, sigmas[2:], {"samples": first}
        ),
        "Surf Reshift Guider", "DisableNoise", "inherited",
    )  # fmt: skip


def case_samplers_of_other_packs_are_listed_whenever_they_come(host):
    node, made = host.nodes["SurfReshiftKSampler"], host.samplers.KSampler
    for name, kind in (("sampler_name", "SAMPLERS"), ("scheduler", "SCHEDULERS")):
        listed = getattr(made, kind)
        listed.append("of_another_pack")
        try:
            given = node.GET_NODE_INFO_V1()["input"]["required"][name]
            assert "of_another_pack" in str(given)
            assert "'dpm_fast'" not in str(given)
        finally:
            listed.remove("of_another_pack")


def case_a_run_stops_at_the_evaluation_that_gives_nan(host):
    for at, stage in ((2, "evaluation 2 before the switch"), (K + 2, "evaluation 2 after")):
        seen = []

        def broken(executor, x, sigma, *args, at=at, seen=seen, **kwargs):
            seen.append(x.shape)
            return executor(x, sigma, *args, **kwargs) * (float("nan") if len(seen) == at else 1)

        model = host.model().clone()
        model.add_wrapper_with_key("predict_noise", "broken", broken)
        refused(
            lambda model=model: host.ours(model, blank(), *prompts()),
            "Surf Reshift KSampler: expected finite", stage, "fp16",
        )  # fmt: skip
        assert len(seen) == at
    bad = prompts(pooled_output=torch.full((1, 8), float("nan")))
    refused(lambda: host.ours(host.model(), blank(), *bad), "pooled_output of the positive")


def case_cells_are_those_of_the_latent_format(host):
    import comfy.latent_formats as formats
    from surf.nodes.host.models import cell_side

    known = {"LTXV": 32, "Flux2": 16, "HunyuanImage21": 32, "Wan21": 8, "Wan22": 16}
    known |= {"HunyuanVideo15": 16, "HunyuanVideo": 8, "ChromaRadiance": 1}
    for name, cell in known.items():
        model = host.model().clone()
        model.add_object_patch("latent_format", getattr(formats, name)())
        assert cell_side(model) == cell, name


def case_hunyuan_with_odd_latents_is_refused(host):
    conds = text(1, 64, pooled_output=random(1, 768)), text(2, 64, pooled_output=random(1, 768))
    refused(
        lambda: host.ours(host.model("tiny_hunyuan"), blank(rows=15), *conds),
        "HunyuanVideo", "15 x 24", "192 x 128",
    )  # fmt: skip


def case_other_kinds_of_model_and_latent_are_refused(host):
    import comfy.model_sampling as sampling
    import comfy.nested_tensor

    class EpsSampling(sampling.ModelSamplingDiscrete, sampling.EPS):
        pass

    class Flux(sampling.ModelSamplingFlux, sampling.CONST):
        pass

    eps, flux = host.model().clone(), host.model().clone()
    eps.add_object_patch("model_sampling", EpsSampling())
    flux.add_object_patch("model_sampling", Flux())
    refused(lambda: host.ours(eps, blank(), *prompts()), "flow model", "EPS")
    refused(lambda: host.ours(flux, blank(), *prompts()), "ModelSamplingFlux", "shift to 0")
    host.ours(flux, blank(), *prompts(), shift=0.0, shift_low=0.0)
    nested = {"samples": comfy.nested_tensor.NestedTensor([torch.zeros(1, 16, 3, 16, 24)] * 2)}
    refused(lambda: host.ours(host.model(), nested, *prompts()), "nested", "separate")
    for name in ("dpm_fast", "dpm_adaptive"):
        refused(
            lambda name=name: host.ours(host.model(), blank(), *prompts(), sampler_name=name), name
        )
    low = host.model("tiny_wan22_5b")
    refused(lambda: host.ours(host.model(), blank(), *prompts(), model_low=low), "Wan22")


def case_step_caches_stay_out_of_the_first_leg(host):
    for cache in ("EasyCacheNode", "LazyCacheNode"):
        plain = host.ours(host.model(), blank(), *prompts(), steps=12)
        cached = getattr(host.cache, cache).execute(host.model(), 1e6, 0.0, 1.0, False).args[0]
        kept = {kind: dict(keys) for kind, keys in cached.wrappers.items()}
        out = host.ours(cached, blank(), *prompts(), steps=12)
        same(out[1], plain[1])
        assert torch.isfinite(out[0]["samples"]).all()
        assert not torch.equal(out[0]["samples"], plain[0]["samples"])
        assert kept == cached.wrappers


def case_lora_and_fp8_weights_serve_both_legs(host):
    plain = host.ours(host.model(), blank(), *prompts())[0]["samples"]
    key = "diffusion_model.blocks.0.self_attn.q.lora_{}.weight"
    down, up = random(4, 128, seed=1), random(128, 4, seed=2) * 0.1
    lora = {key.format("A"): down, key.format("B"): up}
    patched, _ = host.sd.load_lora_for_models(host.model(), None, lora, 1.0, 0.0)
    state = checkpoints.diffusion_model("tiny_wan_t2v")
    fp8 = host.sd.load_diffusion_model_state_dict(
        state, model_options={"dtype": torch.float8_e4m3fn}
    )
    assert fp8.model.diffusion_model.blocks[0].ffn[0].weight.dtype == torch.float8_e4m3fn
    for model in (patched, fp8):
        preview = host.ours(model, blank(), *prompts())[0]
        same(preview, host.chain(model, blank(), *prompts())[1])
        assert (preview["samples"] - plain).abs().max() > 1e-3


def case_there_is_one_progress_bar(host):
    for handover, total in (("reuse", N), ("evaluate", N + 1)):
        shown, made, make = [], [], host.preview.prepare_callback

        def prepare(model, steps, *rest):
            host_callback = make(model, steps, *rest)  # noqa: B023
            made.append(steps)  # noqa: B023

            def callback(step, x0, x, whole):
                shown.append((step, whole, tuple(x0.shape[-2:])))  # noqa: B023
                host_callback(step, x0, x, whole)

            return callback

        host.preview.prepare_callback = prepare
        try:
            host.ours(host.model(), blank(), *prompts(), handover=handover)
        finally:
            host.preview.prepare_callback = make
        high = K + (handover == "evaluate")
        sizes = [(16, 24)] * high + [(8, 12)] * (total - high)
        assert made == [total], made
        assert shown == [(i, total, size) for i, size in enumerate(sizes)], shown


def case_policies_run_and_differ(host):
    outs = [
        host.ours(host.model(), blank(), *prompts(), noise_policy=noise, sigma_policy=sigma)[0]
        for noise in ("fresh", "inherited")
        for sigma in ("same", "snr_equal")
    ]
    for i, a in enumerate(outs):
        assert torch.isfinite(a["samples"]).all()
        for b in outs[:i]:
            assert not torch.equal(a["samples"], b["samples"])
    for sampler in SAMPLERS:
        out = host.ours(
            host.model(), blank(), *prompts(), noise_policy="inherited", sampler_name=sampler
        )
        assert torch.isfinite(out[0]["samples"]).all(), sampler


def case_inputs_are_not_changed(host):
    def frozen(value):
        if isinstance(value, torch.Tensor):
            return value.clone()
        if isinstance(value, dict):
            return {k: frozen(v) for k, v in value.items()}
        return [frozen(v) for v in value] if isinstance(value, list) else value

    def alike(a, b):
        if isinstance(a, torch.Tensor):
            return torch.equal(a, b)
        if isinstance(a, dict):
            return a.keys() == b.keys() and all(alike(a[k], b[k]) for k in a)
        if isinstance(a, list):
            return len(a) == len(b) and all(map(alike, a, b))
        return a is b or a == b

    mask = torch.ones(1, 16, 24)
    latent = {"samples": random(1, 16, 3, 16, 24), "noise_mask": mask, "batch_index": [3],
              "downscale_ratio_spacial": 8}  # fmt: skip
    vace = {"vace_frames": [random(1, 32, 3, 16, 24)], "vace_mask": [torch.ones(1, 64, 3, 16, 24)],
            "vace_strength": [1.0]}  # fmt: skip
    image = {"concat_latent_image": random(1, 16, 3, 16, 24)}
    for name, options in (("tiny_wan_vace", vace), ("tiny_wan22_i2v", image),
                          ("tiny_wan_t2v", {"area": (8, 8, 4, 0)})):  # fmt: skip
        for k in (0, K, N):
            model, conds = host.model(name), prompts(**options)
            options_before = frozen(model.model_options), dict(model.object_patches)
            before = frozen([latent, *conds])
            out = host.ours(model, latent, *conds, switch_step=k, sampler_name="uni_pc")
            assert alike(before, [latent, *conds])
            assert alike(options_before[0], model.model_options)
            assert options_before[1] == model.object_patches
            assert "downscale_ratio_spacial" not in out[0]


def case_the_host_can_describe_every_node(host):
    for node in host.nodes.values():
        info = node.GET_NODE_INFO_V1()
        assert info["category"] == "SURF", info["category"]
        given = info["input"]["required"] | info["input"].get("optional", {})
        assert all(spec[1]["tooltip"] for spec in given.values())
    given = host.nodes["SurfReshiftKSampler"].GET_NODE_INFO_V1()["input"]["optional"]
    assert given["handover"][1]["advanced"] is True
