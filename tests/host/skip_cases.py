"""Wan networks on the tokens of a mask, inside a real host: run by test_inside.py, all at once.

    cd $COMFYUI_PATH && python tests/host/skip_cases.py RESULTS.json

Every function `case_*` asserts.
"""

import inside
import torch
from inside import noise
from skip_reference import (
    FLOAT32,
    GRID,
    RESULTS,
    TEXT,
    TIME,
    VIDEO,
    agree,
    call,
    cells,
    dense,
    network,
    patcher,
    skipped,
    some,
    wan,
)
from surf.nodes.host.attention.windows import OVERRIDE, with_windows
from surf.nodes.host.skip.wrapper import WRAPPER_KEY
from surf.surf_core import cost
from surf.surf_core.skip import Mask, packing
from surf.surf_core.window import segments
from torch.utils.flop_counter import FlopCounterMode

KINDS = {
    "text to video": ({}, 16, {}, 0, 0),
    "image to video": (
        {"model_type": "i2v", "in_dim": 36}, 36, {"clip_fea": noise(1, 257, 1280)}, 0, 0),
    "a reference image": (
        {"in_dim_ref_conv": 16}, 16, {"reference_latent": noise(1, 16, 6, 8)}, 12, 0),
    "appended frames": ({}, 16, {"time_dim_concat": noise(1, 16, 2, 6, 8)}, 0, 24),
    "camera control": (
        {"kind": wan.CameraWanModel, "model_type": "camera", "in_dim": 32}, 32,
        {"camera_conditions": noise(1, 24, 5, 48, 64), "clip_fea": noise(1, 257, 1280)}, 0, 0),
}  # fmt: skip
"""What it is -> (network, channels, inputs, tokens before and after the video's)."""


def case_kept_tokens_equal_the_dense_network_with_the_others_masked_out():
    for sizes, channels, extra, before, after in KINDS.values():
        model, video = patcher(network(**sizes)), noise(1, channels, 5, 6, 8)
        for window in (0, 2, 3):
            for mask in (some(), some(empty=(0, 3))):
                agree(model, mask, video, TIME, TEXT, window=window, before=before, after=after,
                      **extra)  # fmt: skip


def case_both_halves_of_the_guidance_in_one_batch_share_the_mask():
    model, mask = patcher(network()), some()
    video, text = VIDEO.repeat(2, 1, 1, 1, 1), noise(2, 7, 32)
    both = agree(model, mask, video, TIME.repeat(2), text, window=2)
    for half in range(2):
        alone = call(skipped(with_windows(model, 2), mask), VIDEO, TIME, text[half : half + 1])
        torch.testing.assert_close(both[half : half + 1], alone, rtol=0, atol=FLOAT32)


def case_odd_sizes_keep_their_partial_tokens():
    mask = some((5, 3, 4))
    agree(patcher(network()), mask, noise(1, 16, 5, 5, 7), TIME, TEXT, window=2)


def case_times_of_frames_follow_their_tokens():
    """Wan 2.2 5B under a noise mask has one timestep for each frame."""
    times = torch.tensor([[0.0, 100.0, 500.0, 700.0, 900.0]])
    for extra, sizes, before in (
        ({}, {}, 0), ({"reference_latent": noise(1, 16, 6, 8)}, {"in_dim_ref_conv": 16}, 12),
    ):  # fmt: skip
        model = patcher(network(**sizes))
        agree(model, some(), VIDEO, times, TEXT, window=2, before=before, **extra)


def case_text_as_long_as_what_is_kept_is_no_self_attention():
    mask = some()
    text = noise(1, int(mask.tokens.sum()), 32)
    agree(patcher(network()), mask, VIDEO, TIME, text, window=2)


def watched(model, lengths):
    """Note the tokens of every block."""
    blocks = model.model.diffusion_model.blocks
    return [
        block.register_forward_pre_hook(lambda module, args: lengths.append(args[0].shape[1]))
        for block in blocks
    ]


def case_blocks_see_kept_and_reference_tokens_alone():
    mask, lengths = some(), []
    kept = int(mask.tokens.sum())
    model = patcher(network(in_dim_ref_conv=16))
    watched(model, lengths)
    call(skipped(model, mask), VIDEO, TIME, TEXT, reference_latent=noise(1, 16, 6, 8))
    assert lengths == 3 * [kept + 12], (lengths, kept)
    everything = Mask(tokens=torch.ones(GRID, dtype=torch.bool), scores=mask.scores, source="test",
                      tau=0.0)  # fmt: skip
    assert skipped(model, everything) is model


def case_the_model_stays_as_it_was():
    model, mask = patcher(network()), some()
    before = call(model, VIDEO, TIME, TEXT)
    clone = skipped(model, mask)
    assert not torch.equal(call(clone, VIDEO, TIME, TEXT), before)
    assert torch.equal(call(model, VIDEO, TIME, TEXT), before)
    assert not model.model_options["transformer_options"]
    assert not any(model.wrappers.values())
    again = skipped(clone, some(seed=4))
    assert sum(len(keys.get(WRAPPER_KEY, ())) for keys in again.wrappers.values()) == 1


def replaced(model, index, change):
    """A clone on which another node has replaced a block."""
    clone = model.clone()

    def block(args, extra):
        return extra["original_block"]({**args, "img": change(args["img"])})

    clone.set_model_patch_replace(block, "dit", "double_block", index)
    return clone


def case_replacements_of_other_nodes_run_inside():
    base, mask, lengths = patcher(network()), some(), []
    kept = int(mask.tokens.sum())
    plain = call(skipped(base, mask), VIDEO, TIME, TEXT)
    for index in range(3):

        def change(img):
            lengths.append(img.shape[1])
            return img * 1.5

        model = replaced(base, index, change)
        got = call(skipped(model, mask), VIDEO, TIME, TEXT)
        expected = call(dense(model, mask.tokens, 0), VIDEO, TIME, TEXT)
        where = cells(mask.tokens, (6, 8)).expand_as(got)
        torch.testing.assert_close(got[where], expected[where], rtol=0, atol=FLOAT32)
        assert (got - plain).abs().max() > 1e-3
        assert lengths == [kept, 60]
        lengths.clear()


def case_blocks_left_out_while_the_model_runs_stay_left_out():
    """Skip-layer guidance replaces blocks between two calls, ours among them."""
    model, mask = patcher(network()), some()
    clone = skipped(model, mask)
    for index in range(3):
        without = clone.clone()
        without.set_model_patch_replace(lambda args, extra: args, "dit", "double_block", index)
        left_out = model.clone()
        left_out.set_model_patch_replace(lambda args, extra: args, "dit", "double_block", index)
        got, expected = (
            call(m, VIDEO, TIME, TEXT) for m in (without, dense(left_out, mask.tokens, 0))
        )
        where = cells(mask.tokens, (6, 8)).expand_as(got)
        torch.testing.assert_close(got[where], expected[where], rtol=0, atol=FLOAT32)


def case_an_earlier_override_serves_the_kept_tokens_of_each_window():
    mask, lengths = some(), []
    model = patcher(network(layers=1))

    def earlier(func, q, k, v, heads, **kwargs):
        lengths.append((q.shape[1], k.shape[1]))
        return func(q, k, v, heads, **kwargs)

    model.model_options["transformer_options"][OVERRIDE] = earlier
    call(skipped(with_windows(model, 2), mask), VIDEO, TIME, TEXT)
    counts = packing(mask.tokens).counts
    windows = [sum(counts[start:stop]) for start, stop in segments(5, 2, False)]
    assert lengths == [*((n, n) for n in windows), (sum(counts), 7)], (lengths, counts)


def case_operations_are_those_that_cost_predicts():
    frames, rows, columns = 5, 24, 32
    video = noise(1, 16, frames, rows, columns)
    model = patcher(network(layers=4, dim=256, ffn_dim=512, num_heads=2))
    shape = cost.ModelShape(
        name="tiny", dim=256, layers=4, heads=2, ffn_dim=512, text_tokens=7
    )  # fmt: skip
    for share in (1.0, 0.6, 0.3):
        mask = some((frames, rows // 2, columns // 2), share)
        counts = packing(mask.tokens).counts
        for window in (0, 2):
            clone = skipped(with_windows(model, window), mask, video)
            with FlopCounterMode(display=False) as counter:
                call(clone, video, TIME, TEXT)
            expected = cost.forward_flops(
                shape, 4 * frames - 3, rows * 8, columns * 8, window, counts
            )
            found = counter.get_total_flops()
            assert abs(found / expected - 1) < 0.05, (share, window, found / expected)


if __name__ == "__main__":
    inside.report(RESULTS, dict(globals()))
