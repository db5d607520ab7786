"""The switch equals stock nodes bit for bit: every `case_*` takes the host and asserts."""

from unittest import mock

import torch
from inprocess import SAMPLERS, SETTINGS, K, N, blank, halve, prompts, random, same, text

GUIDED = ("switch_step", "cfg", "cfg_low", "low_resolution", "low_scale", "low_width",
          "low_height", "sigma_policy", "noise_policy", "handover")  # fmt: skip


def case_reuse_is_the_stock_chain(host):
    for sampler in SAMPLERS:
        x0, low = host.chain(host.model(), blank(), *prompts(), sampler_name=sampler)
        preview, switch_x0 = host.ours(host.model(), blank(), *prompts(), sampler_name=sampler)
        same(switch_x0, x0), same(preview, low)


def case_stock_nodes_alone_make_the_preview_of_one_item(host):
    """KSamplerAdvanced draws the same noise from the seed that the item's first noise tells."""
    high = host.shifted(host.model(), 3.0)
    [seed] = host.seeds(blank())
    for sampler in ("euler", "dpmpp_2m", "uni_pc"):
        first = host.leg(high, blank(), *prompts(), 7.5, stop=K, sampler_name=sampler)
        half = host.stock.LatentUpscaleBy().upscale(first, "bilinear", 0.5)[0]
        low = host.leg(high, half, *prompts(), 5.0, seed, start=K, sampler_name=sampler)
        same(host.ours(host.model(), blank(), *prompts(), sampler_name=sampler)[0], low)


def case_evaluate_is_the_stock_chain_with_one_evaluation_more(host):
    for sampler in SAMPLERS:
        x0, low = host.chain(host.model(), blank(), *prompts(), evaluate=True, sampler_name=sampler)
        out = host.ours(
            host.model(), blank(), *prompts(), sampler_name=sampler, handover="evaluate"
        )
        same(out[1], x0), same(out[0], low)


def case_switch_at_the_last_step_is_a_plain_ksampler(host):
    model = host.shifted(host.model(), 3.0)
    for sampler in SAMPLERS:
        plain = host.leg(model, blank(2), *prompts(), 7.5, sampler_name=sampler)
        for handover in ("reuse", "evaluate"):
            out = host.ours(
                host.model(), blank(2), *prompts(), sampler_name=sampler, switch_step=N,
                handover=handover,
            )  # fmt: skip
            same(out[0], plain), same(out[1], plain)


def case_switch_at_step_zero_is_a_plain_ksampler_at_low_resolution(host):
    model, start = host.shifted(host.model(), 3.0), {"samples": random(2, 16, 3, 16, 24)}
    half = host.stock.LatentUpscaleBy().upscale(start, "bilinear", 0.5)[0]
    for sampler in SAMPLERS:
        noise = host.later(start, half)
        plain = host.leg(model, half, *prompts(), 5.0, noise=noise, sampler_name=sampler)
        out = host.ours(host.model(), start, *prompts(), sampler_name=sampler, switch_step=0)
        same(out[0], plain), same(out[1], start)
    low = blank(1, rows=8, cols=12)
    empty = host.leg(model, low, *prompts(), 5.0, noise=host.later(blank(), low))
    same(host.ours(host.model(), blank(), *prompts(), switch_step=0)[0], empty)


def case_partial_denoise_is_the_stock_chain(host):
    start = {"samples": random(1, 16, 3, 16, 24)}
    for sampler in ("euler", "dpmpp_2m", "uni_pc"):
        x0, low = host.chain(host.model(), start, *prompts(), denoise=0.6, sampler_name=sampler)
        out = host.ours(host.model(), start, *prompts(), denoise=0.6, sampler_name=sampler)
        same(out[1], x0), same(out[0], low)


def case_batch_index_makes_an_item_again(host):
    for k in (0, K):
        for policy in ("fresh", "inherited"):
            settings = {"switch_step": k, "noise_policy": policy}
            whole = host.ours(host.model(), blank(3), *prompts(), **settings)
            for item in (0, 2):
                latent = blank() | {"batch_index": [item]}
                alone = host.ours(host.model(), latent, *prompts(), **settings)
                for a, b in zip(alone, whole, strict=True):
                    same(a["samples"], b["samples"][item : item + 1], 2e-4)
                    assert a["batch_index"] == [item]
                guided = guided_by_node(host, latent, 5, **settings)
                same(guided, alone[0])
    latent = blank(2) | {"batch_index": [4, 1]}
    x0, low = host.chain(host.model(), latent, *prompts())
    out = host.ours(host.model(), latent, *prompts())
    same(out[1], x0), same(out[0], low)


def guided_by_node(host, latent, seed, sampler="euler", model=None, **changes):
    """Sample by Surf Reshift Guider and the host's SamplerCustomAdvanced."""
    model = host.shifted(model or host.model(), 3.0)
    settings = {key: (SETTINGS | changes)[key] for key in GUIDED}
    conds = dict(zip(("positive", "negative"), prompts(), strict=True))
    guider = host.nodes["SurfReshiftGuider"].execute(model=model, **conds, **settings).args[0]
    sigmas = host.samplers.KSampler(model, N, "cpu", sampler, "simple", 1.0).sigmas
    return host.custom.SamplerCustomAdvanced.execute(
        host.custom.Noise_RandomNoise(seed), guider, host.samplers.sampler_object(sampler),
        sigmas, latent,
    ).args[0]  # fmt: skip


def long(batch):
    """An empty LATENT of 13 latent frames."""
    return {"samples": torch.zeros(batch, 16, 13, 16, 24)}


SCHEDULES = ("standard_static", "standard_uniform", "looped_uniform", "batched")


def windowed(host, schedule=SCHEDULES[0], freenoise=True, name="tiny_wan_t2v"):
    """A model with the host's context windows of 8 latent frames."""
    from comfy_extras.nodes_context_windows import ContextWindowsManualNode

    settings = {"context_length": 8, "context_overlap": 2, "context_schedule": schedule}
    settings |= {"context_stride": 1, "closed_loop": False, "fuse_method": "pyramid", "dim": 2}
    model = host.model(name)
    return ContextWindowsManualNode.execute(model, freenoise=freenoise, **settings).args[0]


def case_long_clips_go_through_context_windows_as_in_the_stock_chain(host):
    """Both nodes, before and after the switch: every schedule, with FreeNoise and without."""
    for schedule in SCHEDULES:
        for freenoise in (False, True):
            model = windowed(host, schedule, freenoise)
            frames = []

            def wrapper(executor, *args, frames=frames, **kwargs):
                frames.append(args[0].shape[2])
                return executor(*args, **kwargs)

            model.add_wrapper_with_key("diffusion_model", "test", wrapper)
            x0, low = host.chain(model, long(1), *prompts())
            stock = len(frames)
            out = host.ours(model, long(1), *prompts())
            same(out[1], x0), same(out[0], low)
            assert len(frames) == 2 * stock
            # A host may put the frame before a window in front of it.
            assert max(frames) <= 9
            guided = guided_by_node(host, long(1), 5, model=model)
            same(guided, out[0])


def case_a_long_clip_from_a_picture_goes_through_context_windows(host):
    mask = torch.ones(1, 1, 13, 16, 24)
    mask[:, :, :1] = 0
    options = {"concat_latent_image": random(1, 16, 13, 16, 24), "concat_mask": mask}
    model = windowed(host, name="tiny_wan22_i2v")
    x0, low = host.chain(model, long(1), *prompts(**options))
    out = host.ours(model, long(1), *prompts(**options))
    same(out[1], x0), same(out[0], low)


def case_inherited_noise_is_not_shuffled_again(host):
    """FreeNoise shuffles once: the second leg starts from the noise that the first one had."""
    import surf.nodes.host.preview.noise as inheriting

    drawn, starts = [], []
    inherited = inheriting.inherit_noise

    def record(noise, size):
        drawn.append(inherited(noise, size))
        return drawn[-1].clone()

    def wrapper(executor, x, sigma, *args, **kwargs):
        starts.append((x, sigma))
        return executor(x, sigma, *args, **kwargs)

    model = windowed(host)
    model.add_wrapper_with_key("predict_noise", "test", wrapper)
    keys = set(model.wrappers["sampler_sample"])
    with mock.patch.object(inheriting, "inherit_noise", record):
        _, x0 = host.ours(model, long(1), *prompts(), noise_policy="inherited")
    half = model.model.process_latent_in(halve(host, x0["samples"]))
    z, sigma = starts[K]
    same((z - (1 - sigma) * half) / sigma, drawn[0], 1e-4)
    first = host.stock.comfy.sample.prepare_noise(long(1)["samples"], 5)
    noise = starts[0][0] / starts[0][1]
    changed = (noise - first).abs().amax((0, 1, 3, 4)) > 1e-3
    assert changed.tolist() == [False] * 8 + [True] * 5
    assert set(model.wrappers["sampler_sample"]) == keys


def case_noise_masks_are_those_of_the_stock_chain(host):
    full = torch.zeros(1, 1, 3, 16, 24)
    full[..., 4:12, 6:18] = 1
    for mask in (
        full,
        full[0],
        full[0, 0],
        torch.nn.functional.interpolate(full[0], scale_factor=8.0),
    ):
        latent = {"samples": random(1, 16, 3, 16, 24), "noise_mask": mask}
        x0, low = host.chain(host.model(), latent, *prompts(), sampler_name="euler")
        out = host.ours(host.model(), latent, *prompts(), sampler_name="euler")
        # The chain keeps its own estimate of what a mask keeps, which differs by rounding.
        same(out[1], x0), same(out[0], low, 5e-5)
        assert out[0]["noise_mask"].shape[-2:] == (8, 12)
        assert out[1]["noise_mask"].shape == mask.shape


def case_the_largest_seed_works(host):
    seed = 2**64 - 1
    x0, low = host.chain(host.model(), blank(), *prompts(), seed=seed)
    out = host.ours(host.model(), blank(), *prompts(), seed=seed)
    same(out[1], x0), same(out[0], low)


def case_images_to_concatenate_follow(host):
    mask = torch.ones(1, 1, 3, 16, 24)
    mask[:, :, :1] = 0
    options = {"concat_latent_image": random(1, 16, 3, 16, 24), "concat_mask": mask}
    for name in ("tiny_wan22_i2v", "tiny_wan_i2v"):
        conds = prompts(**options)
        x0, low = host.chain(host.model(name), blank(), *conds)
        out = host.ours(host.model(name), blank(), *conds)
        same(out[1], x0), same(out[0], low)


def case_vace_frames_and_masks_follow(host):
    mask = (random(1, 64, 3, 16, 24, seed=9) > 0).float()
    frames = random(1, 32, 3, 16, 24)
    pixels = torch.nn.functional.pixel_shuffle(mask[0].movedim(1, 0), 8)
    halved = torch.nn.functional.interpolate(pixels, scale_factor=0.5, mode="nearest-exact")
    small = {
        "vace_frames": [halve(host, frames)],
        "vace_mask": [torch.nn.functional.pixel_unshuffle(halved, 8).movedim(0, 1)[None]],
        "vace_strength": [1.0],
    }
    big = {"vace_frames": [frames], "vace_mask": [mask], "vace_strength": [1.0]}
    model = host.model("tiny_wan_vace")
    x0, low = host.chain(model, blank(), *prompts(**big), low=prompts(**small))
    out = host.ours(model, blank(), *prompts(**big))
    same(out[1], x0), same(out[0], low)


def case_references_on_the_grid_follow(host):
    big = {"reference_latents": [random(1, 16, 1, 16, 24)]}
    half = halve(host, big["reference_latents"][0])
    model = host.model("tiny_wan_ref")
    x0, low = host.chain(model, blank(), *prompts(**big), low=prompts(reference_latents=[half]))
    out = host.ours(model, blank(), *prompts(**big))
    same(out[1], x0), same(out[0], low)
    more = {"time_dim_concat": random(1, 16, 1, 16, 24)}
    small = {"time_dim_concat": halve(host, more["time_dim_concat"])}
    x0, low = host.chain(host.model(), blank(), *prompts(**more), low=prompts(**small))
    same(host.ours(host.model(), blank(), *prompts(**more))[0], low)


def case_wan_5b_and_hunyuan_are_the_stock_chain(host):
    x0, low = host.chain(host.model("tiny_wan22_5b"), blank(channels=48), *prompts())
    out = host.ours(host.model("tiny_wan22_5b"), blank(channels=48), *prompts())
    same(out[1], x0), same(out[0], low)
    options = {"pooled_output": random(1, 768), "guidance": 6.0}
    conds = text(1, 64, **options), text(2, 64, **options)
    x0, low = host.chain(host.model("tiny_hunyuan"), blank(), *conds)
    out = host.ours(host.model("tiny_hunyuan"), blank(), *conds)
    same(out[1], x0), same(out[0], low)


def case_a_second_model_takes_the_second_leg(host):
    first, second = host.model("tiny_wan_high_noise"), host.model("tiny_wan_low_noise")
    high, low = host.shifted(first, 3.0), host.shifted(second, 6.0)
    x0 = host.leg(high, blank(), *prompts(), 7.5, stop=K)
    half = host.stock.LatentUpscaleBy().upscale(x0, "bilinear", 0.5)[0]
    seed, sample = host.engine.second_seed(5), host.stock.comfy.sample
    sigmas = [
        host.samplers.KSampler(m, N, "cpu", "euler", "simple", 1.0).sigmas for m in (high, low)
    ]
    from surf.surf_core import schedule as cut

    respaced = cut.respace(sigmas[1], sigmas[0][K].item(), N - K)
    wanted = sample.sample_custom(
        low, host.later(blank(), half), 5.0,
        host.samplers.sampler_object("euler"), respaced, *prompts(), half["samples"], seed=seed,
    )  # fmt: skip
    out = host.ours(first, blank(), *prompts(), model_low=second, shift_low=6.0)
    same(out[1], x0), same(out[0], wanted)


def case_the_guider_gives_what_the_ksampler_gives(host):
    for sampler, handover in (
        ("euler", "reuse"),
        ("dpmpp_2m_sde", "evaluate"),
        ("uni_pc", "reuse"),
    ):
        model = host.shifted(host.model(), 3.0)
        settings = {key: SETTINGS[key] for key in GUIDED} | {"handover": handover}
        conds = dict(zip(("positive", "negative"), prompts(), strict=True))
        guider = host.nodes["SurfReshiftGuider"].execute(model=model, **conds, **settings).args[0]
        sigmas = host.samplers.KSampler(model, N, "cpu", sampler, "simple", 1.0).sigmas
        before = sigmas.clone()
        for _ in range(2):  # the guider is cached between runs
            out = host.custom.SamplerCustomAdvanced.execute(
                host.custom.Noise_RandomNoise(5), guider, host.samplers.sampler_object(sampler),
                sigmas, blank(),
            ).args  # fmt: skip
            wanted = host.ours(
                host.model(), blank(), *prompts(), sampler_name=sampler, handover=handover
            )
            same(out[0], wanted[0])
            assert out[1]["samples"].shape == out[0]["samples"].shape
            assert torch.equal(sigmas, before)
            assert guider.model_patcher is model
            assert guider.cfg == 7.5
