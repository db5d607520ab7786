"""VACE and HunyuanVideo on the tokens of a mask, inside a real host: run by test_inside.py.

    cd $COMFYUI_PATH && python tests/host/skip_family_cases.py RESULTS.json

Every function `case_*` asserts.
"""

from dataclasses import replace

import checkpoints
import inside
import torch
from inprocess import refused
from inside import noise
from skip_reference import (
    FRESH,
    RESULTS,
    TEXT,
    TIME,
    VIDEO,
    call,
    cells,
    hunyuan,
    network,
    overridden,
    patcher,
    seen_by,
    skipped,
    some,
    wan,
    with_windows,
)
from surf.surf_core import cost
from surf.surf_core.skip import packing
from torch.nn.functional import scaled_dot_product_attention
from torch.utils.flop_counter import FlopCounterMode

CLOSE = 1e-5
LENGTH = VIDEO.shape[2] * 12
PLACES = {"some": some(), "frames left out": some(empty=(0, 3))}


def vace(layers=3, control=3, **sizes):
    return patcher(network(wan.VaceWanModel, layers, vace_layers=control, vace_in_dim=96, **sizes))


def controls(count=1, strengths=(0.7,), size=(5, 6, 8)):
    return {"vace_context": noise(1, count, 96, *size, seed=7), "vace_strength": list(strengths)}


VACE_KINDS = {
    "a control block after each block": (vace(), controls()),
    "a control block after every second": (vace(4, 2), controls()),
    "one control block": (vace(3, 1), controls()),
    "two control videos": (vace(4, 2), controls(2, (1.0, 0.4))),
}


def dense_vace(model, keep, window):
    """A clone that runs all tokens of both rows, and attends to kept ones of its window only.

    A block and its control block have one number; each row's windows alternate by themselves.
    """
    allowed, last = seen_by(keep, window), {"block": None}
    order = model.model.diffusion_model.vace_layers_mapping

    def override(func, q, k, v, heads, mask=None, **kwargs):
        if q.shape[1] != k.shape[1]:
            return func(q, k, v, heads, mask=mask, **kwargs)
        block = kwargs["transformer_options"]["block_index"]
        again, last["block"] = block == last["block"], block
        q, k, v = (x.unflatten(-1, (heads, -1)).transpose(1, 2) for x in (q, k, v))
        seen = allowed[(order[block] if again else block) % 2]
        out = scaled_dot_product_attention(q, k, v, attn_mask=seen)
        return out.transpose(1, 2).flatten(-2)

    return overridden(model, override)


def dense_joint(model, keep, window, text, before=0):
    """A clone that runs all tokens of a joint sequence; text and reference are always kept."""
    blocks = model.model.diffusion_model.double_blocks
    text_last = getattr(blocks[0], "flipped_img_txt", False)
    around = (before, text) if text_last else (text + before, 0)
    allowed = seen_by(keep, window, *around)

    def override(func, q, k, v, heads, mask=None, **kwargs):
        if q.shape[2] != len(allowed[0]):
            return func(q, k, v, heads, mask=mask, **kwargs)
        options = kwargs["transformer_options"]
        depth = options["block_index"]
        depth += len(blocks) if options["block_type"] == "single" else 0
        seen = torch.zeros(allowed[0].shape).masked_fill(~allowed[depth % 2], float("-inf"))
        seen = seen if mask is None else seen + mask
        out = scaled_dot_product_attention(q, k, v, attn_mask=seen)
        return out.transpose(1, 2).flatten(-2)

    return overridden(model, override)


def check_equal(model, mask, video, inputs, reference, window, patch=2):
    """Kept tokens come out as the dense network computes them with the others masked out."""
    args = (video, TIME.repeat(len(video)), inputs["text"].repeat(len(video), 1, 1))
    extra = {name: value for name, value in inputs.items() if name != "text"}
    clone = skipped(with_windows(model, window), mask, video[:1, : upsampled_channels(model)])
    got, expected = call(clone, *args, **extra), call(reference, *args, **extra)
    keep = cells(mask.tokens, got.shape[-2:]) if patch == 2 else mask.tokens
    where = keep.expand_as(got)
    assert got.isfinite().all()
    torch.testing.assert_close(got[where], expected[where], rtol=0, atol=CLOSE)
    plain = call(with_windows(model, window), *args, **extra)
    assert (plain - expected)[where].abs().max() > 1e-3, "the mask makes no difference"
    return got


def upsampled_channels(model):
    network = model.model.diffusion_model
    return getattr(network, "out_channels", 16)


def case_vace_on_kept_tokens_equals_the_dense_network_with_the_others_masked_out():
    for model, inputs in VACE_KINDS.values():
        for mask in PLACES.values():
            for window in (0, 2, 3):
                reference = dense_vace(model, mask.tokens, window)
                check_equal(model, mask, VIDEO, {**inputs, "text": TEXT}, reference, window)


def case_the_control_of_kept_tokens_counts_and_that_of_skipped_ones_does_not():
    model, inputs = VACE_KINDS["a control block after every second"]
    mask = some()
    clone = skipped(model, mask)
    keep = cells(mask.tokens, (6, 8)).expand(1, 1, 96, 5, 6, 8)
    base = call(clone, VIDEO, TIME, TEXT, **inputs)
    for where, moves in ((keep, True), (~keep, False)):
        control = torch.where(where, inputs["vace_context"] + 1, inputs["vace_context"])
        got = call(clone, VIDEO, TIME, TEXT, **{**inputs, "vace_context": control})
        assert torch.equal(got, base) != moves


def watched(rows, seen, axis=1):
    """Note how many tokens each block of some rows is called with."""

    def note(module, args, kwargs):
        seen.append((args[0] if args else kwargs["img"]).shape[axis])

    return [
        block.register_forward_pre_hook(note, with_kwargs=True) for row in rows for block in row
    ]


def case_both_rows_of_vace_see_kept_tokens_alone_and_the_network_is_left_as_it_was():
    model, inputs, mask, seen = vace(4, 2), controls(), some(), []
    plain, rows = call(model, VIDEO, TIME, TEXT, **inputs), model.model.diffusion_model
    clone = skipped(model, mask)
    before = [dict(block.__dict__) for block in rows.vace_blocks]
    got = call(clone, VIDEO, TIME, TEXT, **inputs)
    assert [dict(block.__dict__) for block in rows.vace_blocks] == before
    assert not any(b._forward_pre_hooks or b._forward_hooks for b in rows.vace_blocks)
    assert torch.equal(call(model, VIDEO, TIME, TEXT, **inputs), plain)
    assert not torch.equal(got, plain)
    # After ours, which go first.
    kept, inner = int(mask.tokens.sum()), [block.self_attn for block in rows.vace_blocks]
    watched([rows.blocks, inner], seen)
    call(clone, VIDEO, TIME, TEXT, **inputs)
    assert seen == 6 * [kept], (seen, kept)


def case_a_failing_call_of_vace_leaves_no_hook():
    model, inputs = vace(), controls()
    mask, rows = some(), model.model.diffusion_model.vace_blocks
    clone = skipped(model, mask)

    def fail(*args, **kwargs):
        raise InterruptedError

    rows[1].ffn.register_forward_pre_hook(fail)
    try:
        call(clone, VIDEO, TIME, TEXT, **inputs)
    except InterruptedError:
        pass
    else:
        raise AssertionError("was not called")
    assert not any(block._forward_pre_hooks or block._forward_hooks for block in rows)


def hunyuan_model(base=checkpoints.HUNYUAN, **sizes):
    module = hunyuan.HunyuanVideo(image_model="hunyuan_video", **{**base, **sizes}, **FRESH)
    module.load_state_dict(checkpoints.randomise(module, 0))
    return patcher(module.requires_grad_(False))


WORDS = {"text": noise(1, 9, 64), "y": noise(1, 768), "guidance": torch.tensor([6.0])}
PADDED = torch.tensor([[1] * 6 + [0] * 3])
REFERENCE = {"ref_latent": noise(1, 16, 1, 6, 8, seed=4)}
REPLACED = {"guiding_frame_index": torch.tensor([0.0])}
BOTH = {"depth": 2, "depth_single_blocks": 2}
TWO_STREAMS = {"depth": 3, "depth_single_blocks": 0}
HUNYUAN_KINDS = {
    "both kinds of blocks": (BOTH, {}, 0),
    "two streams alone": (TWO_STREAMS, {}, 0),
    "a padded text": (BOTH, {"attention_mask": PADDED}, 0),
    "a reference": (BOTH, REFERENCE, 12),
    "a start picture in place of the first frame": (BOTH, REPLACED, 0),
    "all of it": (BOTH, {**REFERENCE, **REPLACED, "attention_mask": PADDED}, 12),
}  # fmt: skip
"""What it is -> (blocks, inputs beside the text's, tokens of the reference)."""


def case_hunyuan_video_on_kept_tokens_equals_the_dense_network_with_the_others_masked_out():
    for blocks, inputs, before in HUNYUAN_KINDS.values():
        model = hunyuan_model(**blocks)
        for mask in PLACES.values():
            for window in (0, 2, 3):
                reference = dense_joint(model, mask.tokens, window, 9, before)
                check_equal(model, mask, VIDEO, {**WORDS, **inputs}, reference, window)


def case_both_halves_of_hunyuan_videos_guidance_share_the_mask():
    model, mask = hunyuan_model(**BOTH), some()
    reference = dense_joint(model, mask.tokens, 2, 9)
    inputs = {**WORDS, "y": noise(2, 768), "guidance": torch.tensor([6.0, 6.0])}
    both = check_equal(model, mask, VIDEO.repeat(2, 1, 1, 1, 1), inputs, reference, 2)
    assert not torch.allclose(both[0], both[1])


HUNYUAN15 = {**checkpoints.HUNYUAN_15, "depth": 3, "depth_single_blocks": 0}
VIDEO15 = noise(1, 65, 5, 3, 4)
KINDS15 = {
    "words": ({}, 9),
    "glyphs": ({"txt_byt5": noise(1, 5, 1472)}, 14),
    "a picture": ({"clip_fea": noise(1, 6, 1152)}, 15),
    "both": ({"txt_byt5": noise(1, 5, 1472), "clip_fea": noise(1, 6, 1152)}, 20),
}  # fmt: skip
"""What joins the video of HunyuanVideo 1.5 -> (inputs beside the text, tokens of it all)."""


def case_hunyuan_video_15_on_kept_tokens_equals_the_dense_network_with_the_others_masked_out():
    model = hunyuan_model(HUNYUAN15)
    for inputs, text in KINDS15.values():
        for mask in PLACES.values():
            for window in (0, 2):
                reference = dense_joint(model, mask.tokens, window, text)
                inputs = {**inputs, "text": WORDS["text"]}
                check_equal(model, mask, VIDEO15, inputs, reference, window, patch=1)


def case_blocks_of_hunyuan_video_see_kept_tokens_the_reference_and_all_text():
    model, mask, seen = hunyuan_model(**BOTH), some(), []
    rows, kept = model.model.diffusion_model, int(mask.tokens.sum())
    watched([rows.double_blocks, rows.single_blocks], seen)
    args = (VIDEO, TIME, WORDS["text"])
    extra = {"y": WORDS["y"], "guidance": WORDS["guidance"], **REFERENCE}
    call(skipped(model, mask), *args, **extra)
    assert seen == 2 * [kept + 12] + 2 * [kept + 12 + 9], (seen, kept)
    seen.clear()
    call(model, *args, **extra)
    assert seen == 2 * [LENGTH + 12] + 2 * [LENGTH + 12 + 9], seen


def case_blocks_of_hunyuan_video_that_others_replaced_run_inside_and_may_be_left_out():
    base, mask, lengths = hunyuan_model(**BOTH), some(), []
    args = (VIDEO, TIME, WORDS["text"])
    extra = {"y": WORDS["y"], "guidance": WORDS["guidance"]}
    kept = int(mask.tokens.sum())
    plain = call(skipped(base, mask), *args, **extra)
    keys = [(name, index) for name in ("double_block", "single_block") for index in (0, 1)]
    for name, index in keys:

        def larger(a, more):
            lengths.append(a["img"].shape[1])
            return more["original_block"]({**a, "img": a["img"] * 1.5})

        for theirs in (larger, lambda a, more: a):
            model = base.clone()
            model.set_model_patch_replace(theirs, "dit", name, index)
            got = call(skipped(model, mask), *args, **extra)
            expected = call(dense_joint(model, mask.tokens, 0, 9), *args, **extra)
            where = cells(mask.tokens, (6, 8)).expand_as(got)
            torch.testing.assert_close(got[where], expected[where], rtol=0, atol=CLOSE)
            assert (got - plain).abs().max() > 1e-3
    text = {"double_block": 0, "single_block": 9}
    assert lengths == [n + text[name] for name, _ in keys for n in (kept, LENGTH)], lengths


def case_a_control_net_is_refused():
    model = hunyuan_model(**BOTH)
    extra = {"y": WORDS["y"], "guidance": WORDS["guidance"]}
    extra["control"] = {"input": [noise(1, LENGTH, 128)], "output": []}
    call(model, VIDEO, TIME, WORDS["text"], **extra)
    clone = skipped(model, some())
    refused(lambda: call(clone, VIDEO, TIME, WORDS["text"], **extra), "ControlNet")


def counted(model, mask, window, *args, **extra):
    clone = skipped(with_windows(model, window), mask, args[0][:, : upsampled_channels(model)])
    with FlopCounterMode(display=False) as counter:
        call(clone, *args, **extra)
    return counter.get_total_flops()


def case_operations_are_those_that_cost_predicts():
    frames, rows, columns = 5, 24, 32
    size, video = (frames, rows, columns), noise(1, 16, frames, rows, columns)
    shape = cost.ModelShape(name="tiny", dim=256, layers=4, heads=2, ffn_dim=1024, text_tokens=7)
    wide = vace(4, 2, dim=256, ffn_dim=1024, num_heads=2)
    models = {
        "vace": (wide, replace(shape, layers=6), TEXT, controls(size=size)),
        "hunyuan": (
            hunyuan_model(hidden_size=256, num_heads=2, depth=2, depth_single_blocks=2),
            replace(shape, text_tokens=9, joint_text=True), WORDS["text"],
            {"y": WORDS["y"], "guidance": WORDS["guidance"]},
        ),
    }  # fmt: skip
    for name, (model, sizes, text, extra) in models.items():
        for share in (1.0, 0.6, 0.3):
            mask = some((frames, rows // 2, columns // 2), share)
            counts = packing(mask.tokens).counts
            for window in (0, 2):
                found = counted(model, mask, window, video, TIME, text, **extra)
                expected = cost.forward_flops(
                    sizes, 4 * frames - 3, rows * 8, columns * 8, window, counts
                )
                if name == "vace":
                    # The control's embedding, and a projection before its blocks and after each.
                    kept, every = sum(counts), mask.tokens.numel()
                    expected += 2 * 256 * (3 * 256 * kept + 4 * 96 * every)
                # A text refiner and embeddings are left out.
                assert abs(found / expected - 1) < 0.06, (name, share, window, found / expected)


if __name__ == "__main__":
    inside.report(RESULTS, dict(globals()))
