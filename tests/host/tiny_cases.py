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
from surf.nodes.host.refiner.tiny import CHANNELS, TinyFormat  # noqa: E402
from surf.nodes.preview import SurfReshiftKSampler  # noqa: E402
from surf.nodes.refine import SurfRefiner  # noqa: E402
from surf.nodes.tiny import SurfTinyModels, SurfTinyPrompt  # noqa: E402
from surf.surf_core import checkpoint, flow, reshift  # noqa: E402
from surf.surf_core.resample import resize  # noqa: E402
from surf.surf_core.tiny import codec  # noqa: E402
from surf.surf_core.tiny.model import REFINER, WEIGHTS, TinyT2V  # noqa: E402

import nodes  # noqa: E402

PROMPT = "red circle moving right, blue square moving up, on stripes"
PREVIEW = {
    "seed": 5, "steps": 6, "switch_step": 2, "cfg": 4.0, "cfg_low": 3.0, "shift": 3.0,
    "shift_low": 3.0, "sampler_name": "euler", "scheduler": "simple", "denoise": 1.0,
    "low_resolution": "by scale", "low_scale": 0.5, "low_width": 32, "low_height": 32,
    "sigma_policy": "snr_equal", "noise_policy": "inherited", "handover": "reuse",
}  # fmt: skip
REFINE = {
    "seed": 7, "resolution": "by scale", "scale": 4.0, "width": 128, "height": 128,
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


def video(frames=4, rows=64, columns=64):
    """Pixels [1, 3, F, rows, columns] in -1..1 that the codec gives back: smooth ones."""
    coarse = torch.rand(1, 3, frames, 4, 4, generator=torch.Generator().manual_seed(0))
    latent = codec.encode(resize(coarse, (rows, columns), "bilinear") * 2 - 1)
    return codec.decode(latent).clamp(-1, 1)


def images(pixels):
    """The same as a user sees them: [F, rows, columns, 3] in 0..1."""
    return pixels[0].movedim(0, -1).add(1).div(2)


def latent_of(pixels):
    """What a LATENT of these pixels holds."""
    return TinyFormat().process_out(codec.encode(pixels))


def same(got, expected, atol=2e-5):
    torch.testing.assert_close(got, expected, rtol=0, atol=atol)


def case_the_vae_is_the_codec_in_the_hosts_nodes():
    vae, pixels = tiny()[2], video()
    encoded = nodes.VAEEncode().encode(vae, images(pixels))[0]["samples"]
    same(encoded, latent_of(pixels), 1e-4)
    shown = codec.decode(TinyFormat().process_in(encoded)).clamp(-1, 1)
    assert shown.std() > 0.1
    same(nodes.VAEDecode().decode(vae, {"samples": encoded})[0], images(shown))


def case_tiles_of_the_host_give_what_the_whole_gives():
    vae, pixels = tiny()[2], video(rows=192, columns=256)
    whole = nodes.VAEDecode().decode(vae, {"samples": latent_of(pixels)})[0]
    tiled = nodes.VAEDecodeTiled().decode(vae, {"samples": latent_of(pixels)}, 64, 16, 8, 4)[0]
    assert whole.shape == (4, 192, 256, 3)
    same(tiled, whole)
    same(vae.encode_tiled(whole, tile_x=64, tile_y=64, overlap=16), vae.encode(whole), 1e-4)


def case_a_batch_of_videos_comes_out_one_after_the_other():
    vae = tiny()[2]
    both = torch.cat([latent_of(video()), latent_of(video()).flip(-1)])
    shown = nodes.VAEDecode().decode(vae, {"samples": both})[0]
    assert shown.shape == (8, 64, 64, 3)
    for item, frames in zip(both.split(1), shown.split(4), strict=True):
        same(frames, nodes.VAEDecode().decode(vae, {"samples": item})[0])
    one = nodes.VAEEncode().encode(vae, shown[:1])[0]["samples"]
    assert one.shape == (1, CHANNELS, 1, 16, 16)


def case_sides_that_are_no_cells_are_cropped_as_by_any_vae():
    encoded = nodes.VAEEncode().encode(tiny()[2], torch.rand(3, 66, 71, 3))[0]["samples"]
    assert encoded.shape == (1, CHANNELS, 3, 16, 17)


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
    assert shown.shape == (4, 32, 32, 3)
    same(shown, images(codec.decode(z).clamp(-1, 1)), 5e-3)


def case_the_refiner_makes_128_pixels_of_32_as_the_core_does():
    _, refiner, vae, _ = tiny()
    out, width, height, *_ = SurfRefiner.execute(
        refiner, *prompts(), preview(), vae=vae, **REFINE
    ).result
    assert (width, height) == (128, 128)
    assert out["samples"].shape == (1, CHANNELS, 4, 32, 32)
    core, text = checkpoint.load(REFINER), [cond[0][0] for cond in prompts()]
    config, sigma = core.config, REFINE["sigma_start"]

    def velocity(z, time):
        at = torch.full((1,), 1000 * float(time))
        yes, no = (core(z, at, cond, torch.full((1,), sigma)) for cond in text)
        return no + REFINE["cfg"] * (yes - no)

    small = vae.decode(preview()["samples"])[0].movedim(-1, 0)[None]
    large = resize(small, (128, 128), "bicubic").clamp(0, 1)
    start = codec.encode(large * 2 - 1)
    eps = comfy.sample.prepare_noise(start, REFINE["seed"])
    expected = flow.refine(velocity, start, sigma, REFINE["steps"], eps, time=config.time)
    same(out["samples"], TinyFormat().process_out(expected), 2e-2)


def case_sizes_by_number_are_told_in_pixels_of_these_cells():
    _, refiner, vae, _ = tiny()
    changes = {"resolution": "by size", "width": 96, "height": 64, "steps": 1}
    out, width, height, *_ = SurfRefiner.execute(
        refiner, *prompts(), preview(), vae=vae, **REFINE | changes
    ).result
    assert (width, height) == (96, 64)
    assert nodes.VAEDecode().decode(vae, out)[0].shape == (4, 64, 96, 3)


def case_pictures_of_a_running_job_have_the_colours_of_the_video():
    model = tiny()[0]
    kind = latent_preview.Latent2RGBPreviewer
    latent_format = model.model.latent_format
    previewer = kind(latent_format.latent_rgb_factors, latent_format.latent_rgb_factors_bias)
    pixels = video()
    shown = previewer.decode_latent_to_preview(codec.encode(pixels))
    cells = resize(images(pixels)[:1].movedim(-1, 1), (16, 16), "area")[0].movedim(0, -1)
    got = torch.tensor(list(shown.getdata())).reshape(16, 16, 3) / 255
    same(got, cells, 0.01)


def case_a_file_from_the_hosts_loader_speaks_the_same_latents():
    """Whoever puts the file into models/diffusion_models sees the same video."""
    model, _, vae, latent = tiny()
    stock = comfy.sd.load_diffusion_model(str(WEIGHTS))
    made = [
        nodes.common_ksampler(m, 3, 2, 4.0, "euler", "simple", *prompts(), {"samples": x})[0]
        for m, x in ((model, latent["samples"]), (stock, latent["samples"]))
    ]
    same(made[0]["samples"], made[1]["samples"], 1e-4)
    assert nodes.VAEDecode().decode(vae, made[1])[0].shape == (4, 64, 64, 3)


def case_the_empty_latent_goes_through_the_hosts_sampler():
    model, _, vae, latent = tiny()
    out = nodes.common_ksampler(model, 3, 1, 4.0, "euler", "simple", *prompts(), latent)[0]
    assert out["samples"].shape == (1, CHANNELS, 4, 16, 16)
    assert latent["samples"].count_nonzero() == 0


def case_models_and_vae_can_be_loaded_again():
    """As newer hosts do for another GPU."""
    for patcher in (*tiny()[:2], tiny()[2].patcher):
        make, arguments = patcher.cached_patcher_init
        assert type(make(*arguments).model) is type(patcher.model)


def case_a_word_that_the_models_do_not_know_is_named():
    refused(lambda: SurfTinyPrompt.execute("a purple dog"), "Surf Tiny Prompt: ", "'purple'")
    refused(lambda: SurfTinyPrompt.execute("red, green, blue, yellow"), "at most 3", "got 4")


def case_decoded_frames_stay_as_they_are_when_decoded_again():
    """Newer hosts scale the frames in place: it must be their own copy."""
    vae, latent = tiny()[2], {"samples": latent_of(video()) + noise(1, CHANNELS, 4, 16, 16)}
    first = nodes.VAEDecode().decode(vae, latent)[0].clone()
    assert first.min() >= 0
    assert first.max() <= 1
    same(nodes.VAEDecode().decode(vae, latent)[0], first, 0)


if __name__ == "__main__":
    inside.report(RESULTS, dict(globals()))
