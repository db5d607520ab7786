"""Windowed attention inside a real host, in its process: run by test_inside.py, all cases at once.

    cd $COMFYUI_PATH && python tests/host/window_cases.py RESULTS.json

Every function `case_*` asserts.
"""

from functools import partial

import checkpoints
import inside
import torch
from inside import noise

RESULTS = inside.enter()

import comfy.ldm.hunyuan_video.model as hunyuan  # noqa: E402
import comfy.ldm.wan.model as wan  # noqa: E402
import comfy.model_patcher  # noqa: E402
import comfy.ops  # noqa: E402
import comfy.sd  # noqa: E402
from comfy.patcher_extension import WrappersMP  # noqa: E402
from surf.nodes.host.attention.windows import OVERRIDE, WRAPPER_KEY  # noqa: E402
from surf.nodes.windows import SurfWindowedAttention  # noqa: E402
from surf.surf_core.refiner import RefinerConfig, SurfRefinerDiT  # noqa: E402

import nodes  # noqa: E402

FRESH = {"operations": comfy.ops.disable_weight_init, "dtype": torch.float32, "device": "cpu"}
CPU = torch.device("cpu")
TIME = torch.tensor([500.0])


def with_windows(model, window):
    """What the node makes of a MODEL."""
    return SurfWindowedAttention.execute(model, window).result[0]


def filled(network):
    network.load_state_dict(checkpoints.randomise(network, 0))
    return network.requires_grad_(False)


def wan_network(kind=wan.WanModel, layers=2, **sizes):
    sizes = {**checkpoints.WAN, "num_layers": layers, "text_dim": 32, **sizes}
    return filled(kind(**sizes, **FRESH))


def hunyuan_network(double=1, single=1):
    sizes = {**checkpoints.HUNYUAN, "depth": double, "depth_single_blocks": single}
    return filled(hunyuan.HunyuanVideo(image_model="hunyuan_video", **sizes, **FRESH))


def patcher(network):
    """A MODEL around a bare network, for checks that call it without a sampler."""
    holder = torch.nn.Module()
    holder.diffusion_model = network
    return comfy.model_patcher.ModelPatcher(holder, CPU, CPU)


def call(model, *args, **kwargs):
    options = {**model.model_options.get("transformer_options", {}), "wrappers": model.wrappers}
    return model.model.diffusion_model(*args, transformer_options=options, **kwargs)


def influence(model, x, *args, **kwargs):
    """One row per changed frame: an x for each frame of the output that moves."""
    base, rows = call(model, x, *args, **kwargs), []
    for frame in range(x.shape[2]):
        changed = x.clone()
        changed[:, :, frame] += 1
        moved = (call(model, changed, *args, **kwargs) - base).abs().amax((0, 1, 3, 4))
        rows.append("".join("x" if value > 1e-6 else "." for value in moved.tolist()))
    return rows


ONE_BLOCK = ["xx...", "xx...", "..xx.", "..xx.", "....x"]
TWO_BLOCKS = ["xxx..", "xxx..", ".xxxx", ".xxxx", "...xx"]
VIDEO, TEXT = noise(1, 16, 5, 6, 8), noise(1, 7, 32)
INPUT = (VIDEO, TIME, TEXT)


def case_a_window_over_all_frames_is_dense():
    model = patcher(wan_network())
    for window in (5, 8):
        torch.testing.assert_close(
            call(with_windows(model, window), *INPUT), call(model, *INPUT), rtol=0, atol=1e-5
        )


def case_windows_confine_influence_and_shift_on_odd_blocks():
    assert influence(with_windows(patcher(wan_network(layers=1)), 2), *INPUT) == ONE_BLOCK
    assert influence(with_windows(patcher(wan_network()), 2), *INPUT) == TWO_BLOCKS


def case_windowed_leaves_the_original_untouched():
    model = patcher(wan_network())
    before = call(model, *INPUT)
    clone = with_windows(model, 2)
    assert not torch.equal(call(clone, *INPUT), before)
    assert torch.equal(call(model, *INPUT), before)
    assert not model.model_options["transformer_options"]
    assert not any(model.wrappers.values())


def case_an_earlier_override_serves_each_window():
    model, lengths = patcher(wan_network(layers=1)), []

    def earlier(func, q, k, v, heads, **kwargs):
        lengths.append((q.shape[1], k.shape[1]))
        return func(q, k, v, heads, **kwargs)

    model.model_options["transformer_options"]["optimized_attention_override"] = earlier
    call(with_windows(model, 2), *INPUT)
    assert lengths == [(24, 24), (24, 24), (12, 12), (60, 7)], lengths


def case_text_as_long_as_the_video_is_no_self_attention():
    text = noise(1, 5 * 3 * 4, 32)
    assert (
        influence(with_windows(patcher(wan_network(layers=1)), 2), VIDEO, TIME, text) == ONE_BLOCK
    )
    assert influence(with_windows(patcher(wan_network()), 2), VIDEO, TIME, text) == TWO_BLOCKS


def case_odd_sizes_are_padded_like_the_host_does():
    model = with_windows(patcher(wan_network(layers=1)), 2)
    assert influence(model, noise(1, 16, 5, 5, 7), TIME, TEXT) == ONE_BLOCK


def case_image_to_video_keeps_its_image_attention_whole():
    model = with_windows(patcher(wan_network(layers=1, model_type="i2v", in_dim=36)), 2)
    image = noise(1, 257, 1280)
    assert influence(model, noise(1, 36, 5, 6, 8), TIME, TEXT, clip_fea=image) == ONE_BLOCK


def case_reference_and_appended_frames_attend_to_everything():
    model = patcher(wan_network(layers=1, in_dim_ref_conv=16))
    for extra in (
        {"reference_latent": noise(1, 16, 6, 8)},
        {"time_dim_concat": noise(1, 16, 2, 6, 8)},
    ):
        assert influence(with_windows(model, 2), *INPUT, **extra) == ONE_BLOCK, extra.keys()
        dense, all_frames = (call(m, *INPUT, **extra) for m in (model, with_windows(model, 5)))
        torch.testing.assert_close(all_frames, dense, rtol=0, atol=1e-5)
        name, value = next(iter(extra.items()))
        moved = call(with_windows(model, 2), *INPUT, **{name: value + 1})
        assert (
            ((moved - call(with_windows(model, 2), *INPUT, **extra)).abs() > 1e-6)
            .any((1, 3, 4))
            .all()
        )


def case_vace_blocks_are_windowed_and_alternate_by_themselves():
    control = {"vace_context": noise(1, 1, 96, 5, 6, 8), "vace_strength": [1.0]}
    model = patcher(wan_network(wan.VaceWanModel, layers=1, vace_layers=1, vace_in_dim=96))
    assert influence(with_windows(model, 2), *INPUT, **control) == ONE_BLOCK
    dense, all_frames = (call(m, *INPUT, **control) for m in (model, with_windows(model, 5)))
    torch.testing.assert_close(all_frames, dense, rtol=0, atol=1e-5)
    model = patcher(wan_network(wan.VaceWanModel, layers=4, vace_layers=2, vace_in_dim=96))
    inputs = {**control, "vace_context": control["vace_context"].clone()}
    base = call(with_windows(model, 2), *INPUT, **inputs)
    inputs["vace_context"][:, :, :, 4] += 1
    moved = (call(with_windows(model, 2), *INPUT, **inputs) - base).abs().amax((0, 1, 3, 4)) > 1e-6
    assert moved[3], "the second control block must see across the boundary of the first"


def case_hunyuan_windows_attend_to_all_text():
    text, pooled = noise(1, 9, 64), noise(1, 768)
    extra = {"y": pooled, "guidance": torch.tensor([6.0])}
    args = (VIDEO, TIME, text)
    model = patcher(hunyuan_network(double=1, single=0))
    assert influence(with_windows(model, 2), *args, **extra) == ONE_BLOCK
    reference = {**extra, "ref_latent": noise(1, 16, 1, 6, 8)}
    assert influence(with_windows(model, 2), *args, **reference) == ONE_BLOCK
    model = patcher(hunyuan_network())
    mask = torch.tensor([[1, 1, 1, 1, 1, 1, 0, 0, 0]])
    for more in (extra, reference, {**extra, "attention_mask": mask}):
        dense, all_frames = (call(m, *args, **more) for m in (model, with_windows(model, 5)))
        torch.testing.assert_close(all_frames, dense, rtol=0, atol=1e-5)
    out = call(with_windows(model, 2), *args, **extra)
    changed = call(with_windows(model, 2), VIDEO, TIME, text + 1, **extra)
    assert ((out - changed).abs() > 1e-6).any((1, 3, 4)).all()


def chain(model, override):
    """A clone on which another node has put its own override in front."""
    clone = model.clone()
    options = clone.model_options.setdefault("transformer_options", {})
    options[OVERRIDE] = partial(override, options.get(OVERRIDE))
    return clone


def case_of_two_windows_the_last_one_decides():
    model = patcher(wan_network())
    expected = call(with_windows(model, 2), *INPUT)
    first = with_windows(model, 3)
    before, twice = call(first, *INPUT), with_windows(first, 2)
    assert torch.equal(call(twice, *INPUT), expected)
    assert influence(twice, *INPUT) == TWO_BLOCKS
    wrapped = [keys.get(WRAPPER_KEY, ()) for keys in twice.wrappers.values()]
    assert sum(map(len, wrapped)) == 1, wrapped
    assert torch.equal(call(first, *INPUT), before)
    lengths = []

    def kernel(previous, func, q, k, v, heads, **kwargs):
        lengths.append(q.shape[1])
        if previous is None:
            return func(q, k, v, heads, **kwargs)
        return previous(func, q, k, v, heads, **kwargs)

    between = with_windows(chain(first, kernel), 2)
    assert torch.equal(call(between, *INPUT), expected)
    assert influence(between, *INPUT) == TWO_BLOCKS
    assert set(lengths) == {12, 24, 60}, set(lengths)


def takes_the_slot(model, make):
    """A clone whose override is put on top before each step, as sparse attention does."""
    clone, installed = model.clone(), []

    def install(executor, x, time, model_options=None, seed=None):
        options = model_options["transformer_options"]
        if options.get(OVERRIDE) not in installed:
            installed.append(make(options.get(OVERRIDE)))
            options[OVERRIDE] = installed[-1]
        return executor(x, time, model_options, seed)

    clone.add_wrapper_with_key(WrappersMP.PREDICT_NOISE, "test", install)
    return clone


def case_windows_stay_on_below_attention_that_takes_their_place_each_step():
    name, video = "tiny_wan_t2v", noise(1, 16, 5, 6, 8, seed=2)
    model = comfy.sd.load_diffusion_model_state_dict(checkpoints.diffusion_model(name))
    windows = with_windows(model, 2)
    expected = ksampler(windows, video, name, steps=2)
    plain = ksampler(model, video, name, steps=2)
    lengths = []

    def sparse(previous):
        def override(func, q, k, v, heads, mask=None, **kwargs):
            lengths.append((q.shape[1], k.shape[1]))
            if q.shape != k.shape or mask is not None:
                return previous(func, q, k, v, heads, mask=mask, **kwargs)
            return func(q, k, v, heads, **kwargs)

        return override

    def replaces(previous):
        def override(func, q, k, *args, **kwargs):
            lengths.append((q.shape[1], k.shape[1]))
            return func(q, k, *args, **kwargs)

        return override

    for make in (sparse, replaces):
        for patched in (takes_the_slot(windows, make), chain_after(windows, make)):
            lengths.clear()
            out = ksampler(patched, video, name, steps=2)
            torch.testing.assert_close(out, expected, rtol=0, atol=1e-5)
            assert {(12, 12), (24, 24), (60, 8)} == set(lengths), set(lengths)
            assert (out - plain).abs().max() > 1e-3


def chain_after(model, make):
    """A clone on which another node has put an override once, above what was there."""
    return chain(model, lambda previous, *args, **kwargs: make(previous)(*args, **kwargs))


def case_a_model_with_windows_of_its_own_is_refused():
    for network in (SurfRefinerDiT(RefinerConfig.tiny()), torch.nn.Identity()):
        said = ""
        try:
            with_windows(patcher(network), 2)
        except ValueError as error:
            said = str(error)
        assert said.startswith("Surf Windowed Attention: "), said
        assert "set window to 0" in said, said
        model = patcher(network)
        assert with_windows(model, 0) is model


def prompt(seed, width=4096, **options):
    return [[noise(1, 8, width, seed=seed), options]]


CONCAT = {
    "concat_latent_image": noise(1, 16, 5, 6, 8, seed=5), "concat_mask": torch.ones(1, 1, 5, 6, 8)
}  # fmt: skip
VACE = {
    "vace_frames": [noise(1, 32, 5, 6, 8)], "vace_mask": [torch.ones(1, 64, 5, 6, 8)],
    "vace_strength": [1.0],
}  # fmt: skip
HUNYUAN = {"pooled_output": noise(1, 768), "attention_mask": torch.tensor([[1] * 6 + [0] * 2])}
ALL = ["xxxxx"] * 5
# Checkpoint -> (channels, width of the text, what its CONDITIONING holds besides, reach of a frame
# in two blocks). Reference images and the joint text see all frames and pass on what they saw.
KINDS = {
    "tiny_wan_t2v": (16, 4096, {}, TWO_BLOCKS),
    "tiny_wan_i2v": (16, 4096, CONCAT, TWO_BLOCKS),
    "tiny_wan22_i2v": (16, 4096, CONCAT, TWO_BLOCKS),
    "tiny_wan22_5b": (48, 4096, {}, TWO_BLOCKS),
    "tiny_wan_vace": (16, 4096, VACE, TWO_BLOCKS),
    "tiny_wan_ref": (16, 4096, {"reference_latents": [noise(1, 16, 1, 6, 8)]}, ALL),
    "tiny_hunyuan": (16, 64, HUNYUAN, ALL),
}


def ksampler(model, video, name, steps=1):
    """The stock KSampler, from halfway down."""
    _, width, options, _ = KINDS[name]
    texts = (prompt(seed, width, **options) for seed in (1, 2))
    cfg = 1.0 if "attention_mask" in options else 4.5
    return nodes.common_ksampler(
        model, 3, steps, cfg, "euler", "simple", *texts, {"samples": video}, denoise=0.5
    )[0]["samples"]


def case_the_stock_ksampler_keeps_every_models_windows_apart():
    for name, (channels, _, _, reach) in KINDS.items():
        model = comfy.sd.load_diffusion_model_state_dict(checkpoints.diffusion_model(name))
        video = noise(1, channels, 5, 6, 8, seed=2)
        plain, clone = ksampler(model, video, name), with_windows(model, 2)
        all_frames = ksampler(with_windows(model, 5), video, name)
        torch.testing.assert_close(all_frames, plain, rtol=0, atol=1e-4, msg=name)
        windows = ksampler(clone, video, name)
        assert windows.isfinite().all(), name
        assert not torch.equal(windows, plain), name
        assert torch.equal(ksampler(model, video, name), plain), name
        for frame in (0, 2, 4):
            changed = video.clone()
            changed[:, :, frame] += 1
            moved = (ksampler(clone, changed, name) - windows).abs().amax((0, 1, 3, 4)) > 1e-6
            seen = "".join("x" if value else "." for value in moved.tolist())
            assert seen == reach[frame], (name, frame, seen)


def case_a_model_compiled_after_the_node_keeps_its_windows():
    from comfy_api.torch_helpers import set_torch_compile_wrapper
    from comfy_extras.nodes_torch_compile import skip_torch_compile_dict

    name = "tiny_wan_t2v"
    model = comfy.sd.load_diffusion_model_state_dict(checkpoints.diffusion_model(name))
    clone = with_windows(model, 2)
    compiled = clone.clone()
    options = {"guard_filter_fn": skip_torch_compile_dict}
    set_torch_compile_wrapper(compiled, backend="eager", options=options)
    for video in (noise(1, 16, 5, 6, 8), noise(1, 16, 7, 4, 8)):
        expected, got = (ksampler(m, video, name, steps=2) for m in (clone, compiled))
        torch.testing.assert_close(got, expected, rtol=0, atol=1e-4)
        assert not torch.equal(ksampler(model, video, name, steps=2), expected)


if __name__ == "__main__":
    inside.report(RESULTS, dict(globals()))
