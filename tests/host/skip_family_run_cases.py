"""VACE and HunyuanVideo refine a mask inside a real host: run by test_inside.py, all at once.

    cd $COMFYUI_PATH && python tests/host/skip_family_run_cases.py RESULTS.json

Every function `case_*` asserts. Weights are random.
"""

import inside
import torch
from inprocess import ClipVision
from inside import noise
from skip_run_cases import (
    PREVIEW,
    RESULTS,
    Mask,
    SkipMask,
    corner,
    refined,
    resize,
    some,
    wan,
)

SIZE, GRID = (5, 8, 12), {2: (5, 4, 6), 1: (5, 8, 12)}
VACE = {
    "vace_frames": [noise(1, 32, *SIZE, seed=5)], "vace_mask": [torch.ones(1, 64, *SIZE)],
    "vace_strength": [0.7],
}  # fmt: skip
TWO = {
    "vace_frames": [*VACE["vace_frames"], noise(1, 32, *SIZE, seed=6)],
    "vace_mask": 2 * VACE["vace_mask"], "vace_strength": [1.0, 0.4],
}  # fmt: skip
POOLED = {"pooled_output": noise(1, 768), "guidance": 6.0}
REFERENCE = {"ref_latent": noise(1, 16, 1, 8, 12), "guiding_frame_index": 0}
GLYPHS = {"conditioning_byt5small": noise(1, 5, 1472), "clip_vision_output": ClipVision(1152, 6)}
PREVIEW15 = noise(1, 32, 5, 4, 6)
FAMILIES = {
    "vace": ("tiny_wan_vace", PREVIEW, 4096, 2, {}),
    "vace with control": ("tiny_wan_vace", PREVIEW, 4096, 2, VACE),
    "vace with two": ("tiny_wan_vace", PREVIEW, 4096, 2, TWO),
    "hunyuan": ("tiny_hunyuan", PREVIEW, 64, 2, POOLED),
    "hunyuan with a start": ("tiny_hunyuan", PREVIEW, 64, 2, {**POOLED, **REFERENCE}),
    "hunyuan 1.5": ("tiny_hunyuan15", PREVIEW15, 64, 1, POOLED),
    "hunyuan 1.5 with glyphs": ("tiny_hunyuan15", PREVIEW15, 64, 1, {**POOLED, **GLYPHS}),
    "super-resolution": ("tiny_hunyuan15_sr", PREVIEW15, 64, 1, POOLED),
}
"""What it is -> (file, preview, width of its text, cells along a token, inputs beside the text)."""


def run(family, mask=None, **changes):
    name, preview, width, _, extra = FAMILIES[family]
    model = changes.pop("model", None) or wan(name)
    changes = {"preview": preview, "width": width, "extra": extra, **changes}
    if "ref_latent" in extra:
        # The host takes a reference for one sample alone.
        changes["cfg"] = 1.0
    if isinstance(mask, Mask):
        mask = carried_by(mask, family)
    return refined(model, mask, **changes)


def carried_by(mask, family, preview=None):
    _, own, _, side, _ = FAMILIES[family]
    return SkipMask(
        mask=mask, size=tuple(side * tokens for tokens in mask.grid[1:]), upsampled=None,
        upsample="latent", samples=own if preview is None else preview,
    )  # fmt: skip


def masked(family, share=0.5):
    return some(GRID[FAMILIES[family][3]], share)


def start_of(family):
    return resize(FAMILIES[family][1], SIZE[1:], "bilinear")


def is_start_where_skipped(out, family, mask, start=None):
    side, start = FAMILIES[family][3], start_of(family) if start is None else start
    keep = mask.tokens.repeat_interleave(side, 1).repeat_interleave(side, 2).expand_as(out)
    assert out.isfinite().all()
    assert torch.equal(out[~keep], start[~keep])
    assert (out - start)[keep].abs().mean() > 0.05


def case_nothing_to_skip_is_the_run_without_a_mask_bit_for_bit():
    for family in FAMILIES:
        name = FAMILIES[family][0]
        model = wan(name)
        expected = run(family, model=model)
        everything = masked(family, 2.0)
        for window in (0, 2):
            plain = expected if window == 0 else run(family, model=model, window=2)
            assert torch.equal(run(family, everything, model=model, window=window), plain), family


def case_skipped_cells_are_the_enlarged_preview_bit_for_bit():
    for family in FAMILIES:
        mask, model = masked(family), wan(FAMILIES[family][0])
        for changes in ({}, {"cfg": 1.0, "window": 2}, {"low_band_lock": 0.7, "seam": 2}):
            is_start_where_skipped(run(family, mask, model=model, **changes), family, mask)
        assert not torch.equal(run(family, model=model), run(family, mask, model=model))


class BlockLengths:
    """Note the tokens of every block of a network: of its picture, where the text is apart."""

    def __init__(self, model):
        network, self.seen, self.hooks = model.model.diffusion_model, [], []
        for row in ("blocks", "vace_blocks", "double_blocks", "single_blocks"):
            for block in getattr(network, row, ()):
                inner = block.self_attn if row == "vace_blocks" else block
                self.hooks.append(inner.register_forward_pre_hook(self.note, with_kwargs=True))

    def note(self, module, args, kwargs):
        self.seen.append((args[0] if args else kwargs["img"]).shape[1])

    def __enter__(self):
        return self.seen

    def __exit__(self, *raised):
        for hook in self.hooks:
            hook.remove()


def case_tiles_take_their_part_of_the_mask_and_empty_ones_are_not_run():
    preview = noise(1, 16, 2, 24, 40)
    start, mask = resize(preview, (48, 80), "bilinear"), corner()
    first, second = (mask.tokens[:, :16, a : a + 16].sum().item() for a in (0, 8))
    for family, text, blocks in (("vace", (0, 0, 0), 3), ("hunyuan", (0, 8), 2)):
        model = wan(FAMILIES[family][0])
        carrying = carried_by(mask, family, preview)
        with BlockLengths(model) as seen:
            out = run(family, carrying, model=model, preview=preview, tile=256, steps=2, cfg=1.0)
        is_start_where_skipped(out, family, mask, start)
        assert len(text) == blocks
        assert seen == 2 * [kept + more for kept in (first, second) for more in text], seen


def case_blocks_compiled_one_by_one_follow_a_mask_after_a_mask():
    from comfy_api.torch_helpers import set_torch_compile_wrapper
    from surf.nodes.host.compiling import block_keys

    for family in ("vace with control", "hunyuan"):
        model = wan(FAMILIES[family][0])
        compiled = model.clone()
        keys = list(block_keys(model.model.diffusion_model))
        assert len(keys) == 2, keys
        set_torch_compile_wrapper(compiled, backend="eager", keys=keys)
        grid = GRID[2]
        for mask in (None, some(grid), some(grid, seed=4)):
            expected, got = (run(family, mask, model=m, steps=1) for m in (model, compiled))
            torch.testing.assert_close(got, expected, rtol=0, atol=1e-4)


if __name__ == "__main__":
    inside.report(RESULTS, dict(globals()))
