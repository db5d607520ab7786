"""Guidance with a held difference inside a real host: run by test_inside.py, all at once.

    cd $COMFYUI_PATH && python tests/host/guidance_cases.py RESULTS.json

Every function `case_*` asserts. Weights are random, but for the embedded model's.
"""

import checkpoints
import inside
import torch
from inside import noise

RESULTS = inside.enter()

import comfy.model_management  # noqa: E402
import comfy.sample  # noqa: E402
import comfy.sd  # noqa: E402
import latent_preview  # noqa: E402
from comfy.patcher_extension import WrappersMP  # noqa: E402
from comfy_extras import nodes_easycache  # noqa: E402
from surf.nodes.guidance import SurfHoldGuidance  # noqa: E402
from surf.nodes.host.guidance import SLOT, WRAPPER_KEY  # noqa: E402
from surf.nodes.host.refine.run import refine  # noqa: E402
from surf.nodes.host.refine.traits import RefineSettings  # noqa: E402
from surf.nodes.host.skip.skip_mask import SkipMask  # noqa: E402
from surf.nodes.preview import SurfReshiftKSampler  # noqa: E402
from surf.surf_core.flow import euler  # noqa: E402
from surf.surf_core.resample import resize  # noqa: E402
from surf.surf_core.skip import Mask  # noqa: E402
from surf.surf_core.tiny.model import WEIGHTS, TinyT2V  # noqa: E402

STEPS, SEED = 7, 3
ZEROS = torch.zeros(1, 16, 3, 8, 12)
MODEL = comfy.sd.load_diffusion_model_state_dict(checkpoints.diffusion_model("tiny_wan_t2v"))
TEXTS = [[[noise(1, 8, 4096, seed=seed), {}]] for seed in (1, 2)]


def held(model, every):
    return SurfHoldGuidance.execute(model, every).result[0]


def watched(model):
    """A clone that tells how many samples each call of the network had."""
    clone, seen = model.clone(), []

    def note(executor, x, *args, **kwargs):
        seen.append((len(x), x.shape[-1]))
        return executor(x, *args, **kwargs)

    clone.add_wrapper_with_key(WrappersMP.DIFFUSION_MODEL, "watch", note)
    return clone, seen


def sampled(model, name="euler", cfg=4.0, steps=STEPS, zeros=ZEROS, texts=TEXTS, **options):
    drawn = comfy.sample.prepare_noise(zeros, SEED)
    return comfy.sample.sample(
        model, drawn, steps, cfg, name, "simple", *texts, zeros, disable_pbar=True, seed=SEED,
        **options,
    )  # fmt: skip


def forwards(seen):
    return sum(count for count, _ in seen)


def preview(model, steps=8, switch=4, model_low=None):
    node = SurfReshiftKSampler.execute(
        model, *TEXTS, {"samples": ZEROS}, SEED, switch, 4.0, 3.0, steps=steps, shift=3.0,
        shift_low=3.0, sampler_name="euler", scheduler="simple", denoise=1.0,
        low_resolution="by scale", low_scale=0.5, low_width=0, low_height=0, sigma_policy="same",
        noise_policy="fresh", handover="reuse", model_low=model_low,
    )  # fmt: skip
    return node.result[0]["samples"]


def case_one_is_plain_guidance_bit_for_bit():
    for name in ("euler", "uni_pc", "dpmpp_2m"):
        assert torch.equal(sampled(held(MODEL, 1), name), sampled(MODEL, name))
    assert torch.equal(preview(held(MODEL, 1)), preview(MODEL))


def case_the_first_of_so_many_evaluations_runs_without_the_prompt():
    for every, expected in ((2, 7 + 4), (3, 7 + 3), (10, 7 + 1)):
        model, seen = watched(held(MODEL, every))
        assert sampled(model).isfinite().all()
        assert forwards(seen) == expected, (every, seen)
        assert seen[0][0] == 2 or [count for count, _ in seen[:2]] == [1, 1]


def case_host_and_core_hold_the_same():
    text = "red circle moving right, on stripes"
    tiny, model = TinyT2V([text]), comfy.sd.load_diffusion_model(str(WEIGHTS))
    conds = [[[cond, {}]] for cond in (tiny.context, torch.zeros_like(tiny.context))]
    zeros = torch.zeros(1, 16, 4, 16, 16)
    sampler = comfy.samplers.KSampler(model, 12, model.load_device, "euler", "simple", 1.0)
    drawn = comfy.sample.prepare_noise(zeros, SEED)
    plain = euler(tiny.velocity(4.0), drawn, sampler.sigmas.cpu())
    for every in (2, 3):
        ours = euler(tiny.velocity(4.0, every=every), drawn, sampler.sigmas.cpu())
        theirs = sampled(held(model, every), steps=12, zeros=zeros, texts=conds)
        ours = model.model.process_latent_out(ours)
        torch.testing.assert_close(theirs, ours, rtol=0, atol=5e-3)
        assert (ours - model.model.process_latent_out(plain)).abs().max() > 0.05


def case_each_leg_of_a_preview_begins_with_a_plain_evaluation():
    model, seen = watched(held(MODEL, 3))
    assert preview(model).isfinite().all()
    for width in (12, 6):
        leg = [pair for pair in seen if pair[1] == width]
        assert forwards(leg) == 4 + 2, seen


def case_the_second_leg_alone_may_hold():
    model, seen = watched(MODEL)
    assert preview(model, model_low=held(model, 3)).isfinite().all()
    assert [forwards([pair for pair in seen if pair[1] == width]) for width in (12, 6)] == [8, 6]


def case_guidance_functions_of_other_nodes_see_a_pair():
    model, seen = held(MODEL, 3).clone(), []

    def guided(args):
        seen.append((args["cond"] - args["uncond"]).abs().mean().item())
        return args["uncond"] + args["cond_scale"] * (args["cond"] - args["uncond"])

    plain = sampled(held(MODEL, 3))
    model.set_model_sampler_cfg_function(guided)
    torch.testing.assert_close(sampled(model), plain, rtol=0, atol=1e-4)
    assert len(seen) == STEPS
    assert min(seen) > 0


def case_no_second_prompt_at_cfg_one():
    model, seen = watched(held(MODEL, 3))
    assert torch.equal(sampled(model, cfg=1.0), sampled(MODEL, cfg=1.0))
    assert forwards(seen) == STEPS


def case_a_function_in_the_same_slot_is_called_for_every_evaluation():
    model, asked = MODEL.clone(), []

    def earlier(args):
        asked.append([cond is not None for cond in args["conds"]])
        return comfy.samplers.calc_cond_batch(
            args["model"], args["conds"], args["input"], args["sigma"], args["model_options"]
        )

    model.set_model_sampler_calc_cond_batch_function(earlier)
    assert torch.equal(sampled(held(model, 3)), sampled(held(MODEL, 3)))
    assert asked == [[True, index % 3 == 0] for index in range(STEPS)]
    again = held(held(model, 3), 1)
    assert again.model_options[SLOT] is earlier
    assert torch.equal(sampled(again), sampled(model))


def case_the_model_is_not_changed_and_a_second_node_counts():
    options = dict(MODEL.model_options)
    assert torch.equal(sampled(held(held(MODEL, 2), 5)), sampled(held(MODEL, 5)))
    assert torch.equal(sampled(held(held(MODEL, 5), 1)), sampled(MODEL))
    assert MODEL.model_options == options
    assert SLOT not in MODEL.model_options
    assert WRAPPER_KEY not in MODEL.wrappers.get(WrappersMP.OUTER_SAMPLE, {})


def case_an_interrupted_run_leaves_nothing_behind():
    model = held(MODEL, 3)
    first = sampled(model)
    for stop in (0, 1, 4):

        def callback(step, x0, x, total, stop=stop):
            if step == stop:
                raise comfy.model_management.InterruptProcessingException

        try:
            sampled(model, callback=callback)
            raise AssertionError("the interrupt was swallowed")
        except comfy.model_management.InterruptProcessingException:
            pass
        assert torch.equal(sampled(model), first)


def case_samplers_with_more_evaluations_a_step_and_batches_run():
    for name in ("heun", "dpm_2", "dpmpp_sde", "uni_pc", "euler_ancestral", "res_multistep"):
        assert sampled(held(MODEL, 2), name).isfinite().all(), name
    two = torch.zeros(2, *ZEROS.shape[1:])
    both = sampled(held(MODEL, 3), zeros=two)
    torch.testing.assert_close(both[:1], sampled(held(MODEL, 3)), rtol=0, atol=1e-4)


def case_a_step_cache_runs_beside_it():
    cached = nodes_easycache.EasyCacheNode.execute(held(MODEL, 2), 0.2, 0.15, 0.95, False).result[0]
    assert sampled(cached, steps=14).isfinite().all()


def case_the_refiner_holds_in_tiles_and_leaves_skipped_tokens_alone():
    shown = noise(1, 16, 3, 16, 24)
    start = resize(shown, (32, 48), "bilinear")
    scores = torch.rand((3, 16, 24), generator=torch.Generator().manual_seed(3))
    mask = Mask(tokens=scores > 0.5, scores=scores, source="test", tau=0.5)
    carried = SkipMask(mask=mask, size=(32, 48), start=None, upsample="latent", samples=shown)
    for more in ({}, {"tile": 256}, {"low_band_lock": 0.4}):
        settings = RefineSettings(**{
            "seed": SEED, "sigma_start": 0.65, "steps": 4, "cfg": 4.5, "window": 2,
            "low_band_lock": 0.0, "colour_match": False, **more,
        })  # fmt: skip
        out, _ = refine(
            held(MODEL, 2), *TEXTS, {"samples": shown}, settings, upsample="latent", mask=carried,
            resolution="by scale", scale=2.0, width=64, height=64,
        )  # fmt: skip
        skipped = ~mask.tokens.repeat_interleave(2, 1).repeat_interleave(2, 2)
        skipped = skipped.expand_as(out["samples"])
        assert torch.equal(out["samples"][skipped], start[skipped])
        assert out["samples"].isfinite().all()


def case_what_is_no_flow_model_is_refused():
    import comfy.model_sampling as sampling

    class Eps(sampling.ModelSamplingDiscrete, sampling.EPS):
        pass

    other = MODEL.clone()
    other.add_object_patch("model_sampling", Eps())
    for model, every, words in ((other, 3, "flow model"), (MODEL, 0, "every must")):
        said = ""
        try:
            held(model, every)
        except ValueError as error:
            said = str(error)
        assert said.startswith("Hold Guidance: "), said
        assert words in said, said


if __name__ == "__main__":
    latent_preview.prepare_callback = lambda *args: None
    inside.report(RESULTS, dict(globals()))
