"""Refining the tokens of a mask inside a real host: run by test_inside.py, all at once.

    cd $COMFYUI_PATH && python tests/host/skip_run_cases.py RESULTS.json

Every function `case_*` asserts. Weights are random.
"""

import tempfile
from pathlib import Path

import checkpoints
import inside
import torch
from inside import noise

RESULTS = inside.enter()

import comfy.ldm.wan.model_animate as animate  # noqa: E402
import comfy.model_management  # noqa: E402
import comfy.ops  # noqa: E402
import comfy.sd  # noqa: E402
import latent_preview  # noqa: E402
from comfy_extras import nodes_easycache, nodes_slg  # noqa: E402
from surf.nodes.host.refine.run import refine  # noqa: E402
from surf.nodes.host.refine.traits import RefineSettings  # noqa: E402
from surf.nodes.host.refiner.loading import load_refiner  # noqa: E402
from surf.nodes.host.skip.skip_mask import SkipMask  # noqa: E402
from surf.surf_core import checkpoint  # noqa: E402
from surf.surf_core.resample import resize  # noqa: E402
from surf.surf_core.skip import Mask, refine_skipping  # noqa: E402

MADE = {"operations": comfy.ops.disable_weight_init, "dtype": torch.float32, "device": "cpu"}
FOLDER = Path(tempfile.mkdtemp())
PREVIEW = noise(1, 16, 5, 4, 6)
START = resize(PREVIEW, (8, 12), "bilinear")
SEED, STEPS, CFG = 3, 3, 4.5
OURS = (
    {"time": "t", "sigma_start": 0.0},
    {"time": "t", "sigma_start": 0.3},
    {"time": "sigma", "sigma_start": 0.8},
    {"time": "sigma", "sigma_start": 0.6, "dim": 128, "heads": 1, "block": "wan"},
)


def ours(**changes):
    path = FOLDER / ("-".join(f"{key}-{value}" for key, value in changes.items()) + ".safetensors")
    return str(path) if path.exists() else checkpoints.refiner(path, **changes)


def wan(name="tiny_wan_t2v"):
    return comfy.sd.load_diffusion_model_state_dict(checkpoints.diffusion_model(name))


def words(seed, width=4096, **options):
    return [[noise(1, 8, width, seed=seed), options]]


def some(grid=(5, 4, 6), share=0.5, seed=3):
    scores = torch.rand(grid, generator=torch.Generator().manual_seed(seed))
    return Mask(tokens=scores > 1 - share, scores=scores, source="test", tau=1.0)


def carried(mask, start=None, preview=PREVIEW):
    """What the socket brings."""
    size = tuple(2 * side for side in mask.grid[1:])
    return SkipMask(mask=mask, size=size, upsampled=start, upsample="latent", samples=preview)


SETTINGS = {
    "seed": SEED, "sigma_start": 0.65, "steps": STEPS, "cfg": CFG, "window": 0,
    "low_band_lock": 0.0, "colour_match": False,
}  # fmt: skip
BY_SCALE = {"resolution": "by scale", "scale": 2.0, "width": 64, "height": 64}


def refined(model, mask=None, preview=PREVIEW, width=4096, seam=0, wanted=BY_SCALE, **changes):
    latent = preview if isinstance(preview, dict) else {"samples": preview}
    extra = changes.pop("extra", {})
    texts = (changes.pop("text", None) or words(seed, width, **extra) for seed in (1, 2))
    settings = RefineSettings(**SETTINGS | changes)
    if isinstance(mask, Mask):
        mask = carried(mask)
    out, *_ = refine(model, *texts, latent, settings, upsample="latent", mask=mask, seam=seam,
                    **wanted)  # fmt: skip
    return out["samples"]


def where_skipped(mask, size=(8, 12)):
    keep = mask.tokens.repeat_interleave(2, 1).repeat_interleave(2, 2)
    return ~keep[:, : size[0], : size[1]]


def is_start(out, mask, start=START):
    skip = where_skipped(mask, out.shape[-2:]).expand_as(out)
    assert out.isfinite().all()
    assert torch.equal(out[skip], start[skip])
    assert (out - start)[~skip].abs().mean() > 0.05


class TokenRecorder:
    """Note the tokens that the first block of a network gets, and its samples."""

    def __init__(self, model, index=0):
        self.block, self.seen = model.model.diffusion_model.blocks[index], []

    def __enter__(self):
        self.hook = self.block.register_forward_pre_hook(
            lambda module, args: self.seen.append((len(args[0]), args[0].shape[1]))
        )
        return self.seen

    def __exit__(self, *raised):
        self.hook.remove()


def case_nothing_to_skip_is_the_run_without_a_mask_bit_for_bit():
    everything = some(share=2.0)
    for model, width in ((wan(), 4096), *((load_refiner(ours(**made)), 64) for made in OURS)):
        with TokenRecorder(model) as plain:
            expected = refined(model, width=width)
        with TokenRecorder(model) as seen:
            assert torch.equal(refined(model, everything, width=width), expected)
            assert torch.equal(
                refined(model, carried(everything, START), width=width, seam=2), expected
            )
        assert seen == 2 * plain
        assert {tokens for _, tokens in plain} == {120}


def case_skipped_cells_are_the_enlarged_preview_bit_for_bit():
    mask = some()
    for model, width in ((wan(), 4096), *((load_refiner(ours(**made)), 64) for made in OURS)):
        for changes in (
            {}, {"cfg": 1.0}, {"colour_match": True}, {"low_band_lock": 0.7}, {"seam": 2},
        ):  # fmt: skip
            is_start(refined(model, mask, width=width, **changes), mask)


def case_our_refiner_equals_the_core_on_the_same_mask():
    mask = some()
    for made in OURS:
        path = ours(**made)
        model, core = load_refiner(path), checkpoint.load(path)
        space, texts = model.model.latent_format, [words(seed, 64)[0][0] for seed in (1, 2)]
        start = space.process_in(START)
        eps = torch.randn(start.shape, generator=torch.manual_seed(SEED))
        for seam in (0, 2):
            by_core = space.process_out(
                refine_skipping(
                    core, start, texts[0], mask, seam=seam, steps=STEPS, noise=eps, cfg=CFG,
                    negative=texts[1],
                )
            )  # fmt: skip
            got = refined(model, mask, width=64, seam=seam)
            gap = (got - by_core).abs().max() / by_core.abs().max()
            assert gap <= 1e-5, gap
            assert (refined(model, width=64) - by_core).abs().max() > 1e-3


def case_every_step_of_the_preview_shows_the_start_where_it_skips():
    mask, seen = some(), []
    prepare = latent_preview.prepare_callback
    latent_preview.prepare_callback = lambda *args: lambda step, x0, x, total: seen.append(x0)
    try:
        model = wan()
        refined(model, mask, low_band_lock=0.7)
        start = model.model.process_latent_in(START)
    finally:
        latent_preview.prepare_callback = prepare
    skip = where_skipped(mask).expand_as(start)
    assert len(seen) == STEPS
    for x0 in seen:
        torch.testing.assert_close(x0[skip], start[skip], rtol=0, atol=0)


def case_guidance_in_one_batch_or_in_two_is_the_same():
    model, mask = wan(), some()
    kept = int(mask.tokens.sum())
    with TokenRecorder(model) as seen:
        one = refined(model, mask, window=2)
        assert seen == STEPS * [(2, kept)], seen
        seen.clear()
        needed = model.model.memory_required
        model.model.memory_required = lambda shape, **more: 10**15
        try:
            two = refined(model, mask, window=2)
        finally:
            del model.model.memory_required
        assert seen == 2 * STEPS * [(1, kept)], seen
        assert model.model.memory_required == needed
    torch.testing.assert_close(two, one, rtol=0, atol=1e-4)


def case_a_lora_reaches_the_kept_tokens():
    base, mask = wan(), some()
    key = "diffusion_model.blocks.0.ffn.0.weight"
    plain = refined(base, mask)
    change = 0.5 * noise(*base.model.state_dict()[key].shape, seed=9)
    clone = base.clone()
    assert clone.add_patches({key: ("diff", (change,))}, 1.0)
    got = refined(clone, mask)
    is_start(got, mask)
    assert (got - plain).abs().max() > 1e-3
    assert torch.equal(refined(base, mask), plain)
    state = checkpoints.diffusion_model("tiny_wan_t2v")
    state["blocks.0.ffn.0.weight"] += change
    by_hand = refined(comfy.sd.load_diffusion_model_state_dict(state), mask)
    torch.testing.assert_close(got, by_hand, rtol=0, atol=1e-4)


def case_step_caches_of_the_host_answer_some_steps():
    model, mask, steps = wan(), some(), 8
    plain = refined(model, mask, steps=steps)
    for kind in ("EasyCacheNode", "LazyCacheNode"):
        for threshold, some_are_answered in ((0.0, False), (3.0, True)):
            node = getattr(nodes_easycache, kind)
            cached = node.execute(model, threshold, 0.0, 1.0, False).result[0]
            with TokenRecorder(model) as seen:
                got = refined(cached, mask, steps=steps)
            is_start(got, mask)
            assert {tokens for _, tokens in seen} == {int(mask.tokens.sum())}
            assert (len(seen) < steps) == some_are_answered, (kind, threshold, len(seen))
            if not some_are_answered:
                assert torch.equal(got, plain)


def case_skip_layer_guidance_leaves_out_any_block():
    model, mask = wan(), some()
    plain = refined(model, mask)
    for layer in ("0", "1", "0, 1"):
        node = nodes_slg.SkipLayerGuidanceDiT
        guided = node.execute(model, 3.0, 0.0, 1.0, double_layers=layer).result[0]
        got = refined(guided, mask)
        is_start(got, mask)
        assert (got - plain).abs().max() > 1e-3


def case_other_kinds_of_wan_refine_a_mask():
    concat = {
        "concat_latent_image": noise(1, 16, 5, 8, 12, seed=5),
        "concat_mask": torch.ones(1, 1, 5, 8, 12),
    }
    for name, extra in (
        ("tiny_wan_i2v", concat), ("tiny_wan22_i2v", concat),
        ("tiny_wan_ref", {"reference_latents": [noise(1, 16, 1, 8, 12)]}),
    ):  # fmt: skip
        mask, model = some(), wan(name)
        for window in (0, 2):
            is_start(refined(model, mask, extra=extra, window=window), mask)


def case_the_5b_model_under_a_noise_mask_refines_a_mask():
    preview, model = noise(1, 48, 3, 4, 6), wan("tiny_wan22_5b")
    frozen = torch.ones(1, 1, 3, 4, 6)
    frozen[:, :, 0] = 0
    mask, start = some((3, 4, 6)), resize(preview, (8, 12), "bilinear")
    out = refined(model, mask, {"samples": preview, "noise_mask": frozen})
    is_start(out, mask, start)
    # Without a start image the first frame is refined like the others.
    assert (out - start)[:, :, 0].abs().amax() > 0.05


def case_batches_and_odd_sizes_share_a_mask():
    preview = noise(2, 16, 2, 4, 6)
    wanted = {"resolution": "by size", "scale": 1.0, "width": 104, "height": 72}
    for model, width in ((wan(), 4096), (load_refiner(ours(**OURS[1])), 64)):
        mask, start = some((2, 5, 7)), resize(preview, (9, 13), "bilinear")
        out = refined(model, mask, preview, width, wanted=wanted)
        assert out.shape == (2, 16, 2, 9, 13)
        is_start(out, mask, start)


TILE_GRID = (2, 24, 40)


def corner():
    """A mask that keeps one corner of a picture of 2 x 4 tiles, with holes."""
    scores = torch.rand(TILE_GRID, generator=torch.Generator().manual_seed(1))
    tokens = scores > 0.3
    tokens[:, 6:], tokens[:, :, 16:] = False, False
    return Mask(tokens=tokens, scores=scores, source="test", tau=1.0)


def case_tiles_take_their_part_of_the_mask_and_empty_ones_are_not_run():
    preview = noise(1, 16, 2, 24, 40)
    start = resize(preview, (48, 80), "bilinear")
    for model, width in ((wan(), 4096), (load_refiner(ours(**OURS[1])), 64)):
        mask = corner()
        with TokenRecorder(model) as seen:
            out = refined(model, mask, preview, width, tile=256, steps=2, cfg=1.0)
        is_start(out, mask, start)
        theirs = model.clone()
        theirs.add_wrapper_with_key("apply_model", "theirs", lambda f, *args, **kw: f(*args, **kw))
        assert torch.equal(refined(theirs, mask, preview, width, tile=256, steps=2, cfg=1.0), out)
        # Tiles of 32 x 32 cells start at columns 0, 16, 32, 48: two of eight have work.
        first, second = (mask.tokens[:, :16, a : a + 16].sum().item() for a in (0, 8))
        assert seen == 2 * [(1, first), (1, second)], (seen, first, second)
        with TokenRecorder(model) as seen:
            everything = Mask(tokens=torch.ones(TILE_GRID, dtype=torch.bool), scores=mask.scores,
                              source="test", tau=0.0)  # fmt: skip
            whole = refined(model, everything, preview, width, tile=256, steps=2, cfg=1.0)
        assert torch.equal(whole, refined(model, None, preview, width, tile=256, steps=2, cfg=1.0))
        assert {tokens for _, tokens in seen} == {2 * 16 * 16}


def case_tiles_that_start_between_tokens_keep_what_they_need():
    preview = noise(1, 16, 1, 14, 20)
    wanted = {"resolution": "by size", "scale": 1.0, "width": 320, "height": 280}
    start = resize(preview, (35, 40), "bilinear")
    mask = some((1, 18, 20), 0.3)
    is_start(refined(wan(), mask, preview, tile=256, steps=2, wanted=wanted), mask, start)


def case_out_of_memory_goes_on_with_smaller_tiles_of_the_mask():
    preview, model = noise(1, 16, 2, 24, 40), wan()
    mask, apply, failed = corner(), model.model.apply_model, []

    def tight(x, t, **conditioning):
        if x.shape[-1] > 48:
            failed.append(x.shape)
            raise comfy.model_management.OOM_EXCEPTION("CUDA out of memory")
        return apply(x, t, **conditioning)

    model.model.apply_model = tight
    try:
        out = refined(model, mask, preview, steps=2, cfg=1.0)
    finally:
        del model.model.apply_model
    assert failed
    is_start(out, mask, resize(preview, (48, 80), "bilinear"))


def said(call):
    try:
        call()
    except ValueError as error:
        return str(error)
    raise AssertionError("was not refused")


def case_models_that_cannot_skip_are_refused_with_a_reason():
    sizes = {**checkpoints.WAN, "in_dim": 36, "num_layers": 5, **MADE}
    state = checkpoints.randomise(animate.AnimateWanModel(**sizes), 8)
    model = comfy.sd.load_diffusion_model_state_dict(state)
    found = said(lambda: refined(model, some()))
    assert "AnimateWanModel" in found, found
    assert "disconnect the mask" in found, found
    looking = wan().clone()
    looking.set_model_patch(lambda args: args["x"], "attn1_patch")
    found = said(lambda: refined(looking, some()))
    assert "attn1_patch" in found, found
    found = said(lambda: refined(wan(), some(), extra={"area": (4, 4, 0, 0)}))
    assert "area" in found, found


def case_a_network_whose_blocks_cannot_be_replaced_is_refused():
    model = wan()
    network = model.model.diffusion_model
    original = network.forward_orig

    def deaf(x, t, context, transformer_options=None, **kwargs):
        options = {**transformer_options, "patches_replace": {}}
        return original(x, t, context, transformer_options=options, **kwargs)

    network.forward_orig = deaf
    try:
        found = said(lambda: refined(model, some()))
    finally:
        del network.forward_orig
    assert "blocks be replaced" in found, found


def case_a_mask_is_refused_by_a_model_that_was_compiled_not_to_notice_it():
    from comfy_extras.nodes_torch_compile import TorchCompileModel

    for model, width in ((wan(), 4096), (load_refiner(ours(**OURS[1])), 64)):
        compiled = TorchCompileModel.execute(model, "inductor").result[0]
        found = said(lambda: refined(compiled, some(), width=width))  # noqa: B023
        assert "TorchCompileModel" in found, found


def case_a_mask_on_blocks_compiled_one_by_one_is_followed_mask_after_mask():
    from comfy_api.torch_helpers import set_torch_compile_wrapper

    for model, width in ((wan(), 4096), (load_refiner(ours(**OURS[1])), 64)):
        compiled = model.clone()
        keys = [f"diffusion_model.blocks.{i}" for i in range(len(blocks_of(model)))]
        set_torch_compile_wrapper(compiled, backend="eager", keys=keys)
        for mask in (None, some(), some(seed=4)):
            expected, got = (refined(m, mask, width=width, steps=1) for m in (model, compiled))
            torch.testing.assert_close(got, expected, rtol=0, atol=1e-4)


def blocks_of(model):
    return model.model.diffusion_model.blocks


if __name__ == "__main__":
    inside.report(RESULTS, dict(globals()))
