"""Tiles and sizes inside a real host, in its process: run by test_inside.py, all cases at once.

    cd $COMFYUI_PATH && python tests/host/tile_cases.py RESULTS.json

Every function `case_*` asserts.
"""

import logging

import checkpoints
import inside
import torch
from inprocess import refused
from inside import noise

RESULTS = inside.enter()

import comfy.model_management  # noqa: E402
import comfy.sample  # noqa: E402
import comfy.samplers  # noqa: E402
import comfy.sd  # noqa: E402
from comfy_extras import nodes_easycache  # noqa: E402
from surf.nodes.host.attention.windows import with_windows  # noqa: E402
from surf.nodes.host.models import target_cells  # noqa: E402
from surf.nodes.host.refine.tiling import with_tiles  # noqa: E402
from surf.nodes.host.vae import memory, upsample  # noqa: E402
from surf.surf_core.tiles import boxes, in_tiles  # noqa: E402

ROWS, COLUMNS, OVERLAP = 48, 64, 16
TILE = 256
START = noise(1, 16, 3, ROWS, COLUMNS)
PARTS = boxes((ROWS, COLUMNS), (32, 32), OVERLAP, 2)


def load(name="tiny_wan_t2v"):
    return comfy.sd.load_diffusion_model_state_dict(checkpoints.diffusion_model(name))


def prompt(seed, **options):
    return [[noise(1, 8, 4096, seed=seed), options]]


def sample(model, start=START, steps=3, positive=None, cfg=1.0, mask=None, negative=None):
    return comfy.sample.sample_custom(
        model, noise(*start.shape, seed=9), cfg, comfy.samplers.sampler_object("euler"),
        torch.linspace(0.65, 0, steps + 1), positive or prompt(1), negative or prompt(2), start,
        noise_mask=mask, disable_pbar=True, seed=3,
    )  # fmt: skip


class CallRecorder:
    """Stand in front of a model's apply_model: note the calls, and fail where asked to."""

    def __init__(self, model, limit=10**9, below=2.0, error=None):
        self.inner, self.limit, self.below, self.error = model.model, limit, below, error
        self.apply = model.model.apply_model
        self.calls = []

    def __enter__(self):
        self.inner.apply_model = self
        return self.calls

    def __exit__(self, *raised):
        del self.inner.apply_model

    def __call__(self, x, t, **conditioning):
        sigma = round(float(t[0]), 3)
        failed = sigma < self.below and x.shape[-1] * x.shape[-2] > self.limit
        self.calls.append((sigma, tuple(x.shape), conditioning, failed))
        if failed:
            raise self.error or comfy.model_management.OOM_EXCEPTION("CUDA out of memory")
        return self.apply(x, t, **conditioning)


def case_one_tile_is_the_plain_model_bit_for_bit():
    model = load()
    for mask in (None, (noise(1, 1, 3, ROWS, COLUMNS) > 0).float()):
        plain = sample(model, cfg=4.5, mask=mask)
        for pixels in (0, 512, 4096):
            assert torch.equal(sample(with_tiles(model, START, pixels), cfg=4.5, mask=mask), plain)
    assert "model_function_wrapper" not in model.model_options
    assert not any(model.wrappers.values())


def case_an_evaluation_is_the_blend_of_the_hosts_own():
    model = load()
    comfy.model_management.load_models_gpu([model])
    x, t, text = noise(1, 16, 3, ROWS, COLUMNS, seed=5), torch.tensor([0.5]), prompt(1)[0][0]
    options = {"c_crossattn": text, "transformer_options": {}}
    clone = with_tiles(model, START, TILE)
    apply = model.model.apply_model
    got = clone.model_options["model_function_wrapper"](
        apply, {"input": x, "timestep": t, "c": options, "cond_or_uncond": [0]}
    )
    by_hand = in_tiles(lambda part, box: apply(part, t, **options), x, (32, 32), OVERLAP, 2)
    assert torch.equal(got, by_hand)
    assert not torch.equal(got, apply(x, t, **options))


def case_every_kind_of_conditioning_follows_the_tiles():
    size = (ROWS, COLUMNS)
    image = {
        "concat_latent_image": noise(1, 16, 3, *size), "concat_mask": torch.ones(1, 1, 3, *size)
    }  # fmt: skip
    vace = {"vace_frames": [noise(1, 32, 3, *size)], "vace_mask": [torch.ones(1, 64, 3, *size)]}
    kinds = {
        "tiny_wan_t2v": ({}, ()),
        "tiny_wan22_i2v": (image, ("c_concat",)),
        "tiny_wan_vace": ({**vace, "vace_strength": [1.0]}, ("vace_context",)),
        "tiny_wan_ref": (
            {"reference_latents": [noise(1, 16, 1, *size)]}, ("reference_latent",)),
        "tiny_wan_t2v ": ({"time_dim_concat": noise(1, 16, 1, *size)}, ("time_dim_concat",)),
    }  # fmt: skip
    for name, (options, keys) in kinds.items():
        model = load(name.strip())
        with CallRecorder(model) as calls:
            out = sample(with_tiles(model, START, TILE), positive=prompt(1, **options), steps=1)
        assert out.isfinite().all(), name
        assert len(calls) == len(PARTS), name
        for (_, shape, conditioning, _), box in zip(calls, PARTS, strict=True):
            assert shape[-2:] == (32, 32)
            for key in keys:
                assert conditioning[key].shape[-2:] == (32, 32), (name, key)
            if "vace_context" in keys:
                frames = model.model.process_latent_in(options["vace_frames"][0][:, :16])
                torch.testing.assert_close(
                    conditioning["vace_context"][:, 0, :16].float(), frames[(..., *box)]
                )


def case_the_5b_model_and_hunyuan_video_run_in_tiles():
    model, start = load("tiny_wan22_5b"), noise(1, 48, 2, 20, 28)
    mask = torch.ones(1, 1, 2, 20, 28)
    mask[:, :, 0] = 0
    with CallRecorder(model) as calls:
        out = sample(with_tiles(model, start, TILE), start, steps=1, mask=mask)
    assert out.isfinite().all()
    assert {shape[-2:] for _, shape, _, _ in calls} == {(14, 16)}
    assert all(c["denoise_mask"].shape[-2:] == (14, 16) for _, _, c, _ in calls)
    torch.testing.assert_close(out[:, :, 0], start[:, :, 0], rtol=0, atol=1e-4)
    model, valid = load("tiny_hunyuan"), torch.tensor([[1, 1, 1, 1, 1, 0, 0, 0]])
    pooled = {"pooled_output": noise(1, 768), "attention_mask": valid}
    text = [[noise(1, 8, 64), pooled]]
    with CallRecorder(model) as calls:
        clone = with_tiles(with_windows(model, 2), START, TILE)
        out = sample(clone, steps=1, positive=text, negative=text)
    assert out.isfinite().all()
    assert len(calls) == len(PARTS)


def case_windows_hold_inside_tiles():
    model = load()
    comfy.model_management.load_models_gpu([model])
    clone = with_tiles(with_windows(model, 2), START, TILE)
    x, t, rows = noise(1, 16, 5, ROWS, COLUMNS, seed=5), torch.tensor([0.5]), []
    options = {**clone.model_options["transformer_options"], "wrappers": clone.wrappers}
    conditioning = {"c_crossattn": prompt(1)[0][0], "transformer_options": options}

    def call(x):
        args = {"input": x, "timestep": t, "c": conditioning, "cond_or_uncond": [0]}
        return clone.model_options["model_function_wrapper"](model.model.apply_model, args)

    base = call(x)
    for frame in range(5):
        changed = x.clone()
        changed[:, :, frame] += 1
        moved = (call(changed) - base).abs().amax((0, 1, 3, 4)) > 1e-5
        rows.append("".join("x" if m else "." for m in moved.tolist()))
    assert rows == ["xxx..", "xxx..", ".xxxx", ".xxxx", "...xx"], rows


def case_out_of_memory_repeats_one_evaluation_with_smaller_tiles():
    model, records = load(), []
    handler = logging.Handler()
    handler.emit = lambda record: records.append(record.getMessage())
    logger = logging.getLogger("surf.nodes.host.refine.tile_plan")
    logger.addHandler(handler)
    try:
        with CallRecorder(model, limit=36 * 36, below=0.5) as calls:
            got = sample(with_tiles(model, START, 0), steps=4)
    finally:
        logger.removeHandler(handler)
    first, *later = torch.linspace(0.65, 0, 5)[:4].round(decimals=3).tolist()
    per_step = {
        sigma: [shape[-2:] for s, shape, _, _ in calls if abs(s - sigma) < 2e-3]
        for sigma in (first, *later)
    }
    assert per_step[first] == [(ROWS, COLUMNS)]
    assert per_step[later[0]][:1] == [(ROWS, COLUMNS)]
    halved = boxes((ROWS, COLUMNS), (32, 40), OVERLAP, 2)
    assert per_step[later[0]][1:] == [(32, 40)] * len(halved)
    assert per_step[later[1]] == per_step[later[2]] == [(32, 40)] * len(halved)
    assert [failed for *_, failed in calls].count(True) == 1
    assert any("out of memory" in line and "Finished steps stay" in line for line in records)
    # The same as going on with these tiles from the second step.
    sigmas = torch.linspace(0.65, 0, 5)

    def go(model, x, sigmas, **more):
        euler = comfy.samplers.sampler_object("euler")
        return comfy.sample.sample_custom(
            model, more.pop("noise", torch.zeros_like(x)), 1.0, euler, sigmas, prompt(1),
            prompt(2), x, disable_pbar=True, seed=3,
        )  # fmt: skip

    half = go(model, START, sigmas[:2], noise=noise(*START.shape, seed=9))
    with CallRecorder(model) as calls:
        expected = go(with_tiles(model, START, 320), half, sigmas[1:])
    assert {shape[-2:] for _, shape, _, _ in calls} == {(32, 40)}
    torch.testing.assert_close(got, expected, rtol=0, atol=1e-4)


def case_an_interrupt_inside_a_tile_is_not_swallowed():
    model = load()
    stop = comfy.model_management.InterruptProcessingException()
    with CallRecorder(model, limit=1, error=stop) as calls:
        try:
            sample(with_tiles(model, START, TILE))
        except comfy.model_management.InterruptProcessingException:
            pass
        else:
            raise AssertionError("the interrupt was swallowed")
    assert len(calls) == 1


def case_step_caches_do_not_mix_tiles_up():
    model = load()
    plain = sample(with_tiles(model, START, TILE), steps=6)
    easy, lazy = (
        getattr(nodes_easycache, kind).execute(model, 3.0, 0.0, 1.0, False).result[0]
        for kind in ("EasyCacheNode", "LazyCacheNode")
    )
    assert torch.equal(sample(with_tiles(easy, START, TILE), steps=6), plain)
    with CallRecorder(model) as calls:
        out = sample(with_tiles(lazy, START, TILE), steps=6)
    assert out.isfinite().all()
    assert len(calls) % len(PARTS) == 0
    assert len(calls) < 6 * len(PARTS), "the cache round the whole picture still answers steps"
    with CallRecorder(model) as calls:
        sample(with_tiles(easy, START, 0), steps=6)
    assert len(calls) == 6


def case_a_cache_by_time_of_another_node_never_answers_another_tile():
    """TeaCache's way, an apply_model wrapper, a patch of forward: refused in tiles only.

    Without the check, every tile but the first got the first one's answer.
    """
    from comfy.patcher_extension import WrappersMP

    def remember(network):
        memory, plain = {}, network.forward

        def forward(x, timestep, *args, **kwargs):
            key = float(timestep.flatten()[0])
            if key not in memory:
                memory[key] = plain(x, timestep, *args, **kwargs) - x
            return x + memory[key]

        return forward

    def by_function(model):
        network, made = model.model.diffusion_model, {}

        def wrapper(apply_model, args):
            made.setdefault("forward", remember(network))
            network.forward = made["forward"]
            try:
                return apply_model(args["input"], args["timestep"], **args["c"])
            finally:
                del network.forward

        model.set_model_unet_function_wrapper(wrapper)

    def by_object(model):
        model.add_object_patch("diffusion_model.forward", remember(model.model.diffusion_model))

    def by_wrapper(model):
        memory = {}

        def wrapper(executor, x, t, *args, **kwargs):
            key = float(t.flatten()[0])
            if key not in memory:
                memory[key] = executor(x, t, *args, **kwargs)
            return memory[key]

        model.add_wrapper_with_key(WrappersMP.APPLY_MODEL, "tea", wrapper)

    plain = sample(with_tiles(load(), START, 0))
    for install in (by_function, by_object, by_wrapper):
        model = load().clone()
        install(model)
        refused(lambda model=model: sample(with_tiles(model, START, TILE)), "a cache of another")
        network = model.model.diffusion_model
        assert not any(module._forward_pre_hooks for module in network.modules())
        model = load().clone()
        install(model)
        torch.testing.assert_close(sample(with_tiles(model, START, 0)), plain, rtol=0, atol=1e-4)


def case_wrappers_that_run_the_whole_network_go_with_tiles():
    from comfy.patcher_extension import WrappersMP

    plain = sample(with_tiles(load(), START, TILE))
    model = load().clone()
    seen = []

    def watch(executor, x, *args, **kwargs):
        seen.append(tuple(x.shape[-2:]))
        return executor(x, *args, **kwargs)

    model.add_wrapper_with_key(WrappersMP.APPLY_MODEL, "watch", watch)
    assert torch.equal(sample(with_tiles(model, START, TILE)), plain)
    assert set(seen) == {(32, 32)}


def case_the_host_reserves_memory_for_a_tile():
    model, shapes = load(), []
    needed = model.model.memory_required

    def spy(shape, *args, **kwargs):
        shapes.append(tuple(shape))
        return needed(shape, *args, **kwargs)

    model.model.memory_required = spy
    try:
        clone = with_tiles(model, START, TILE)
        shapes.clear()
        sample(clone, steps=1)
    finally:
        del model.model.memory_required
    assert shapes[:2] == [(2, 16, 3, 32, 32), (1, 16, 3, 32, 32)], shapes


def case_sizes_are_exact_from_the_vae_to_the_video():
    vae, wan, hunyuan = comfy.sd.VAE(sd=checkpoints.wan_vae()), load(), load("tiny_hunyuan")
    preview = noise(1, 16, 2, 5, 7)
    for width, height in ((72, 56), (104, 72), (120, 40), (56, 88)):
        wanted = {"resolution": "by size", "scale": 1.0, "width": width, "height": height}
        cells, asked = target_cells(wan, preview, **wanted)
        assert cells == (height // 8, width // 8)
        assert asked == (height, width)
        start = upsample.upsample_latent(preview, cells, "pixel", vae)
        assert start.shape == (1, 16, 2, *cells)
        out = sample(with_tiles(wan, start, 0), start, steps=1)
        assert out.shape == start.shape
        assert vae.decode(out).shape[-3:-1] == (height, width)
    low = noise(1, 16, 1, 30, 52)
    for model, rows in ((wan, 135), (hunyuan, 136)):
        wanted = {"resolution": "1080p", "scale": 1.0, "width": 0, "height": 0}
        assert target_cells(model, low, **wanted) == ((rows, 240), (1080, 1920))
    assert upsample.upsample_latent(low[..., :4], (135, 4), "pixel", vae).shape[-2] == 135


def case_all_odd_sizes_that_are_said_to_run_do():
    start, wan = noise(1, 16, 1, 135, 240), load()
    out = sample(with_tiles(wan, start, 1024), start, steps=1)
    assert out.shape == start.shape
    assert out.isfinite().all()
    options = {"concat_latent_image": noise(1, 16, 1, 35, 41)}
    odd = noise(1, 16, 1, 35, 41)
    for name in ("tiny_wan_t2v", "tiny_wan22_i2v", "tiny_wan_i2v"):
        out = sample(load(name), odd, steps=1, positive=prompt(1, **options))
        assert out.shape == odd.shape


def case_pieces_of_the_vae_make_odd_sizes_and_many_frames():
    vae, kept = comfy.sd.VAE(sd=checkpoints.wan_vae()), (memory.USABLE_MEMORY, memory.LEAST_PIECE)
    preview = noise(1, 16, 3, 12, 15)
    whole = upsample.upsample_latent(preview, (21, 27), "pixel", vae)
    memory.USABLE_MEMORY, memory.LEAST_PIECE = 0, 128
    try:
        pieces = upsample.upsample_latent(preview, (21, 27), "pixel", vae)
        long = upsample.upsample_latent(noise(1, 16, 31, 2, 2), (3, 3), "pixel", vae)
    finally:
        memory.USABLE_MEMORY, memory.LEAST_PIECE = kept
    assert pieces.shape == whole.shape == (1, 16, 3, 21, 27)
    assert pieces.isfinite().all()
    near = (pieces - whole).abs().mean() / whole.std()
    assert near < 0.5, near
    assert long.shape == (1, 16, 31, 3, 3)


if __name__ == "__main__":
    inside.report(RESULTS, dict(globals()))
