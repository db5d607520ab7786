"""Sampling with a SeedVR2 that skips, in the host's process: run by test_inside.py.

    cd $COMFYUI_PATH && python tests/host/seedvr2_run_cases.py RESULTS.json

Every function `case_*` asserts. On a host without SeedVR2 only the refusal is left to see.
"""

import checkpoints
import torch
from inside import noise
from seedvr2_reference import (
    KINDS,
    START,
    TOLERANCE,
    call,
    cells,
    comfy,
    conditioned,
    drawn,
    ksampler,
    masked_keys,
    model,
    nodes,
    ours,
    refusal,
    report,
    seedvr,
    skip,
)
from surf.surf_core.skip import weight


def case_tau_zero_is_the_model_itself():
    for kind in KINDS:
        plain = model(kind)
        for settings in ({"choose": "tau", "tau": 0.0}, {"keep": 1.0}):
            clone, ratio, report = skip(plain, **settings)
            assert clone is not plain
            assert ratio == 1.0
            assert "3000 of 3000" in report, report
            assert clone.model_options == plain.model_options
            assert not any(clone.wrappers.values())
            assert torch.equal(ksampler(clone, steps=1), ksampler(plain, steps=1))
        skipping = skip(plain)[0]
        again = skip(skipping, keep=1.0)[0]
        assert torch.equal(ksampler(again, steps=1), ksampler(plain, steps=1))


def case_skipped_cells_are_the_conditioning_at_the_end_of_a_run():
    for kind in KINDS:
        plain = model(kind)
        for cfg in (1.0, 2.5):
            mask = drawn()
            clone, ratio, _ = skip(plain, mask=mask)
            assert ratio == mask.keep_ratio
            here = cells(mask)
            out, dense = ksampler(clone, cfg=cfg), ksampler(plain, cfg=cfg)
            assert torch.equal(out[..., ~here], START[..., ~here]), kind
            assert not torch.equal(out[..., here], START[..., here])
            assert (dense - START)[..., ~here].abs().mean() > 0.1, "the model must do something"
            with masked_keys(plain, mask.tokens):
                expected = ksampler(plain, cfg=cfg, steps=1)
            got = ksampler(clone, cfg=cfg, steps=1)
            torch.testing.assert_close(
                got[..., here], expected[..., here], rtol=0, atol=10 * TOLERANCE, msg=kind
            )


def case_a_batch_with_guidance_in_one_call_keeps_its_skipped_cells():
    plain, mask, seen = model("7b"), drawn(), []
    starts = torch.cat([START, noise(*START.shape, seed=4)])
    # The host joins both branches where it thinks that they fit the memory.
    plain.model.memory_required = lambda *args, **kwargs: 0
    part = plain.model.diffusion_model.vid_in
    hook = part.register_forward_pre_hook(lambda module, args: seen.append(len(args[1])))
    for start in (starts, START):
        condition = conditioned(plain, start)[0][0][1]
        texts = [[[noise(1, 58, 5120, seed=seed), condition]] for seed in (1, 2)]
        out = ksampler(skip(plain, texts[0], mask=mask)[0], starts, texts, cfg=2.5)
        expected = start.expand_as(out)[..., ~cells(mask)]
        assert torch.equal(out[..., ~cells(mask)], expected)
    hook.remove()
    assert seen == [4] * 4, seen


def case_every_step_sees_skipped_cells_clean():
    plain, mask = model(), drawn()
    clone, seen = skip(plain, mask=mask)[0], []
    clone = clone.clone()
    clone.set_model_sampler_post_cfg_function(
        lambda args: seen.append(args["denoised"]) or args["denoised"]
    )
    ksampler(clone, steps=3)
    assert len(seen) == 3
    assert all(torch.equal(x0[..., ~cells(mask)], START[..., ~cells(mask)]) for x0 in seen)


def case_a_seam_fades_inside_of_what_is_refined():
    plain, mask = model(), drawn()
    hard, soft = (ksampler(skip(plain, mask=mask, seam=s)[0], steps=1) for s in (0, 2))
    share = weight(mask.tokens, (1, 2, 2), 2)
    assert torch.equal(soft[..., share == 0], START[..., share == 0])
    torch.testing.assert_close(soft[..., share == 1], hard[..., share == 1])
    edge = (share > 0) & (share < 1)
    expected = torch.lerp(START, hard, share.expand_as(START))
    torch.testing.assert_close(soft[..., edge], expected[..., edge], rtol=0, atol=1e-4)


def case_a_run_that_stops_early_keeps_its_noise():
    plain, mask = model(), drawn()
    clone = skip(plain, mask=mask)[0]
    positive, negative = conditioned(plain)
    out = nodes.common_ksampler(
        clone, 3, 4, 1.0, "euler", "simple", positive, negative, {"samples": START}, last_step=2
    )[0]["samples"]
    assert (out - START)[..., ~cells(mask)].abs().mean() > 0.1


def case_the_original_is_untouched_and_a_second_node_replaces_the_first():
    plain, x = model(), noise(1, 16, 5, 40, 60)
    before, sampled = call(plain, x), ksampler(plain)
    first, second = drawn(0), drawn(1)
    once = skip(plain, mask=first)[0]
    once_out = ksampler(once)
    twice = skip(once, mask=second)[0]
    assert torch.equal(ksampler(twice), ksampler(skip(plain, mask=second)[0]))
    for kind in twice.wrappers.values():
        assert len(kind.get(ours.KEY, [None])) == 1
    assert len(twice.model_options["sampler_post_cfg_function"]) == 1
    assert torch.equal(ksampler(once), once_out)
    assert torch.equal(call(plain, x), before)
    assert torch.equal(ksampler(plain), sampled)
    assert not plain.model_options.get("transformer_options", {}).get("patches_replace")
    assert not any(plain.wrappers.values())


def case_blocks_that_another_node_replaces_afterwards_still_skip():
    plain, mask, seen = model(), drawn(), []
    clone = skip(plain, mask=mask)[0]
    expected = ksampler(clone)

    def other(args, extra):
        seen.append(len(args["vid"]))
        return extra["original_block"](args)

    def before_each_step(executor, x, time, model_options=None, seed=None):
        model_options["transformer_options"]["patches_replace"]["dit"]["block", 1] = other
        return executor(x, time, model_options, seed)

    later, each_step = clone.clone(), clone.clone()
    later.set_model_patch_replace(other, "dit", "block", 0)
    kinds = comfy.patcher_extension.WrappersMP
    each_step.add_wrapper_with_key(kinds.PREDICT_NOISE, "test", before_each_step)
    for patched in (later, each_step):
        assert torch.equal(ksampler(patched), expected)
    assert set(seen) == {int(mask.tokens.sum())}, set(seen)
    assert len(seen) == 4
    assert torch.equal(ksampler(clone), expected)


def case_the_latents_own_detail_decides():
    plain = model()
    start = torch.zeros(1, 16, 5, 40, 60)
    start[:, :, :, 10:30, 20:40] = noise(1, 16, 5, 20, 20)
    positive, _ = conditioned(plain, start)
    clone, ratio, report = skip(plain, positive, keep=0.2)
    assert 0.15 < ratio < 0.3, ratio
    assert report.startswith(f"{round(ratio * 3000)} of 3000 tokens"), report
    out = ksampler(clone, start)
    assert torch.equal(out[..., :8, :], start[..., :8, :])
    assert not torch.equal(out[..., 12:28, 22:38], start[..., 12:28, 22:38])
    wide, narrow = (skip(plain, positive, choose="tau", tau=60.0, dilate=d)[1] for d in (2, 0))
    assert 0 < narrow < wide < 1, (narrow, wide)


def textured(frames=17, height=80, width=120):
    """Frames at a quarter of START's size: grey, with texture in the middle."""
    image = torch.full((frames, height, width, 3), 0.5)
    image[:, 20:60, 40:80] = noise(frames, 40, 40, 3).sigmoid()
    return image


def case_the_pixels_of_the_video_decide_where_they_are_given():
    plain = model()
    image, start = textured(), noise(1, 16, 5, 40, 60, seed=3)
    positive, _ = conditioned(plain, start)
    clone, ratio, report = skip(plain, positive, keep=0.2, image=image)
    assert 0.15 < ratio < 0.3, ratio
    assert "of pixel detail" in report, report
    assert "of detail" in skip(plain, positive, keep=0.2)[2]
    out = ksampler(clone, start)
    # START's own noise is alike everywhere: the latent would have chosen tokens all over.
    assert torch.equal(out[..., :8, :], start[..., :8, :])
    assert (out[..., 12:28, 22:38] != start[..., 12:28, 22:38]).float().mean() > 0.9
    everything = skip(plain, positive, choose="tau", tau=0.0, image=image)[0]
    assert torch.equal(ksampler(everything, start), ksampler(plain, start))


def case_parts_of_a_video_are_chosen_by_their_own_frames():
    from comfy_extras.nodes_seedvr import SeedVR2TemporalChunk, SeedVR2TemporalMerge

    plain, image = model(), textured()
    image[9:] = image[9:].roll(-40, dims=2)
    mode = {"chunking_mode": "manual", "frames_per_chunk": 9}
    parts, overlap = SeedVR2TemporalChunk.execute({"samples": START}, 1, mode).result
    assert [part["samples"].shape[2] for part in parts] == [3, 3]
    done = []
    for part, columns in zip(parts, (slice(20, 40), slice(0, 20)), strict=True):
        x = part["samples"]
        conditioning = conditioned(plain, x)
        clone, ratio, _ = skip(
            plain, conditioning[0], keep=0.2, image=image, latent={"samples": START}
        )
        assert 0.15 < ratio < 0.4, ratio
        out = ksampler(clone, x, conditioning)
        changed = (out != x).any(dim=1)[0, 1:]
        assert changed[..., 12:28, columns].float().mean() > 0.9
        assert not changed[..., 42:].any()
        done.append({"samples": out})
    merged = SeedVR2TemporalMerge.execute(done, [overlap]).result[0]["samples"]
    assert merged.shape == START.shape


def case_bad_input_is_refused_with_a_reason():
    plain = model()
    positive, negative = conditioned(plain)
    broken = START.clone()
    broken[0, 0, 0, 0, 0] = torch.nan
    other = noise(1, 16, 5, 40, 60, seed=8)
    clone = skip(plain, positive)[0]
    small, short = noise(1, 16, 5, 40, 44), noise(1, 16, 3, 40, 60)
    said = {
        "tau must lie": lambda: skip(plain, choose="tau", tau=-1.0),
        "tau must lie within": lambda: skip(plain, choose="tau", tau=float("nan")),
        "keep must lie": lambda: skip(plain, keep=0.0),
        "keep must lie within": lambda: skip(plain, keep=1.5),
        "dilate must lie": lambda: skip(plain, dilate=-1),
        "seam must lie": lambda: skip(plain, seam=-1),
        "choose must be one of": lambda: skip(plain, choose="all"),
        "skips the whole clip": lambda: skip(plain, choose="tau", tau=255.0, dilate=1),
        "must be finite": lambda: skip(plain, conditioned(plain, broken)[0]),
        "got none; connect 'positive'": lambda: skip(plain, [[positive[0][0], {}]]),
        "got several": lambda: skip(plain, [*positive, *conditioned(plain, other)[0]]),
        "must have 17 channels": lambda: skip(plain, [[positive[0][0], {"condition": START}]]),
        "whole tokens": lambda: skip(plain, conditioned(plain, noise(1, 16, 5, 39, 60))[0]),
        "got (16, 5, 40, 44)": lambda: ksampler(clone, small),
        "got (16, 3, 40, 60)": lambda: ksampler(clone, short),
        "that of another clip": lambda: ksampler(clone, START, conditioned(plain, other)),
        "expected an image of 14 to 17 frames": lambda: skip(plain, image=textured(13)),
        "not that enlarged": lambda: skip(plain, image=textured(height=120)),
        "image must be of type IMAGE": lambda: skip(plain, image=textured()[None]),
        "connect what goes into Split": lambda: skip(
            plain, image=textured(), latent={"samples": other}
        ),
        "of another clip, (16, 3": lambda: ksampler(clone, START, conditioned(plain, short)),
        "the mask of grid": lambda: call(clone, small, start=small),
    }
    for words, run in said.items():
        message = refusal(run)
        assert message.startswith("Surf SeedVR2 Skip: "), (words, message)
        assert words in message, (words, message)


def case_other_models_are_refused():
    wan = comfy.sd.load_diffusion_model_state_dict(checkpoints.diffusion_model("tiny_wan_t2v"))
    condition = {"condition": torch.cat([START, START[:, :1]], dim=1)}
    message = refusal(lambda: skip(wan, [[torch.zeros(1, 58, 5120), condition]]))
    assert message.startswith("Surf SeedVR2 Skip: expected a "), message
    assert ("got WanModel" if seedvr else "an older one") in message, message


if __name__ == "__main__":
    report(dict(globals()), anywhere=("case_other_models_are_refused",))
