"""Token skipping in the network of the host's SeedVR2, in its process: run by test_inside.py.

    cd $COMFYUI_PATH && python tests/host/seedvr2_cases.py RESULTS.json

Every function `case_*` asserts. On a host without SeedVR2 there is nothing to see.
"""

from functools import partial
from itertools import product
from unittest.mock import patch

import torch
from inside import noise
from seedvr2_reference import (
    ALL,
    GRID,
    KINDS,
    SIZES,
    START,
    TOLERANCE,
    call,
    cells,
    drawn,
    masked_keys,
    model,
    phases,
    refusal,
    report,
    seedvr,
    skip,
)
from surf.surf_core.cost import ModelShape, forward_flops
from surf.surf_core.cost.boxes import box_sides, cuts
from surf.surf_core.skip import Mask
from torch.utils.flop_counter import FlopCounterMode


def case_the_reference_is_the_host_when_nothing_is_masked():
    for kind in KINDS:
        plain, x = model(kind), noise(1, 16, 5, 40, 60)
        expected = call(plain, x)
        with masked_keys(plain, ALL):
            torch.testing.assert_close(call(plain, x), expected, rtol=0, atol=TOLERANCE, msg=kind)


def case_kept_tokens_match_dense_attention_with_masked_keys():
    for kind in KINDS:
        plain, x = model(kind), noise(1, 16, 5, 40, 60)
        dense = call(plain, x)
        for seed in (0, 1):
            mask = drawn(seed)
            kept = [len(cuts) for cuts in phases(plain.model.diffusion_model, mask.tokens)]
            cuts = list(phases(plain.model.diffusion_model))
            every = [len(found) for found in cuts]
            assert cuts[0] == cuts[2] != cuts[1] == cuts[3], "both phases must be seen"
            assert all(1 < some < all_ for some, all_ in zip(kept, every, strict=True))
            got = call(skip(plain, mask=mask)[0], x)
            with masked_keys(plain, mask.tokens):
                expected = call(plain, x)
            here = cells(mask).expand_as(x)
            torch.testing.assert_close(
                got[here], expected[here], rtol=0, atol=TOLERANCE, msg=lambda m, k=kind: k + m
            )
            assert (got - dense)[here].abs().mean() > 100 * TOLERANCE, "the mask must matter"
            assert got.isfinite().all()


def case_one_kept_token_runs_alone():
    plain, x = model(), noise(1, 16, 5, 40, 60)
    tokens = torch.zeros(GRID, dtype=torch.bool)
    tokens[3, 7, 11] = True
    mask = Mask(tokens=tokens, scores=tokens.float(), source="test", tau=1.0)
    got = call(skip(plain, mask=mask)[0], x)
    with masked_keys(plain, tokens):
        expected = call(plain, x)
    here = cells(mask).expand_as(x)
    torch.testing.assert_close(got[here], expected[here], rtol=0, atol=TOLERANCE)


def case_samples_of_a_batch_match_dense_attention_too():
    for kind in KINDS:
        plain, mask, x = model(kind), drawn(), noise(2, 16, 5, 40, 60)
        starts = torch.cat([START, noise(*START.shape, seed=4)])
        got = call(skip(plain, mask=mask)[0], x, start=starts)
        with masked_keys(plain, mask.tokens):
            expected = call(plain, x, start=starts)
        here = cells(mask)
        torch.testing.assert_close(
            got[..., here], expected[..., here], rtol=0, atol=TOLERANCE, msg=kind
        )


def case_both_branches_of_the_guidance_in_one_call_match_themselves_alone():
    texts = noise(2, 58, 5120, seed=6)
    for kind in ("7b", "7b separate"):
        plain, mask = model(kind), drawn()
        clone, x = skip(plain, mask=mask)[0], noise(1, 16, 5, 40, 60)
        twice = [tensor.repeat(2, 1, 1, 1, 1) for tensor in (x, START)]
        both, here = call(clone, twice[0], texts, twice[1], [0, 1]), cells(mask)
        assert (both[0] - both[1])[:, here].abs().mean() > 10 * TOLERANCE, "texts must matter"
        for row, text in zip(both, texts, strict=True):
            expected = call(clone, x, text[None], branches=[0])[0]
            torch.testing.assert_close(
                row[:, here], expected[:, here], rtol=0, atol=TOLERANCE, msg=kind
            )


def case_blocks_see_kept_tokens_only_and_cost_what_these_cost():
    for kind in KINDS:
        plain, mask, x = model(kind), drawn(), noise(1, 16, 5, 40, 60)
        clone, network = skip(plain, mask=mask)[0], plain.model.diffusion_model
        seen, hooks = [], []
        note = partial(tell_length, seen)
        for block in network.blocks:
            for part in (block.attn.proj_qkv, block.attn.proj_out):
                hooks.append(part.register_forward_pre_hook(note))
        counts = []
        for run in (clone, plain):
            with FlopCounterMode(display=False) as counter:
                call(run, x)
            counts.append(counter.get_total_flops())
        for hook in hooks:
            hook.remove()
        kept, blocks = int(mask.tokens.sum()), len(network.blocks)
        assert seen == [kept] * 2 * blocks + [3000] * 2 * blocks, seen
        for count, keep in zip(counts, (mask.tokens, ALL), strict=True):
            expected = flops(network, keep)
            assert abs(count - expected) < 0.05 * expected, (kind, count, expected)
        assert counts[0] < 0.6 * counts[1], counts


def tell_length(seen, module, args):
    seen.append(len(args[0]))


def flops(network, keep):
    """By hand: linear maps of kept tokens and of text, windows, and what is outside the blocks."""
    texts = len(network.positive_conditioning)
    kept, inner = int(keep.sum()), SIZES["heads"] * SIZES["head_dim"]
    width, total = SIZES["vid_dim"], 0
    for block, found in zip(network.blocks, phases(network, keep), strict=True):
        swiglu = hasattr(next(iter(block.mlp.children())), "proj_in_gate")
        one = 3 * 256 if swiglu else 2 * 4 * width
        total += 2 * (kept + texts) * 4 * width * inner
        total += 2 * (kept + texts * (not block.mlp.vid_only)) * one * width
        total += sum(4 * inner * (int(keep[cut].sum()) + texts) ** 2 for cut in found)
    return total + outside(network, keep.numel())


def outside(network, count):
    """By hand: what is before and behind the blocks, for all `count` tokens."""
    width, texts = SIZES["vid_dim"], len(network.positive_conditioning)
    ends = count * (33 + 16) * 4 * width + texts * 5120 * width
    return 2 * (ends + (256 + width + 6 * width) * width)


def case_the_priced_windows_are_those_of_the_host():
    for grid in (GRID, (21, 45, 80), (21, 68, 120), (31, 68, 120), (1, 45, 80), (40, 20, 31)):
        sides = box_sides((4, 3, 3), grid)
        for name, shifted in (("720pwin", False), ("720pswin", True)):
            found = seedvr.get_window_op(f"{name}_by_size_bysize")(grid, (4, 3, 3))
            axes = [cuts(n, side, shifted) for n, side in zip(grid, sides, strict=True)]
            host = sorted(tuple((part.start, part.stop) for part in cut) for cut in found)
            assert host == sorted(product(*axes)), (grid, shifted)


def case_a_forward_costs_what_is_priced():
    for kind in KINDS:
        plain = model(kind)
        swiglu = KINDS[kind]["mlp_type"] == "swiglu"
        shape = ModelShape(
            name=kind, dim=SIZES["vid_dim"], layers=SIZES["num_layers"], heads=SIZES["heads"],
            ffn_dim=256 if swiglu else 4 * SIZES["vid_dim"], text_tokens=58, joint_text=True,
            attention_dim=SIZES["heads"] * SIZES["head_dim"], gated_ffn=swiglu, boxes=(4, 3, 3),
        )  # fmt: skip
        with FlopCounterMode(display=False) as counter:
            call(plain, noise(1, 16, 5, 40, 60))
        blocks = counter.get_total_flops() - outside(plain.model.diffusion_model, ALL.numel())
        priced = forward_flops(shape, 17, 320, 480)
        assert abs(priced / blocks - 1) < 0.02, (kind, priced, blocks)


def case_another_nodes_block_is_called_inside():
    plain, mask, seen = model(), drawn(), []

    def other(args, extra):
        seen.append(len(args["vid"]))
        out = extra["original_block"](args)
        return {**out, "vid": out["vid"] * 1.5}

    chained = plain.clone()
    chained.set_model_patch_replace(other, "dit", "block", 1)
    x, here = noise(1, 16, 5, 40, 60), cells(mask)
    clone = skip(chained, mask=mask)[0]
    got = call(clone, x)
    assert seen == [int(mask.tokens.sum())]
    with masked_keys(chained, mask.tokens):
        expected = call(chained, x)
    torch.testing.assert_close(got[..., here], expected[..., here], rtol=0, atol=TOLERANCE)
    back = skip(clone, keep=1.0)[0]
    assert back.model_options["transformer_options"]["patches_replace"]["dit"] == {
        ("block", 1): other
    }

    def outside(args, extra, inner):
        return inner(args, extra)

    wrapped = skip(plain, mask=drawn(1))[0]
    for index in range(SIZES["num_layers"]):
        blocks = wrapped.model_options["transformer_options"]["patches_replace"]["dit"]
        inner = blocks[("block", index)]
        wrapped.set_model_patch_replace(
            lambda args, extra, inner=inner: outside(args, extra, inner), "dit", "block", index
        )
    assert torch.equal(call(skip(wrapped, mask=mask)[0], x), call(skip(plain, mask=mask)[0], x))


def case_the_hosts_attention_serves_the_windows():
    plain, mask, lengths = model(), drawn(), []
    from comfy.ldm.modules import attention

    func = attention.optimized_attention

    def noted(q, k, v, heads, **kwargs):
        lengths.append(q.shape[2])
        return func(q, k, v, heads, **kwargs)

    with patch.object(attention, "optimized_attention", noted):
        call(skip(plain, mask=mask)[0], noise(1, 16, 5, 40, 60))
    expected = [
        int(mask.tokens[cut].sum()) + 58
        for cuts in phases(plain.model.diffusion_model, mask.tokens)
        for cut in cuts
    ]
    assert lengths == expected


def case_a_model_that_was_compiled_not_to_notice_masks_is_refused():
    from comfy_extras.nodes_torch_compile import TorchCompileModel

    compiled = TorchCompileModel.execute(model(), "inductor").result[0]
    found = refusal(lambda: skip(compiled, mask=drawn(0)))
    assert found.startswith("Surf SeedVR2 Skip: "), found
    assert "TorchCompileModel" in found, found


def case_a_host_that_asks_otherwise_is_refused():
    plain, x = model("7b"), noise(1, 16, 5, 40, 60)
    rope = seedvr.NaRotaryEmbedding3d

    def renamed(self, q, k, shape, cache):
        return rope.forward(self, q, k, shape, seedvr.Cache(disable=True))

    clone = skip(plain, mask=drawn())[0]
    for block in plain.model.diffusion_model.blocks:
        block.attn.rope.forward = renamed.__get__(block.attn.rope)
    message = refusal(lambda: call(clone, x))
    assert "does not look up" in message, message
    assert "rope_freqs_3d" in message, message


if __name__ == "__main__":
    report(dict(globals()))
