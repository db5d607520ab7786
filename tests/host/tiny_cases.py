"""The embedded models as nodes inside a real host: run by test_inside.py, all cases at once.

    cd $COMFYUI_PATH && python tests/host/tiny_cases.py RESULTS.json

Every function `case_*` asserts. Nothing here depends on how well the models draw.
"""

import functools

import inside
import torch
from inprocess import refused
from inside import noise

RESULTS = inside.enter()

import comfy.sample  # noqa: E402
import comfy.samplers  # noqa: E402
import comfy.sd  # noqa: E402
import latent_preview  # noqa: E402
from comfy_extras.nodes_model_advanced import ModelSamplingSD3  # noqa: E402
from surf.nodes.host.refiner import TinyFormat, load_refiner  # noqa: E402
from surf.nodes.preview import SurfReshiftKSampler  # noqa: E402
from surf.nodes.refine import SurfRefiner  # noqa: E402
from surf.nodes.tiny import EXAMPLE as PROMPT  # noqa: E402
from surf.nodes.tiny import SurfTinyModels, SurfTinyPrompt  # noqa: E402
from surf.surf_core import checkpoint, flow, reshift  # noqa: E402
from surf.surf_core.resample import resize  # noqa: E402
from surf.surf_core.tiny.model import (  # noqa: E402
    REFINER,
    VAE,
    WEIGHTS,
    TinyT2V,
    to_latent,
    to_pixels,
)
from surf.surf_core.training.tiny.paint import paint  # noqa: E402
from surf.surf_core.training.tiny.world import draw  # noqa: E402

import nodes  # noqa: E402

PREVIEW = {
    "seed": 5, "steps": 6, "switch_step": 2, "cfg": 4.0, "cfg_low": 3.0, "shift": 3.0,
    "shift_low": 3.0, "sampler_name": "euler", "scheduler": "simple", "denoise": 1.0,
    "low_resolution": "by scale", "low_scale": 0.5, "low_width": 64, "low_height": 64,
    "sigma_policy": "snr_equal", "noise_policy": "inherited", "handover": "reuse",
}  # fmt: skip
REFINE = {
    "seed": 7, "resolution": "by scale", "scale": 4.0, "width": 256, "height": 256,
    "upsample": "pixel", "sigma_start": 0.2, "steps": 2, "cfg": 4.0, "window": 0,
    "low_band_lock": 0.0, "colour_match": False,
}  # fmt: skip


@functools.cache
def tiny():
    """What the node gives: model, refiner, VAE, latent."""
    return SurfTinyModels.execute().result


def prompts():
    return [SurfTinyPrompt.execute(text).result[0] for text in (PROMPT, "")]


@functools.cache
def preview():
    model, _, _, latent = tiny()
    return SurfReshiftKSampler.execute(model, *prompts(), latent, **PREVIEW).result[0]


def video(frames=13, size=64, seed=0):
    """Pixels [1, 3, F, size, size] in 0..1 of a painted scene."""
    return paint(draw(seed, torch.arange(1)), torch.linspace(-0.5, 0.5, frames), size) / 2 + 0.5


def images(pixels):
    """The same as a user sees them: [F, rows, columns, 3]."""
    return pixels[0].movedim(0, -1)


def latent_of(pixels):
    """What a LATENT of these pixels holds."""
    return TinyFormat().process_out(to_latent(pixels))


def same(got, expected, atol=2e-5):
    torch.testing.assert_close(got, expected, rtol=0, atol=atol)


def case_the_vae_of_the_host_is_the_cores():
    vae, pixels = tiny()[2], video()
    assert type(vae.first_stage_model).__module__.startswith("comfy.ldm.wan")
    encoded = nodes.VAEEncode().encode(vae, images(pixels))[0]["samples"]
    same(encoded, latent_of(pixels), 1e-3)
    shown = to_pixels(TinyFormat().process_in(encoded))
    assert shown.std() > 0.1
    same(nodes.VAEDecode().decode(vae, {"samples": encoded})[0], images(shown), 1e-4)


def case_tiles_of_the_host_are_near_what_the_whole_gives():
    """Cells depend on their neighbours, so that edges of tiles show a little."""
    vae, pixels = tiny()[2], video(size=192)
    latent = latent_of(pixels)
    whole = nodes.VAEDecode().decode(vae, {"samples": latent})[0]
    tiled = nodes.VAEDecodeTiled().decode(vae, {"samples": latent}, 128, 64, 16, 8)[0]
    assert whole.shape == tiled.shape == (13, 192, 192, 3)
    assert (tiled - whole).square().mean().sqrt() < 0.01
    encoded = vae.encode_tiled(whole, tile_x=128, tile_y=128, overlap=64)
    assert (encoded - vae.encode(whole)).square().mean().sqrt() < 0.1 * encoded.std()


def case_a_batch_of_videos_comes_out_one_after_the_other():
    vae = tiny()[2]
    both = torch.cat([latent_of(video()), latent_of(video(seed=1))])
    shown = nodes.VAEDecode().decode(vae, {"samples": both})[0]
    assert shown.shape == (26, 64, 64, 3)
    for item, frames in zip(both.split(1), shown.split(13), strict=True):
        same(frames, nodes.VAEDecode().decode(vae, {"samples": item})[0])
    one = nodes.VAEEncode().encode(vae, shown[:1])[0]["samples"]
    assert one.shape == (1, 16, 1, 8, 8)


def case_sides_that_are_no_cells_are_cropped_as_by_any_vae():
    encoded = nodes.VAEEncode().encode(tiny()[2], torch.rand(5, 66, 79, 3))[0]["samples"]
    assert encoded.shape == (1, 16, 2, 8, 9)


def case_the_preview_is_what_the_core_makes():
    model, _, vae, latent = tiny()
    core, blank = TinyT2V([PROMPT]), latent["samples"]
    shifted = ModelSamplingSD3().patch(model, PREVIEW["shift"])[0]
    schedule = shifted.get_model_object("model_sampling")
    sigmas = comfy.samplers.calculate_sigmas(schedule, "simple", PREVIEW["steps"])
    z = reshift.preview(
        core.velocity(4.0), comfy.sample.prepare_noise(blank, 5), sigmas, 2, (8, 8),
        velocity_low=core.velocity(3.0), sigma_policy="snr_equal", noise_policy="inherited",
    )  # fmt: skip
    same(preview()["samples"], TinyFormat().process_out(z), 2e-2)
    shown = nodes.VAEDecode().decode(vae, preview())[0]
    assert shown.shape == (13, 64, 64, 3)
    same(shown, images(to_pixels(z)), 2e-2)


def case_the_refiner_makes_256_pixels_of_64_as_the_core_does():
    _, refiner, vae, _ = tiny()
    out, width, height, *_ = SurfRefiner.execute(
        refiner, *prompts(), preview(), vae=vae, **REFINE
    ).result
    assert (width, height) == (256, 256)
    assert out["samples"].shape == (1, 16, 4, 32, 32)
    core, text = checkpoint.load(REFINER), [cond[0][0] for cond in prompts()]
    config, sigma = core.config, REFINE["sigma_start"]

    def velocity(z, time):
        at = torch.full((1,), 1000 * float(time))
        yes, no = (core(z, at, cond, torch.full((1,), sigma)) for cond in text)
        return no + REFINE["cfg"] * (yes - no)

    small = vae.decode(preview()["samples"])[0].movedim(-1, 0)[None]
    start = to_latent(resize(small, (256, 256), "bicubic").clamp(0, 1))
    eps = comfy.sample.prepare_noise(start, REFINE["seed"])
    expected = flow.refine(velocity, start, sigma, REFINE["steps"], eps, time=config.time)
    same(out["samples"], TinyFormat().process_out(expected), 2e-2)


def case_sizes_by_number_are_told_in_pixels_of_these_cells():
    _, refiner, vae, _ = tiny()
    changes = {"resolution": "by size", "width": 96, "height": 80, "steps": 1}
    out, width, height, *_ = SurfRefiner.execute(
        refiner, *prompts(), preview(), vae=vae, **REFINE | changes
    ).result
    assert (width, height) == (96, 80)
    assert nodes.VAEDecode().decode(vae, out)[0].shape == (13, 80, 96, 3)


def case_pictures_of_a_running_job_have_the_colours_of_the_video():
    kind, latent_format = latent_preview.Latent2RGBPreviewer, tiny()[0].model.latent_format
    found = latent_preview.get_previewer(torch.device("cpu"), latent_format)
    assert found is None or type(found) is kind
    previewer = kind(latent_format.latent_rgb_factors, latent_format.latent_rgb_factors_bias)
    pixels = paint(draw(7, torch.arange(6)), torch.zeros(1), 128) / 2 + 0.5
    cells = resize(pixels[:, :, 0], (16, 16), "area").movedim(1, -1)
    shown = [previewer.decode_latent_to_preview(x) for x in to_latent(pixels).split(1)]
    got = torch.stack([torch.tensor(list(x.getdata())).reshape(16, 16, 3) / 255 for x in shown])
    assert (got - cells).square().mean().sqrt() < 0.12
    assert (got - cells).square().mean() < 0.5 * cells.var(dim=(0, 1, 2)).mean()


def case_our_own_network_speaks_the_same_latents():
    """Surf Refiner Loader reads the heads, too, so it sees the same video."""
    model, _, vae, latent = tiny()
    ours = load_refiner(str(WEIGHTS))
    made = [
        nodes.common_ksampler(m, 3, 2, 4.0, "euler", "simple", *prompts(), latent)[0]
        for m in (model, ModelSamplingSD3().patch(ours, 8.0)[0])
    ]
    same(made[0]["samples"], made[1]["samples"], 2e-3)
    assert nodes.VAEDecode().decode(vae, made[1])[0].shape == (13, 128, 128, 3)


def case_the_hosts_loader_of_vaes_reads_the_file():
    vae = comfy.sd.VAE(sd=comfy.utils.load_torch_file(str(VAE)))
    latent = latent_of(video())
    same(vae.decode(latent), tiny()[2].decode(latent), 2e-2)


def case_a_lora_and_an_attention_of_others_change_the_model():
    """What is made for the host's Wan works: keys of LoRAs, overrides, options of its blocks."""
    model, _, _, latent = tiny()

    def made(patched):
        return nodes.common_ksampler(
            patched, 3, 1, 1.0, "euler", "simple", *prompts(), latent
        )[0]["samples"]  # fmt: skip

    plain = made(model)
    lora = {
        "diffusion_model.blocks.0.self_attn.q.lora_A.weight": noise(4, 128),
        "diffusion_model.blocks.0.self_attn.q.lora_B.weight": noise(128, 4, seed=2),
    }
    patched, _ = comfy.sd.load_lora_for_models(model, None, lora, 1.0, 0.0)
    assert not torch.equal(made(patched), plain)
    calls, cut = [], model.clone()

    def attention(func, *args, **kwargs):
        calls.append(kwargs.get("heads", args[3] if len(args) > 3 else None))
        return func(*args, **kwargs)

    cut.model_options["transformer_options"]["optimized_attention_override"] = attention
    same(made(cut), plain, 0)
    assert set(calls) == {4}
    assert len(calls) >= 6
    same(made(model), plain, 0)


def case_the_empty_latent_goes_through_the_hosts_sampler():
    model, _, vae, latent = tiny()
    out = nodes.common_ksampler(model, 3, 1, 4.0, "euler", "simple", *prompts(), latent)[0]
    assert out["samples"].shape == (1, 16, 4, 16, 16)
    assert latent["samples"].count_nonzero() == 0


def case_models_and_vae_can_be_loaded_again():
    """As newer hosts do for another GPU."""
    for patcher in (*tiny()[:2], tiny()[2].patcher):
        make, arguments = patcher.cached_patcher_init
        assert type(make(*arguments).model) is type(patcher.model)


def case_a_word_that_the_models_do_not_know_is_named():
    refused(lambda: SurfTinyPrompt.execute("a red circle"), "Surf Tiny Prompt: ", "'circle'")
    refused(lambda: SurfTinyPrompt.execute("red, green, blue, yellow"), "at most 3", "got 4")


def case_decoded_frames_stay_as_they_are_when_decoded_again():
    """Newer hosts scale the frames in place: it must be their own copy."""
    vae, latent = tiny()[2], {"samples": latent_of(video()) + noise(1, 16, 4, 8, 8)}
    first = nodes.VAEDecode().decode(vae, latent)[0].clone()
    assert first.min() >= 0
    assert first.max() <= 1
    same(nodes.VAEDecode().decode(vae, latent)[0], first, 0)


if __name__ == "__main__":
    inside.report(RESULTS, dict(globals()))
