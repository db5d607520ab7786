"""Compiled blocks inside a real host: run by test_inside.py, all at once.

    cd $COMFYUI_PATH && python tests/host/compile_cases.py RESULTS.json

Every function `case_*` asserts. All but one compile with dynamo alone: what it bakes in and when it
compiles again is the same, and it takes seconds. Weights are random.
"""

import copy
import tempfile
from contextlib import contextmanager
from pathlib import Path
from unittest import mock

import checkpoints
import inside
import torch
from inside import noise

RESULTS = inside.enter()

import comfy.sd  # noqa: E402
import comfy_api.torch_helpers as helpers  # noqa: E402
from surf.nodes.compile import SurfCompile  # noqa: E402
from surf.nodes.host.attention.windows import with_windows  # noqa: E402
from surf.nodes.host.refine.run import refine  # noqa: E402
from surf.nodes.host.refine.traits import RefineSettings  # noqa: E402
from surf.nodes.host.refiner.loading import load_refiner  # noqa: E402
from surf.nodes.host.skip.skip_mask import SkipMask  # noqa: E402
from surf.nodes.preview import SurfReshiftKSampler  # noqa: E402
from surf.surf_core.skip import Mask  # noqa: E402
from torch._dynamo.utils import counters  # noqa: E402

FILE = checkpoints.refiner(Path(tempfile.mkdtemp()) / "refiner.safetensors")
INDUCTOR = helpers.set_torch_compile_wrapper
SETTINGS = {
    "seed": 3, "sigma_start": 0.65, "steps": 2, "cfg": 1.0, "window": 2, "low_band_lock": 0.0,
    "colour_match": False,
}  # fmt: skip


def compiled(model, backend="eager"):
    def helper(clone, **options):
        return INDUCTOR(clone, **options | {"backend": backend})

    torch._dynamo.reset()
    with mock.patch.object(helpers, "set_torch_compile_wrapper", helper):
        return SurfCompile.execute(model).args[0]


def wan(name="tiny_wan_t2v"):
    return comfy.sd.load_diffusion_model_state_dict(checkpoints.diffusion_model(name))


def words(seed, width, **options):
    return [[noise(1, 8, width, seed=seed), options]]


def masked(frames, size, share, seed):
    scores = torch.rand(frames, size[0], size[1], generator=torch.Generator().manual_seed(seed))
    mask = Mask(tokens=scores < share, scores=scores, source="test", tau=1.0)
    cells = 2 * size[0], 2 * size[1]
    return SkipMask(mask=mask, size=cells, upsampled=None, upsample="latent",
                    samples=noise(1, 16, frames, *size))  # fmt: skip


def refined(model, width, frames=5, size=(4, 6), mask=None, extra=(), **changes):
    settings = RefineSettings(**SETTINGS | changes)
    texts = (words(seed, width, **dict(extra)) for seed in (1, 2))
    out, *_ = refine(
        model, *texts, {"samples": noise(1, 16, frames, *size)}, settings, upsample="latent",
        mask=mask, resolution="by scale", scale=2.0, width=64, height=64,
    )  # fmt: skip
    return out["samples"]


def preview(model, width=4096, cfg=1.0, **options):
    return SurfReshiftKSampler.execute(
        model, words(1, width, **options), words(2, width, **options),
        {"samples": torch.zeros(1, 16, 3, 16, 24)}, seed=5, steps=4, switch_step=2, cfg=cfg,
        cfg_low=cfg, shift=3.0, shift_low=3.0, sampler_name="euler", scheduler="simple",
        denoise=1.0, low_resolution="by scale", low_scale=0.5, low_width=416, low_height=240,
        sigma_policy="same", noise_policy="fresh", handover="reuse",
    ).args[0]["samples"]  # fmt: skip


def same(call, model, fast, **changes):
    plain, got = (call(each, **changes) for each in (model, fast))
    torch.testing.assert_close(got, plain, rtol=0, atol=2e-4, msg=lambda said: f"{changes}: {said}")
    return plain


@contextmanager
def nothing_new(graphs=0):
    before = counters["stats"]["unique_graphs"]
    yield
    assert counters["stats"]["unique_graphs"] - before <= graphs


def one_after_the_other(model, width, parts=0):
    """Sizes, guidance, masks, tiles and windows change; the compiled model stays.

    An attention kernel of the graph, such as windows, cuts a block of Wan into `parts`, each of
    which may meet a layout of a tensor that is new to it.
    """
    fast = compiled(model)

    def run(**changes):
        return same(refined, model, fast, width=width, **changes)

    plain, before = run(), counters["stats"]["unique_graphs"]
    assert before > 0
    run(frames=9)
    run(frames=21, size=(6, 4))
    with nothing_new(parts):
        run(frames=13)
        run(frames=7, size=(4, 8))
    run(cfg=4.5)
    first = run(mask=masked(5, (4, 6), 0.5, 1))
    assert (first - plain).abs().max() > 1e-2, "the mask has no effect"
    run(mask=masked(5, (4, 6), 0.3, 2))
    with nothing_new(parts):
        run(mask=masked(5, (4, 6), 0.4, 3))
        run(frames=9, mask=masked(9, (4, 6), 0.6, 4))
    run(frames=2, size=(24, 40), tile=256, steps=1)
    with nothing_new(parts):
        assert torch.equal(run(), plain)
    return run, plain


def case_a_refiner_follows_sizes_guidance_masks_and_tiles():
    one_after_the_other(load_refiner(FILE), 64)


def case_wan_follows_sizes_guidance_masks_tiles_and_windows():
    run, plain = one_after_the_other(wan(), 4096, parts=7)
    for window in (0, 3, 2):
        out = run(window=window)
        assert torch.equal(out, plain) == (window == 2)


def case_previews_of_two_sizes_share_a_code():
    model = wan()
    fast = compiled(model)
    same(preview, model, fast)
    with nothing_new():
        same(preview, model, fast)
    same(preview, model, fast, cfg=4.5)


def case_windows_and_kernels_that_come_later_hold():
    model = wan()
    fast = compiled(model)
    same(preview, model, fast)
    for window in (2, 0, 3):
        same(preview, with_windows(model, window), with_windows(fast, window))
    for each, width in ((model, 4096), (load_refiner(FILE), 64)):
        fast = compiled(each)
        same(refined, each, fast, width=width)

        def halved(func, q, k, v, heads, **kwargs):
            return func(q, k, v, heads, **kwargs) / 2

        def replaced(given):
            clone = given.clone()
            options = clone.model_options["transformer_options"]
            clone.model_options["transformer_options"] = {
                **options, "optimized_attention_override": halved
            }  # fmt: skip
            return clone

        out = same(refined, replaced(each), replaced(fast), width=width)
        assert (out - refined(each, width)).abs().max() > 1e-3


def with_lora(model, key):
    clone = model.clone()
    shape = model.model.state_dict()[key].shape
    clone.add_patches({key: ("diff", (0.05 * noise(*shape, seed=9),))}, 1.0)
    return clone


def case_weights_change_under_a_compiled_model():
    for model, width in ((wan(), 4096), (load_refiner(FILE), 64)):
        key = "diffusion_model.blocks.1.ffn.0.weight"
        plain = refined(model, width)
        wanted = refined(with_lora(model, key), width)
        assert (wanted - plain).abs().max() > 1e-3
        fast = compiled(model)
        same(refined, model, fast, width=width)
        for each in (with_lora(fast, key), compiled(with_lora(model, key))):
            got = refined(each, width)
            torch.testing.assert_close(got, wanted, rtol=0, atol=2e-4)
        torch.testing.assert_close(refined(fast, width), plain, rtol=0, atol=2e-4)


def case_weights_of_eight_bits_are_cast_as_they_were():
    model = load_refiner(FILE, "fp8_e4m3fn")
    same(refined, model, compiled(model), width=64)


def case_hunyuan_video_follows_windows_and_sizes():
    model = wan("tiny_hunyuan")
    fast = compiled(model)
    options = {"pooled_output": noise(1, 768)}
    same(preview, model, fast, width=64, **options)
    for window, frames in ((2, 5), (0, 5), (2, 7)):
        same(refined, model, fast, width=64, window=window, frames=frames, extra=options)


def case_the_model_stays_as_it_was():
    model = load_refiner(FILE)
    names = list(model.model.state_dict())
    before = copy.deepcopy(model.model_options), {k: dict(v) for k, v in model.wrappers.items()}
    fast = compiled(model)
    assert fast is not model
    refined(fast, 64)
    after = model.model_options, {k: dict(v) for k, v in model.wrappers.items()}
    assert str(after) == str(before)
    assert list(model.model.state_dict()) == names
    with nothing_new():
        refined(model, 64)
    again = compiled(fast)
    assert [len(keys) for keys in again.wrappers.values()] == [
        len(keys) for keys in fast.wrappers.values()
    ]
    same(refined, model, again, width=64)


def case_inductor_gives_the_same():
    model = load_refiner(FILE)
    fast = compiled(model, "inductor")
    same(refined, model, fast, width=64, steps=1)


if __name__ == "__main__":
    inside.report(RESULTS, dict(globals()))
