"""Surf Plan inside a real host, in its process: run by test_inside.py, all cases at once.

    cd $COMFYUI_PATH && python tests/host/plan_cases.py RESULTS.json

The host's networks at their real widths are counted on the meta device, where tensors have shapes
and no values. Every function `case_*` asserts.
"""

import tempfile
from pathlib import Path
from types import SimpleNamespace

import av_models
import checkpoints
import inprocess
import inside
import torch

RESULTS = inside.enter()

import comfy.ldm.hunyuan_video.model as hunyuan  # noqa: E402
import comfy.ldm.lightricks.av_model as lightricks  # noqa: E402
import comfy.ldm.wan.model as wan  # noqa: E402
import comfy.model_management  # noqa: E402
import comfy.ops  # noqa: E402
import comfy.sd  # noqa: E402
import folder_paths  # noqa: E402
from comfy.patcher_extension import WrappersMP  # noqa: E402
from surf.nodes.host.plan import measure  # noqa: E402
from surf.nodes.host.plan.shapes import needed, shape_of  # noqa: E402
from surf.nodes.host.refiner.loading import load_refiner  # noqa: E402
from surf.nodes.plan import SurfPlan  # noqa: E402
from surf.surf_core.cost import forward_flops  # noqa: E402
from surf.surf_core.training.live_bytes import LiveBytes  # noqa: E402
from surf.tests.node_calls import changes, kept  # noqa: E402
from torch.utils.flop_counter import FlopCounterMode  # noqa: E402

FOLDER = Path(tempfile.mkdtemp())
folder_paths.set_temp_directory(str(FOLDER))
HOST = inprocess.Host()
META = {"operations": comfy.ops.disable_weight_init, "dtype": torch.bfloat16, "device": "meta"}
DEFAULTS = {
    "steps": 8, "switch_step": 2, "cfg": 7.5, "cfg_low": 5.0, "low_resolution": "by scale",
    "low_scale": 0.5, "low_width": 416, "low_height": 240, "refine_steps": 3,
    "resolution": "by scale", "scale": 2.0, "width": 1920, "height": 1088, "refine_cfg": 4.5,
    "window": 0, "keep": 1.0, "tile": 0,
}  # fmt: skip
PATCHED = (1, 16, 21, 60, 104)
HUNYUAN = {
    "in_channels": 16, "out_channels": 16, "vec_in_dim": 768, "context_in_dim": 4096,
    "hidden_size": 3072, "mlp_ratio": 4.0, "num_heads": 24, "axes_dim": [16, 56, 56], "theta": 256,
    "patch_size": [1, 2, 2], "qkv_bias": True, "guidance_embed": True, "byt5": False,
    "meanflow": False, "use_cond_type_embedding": False, "vision_in_dim": None,
    "meanflow_sum": False,
}  # fmt: skip
HUNYUAN_15 = HUNYUAN | {
    "in_channels": 65, "out_channels": 32, "vec_in_dim": None, "context_in_dim": 3584,
    "hidden_size": 2048, "num_heads": 16, "patch_size": [1, 1, 1], "guidance_embed": False,
    "byt5": True, "use_cond_type_embedding": True, "vision_in_dim": 1152, "meanflow_sum": True,
}  # fmt: skip
LTX = {
    "cross_attention_adaln": True, "caption_proj_before_connector": True,
    "caption_projection_first_linear": False, "apply_gated_attention": True, "rope_type": "split",
    "connector_num_attention_heads": 32, "connector_num_layers": 1,
    "audio_connector_attention_head_dim": 64, "connector_apply_gated_attention": True,
    "use_middle_indices_grid": True, "causal_temporal_positioning": True,
    "av_ca_timestep_scale_multiplier": 1000.0, "frequencies_precision": "float64",
}  # fmt: skip


def zeros(*sizes):
    return torch.zeros(sizes, dtype=torch.bfloat16, device="meta")


def wan_of(dim, ffn, heads, kind="WanModel", vace=False):
    """A Wan of so many layers, and one call of it."""

    def make(layers):
        more = {"vace_layers": layers // 2, "vace_in_dim": 96} if vace else {}
        return getattr(wan, kind)(
            model_type="t2v", dim=dim, ffn_dim=ffn, num_heads=heads, num_layers=layers, in_dim=16,
            out_dim=16, **more, **META,
        )  # fmt: skip

    def call(network, options):
        control = {"vace_context": zeros(1, 1, 96, *PATCHED[2:]), "vace_strength": [1.0]}
        network(
            zeros(*PATCHED), torch.zeros(1, device="meta"), zeros(1, 512, 4096),
            transformer_options=options, **(control if vace else {}),
        )  # fmt: skip

    return make, call, [PATCHED], 512


def hunyuan_of(config, single):
    patch, channels = config["patch_size"][1], config["out_channels"]
    shape = (1, channels, 31, 48, 80)

    def make(layers):
        depths = {"depth": 0 if single else layers, "depth_single_blocks": layers if single else 0}
        return hunyuan.HunyuanVideo(**config, **depths, **META)

    def call(network, options):
        more = {"y": zeros(1, 768), "guidance": zeros(1)} if config["vec_in_dim"] else {}
        x = zeros(1, config["in_channels"], *shape[2:])
        text = zeros(1, 256, config["context_in_dim"])
        network(
            x, torch.zeros(1, device="meta"), text, transformer_options=options, **more
        )  # fmt: skip

    assert patch in (1, 2)
    return make, call, [shape], 256


def h3_of():
    av_models.check_known()
    from comfy.ldm.minimax.model import MiniMaxH3Model

    shapes = [(1, 24, 37, 48, 84), (1, 32, 2, 207)]

    def make(layers):
        return MiniMaxH3Model(num_layers=layers, **META)

    def call(network, options):
        network(
            [zeros(*shape) for shape in shapes], torch.tensor([900.0]), zeros(1, 600, 5120),
            minimax_payload={"audio_scale": 4.0}, transformer_options=options,
        )  # fmt: skip

    return make, call, shapes, 600


def ltx_of():
    av_models.check_known()
    shapes = [(1, 128, 16, 34, 60), (1, 8, 121, 16)]

    def make(layers):
        return lightricks.LTXAVModel(**LTX, num_layers=layers, **META)

    def call(network, options):
        network(
            [zeros(*shape) for shape in shapes], [zeros(1), zeros(1)], zeros(1, 1024, 6144),
            transformer_options=options,
        )  # fmt: skip

    return make, call, shapes, 1024


def empty(func, q, k, v, heads, *args, skip_reshape=False, **kwargs):
    """What attention leaves beside its inputs, without its work."""
    if skip_reshape:
        return q.new_empty(q.shape[0], q.shape[2], q.shape[1] * q.shape[3])
    return torch.empty_like(q)


def plain(func, q, k, v, heads, *args, skip_reshape=False, **kwargs):
    """Attention of two matrix products, which torch counts on any device."""
    if not skip_reshape:
        q, k, v = (x.unflatten(-1, (heads, -1)).transpose(1, 2) for x in (q, k, v))
    return ((q @ k.mT) @ v).transpose(1, 2).flatten(2)


def model_of(network):
    """A MODEL around a bare network, of which sizes are read."""
    base = SimpleNamespace(
        diffusion_model=network, manual_cast_dtype=None, get_dtype=lambda: torch.bfloat16
    )
    return SimpleNamespace(model=base, get_model_object=lambda name: network)


def priced(make, shapes, text, layers):
    clip, conditioning = shapes[0][2:], [[zeros(1, text, 8), {}]]
    shape = shape_of(model_of(make(layers)), shapes, conditioning)
    return shape, clip, forward_flops(shape, *clip)


def counted(make, call, layers):
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        call(make(layers), {"optimized_attention_override": plain})
    return counter.get_total_flops()


def check_family(make, call, shapes, text):
    """Operations of two more layers within 3 % of torch's, live bytes within 15 % of the count."""
    few, many = 2, 4
    more = counted(make, call, many) - counted(make, call, few)
    said = priced(make, shapes, text, many)[2] - priced(make, shapes, text, few)[2]
    assert abs(said / more - 1) < 0.03, (said, more, said / more)
    network = make(few)
    shape, clip, _ = priced(make, shapes, text, few)
    with LiveBytes(network) as live, torch.no_grad():
        call(network, {"optimized_attention_override": empty})
    estimate = needed(model_of(network), shape, clip, 0, 1)
    assert abs(estimate / live.peak - 1) < 0.15, (estimate, live.peak, estimate / live.peak)


def case_wan_14b_is_counted():
    check_family(*wan_of(5120, 13824, 40))


def case_wan_5b_and_1_3b_are_counted():
    check_family(*wan_of(3072, 14336, 24))
    check_family(*wan_of(1536, 8960, 12))


def case_vace_and_camera_are_counted():
    check_family(*wan_of(5120, 13824, 40, "VaceWanModel", vace=True))
    check_family(*wan_of(1536, 8960, 12, "CameraWanModel"))


def case_hunyuan_video_is_counted():
    check_family(*hunyuan_of(HUNYUAN, single=False))
    check_family(*hunyuan_of(HUNYUAN, single=True))


def case_hunyuan_video_15_is_counted():
    check_family(*hunyuan_of(HUNYUAN_15, single=False))


def case_minimax_h3_is_counted():
    check_family(*h3_of())


def case_ltx_2_is_counted():
    check_family(*ltx_of())


def run(model, latent, **changed):
    return SurfPlan.execute(model=model, latent=latent, **DEFAULTS | changed)


def rows_of(report):
    lines = report.split("\n\n")[0].splitlines()[1:]
    cut = [[part.strip() for part in line.split("  ") if part.strip()] for line in lines]
    return {row[0]: row[1:] for row in cut}


def text(width=4096, seed=1, **options):
    return inprocess.text(seed, width, **options)


def check_timed(model, latent, positive, unknown=False, **changed):
    """Every stage has seconds; model, latent, prompt and the global generator are as before."""
    given = {"calibrate": True, "positive": positive, "negative": positive, **changed}
    before, state = kept((model, latent, positive)), torch.random.get_rng_state()
    out = run(model, latent, **given)
    rows = rows_of(out.args[1])
    for name in ("before the switch", "after the switch", "refinement", "in all"):
        assert rows[name][-1].endswith((" s", " min")), rows
    assert (rows["before the switch"][3] == "-") == unknown, rows
    assert out.args[0] is model
    assert not changes(before, kept((model, latent, positive)), "inputs")
    assert torch.equal(state, torch.random.get_rng_state())
    assert len(out.ui["images"]) == 1
    return rows


VIDEO = {"samples": torch.zeros(1, 16, 3, 16, 24)}


def case_wan_is_timed_with_windows_tiles_and_a_mask():
    model = HOST.model()
    check_timed(model, VIDEO, text())
    rows = check_timed(model, VIDEO, text(), window=2, tile=256, scale=4.0, keep=0.5)
    assert rows["refinement"][0] == "384 x 256"


def case_image_to_video_and_vace_are_timed():
    map_ = inprocess.random(1, 16, 3, 16, 24)
    options = {"concat_latent_image": map_, "concat_mask": torch.ones(1, 1, 3, 16, 24)}
    check_timed(HOST.model("tiny_wan_i2v"), VIDEO, text(**options))
    vace = {"vace_frames": [inprocess.random(1, 32, 3, 16, 24)],
            "vace_mask": [torch.ones(1, 64, 3, 16, 24)], "vace_strength": [1.0]}  # fmt: skip
    check_timed(HOST.model("tiny_wan_vace"), VIDEO, text(**vace))


def case_other_families_are_timed():
    check_timed(HOST.model("tiny_wan22_5b"), {"samples": torch.zeros(1, 48, 3, 16, 24)}, text())
    pooled = torch.zeros(1, 768)
    check_timed(HOST.model("tiny_hunyuan"), VIDEO, text(64, pooled_output=pooled), window=2)


def case_a_network_that_is_not_counted_is_timed():
    reference = {"reference_latents": [inprocess.random(1, 16, 1, 16, 24)]}
    rows = check_timed(HOST.model("tiny_wan_ref"), VIDEO, text(**reference), unknown=True)
    assert rows["plain run"][3] == "-"


def case_a_refiner_of_ours_is_timed_beside_the_model():
    ours = load_refiner(checkpoints.refiner(FOLDER / "plan_refiner.safetensors", text_dim=4096))
    rows = check_timed(HOST.model(), VIDEO, text(), refiner=ours, keep=0.5, scale=3.0)
    # Timed, or reckoned where that would take long: the machine decides.
    assert rows["plain run"][-1].removeprefix("about ")[0].isdigit()


def case_the_embedded_models_are_timed():
    model, refiner, vae, latent = HOST.nodes["SurfTinyModels"].execute().result
    prompt = HOST.nodes["SurfTinyPrompt"].execute(
        **{item.id: getattr(item, "default", None)
           for item in HOST.nodes["SurfTinyPrompt"].define_schema().inputs}
    ).result[0]  # fmt: skip
    rows = check_timed(model, latent, prompt, refiner=refiner, vae=vae)
    assert rows["refinement"][3] != "-"


def case_video_with_sound_is_timed():
    av_models.check_known()
    for name, frames in (("tiny_minimax_h3", 22), ("tiny_ltx23", 17)):
        model = av_models.load(name, FOLDER)
        latent = av_models.latent(name, frames=frames, rows=8, columns=12)
        check_timed(model, latent, av_models.prompt(name, seed=1))


def case_what_was_measured_is_recalled_and_a_lora_runs():
    """A LoRA of the MODEL is in the run; the same MODEL is not run twice at a size."""
    sizes = []

    def see(executor, x, *args, **kwargs):
        sizes.append(tuple(x.shape[-2:]))
        return executor(x, *args, **kwargs)

    patched, _ = comfy.sd.load_lora_for_models(HOST.model(), None, checkpoints.lora(5), 1.0, 0.0)
    patched.add_wrapper_with_key(WrappersMP.DIFFUSION_MODEL, "seen", see)
    check_timed(patched, VIDEO, text())
    assert {(16, 24), (8, 12)} == set(sizes)
    count = len(sizes)
    check_timed(patched, VIDEO, text(seed=9), steps=20, switch_step=5)
    assert len(sizes) == count
    assert patched.model.current_weight_patches_uuid == patched.patches_uuid


def case_the_user_can_interrupt_and_run_again():
    model, seen = HOST.model().clone(), []

    def stop(executor, *args, **kwargs):
        seen.append(1)
        comfy.model_management.interrupt_current_processing()
        comfy.model_management.throw_exception_if_processing_interrupted()
        return executor(*args, **kwargs)

    model.add_wrapper_with_key(WrappersMP.DIFFUSION_MODEL, "stops", stop)
    interrupted = False
    try:
        run(model, VIDEO, calibrate=True, positive=text())
    except comfy.model_management.InterruptProcessingException:
        interrupted = True
    assert interrupted
    assert len(seen) == 1
    assert model not in measure._CACHE or not measure._CACHE[model]
    model.remove_wrappers_with_key(WrappersMP.DIFFUSION_MODEL, "stops")
    check_timed(model, VIDEO, text())


def case_an_image_model_is_refused_or_counted_by_its_host():
    model = comfy.sd.load_diffusion_model_state_dict(checkpoints.sd3())
    picture = {"samples": torch.zeros(1, 16, 16, 24)}
    pooled = torch.zeros(1, 2048)
    check_timed(model, picture, text(pooled_output=pooled), unknown=True)


def case_a_prompt_that_its_sampler_refuses_is_refused():
    area = text(area=(4, 4, 90, 90), strength=1.0)
    inprocess.refused(lambda: run(HOST.model(), VIDEO, positive=area), "Surf Plan: ", "area")


def case_a_prompt_of_another_text_encoder_is_refused_before_a_model_runs():
    """By the plan, by the sampler and by the refiner; a raw error of torch says no input."""
    wide, words = text(64), ("expected text 4096 wide", "got 64; connect the text encoder")
    inprocess.refused(
        lambda: run(HOST.model(), VIDEO, positive=wide, calibrate=True), "Surf Plan: ", *words
    )
    inprocess.refused(
        lambda: HOST.ours(HOST.model(), VIDEO, wide, wide), "Surf Reshift KSampler: ", *words
    )
    given = {"model": HOST.model(), "positive": wide, "negative": wide, "latent": VIDEO}
    given |= {"seed": 3, "sigma_start": 0.7, "steps": 2, "cfg": 1.0, "window": 0}
    given |= {"resolution": "by scale", "scale": 2.0, "width": 64, "height": 64}
    given |= {"upsample": "latent", "low_band_lock": 0.0, "colour_match": False}
    refiner = HOST.nodes["SurfRefiner"]
    inprocess.refused(lambda: refiner.execute(**given), "Surf Refiner: ", *words)
    pooled = text(4096, pooled_output=torch.zeros(1, 768))
    inprocess.refused(
        lambda: run(HOST.model("tiny_hunyuan"), VIDEO, positive=pooled), "expected text 64 wide"
    )


def case_models_of_video_and_sound_refuse_a_prompt_of_another_text_encoder():
    av_models.check_known()
    for name, frames in (("tiny_minimax_h3", 22), ("tiny_ltx23", 17)):
        latent = av_models.latent(name, frames=frames, rows=8, columns=12)
        model = av_models.load(name, FOLDER)
        inprocess.refused(
            lambda m=model, x=latent: run(m, x, positive=text(4097)), "wide in the positive", "4097"
        )


if __name__ == "__main__":
    inside.report(RESULTS, dict(globals()))
